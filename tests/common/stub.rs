//! A server that is told what to say: one job, its events, and all that may go wrong on the way to a client; and a proxy that
//! cuts connections.
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tessera::{
    api::{
        self, ImageFormat, Job, JobEvent, JobSpec, JobState, Rect, Tile, WatchJobResponse,
        job_event::{self, Event},
        job_service_server::{JobService, JobServiceServer},
    },
    image_out::{self, Bits, Metadata, RawPixels, TiffOptions},
};
use tokio_stream::{Stream, StreamExt as _, wrappers::TcpListenerStream};
use tonic::{Code, Request, Response, Status, service::Routes};

/// Name of the stub's job.
pub(crate) const NAME: &str = "jobs/one";
const SIDE: u32 = 128;

/// A picture, and the job that makes it.
pub(crate) struct Made {
    width: u32,
    height: u32,
    bits: Bits,
    /// Samples in the machine's byte order.
    bytes: Vec<u8>,
    metadata: Metadata,
}

impl Made {
    pub(crate) fn new(width: u32, height: u32, bits: Bits) -> Self {
        let len = (width * height) as usize * bits.pixel_len();
        let bytes = (0..len).map(|i| ((i / 3) ^ (i >> 9) ^ (i % 251)) as u8).collect();
        let receipt = [("seed", 7.into()), ("device", "a stub".into())];
        let receipt = receipt.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let metadata = Metadata { description: "made by a stub".into(), created: None, receipt };
        Self { width, height, bits, bytes, metadata }
    }

    fn job(&self) -> Job {
        Job {
            name: NAME.into(),
            spec: Some(JobSpec {
                seed: 7,
                width: self.width,
                height: self.height,
                steps: 2,
                tile_size: SIDE,
                bits: 8 * self.bits.sample_len() as u32,
                ..JobSpec::default()
            }),
            state: JobState::Denoising.into(),
            tile_columns: self.width.div_ceil(SIDE),
            tile_rows: self.height.div_ceil(SIDE),
            ..Job::default()
        }
    }

    fn tile(&self, column: u32, row: u32) -> Tile {
        let (x, y) = (column * SIDE, row * SIDE);
        let (width, height) = (SIDE.min(self.width - x), SIDE.min(self.height - y));
        let pixel = self.bits.pixel_len();
        let mut data = Vec::new();
        for y in y..y + height {
            let start = (y * self.width + x) as usize * pixel;
            data.extend_from_slice(&self.bytes[start..][..width as usize * pixel]);
        }
        if cfg!(target_endian = "big") && self.bits == Bits::Sixteen {
            data.chunks_exact_mut(2).for_each(|sample| sample.reverse());
        }
        Tile {
            column,
            row,
            rect: Some(Rect { x, y, width, height }),
            format: ImageFormat::Raw.into(),
            crc32c: crc32c::crc32c(&data),
            data,
            level: 0,
        }
    }

    /// All events; the tiles from the middle outwards, as a viewport has them.
    pub(crate) fn events(&self) -> Vec<Event> {
        let job = self.job();
        let mut events = vec![
            Event::Queued(job_event::Queued { job: Some(job.clone()) }),
            Event::Started(job_event::Started { device: "a stub".into() }),
            Event::Step(job_event::Step { step: 1, of: 2, sigma: 1.0, estimate: None }),
            Event::Step(job_event::Step { step: 2, of: 2, sigma: 0.0, estimate: None }),
        ];
        let (columns, rows) = (job.tile_columns, job.tile_rows);
        let mut places: Vec<_> =
            (0..rows).flat_map(|row| (0..columns).map(move |column| (column, row))).collect();
        places.sort_by_key(|&(column, row)| column.abs_diff(columns / 2) + row.abs_diff(rows / 2));
        events.extend(places.into_iter().map(|(x, y)| Event::Tile(self.tile(x, y))));
        events.push(Event::Finished(job_event::Finished {
            receipt: serde_json::to_string(&self.metadata.receipt).unwrap(),
            description: self.metadata.description.clone(),
        }));
        events
    }

    /// The file that writing the whole picture gives.
    pub(crate) fn file(&self, name: &str) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        let source = RawPixels::new(&self.bytes, self.width, self.height, self.bits).unwrap();
        if name.ends_with(".png") {
            image_out::write_png(&path, &source, &self.metadata).unwrap();
        } else {
            image_out::write_tiff(&path, &source, &self.metadata, TiffOptions::default()).unwrap();
        }
        fs::read(path).unwrap()
    }
}

/// A server with one job.
pub(crate) struct Stub {
    pub(crate) job: Job,
    pub(crate) events: Vec<JobEvent>,
    /// Events of a stream before it is cut, each time in another way.
    pub(crate) cut: usize,
    /// Times that GetTile's answer is damaged, too.
    pub(crate) damaged: AtomicUsize,
    /// What every call of WatchJob gets instead of a stream.
    pub(crate) refusal: Option<Code>,
    /// After the last event, the stream stays open.
    pub(crate) stays: bool,
    /// `after_sequence` of every WatchJob.
    pub(crate) watches: Mutex<Vec<u64>>,
    pub(crate) tiles_asked: AtomicUsize,
}

impl Stub {
    pub(crate) fn new(made: &Made, events: Vec<Event>) -> Self {
        let events = (1..).zip(events);
        let events =
            events.map(|(sequence, event)| JobEvent { sequence, time: None, event: Some(event) });
        Self {
            job: made.job(),
            events: events.collect(),
            cut: usize::MAX,
            damaged: AtomicUsize::new(0),
            refusal: None,
            stays: false,
            watches: Mutex::default(),
            tiles_asked: AtomicUsize::new(0),
        }
    }

    /// Damages the samples of the first tile among the events.
    pub(crate) fn damage(&mut self) {
        let tile = self.events.iter_mut().find_map(|event| match &mut event.event {
            Some(Event::Tile(tile)) => Some(tile),
            _ => None,
        });
        tile.unwrap().data[5] ^= 1;
    }

    /// Serves until the test ends; gives the address.
    pub(crate) async fn serve(self: Arc<Self>) -> SocketAddr {
        serve(Routes::new(JobServiceServer::from_arc(self))).await
    }

    /// Serves under `path` alone, as behind a proxy.
    pub(crate) async fn serve_under(self: Arc<Self>, path: &str) -> SocketAddr {
        let routes = Routes::new(JobServiceServer::from_arc(self)).into_axum_router();
        serve(axum::Router::new().nest(path, routes).into()).await
    }
}

async fn serve(routes: Routes) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_routes(routes)
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    address
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl JobService for Stub {
    type WatchJobStream = Answers<WatchJobResponse>;
    type GenerateStream = Answers<api::GenerateResponse>;

    async fn watch_job(
        &self,
        request: Request<api::WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let request = request.into_inner();
        let nth = {
            let mut watches = self.watches.lock().unwrap();
            watches.push(request.after_sequence);
            watches.len()
        };
        if let Some(code) = self.refusal {
            return Err(Status::new(code, "refused"));
        }
        let after = request.after_sequence as usize;
        let rest = self.events.get(after..).unwrap_or_default();
        let is_cut = rest.len() > self.cut;
        let mut answers: Vec<Result<WatchJobResponse, Status>> = rest
            .iter()
            .take(self.cut)
            .map(|event| Ok(WatchJobResponse { event: Some(event.clone()) }))
            .collect();
        match nth % 3 {
            _ if !is_cut => {}
            0 => answers.push(Err(Status::unavailable("cut"))),
            // Ends as if all were said.
            1 => {}
            // Repeats itself before it breaks off.
            _ => {
                let again = answers.last().cloned();
                answers.extend(again);
                answers.push(Err(Status::unavailable("cut")));
            }
        }
        let answers = tokio_stream::iter(answers);
        if self.stays {
            return Ok(Response::new(Box::pin(answers.chain(tokio_stream::pending()))));
        }
        Ok(Response::new(Box::pin(answers)))
    }

    async fn get_job(
        &self,
        request: Request<api::GetJobRequest>,
    ) -> Result<Response<api::GetJobResponse>, Status> {
        if request.into_inner().name != NAME {
            return Err(Status::not_found("there is no such job"));
        }
        let mut job = self.job.clone();
        job.sequence = self.events.len() as u64;
        job.state = match self.events.last().and_then(|event| event.event.as_ref()) {
            Some(Event::Finished(_)) => JobState::Finished.into(),
            _ => job.state,
        };
        Ok(Response::new(api::GetJobResponse { job: Some(job) }))
    }

    async fn get_tile(
        &self,
        request: Request<api::GetTileRequest>,
    ) -> Result<Response<api::GetTileResponse>, Status> {
        self.tiles_asked.fetch_add(1, Ordering::SeqCst);
        let request = request.into_inner();
        let tiles = self.events.iter().filter_map(|event| match &event.event {
            Some(Event::Tile(tile)) => Some(tile),
            _ => None,
        });
        let mut tiles = tiles.filter(|t| (t.column, t.row) == (request.column, request.row));
        let mut tile = tiles.next().unwrap().clone();
        // The damage of the event is undone.
        if crc32c::crc32c(&tile.data) != tile.crc32c {
            tile.data[5] ^= 1;
        }
        if self.damaged.load(Ordering::SeqCst) > 0 {
            self.damaged.fetch_sub(1, Ordering::SeqCst);
            tile.data.pop();
        }
        Ok(Response::new(api::GetTileResponse { tile: Some(tile) }))
    }

    async fn create_job(
        &self,
        _: Request<api::CreateJobRequest>,
    ) -> Result<Response<api::CreateJobResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn edit_picture(
        &self,
        _: Request<tonic::Streaming<api::EditPictureRequest>>,
    ) -> Result<Response<api::EditPictureResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_jobs(
        &self,
        _: Request<api::ListJobsRequest>,
    ) -> Result<Response<api::ListJobsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_damaged_jobs(
        &self,
        _: Request<api::ListDamagedJobsRequest>,
    ) -> Result<Response<api::ListDamagedJobsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn cancel_job(
        &self,
        _: Request<api::CancelJobRequest>,
    ) -> Result<Response<api::CancelJobResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn delete_job(
        &self,
        _: Request<api::DeleteJobRequest>,
    ) -> Result<Response<api::DeleteJobResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn generate(
        &self,
        _: Request<api::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_preview(
        &self,
        _: Request<api::GetPreviewRequest>,
    ) -> Result<Response<api::GetPreviewResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn quote_job(
        &self,
        _: Request<api::QuoteJobRequest>,
    ) -> Result<Response<api::QuoteJobResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn set_viewport(
        &self,
        _: Request<api::SetViewportRequest>,
    ) -> Result<Response<api::SetViewportResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Hands bytes on between clients and a server that may change, and cuts connections.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) target: Arc<Mutex<SocketAddr>>,
    pub(crate) connections: Arc<AtomicUsize>,
}

impl Proxy {
    /// `most`: bytes from the server after which a connection is cut.
    pub(crate) fn start(target: SocketAddr, most: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let target = Arc::new(Mutex::new(target));
        let connections = Arc::new(AtomicUsize::new(0));
        let (to, count) = (target.clone(), connections.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let address = *to.lock().unwrap();
                // While the server is away the client's connection breaks at once.
                let Ok(server) = TcpStream::connect(address) else { continue };
                let (from_client, to_server) =
                    (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || pass(from_client, to_server, usize::MAX));
                std::thread::spawn(move || pass(server, client, most));
            }
        });
        Self { address, target, connections }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, most: usize) {
    let mut buffer = vec![0; 16 << 10];
    let mut passed = 0;
    while passed < most {
        match from.read(&mut buffer) {
            Ok(n) if n > 0 && to.write_all(&buffer[..n]).is_ok() => passed += n,
            _ => break,
        }
    }
    // The other end may have gone first.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
