//! The gRPC services of `tessera.v1`.

use std::sync::Arc;

use prost::Name;
use tokio_stream::{Empty, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::{
    api::{
        self, edit_picture_request::Part, job_service_server::JobService,
        model_service_server::ModelService,
    },
    error::{Error, Result},
    jobs::{Job, Jobs, Order},
    service::{
        access::Caller,
        blocking::blocking,
        bodies,
        convert::{self, refused},
        encode::{Content, Encoder},
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

/// True for the form of job ids. A page may follow a job that has been deleted since.
fn is_job_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Failure of EditPicture.
enum EditFailure {
    Error(Error),
    /// That of the request's stream.
    Status(Status),
}

impl From<Error> for EditFailure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl EditFailure {
    fn into_status(self) -> Status {
        match self {
            Self::Error(error) => refused::<api::EditPictureRequest>(error),
            Self::Status(status) => status,
        }
    }
}

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

    /// Runs `work` for the request `M` on a blocking thread.
    async fn blocking<M: Name, T: Send + 'static>(
        &self,
        work: impl FnOnce(&Jobs) -> Result<T> + Send + 'static,
    ) -> Result<T, Status> {
        let jobs = self.jobs.clone();
        blocking(move || work(&jobs)).await.map_err(refused::<M>)
    }

    /// The job that `name` names, if the caller of `request` may see and change it.
    fn find<M: Name>(&self, request: &Request<M>, name: &str) -> Result<Arc<Job>, Status> {
        let caller = Caller::of(request.extensions());
        convert::job_id(name).and_then(|id| caller.job(&self.jobs, id)).map_err(refused::<M>)
    }

    fn message(&self, job: &Job) -> Option<api::Job> {
        Some(convert::job_message(job, self.jobs.models()))
    }

    /// Creates the job of `request`, a part of the request `M`.
    async fn create<M: Name>(
        &self,
        caller: Caller,
        request: api::CreateJobRequest,
    ) -> Result<Arc<Job>, Status> {
        self.blocking::<M, _>(move |jobs| {
            let request = convert::request(request, caller.owner(), jobs.models())?;
            caller.check_limits(&request.spec, jobs)?;
            convert::create(jobs, request)
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

#[async_trait]
impl JobService for GrpcService {
    // Their bodies are attached: see `frames`.
    type WatchJobStream = Empty<Result<api::WatchJobResponse, Status>>;
    type GenerateStream = Empty<Result<api::GenerateResponse, Status>>;

    async fn create_job(
        &self,
        request: Request<api::CreateJobRequest>,
    ) -> Answer<api::CreateJobResponse> {
        let caller = Caller::of(request.extensions());
        let job = self.create::<api::CreateJobRequest>(caller, request.into_inner()).await?;
        Ok(Response::new(api::CreateJobResponse { job: self.message(&job) }))
    }

    async fn edit_picture(
        &self,
        request: Request<Streaming<api::EditPictureRequest>>,
    ) -> Answer<api::EditPictureResponse> {
        let refused = refused::<api::EditPictureRequest>;
        let receiver = self.uploads.begin(request.extensions()).map_err(refused)?;
        let mut parts = request.into_inner();
        let first = receiver.next(0, parts.message()).await.map_err(refused)??;
        let Some(Part::Job(order)) = first.and_then(|message| message.part) else {
            return Err(refused(Error::missing("job", "an order in the first message")));
        };
        // A broken stream is an error of the data, so a partial picture is never accepted.
        let data = parts.map(|message| match message.map(|message| message.part) {
            Ok(Some(Part::Data(data))) => Ok(data),
            Ok(_) => {
                let error = Error::missing("data", "bytes in every message after the first");
                Err(EditFailure::Error(error))
            }
            Err(status) => Err(EditFailure::Status(status)),
        });
        let job = receiver.edit(order, data).await.map_err(EditFailure::into_status)?;
        Ok(Response::new(api::EditPictureResponse { job: self.message(&job) }))
    }

    async fn get_job(&self, request: Request<api::GetJobRequest>) -> Answer<api::GetJobResponse> {
        let job = self.find(&request, &request.get_ref().name)?;
        Ok(Response::new(api::GetJobResponse { job: self.message(&job) }))
    }

    async fn list_jobs(
        &self,
        request: Request<api::ListJobsRequest>,
    ) -> Answer<api::ListJobsResponse> {
        let caller = Caller::of(request.extensions());
        let api::ListJobsRequest { page_size, page_token, order_by } = request.into_inner();
        let size = match page_size as usize {
            0 => PAGE,
            size => size.min(MAX_PAGE),
        };
        if !(page_token.is_empty() || is_job_id(&page_token)) {
            let expected = "next_page_token of a page before";
            let error = Error::invalid("page_token", format!("{page_token:?}"), expected);
            return Err(refused::<api::ListJobsRequest>(error));
        }
        let order = match order_by.as_str() {
            "" | "create_time" => Order::OldestFirst,
            "create_time desc" => Order::NewestFirst,
            _ => {
                let expected = "create_time or create_time desc";
                let error = Error::invalid("order_by", format!("{order_by:?}"), expected);
                return Err(refused::<api::ListJobsRequest>(error));
            }
        };
        let jobs = self.jobs.list(caller.scope(), order, &page_token, size);
        let next_page_token = match jobs.last() {
            Some(last) if jobs.len() == size => last.id.clone(),
            _ => String::new(),
        };
        let jobs = jobs.iter().filter_map(|job| self.message(job)).collect();
        Ok(Response::new(api::ListJobsResponse { jobs, next_page_token }))
    }

    async fn list_damaged_jobs(
        &self,
        request: Request<api::ListDamagedJobsRequest>,
    ) -> Answer<api::ListDamagedJobsResponse> {
        // Their owners are unknown.
        let sees_all = Caller::of(request.extensions()).scope().is_none();
        let damaged = self.jobs.damaged().iter().filter(|_| sees_all);
        let jobs = damaged.map(|damaged| api::DamagedJob {
            directory: damaged.id.clone(),
            reason: damaged.reason.clone(),
        });
        Ok(Response::new(api::ListDamagedJobsResponse { jobs: jobs.collect() }))
    }

    async fn cancel_job(
        &self,
        request: Request<api::CancelJobRequest>,
    ) -> Answer<api::CancelJobResponse> {
        let job = self.find(&request, &request.get_ref().name)?;
        let cancelled = move |jobs: &Jobs| jobs.cancel(&job.id);
        let job = self.blocking::<api::CancelJobRequest, _>(cancelled).await?;
        Ok(Response::new(api::CancelJobResponse { job: self.message(&job) }))
    }

    async fn delete_job(
        &self,
        request: Request<api::DeleteJobRequest>,
    ) -> Answer<api::DeleteJobResponse> {
        let job = self.find(&request, &request.get_ref().name)?;
        self.blocking::<api::DeleteJobRequest, _>(move |jobs| jobs.delete(&job.id)).await?;
        Ok(Response::new(api::DeleteJobResponse {}))
    }

    async fn watch_job(
        &self,
        request: Request<api::WatchJobRequest>,
    ) -> Answer<Self::WatchJobStream> {
        let job = self.find(&request, &request.get_ref().name)?;
        let refused = refused::<api::WatchJobRequest>;
        let api::WatchJobRequest { after_sequence, options, .. } = request.into_inner();
        let view = View::try_from(options).map_err(refused)?;
        let place = self.encoder.stream().map_err(refused)?;
        let watcher = Watcher { after: after_sequence, ..self.watcher(job, view) };
        Ok(bodies::respond(tokio_stream::empty(), watcher.start(place)))
    }

    async fn generate(
        &self,
        request: Request<api::GenerateRequest>,
    ) -> Answer<Self::GenerateStream> {
        let caller = Caller::of(request.extensions());
        let api::GenerateRequest { job, options, detach } = request.into_inner();
        let refused = refused::<api::GenerateRequest>;
        let view = View::try_from(options).map_err(refused)?;
        let place = self.encoder.stream().map_err(refused)?;
        let job = job.unwrap_or_default();
        let job = self.create::<api::GenerateRequest>(caller, job).await?;
        let watcher = Watcher { cancels: !detach, ..self.watcher(job, view) };
        Ok(bodies::respond(tokio_stream::empty(), watcher.start(place)))
    }

    async fn get_tile(
        &self,
        request: Request<api::GetTileRequest>,
    ) -> Answer<api::GetTileResponse> {
        let job = self.find(&request, &request.get_ref().name)?;
        let refused = refused::<api::GetTileRequest>;
        let api::GetTileRequest { column, row, format, .. } = request.into_inner();
        let (index, _) = job.tile(column as usize, row as usize).map_err(refused)?;
        let format = stream::format(format, "format").map_err(refused)?;
        let place = self.encoder.stream().map_err(refused)?;
        let content = Content::Tile { index, format };
        let crc32c = self.encoder.load(&job, content).await.map_err(refused)?.crc32c;
        let tile = stream::tile_message(&job, index, format, crc32c);
        Ok(stream::unary(place, self.encoder.clone(), job, content, tile))
    }

    async fn get_preview(
        &self,
        request: Request<api::GetPreviewRequest>,
    ) -> Answer<api::GetPreviewResponse> {
        let job = self.find(&request, &request.get_ref().name)?;
        job.want_previews();
        let refused = refused::<api::GetPreviewRequest>;
        let level = job.newest_preview().map_err(refused)?;
        let place = self.encoder.stream().map_err(refused)?;
        let content = Content::Preview { level };
        let loaded = self.encoder.load(&job, content).await.map_err(refused)?;
        let preview = stream::preview_message(level, &loaded).map_err(refused)?;
        drop(loaded);
        Ok(stream::unary(place, self.encoder.clone(), job, content, preview))
    }

    async fn quote_job(
        &self,
        request: Request<api::QuoteJobRequest>,
    ) -> Answer<api::QuoteJobResponse> {
        let asked = request.into_inner().spec.unwrap_or_default();
        let quoted = move |jobs: &Jobs| {
            let model = convert::model(&asked.model, jobs.models());
            let model = model.map_err(|error| error.with_field("model"))?.clone();
            let (plan, quote) = convert::quote(jobs, &convert::spec(&asked, &model)?, &model)?;
            Ok((model, plan, quote))
        };
        let (model, plan, quote) = self.blocking::<api::QuoteJobRequest, _>(quoted).await?;
        let tiles = plan.tiling.tiles.len();
        Ok(Response::new(api::QuoteJobResponse {
            quote: Some(convert::quote_message(&quote, tiles, &plan.notices)),
            spec: Some(convert::spec_message(&plan.spec, &model, self.jobs.models())),
        }))
    }

    async fn set_viewport(
        &self,
        request: Request<api::SetViewportRequest>,
    ) -> Answer<api::SetViewportResponse> {
        let job = self.find(&request, &request.get_ref().name)?;
        let viewport = request.into_inner().viewport.map(convert::rect);
        let set = job.clone();
        blocking(move || set.set_viewport(viewport))
            .await
            .map_err(refused::<api::SetViewportRequest>)?;
        Ok(Response::new(api::SetViewportResponse { job: self.message(&job) }))
    }
}

#[async_trait]
impl ModelService for GrpcService {
    async fn list_models(
        &self,
        request: Request<api::ListModelsRequest>,
    ) -> Answer<api::ListModelsResponse> {
        let api::ListModelsRequest { page_size, page_token } = request.into_inner();
        let models = self.jobs.models();
        let count = models.all().len();
        let size = if page_size == 0 { count } else { page_size as usize };
        let first = match page_token.as_str() {
            "" => Some(0),
            token => token.parse().ok().filter(|first| (1..count).contains(first)),
        };
        let first = first.ok_or_else(|| {
            let expected = "next_page_token of a page before";
            let error = Error::invalid("page_token", format!("{page_token:?}"), expected);
            refused::<api::ListModelsRequest>(error)
        })?;
        let end = first.saturating_add(size).min(count);
        let next_page_token = if end < count { end.to_string() } else { String::new() };
        let page = models.all().take(end).skip(first);
        let models = page.map(|model| convert::model_message(model, models)).collect();
        Ok(Response::new(api::ListModelsResponse { models, next_page_token }))
    }

    async fn get_model(
        &self,
        request: Request<api::GetModelRequest>,
    ) -> Answer<api::GetModelResponse> {
        let name = &request.get_ref().name;
        if name.is_empty() {
            let error = Error::missing("name", "models/ID");
            return Err(refused::<api::GetModelRequest>(error));
        }
        let models = self.jobs.models();
        let model = convert::model(name, models).map_err(refused::<api::GetModelRequest>)?;
        let model = Some(convert::model_message(model, models));
        Ok(Response::new(api::GetModelResponse { model }))
    }
}
