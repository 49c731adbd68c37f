//! The gRPC services of `tessera.v1`.

use std::sync::Arc;

use tokio_stream::{Empty, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::{
    api::{
        self, edit_picture_request::Part, job_service_server::JobService,
        model_service_server::ModelService,
    },
    error::{Error, Result},
    jobs::{Job, Jobs},
    service::{
        access::{self, Client},
        blocking::blocking,
        convert,
        encode::{Content, Encoder},
        frames,
        stream::{self, View, Watcher},
        upload::Uploads,
    },
};

/// Largest page of jobs.
const MAX_PAGE: usize = 1000;
/// Default page of jobs.
const PAGE: usize = 100;

/// Implementation of the gRPC services.
pub(super) struct GrpcService {
    jobs: Jobs,
    encoder: Arc<Encoder>,
    uploads: Uploads,
    stopping: CancellationToken,
}

type Answer<T> = Result<Response<T>, Status>;

impl GrpcService {
    /// Creates the services; streams end when `stopping` is cancelled.
    pub(super) fn new(
        jobs: Jobs,
        encoder: Arc<Encoder>,
        uploads: Uploads,
        stopping: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self { jobs, encoder, uploads, stopping })
    }

    /// Runs `work` on a blocking thread.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Jobs) -> Result<T> + Send + 'static,
    ) -> Result<T, Status> {
        let jobs = self.jobs.clone();
        blocking(move || work(&jobs)).await.map_err(to_status)
    }

    fn find(&self, name: &str) -> Result<Arc<Job>, Status> {
        convert::job_id(name)
            .and_then(|id| self.jobs.get(id))
            .map_err(|error| convert::status(&error))
    }

    fn message(&self, job: &Job) -> Option<api::Job> {
        Some(convert::job_message(job))
    }

    async fn create(
        &self,
        client: Option<Client>,
        request: api::CreateJobRequest,
    ) -> Result<Arc<Job>, Status> {
        self.blocking(move |jobs| {
            let owner = client.as_ref().map(|client| client.name.clone()).unwrap_or_default();
            let request = convert::request(request, owner, jobs.models())?;
            if let Some(client) = client {
                access::check_limits(&client, &request.spec, jobs)?;
            }
            jobs.create(request)
        })
        .await
    }

    fn watcher(&self, job: Arc<Job>, view: View) -> Watcher {
        Watcher {
            jobs: self.jobs.clone(),
            job,
            encoder: self.encoder.clone(),
            view,
            after: 0,
            cancels: false,
            stopping: self.stopping.clone(),
        }
    }
}

fn to_status(error: Error) -> Status {
    convert::status(&error)
}

#[async_trait]
impl JobService for GrpcService {
    // Their bodies are attached: see `frames`.
    type WatchJobStream = Empty<Result<api::WatchJobResponse, Status>>;
    type GenerateStream = Empty<Result<api::GenerateResponse, Status>>;

    async fn create_job(
        &self,
        request: Request<api::CreateJobRequest>,
    ) -> Answer<api::CreateJobResponse> {
        let client = request.extensions().get::<Client>().cloned();
        let job = self.create(client, request.into_inner()).await?;
        Ok(Response::new(api::CreateJobResponse { job: self.message(&job) }))
    }

    async fn edit_picture(
        &self,
        request: Request<Streaming<api::EditPictureRequest>>,
    ) -> Answer<api::EditPictureResponse> {
        let receiver = self.uploads.begin(request.extensions()).map_err(to_status)?;
        let mut parts = request.into_inner();
        let first = receiver.next(0, parts.message()).await.map_err(to_status)??;
        let Some(Part::Job(order)) = first.and_then(|message| message.part) else {
            return Err(to_status(Error::missing("job", "an order in the first message")));
        };
        // A broken stream is an error of the data, so a partial picture is never accepted.
        let data = parts.map(|message| match message.map(|message| message.part) {
            Ok(Some(Part::Data(data))) => Ok(data),
            Ok(_) => Err(Error::missing("data", "bytes in every message after the first")),
            Err(status) => Err(Error::cancelled("the upload").with_source(status)),
        });
        let job = receiver.edit(order, data).await.map_err(to_status)?;
        Ok(Response::new(api::EditPictureResponse { job: self.message(&job) }))
    }

    async fn get_job(&self, request: Request<api::GetJobRequest>) -> Answer<api::GetJobResponse> {
        let job = self.find(&request.get_ref().name)?;
        Ok(Response::new(api::GetJobResponse { job: self.message(&job) }))
    }

    async fn list_jobs(
        &self,
        request: Request<api::ListJobsRequest>,
    ) -> Answer<api::ListJobsResponse> {
        let api::ListJobsRequest { page_size, page_token } = request.into_inner();
        let size = match page_size as usize {
            0 => PAGE,
            size => size.min(MAX_PAGE),
        };
        let jobs = self.jobs.list(&page_token, size);
        let next_page_token = match jobs.last() {
            Some(last) if jobs.len() == size => last.id.clone(),
            _ => String::new(),
        };
        let jobs = jobs.iter().filter_map(|job| self.message(job)).collect();
        Ok(Response::new(api::ListJobsResponse { jobs, next_page_token }))
    }

    async fn cancel_job(
        &self,
        request: Request<api::CancelJobRequest>,
    ) -> Answer<api::CancelJobResponse> {
        let name = request.into_inner().name;
        let job = self.blocking(move |jobs| jobs.cancel(convert::job_id(&name)?)).await?;
        Ok(Response::new(api::CancelJobResponse { job: self.message(&job) }))
    }

    async fn delete_job(
        &self,
        request: Request<api::DeleteJobRequest>,
    ) -> Answer<api::DeleteJobResponse> {
        let name = request.into_inner().name;
        self.blocking(move |jobs| jobs.delete(convert::job_id(&name)?)).await?;
        Ok(Response::new(api::DeleteJobResponse {}))
    }

    async fn watch_job(
        &self,
        request: Request<api::WatchJobRequest>,
    ) -> Answer<Self::WatchJobStream> {
        let api::WatchJobRequest { name, after_sequence, options } = request.into_inner();
        let job = self.find(&name)?;
        let view = View::try_from(options).map_err(to_status)?;
        let place = self.encoder.stream().map_err(to_status)?;
        let watcher = Watcher { after: after_sequence, ..self.watcher(job, view) };
        Ok(frames::respond(tokio_stream::empty(), watcher.start(place)))
    }

    async fn generate(
        &self,
        request: Request<api::GenerateRequest>,
    ) -> Answer<Self::GenerateStream> {
        let client = request.extensions().get::<Client>().cloned();
        let api::GenerateRequest { job, options, detach } = request.into_inner();
        let view = View::try_from(options).map_err(to_status)?;
        let place = self.encoder.stream().map_err(to_status)?;
        let job = self.create(client, job.unwrap_or_default()).await?;
        let watcher = Watcher { cancels: !detach, ..self.watcher(job, view) };
        Ok(frames::respond(tokio_stream::empty(), watcher.start(place)))
    }

    async fn get_tile(
        &self,
        request: Request<api::GetTileRequest>,
    ) -> Answer<api::GetTileResponse> {
        let api::GetTileRequest { name, column, row, format } = request.into_inner();
        let job = self.find(&name)?;
        let (index, _) = job.tile(column as usize, row as usize).map_err(to_status)?;
        let format = stream::format(format, "format").map_err(to_status)?;
        let place = self.encoder.stream().map_err(to_status)?;
        let content = Content::Tile { index, format };
        let crc32c = self.encoder.load(&job, content).await.map_err(to_status)?.crc32c;
        let tile = stream::tile_message(&job, index, format, crc32c);
        Ok(stream::unary(place, self.encoder.clone(), job, content, tile))
    }

    async fn get_preview(
        &self,
        request: Request<api::GetPreviewRequest>,
    ) -> Answer<api::GetPreviewResponse> {
        let job = self.find(&request.get_ref().name)?;
        job.want_previews();
        let level = job.newest_preview().map_err(to_status)?;
        let place = self.encoder.stream().map_err(to_status)?;
        let content = Content::Preview { level };
        let loaded = self.encoder.load(&job, content).await.map_err(to_status)?;
        let preview = stream::preview_message(level, &loaded).map_err(to_status)?;
        drop(loaded);
        Ok(stream::unary(place, self.encoder.clone(), job, content, preview))
    }

    async fn quote_job(
        &self,
        request: Request<api::QuoteJobRequest>,
    ) -> Answer<api::QuoteJobResponse> {
        let asked = request.into_inner().spec.unwrap_or_default();
        let model = convert::model(&asked.model, self.jobs.models()).map_err(to_status)?.clone();
        let spec = convert::spec(&asked, &model).map_err(to_status)?;
        let of = model.clone();
        let (plan, quote) = self.blocking(move |jobs| jobs.quote(&spec, &of)).await?;
        let tiles = plan.tiling.tiles.len();
        Ok(Response::new(api::QuoteJobResponse {
            quote: Some(convert::quote_message(&quote, tiles, &plan.notices)),
            spec: Some(convert::spec_message(&plan.spec, &model.arch)),
        }))
    }

    async fn set_viewport(
        &self,
        request: Request<api::SetViewportRequest>,
    ) -> Answer<api::SetViewportResponse> {
        let api::SetViewportRequest { name, viewport } = request.into_inner();
        let job = self.find(&name)?;
        job.set_viewport(viewport.map(convert::rect)).map_err(to_status)?;
        Ok(Response::new(api::SetViewportResponse { job: self.message(&job) }))
    }
}

#[async_trait]
impl ModelService for GrpcService {
    async fn list_models(
        &self,
        _: Request<api::ListModelsRequest>,
    ) -> Answer<api::ListModelsResponse> {
        let models = self.jobs.models().all().iter();
        let models = models.map(|model| convert::model_message(model)).collect();
        Ok(Response::new(api::ListModelsResponse { models, next_page_token: String::new() }))
    }

    async fn get_model(
        &self,
        request: Request<api::GetModelRequest>,
    ) -> Answer<api::GetModelResponse> {
        let name = &request.get_ref().name;
        if name.is_empty() {
            return Err(to_status(Error::missing("name", "models/ID")));
        }
        let model = convert::model(name, self.jobs.models()).map_err(to_status)?;
        Ok(Response::new(api::GetModelResponse { model: Some(convert::model_message(model)) }))
    }
}
