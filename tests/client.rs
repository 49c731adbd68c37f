//! The client's promises: whatever becomes of the connection, a fetched file is the file, or there is none.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a failed test panics")]

#[path = "common/server.rs"]
mod server;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    pin::Pin,
    process::{Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use server::{Server, model_path};
use tessera::{
    api::{
        self, ImageFormat, Job, JobEvent, JobSpec, JobState, Rect, StreamOptions, Tile,
        WatchJobResponse,
        job_event::{self, Event},
        job_service_server::{JobService, JobServiceServer},
    },
    client::{Client, Retry, Settings},
    error::{Error, Kind},
    image_out::{self, Bits, CLASSIC_LIMIT, Metadata, RawPixels},
};
use tokio_stream::{Stream, StreamExt as _, wrappers::TcpListenerStream};
use tonic::{Code, Request, Response, Status};

const NAME: &str = "jobs/one";
const SIDE: u32 = 128;

/// A picture, and the job that makes it.
struct Made {
    width: u32,
    height: u32,
    bits: Bits,
    /// Samples in the machine's byte order.
    bytes: Vec<u8>,
    metadata: Metadata,
}

impl Made {
    fn new(width: u32, height: u32, bits: Bits) -> Self {
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
    fn events(&self) -> Vec<Event> {
        let job = self.job();
        let mut events = vec![
            Event::Queued(job_event::Queued { job: Some(job.clone()) }),
            Event::Started(job_event::Started { device: "a stub".into() }),
            Event::Step(job_event::Step { step: 1, of: 2, sigma: 1.0 }),
            Event::Step(job_event::Step { step: 2, of: 2, sigma: 0.0 }),
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
    fn file(&self, name: &str) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        let source = RawPixels::new(&self.bytes, self.width, self.height, self.bits).unwrap();
        if name.ends_with(".png") {
            image_out::write_png(&path, &source, &self.metadata).unwrap();
        } else {
            image_out::write_tiff(&path, &source, &self.metadata, CLASSIC_LIMIT).unwrap();
        }
        fs::read(path).unwrap()
    }
}

/// A server with one job.
struct Stub {
    job: Job,
    events: Vec<JobEvent>,
    /// Events of a stream before it is cut, each time in another way.
    cut: usize,
    /// Times that GetTile's answer is damaged, too.
    damaged: AtomicUsize,
    /// What every call of WatchJob gets instead of a stream.
    refusal: Option<Code>,
    /// After the last event, the stream stays open.
    stays: bool,
    /// `after_sequence` of every WatchJob.
    watches: Mutex<Vec<u64>>,
    tiles_asked: AtomicUsize,
}

impl Stub {
    fn new(made: &Made, events: Vec<Event>) -> Self {
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
    fn damage(&mut self) {
        let tile = self.events.iter_mut().find_map(|event| match &mut event.event {
            Some(Event::Tile(tile)) => Some(tile),
            _ => None,
        });
        tile.unwrap().data[5] ^= 1;
    }

    /// Serves until the test ends; gives the address.
    async fn serve(self: Arc<Self>) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = JobServiceServer::from_arc(self);
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        address
    }
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

    async fn list_jobs(
        &self,
        _: Request<api::ListJobsRequest>,
    ) -> Result<Response<api::ListJobsResponse>, Status> {
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
struct Proxy {
    address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
    connections: Arc<AtomicUsize>,
}

impl Proxy {
    /// `most`: bytes from the server after which a connection is cut.
    fn start(target: SocketAddr, most: usize) -> Self {
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

    fn url(&self) -> String {
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

async fn client(address: SocketAddr) -> Client {
    let retry = Retry { first: Duration::from_millis(2), most: Duration::from_millis(50) };
    let settings = Settings { retry, ..Settings::new(format!("http://{address}")) };
    Client::connect(&settings).await.unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Fetches what must fail; gives the error. Nothing is left, and a file that was there stays.
async fn fails(stub: Arc<Stub>, name: &str, out: &str) -> Error {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(out);
    fs::write(&path, "before").unwrap();
    let client = client(stub.serve().await).await;
    let mut seen = |_: &JobEvent| {};
    let work = client.fetch(name, &path, None, &mut seen);
    let ended = tokio::time::timeout(Duration::from_secs(20), work).await;
    let error = ended.unwrap_or_else(|_| panic!("{name} is not given up")).unwrap_err();
    assert_eq!(names(dir.path()), [out], "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"before", "{error}");
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_cut_and_a_damaged_tile_end_with_the_same_bytes() {
    for (bits, out) in [(Bits::Eight, "a.tiff"), (Bits::Sixteen, "a.tif"), (Bits::Sixteen, "a.png")]
    {
        let made = Made::new(700, 520, bits);
        let mut stub = Stub::new(&made, made.events());
        stub.cut = 3;
        stub.damage();
        let stub = Arc::new(stub);
        let client = client(stub.clone().serve().await).await;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(out);
        let mut seen = Vec::new();
        client
            .fetch("one", &path, None, &mut |event: &JobEvent| seen.push(event.sequence))
            .await
            .unwrap();
        assert!(fs::read(&path).unwrap() == made.file(out), "{out} differs");
        assert_eq!(names(dir.path()), [out]);
        // Every event once and in order; every stream where the one before was cut.
        let count = stub.events.len() as u64;
        assert_eq!(seen, (1..=count).collect::<Vec<_>>());
        let watches = stub.watches.lock().unwrap().clone();
        assert_eq!(watches, (0..count).step_by(3).collect::<Vec<_>>());
        assert_eq!(stub.tiles_asked.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_in_the_middle_of_a_tile_end_with_the_same_bytes() {
    let made = Made::new(700, 520, Bits::Sixteen);
    let stub = Arc::new(Stub::new(&made, made.events()));
    // Two tiles and a half.
    let proxy = Proxy::start(stub.clone().serve().await, 250_000);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tiff");
    let mut seen = Vec::new();
    let client = client(proxy.address).await;
    client
        .fetch(NAME, &path, None, &mut |event: &JobEvent| seen.push(event.sequence))
        .await
        .unwrap();
    assert!(fs::read(&path).unwrap() == made.file("a.tiff"));
    assert_eq!(seen, (1..=stub.events.len() as u64).collect::<Vec<_>>());
    assert!(proxy.connections.load(Ordering::SeqCst) > 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_get_better_is_given_up_at_once() {
    let made = Made::new(200, 130, Bits::Eight);
    let stub = || Stub::new(&made, made.events());

    let error = fails(Arc::new(stub()), "jobs/other", "a.tiff").await;
    assert_eq!(error.kind(), Kind::NotFound);
    for (code, kind) in [
        (Code::NotFound, Kind::NotFound),
        (Code::Unauthenticated, Kind::Unauthenticated),
        (Code::PermissionDenied, Kind::Unauthenticated),
        (Code::InvalidArgument, Kind::InvalidArgument),
        (Code::Internal, Kind::Internal),
    ] {
        let refusing = Arc::new(Stub { refusal: Some(code), ..stub() });
        let error = fails(refusing.clone(), NAME, "a.tiff").await;
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(*refusing.watches.lock().unwrap(), [0], "{code}");
    }
    // The tile is damaged both times.
    let mut damaged = Stub { damaged: AtomicUsize::new(1), ..stub() };
    damaged.damage();
    let error = fails(Arc::new(damaged), NAME, "a.tiff").await;
    assert_eq!(error.kind(), Kind::Io);
    assert!(error.to_string().contains("column 1, row 1"), "{error}");
    // Event 5 is left out.
    let mut gap = stub();
    gap.events.remove(4);
    let error = fails(Arc::new(gap), NAME, "a.png").await;
    assert!(error.to_string().contains("event 6 after event 4"), "{error}");
    // A tile is left out.
    let mut events = made.events();
    events.remove(5);
    let error = fails(Arc::new(Stub::new(&made, events)), NAME, "a.tiff").await;
    assert!(error.to_string().contains("1 tiles did not come"), "{error}");
    // A tile says that it lies where another one lies.
    let mut events = made.events();
    if let Event::Tile(tile) = &mut events[5] {
        tile.rect.as_mut().unwrap().x += 1;
    }
    let error = fails(Arc::new(Stub::new(&made, events)), NAME, "a.tiff").await;
    assert!(error.to_string().contains("pixels of another one"), "{error}");
    // Sizes that nobody has memory for.
    let mut huge = stub();
    huge.job.spec.as_mut().unwrap().width = u32::MAX;
    let error = fails(Arc::new(huge), NAME, "a.tiff").await;
    assert!(error.to_string().contains("width is 4294967295"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_ends_badly_says_why_and_leaves_nothing() {
    let made = Made::new(200, 130, Bits::Eight);
    let end = |event: Event| {
        let mut events = made.events();
        events.truncate(6);
        events.push(event);
        Arc::new(Stub::new(&made, events))
    };
    let failed = job_event::Failed { code: Code::DeadlineExceeded.into(), message: "late".into() };
    let error = fails(end(Event::Failed(failed)), NAME, "a.tiff").await;
    assert_eq!((error.kind(), error.to_string()), (Kind::Expired, "jobs/one failed: late".into()));
    let error = fails(end(Event::Cancelled(job_event::Cancelled {})), NAME, "a.png").await;
    assert_eq!(error.kind(), Kind::Cancelled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_is_dropped_leaves_nothing() {
    let made = Made::new(700, 520, Bits::Eight);
    let mut events = made.events();
    events.truncate(12);
    let stub = Arc::new(Stub { stays: true, ..Stub::new(&made, events) });
    let client = client(stub.serve().await).await;
    let dir = tempfile::tempdir().unwrap();
    let mut count = 0;
    let path = dir.path().join("a.tiff");
    let mut seen = |_: &JobEvent| count += 1;
    let work = client.fetch(NAME, &path, None, &mut seen);
    assert!(tokio::time::timeout(Duration::from_millis(500), work).await.is_err());
    assert_eq!(count, 12);
    assert_eq!(names(dir.path()), [] as [String; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_from_behind_the_end_is_over() {
    let made = Made::new(200, 130, Bits::Eight);
    let stub = Arc::new(Stub::new(&made, made.events()));
    let last = stub.events.len() as u64;
    let client = client(stub.clone().serve().await).await;
    let mut watch = client.watch("one", last, StreamOptions::default());
    assert_eq!(watch.next().await.unwrap(), None);
    let mut watch = client.watch("one", last - 1, StreamOptions::default());
    assert_eq!(watch.next().await.unwrap().map(|event| event.sequence), Some(last));
    assert_eq!(watch.next().await.unwrap(), None);
    assert_eq!(watch.last_sequence(), last);
}

/// The command, without this process's settings.
fn tessera(dir: &Path, url: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tessera"));
    for name in ["TESSERA_DEVICE", "TESSERA_THREADS", "TESSERA_LOG", "TESSERA_TOKEN"] {
        command.env_remove(name);
    }
    command.env("TESSERA_MODEL", model_path()).env("TESSERA_SERVER", url).current_dir(dir);
    command
}

fn run(dir: &Path, url: &str, args: &[&str]) -> Output {
    tessera(dir, url).args(args).output().unwrap()
}

/// Runs what must succeed; gives standard output.
fn succeeds(dir: &Path, url: &str, args: &[&str]) -> String {
    let output = run(dir, url, args);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs what must fail with exit code `code`, and every one of `words` in the message.
fn refused(dir: &Path, url: &str, args: &[&str], code: i32, words: &[&str]) {
    let output = run(dir, url, args);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {complaint}");
    for word in words {
        assert!(complaint.contains(word), "{args:?} should say {word:?}: {complaint}");
    }
}

fn events(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn fetch_is_generate_to_the_byte() {
    let (dir, jobs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (dir, server) = (dir.path(), Server::start(jobs.path(), &[]));
    let url = &server.url;
    for (flags, out) in [
        (vec!["--seed", "7", "--tile", "64"], "eight.tiff"),
        (vec!["--seed", "8", "--bits", "16", "--sampler", "heun"], "sixteen.tiff"),
        (vec!["--seed", "18446744073709551615", "--sampler", "ddim"], "eight.png"),
    ] {
        let common = ["--size", "256x256", "--steps", "2"];
        let flags = [&common, flags.as_slice()].concat();
        let job = succeeds(dir, url, &[&["submit"], flags.as_slice()].concat());
        let fetched = succeeds(dir, url, &["fetch", job.trim(), "--out", out]);
        assert!(fetched.contains("256 x 256"), "{fetched}");
        let local = format!("local-{out}");
        let generate = ["generate", "--device", "cpu", "--threads", "1", "--out", &local];
        succeeds(dir, url, &[&generate, flags.as_slice()].concat());
        let (fetched, local) = (fs::read(dir.join(out)), fs::read(dir.join(local)));
        assert!(fetched.unwrap() == local.unwrap(), "{out} differs");
    }
    // The size is the model's own if none is given, and events say so.
    let submitted = events(&succeeds(dir, url, &["submit", "--steps", "1", "--json"])).remove(0);
    assert_eq!((&submitted["event"], &submitted["width"]), (&"submitted".into(), &96.into()));
    let job = submitted["job"].as_str().unwrap();
    let args = ["fetch", job, "--out", "own.png", "--json"];
    let lines = events(&succeeds(dir, url, &args));
    let names: Vec<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!((names[0], names[1]), ("queued", "started"));
    assert_eq!(names[names.len() - 2..], ["finished", "fetched"]);
    assert!(names.contains(&"tile") && names.contains(&"step"), "{names:?}");
    assert_eq!(lines[names.len() - 2]["receipt"]["seed"], 0);
}

#[test]
fn fetch_outlives_the_server_and_ends_with_the_same_bytes() {
    let (dir, jobs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dir = dir.path();
    let mut server = Server::start(jobs.path(), &[]);
    let address = |server: &Server| server.url.trim_start_matches("http://").parse().unwrap();
    let proxy = Proxy::start(address(&server), usize::MAX);
    let spec = ["--seed", "5", "--size", "512x512", "--steps", "40", "--tile", "64"];
    let job = succeeds(dir, &proxy.url(), &[&["submit"], spec.as_slice()].concat());
    let mut fetch = tessera(dir, &proxy.url())
        .args(["fetch", job.trim(), "--out", "a.tiff", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(fetch.stdout.take().unwrap()).lines();
    let (mut steps, mut tiles, mut sequences) = (0, 0, Vec::new());
    for line in lines {
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        sequences.extend(line["job_sequence"].as_u64());
        match line["event"].as_str() {
            Some("step") => steps += 1,
            Some("tile") => tiles += 1,
            _ => continue,
        }
        if (steps, tiles) == (10, 0) || (tiles, line["event"] == "tile") == (20, true) {
            server.kill();
            server = Server::start(jobs.path(), &[]);
            *proxy.target.lock().unwrap() = address(&server);
        }
    }
    assert!(fetch.wait().unwrap().success());
    assert!(proxy.connections.load(Ordering::SeqCst) >= 4);
    assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>());
    assert_eq!((steps, tiles), (40, 64));
    let generate = ["generate", "--device", "cpu", "--threads", "1", "--out", "local.tiff"];
    succeeds(dir, "", &[&generate, spec.as_slice()].concat());
    assert!(fs::read(dir.join("a.tiff")).unwrap() == fs::read(dir.join("local.tiff")).unwrap());
}

#[test]
fn jobs_are_submitted_once_watched_listed_cancelled_and_deleted() {
    let (dir, jobs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (dir, server) = (dir.path(), Server::start(jobs.path(), &[]));
    let url = &server.url;
    let small = ["submit", "--size", "64x32", "--steps", "2", "--request-id", "mine"];
    let job = succeeds(dir, url, &small);
    let job = job.trim();
    assert!(job.starts_with("jobs/"), "{job}");
    assert_eq!(succeeds(dir, url, &small).trim(), job);
    let other = ["submit", "--size", "64x32", "--steps", "3", "--request-id", "mine"];
    refused(dir, url, &other, 2, &["request_id", "mine"]);

    let watched = succeeds(dir, url, &["watch", job]);
    assert!(watched.contains("finished") && watched.contains("seed 0"), "{watched}");
    let all = events(&succeeds(dir, url, &["watch", job, "--json"]));
    let rest = events(&succeeds(dir, url, &["watch", job, "--after", "2", "--json"]));
    let sequence = |line: &Value| line["job_sequence"].as_u64().unwrap();
    let (all, rest): (Vec<_>, Vec<_>) =
        (all.iter().map(sequence).collect(), rest.iter().map(sequence).collect());
    assert_eq!(all[2..], rest);
    assert_eq!(succeeds(dir, url, &["watch", job, "--after", "1000", "--json"]), "");

    let long = ["submit", "--size", "2048x2048", "--steps", "1000"];
    let long = succeeds(dir, url, &long);
    let long = long.trim();
    let table = succeeds(dir, url, &["jobs"]);
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("JOB") && lines[0].contains("PROGRESS"), "{table}");
    assert!(lines[1].starts_with(job) && lines[1].contains("finished"), "{table}");
    assert!(lines[2].starts_with(long) && lines[2].contains("2048 x 2048"), "{table}");
    let report = events(&succeeds(dir, url, &["jobs", "--json"])).remove(0);
    assert_eq!(report["jobs"][1]["steps"], 1000);

    let id = long.trim_start_matches("jobs/");
    assert!(succeeds(dir, url, &["cancel", id]).contains("cancelled"));
    refused(dir, url, &["watch", long], 130, &["cancelled"]);
    refused(dir, url, &["fetch", long, "--out", "a.tiff"], 130, &["cancelled"]);
    assert!(succeeds(dir, url, &["delete", long]).contains("deleted"));
    for args in [&["watch", long][..], &["cancel", long], &["fetch", long, "--out", "a.tiff"]] {
        refused(dir, url, args, 1, &["no job"]);
    }
    assert_eq!(names(dir), [] as [String; 0]);
}

#[test]
fn bad_flags_are_named_and_an_absent_server_too() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let nobody = "http://127.0.0.1:9";
    refused(dir, nobody, &["jobs"], 1, &["http://127.0.0.1:9", "can't be reached", "refused"]);
    refused(dir, nobody, &["jobs", "--server", "here"], 2, &["server", "here", "http://"]);
    refused(dir, nobody, &["jobs", "--ca", "missing.pem"], 2, &["ca", "missing.pem"]);
    refused(dir, nobody, &["jobs", "--token", "ä"], 2, &["token", "ASCII"]);
    for (flags, words) in [
        (["--tile", "whole"], &["tile", "whole", "1024"]),
        (["--steps", "0"], &["steps", "0", "1000"]),
        (["--deadline", "0"], &["deadline", "0", "seconds"]),
        (["--size", "0x64"], &["size", "0", "1"]),
    ] {
        refused(dir, nobody, &[&["submit"], flags.as_slice()].concat(), 2, words);
    }
    let fetch = |out: &'static str| ["fetch", "1", "--out", out];
    refused(dir, nobody, &fetch("a.gif"), 2, &["a.gif", ".tiff"]);
    refused(dir, nobody, &fetch("no/a.tiff"), 2, &["no/a.tiff", "does not exist"]);

    let jobs = tempfile::tempdir().unwrap();
    let server = Server::start(jobs.path(), &[]);
    let url = &server.url;
    let submit = |size: &'static str| ["submit", "--size", size];
    refused(dir, url, &submit("100x64"), 2, &["width", "100", "16"]);
    refused(dir, url, &submit("16400x64"), 2, &["width", "16400", "16384"]);
    refused(dir, url, &["submit", "--tile", "5000"], 2, &["tile", "5000", "1024"]);
    refused(dir, url, &["watch", "jobs/../etc"], 2, &["name"]);
    assert_eq!(names(dir), [] as [String; 0]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_nothing_behind() {
    let (dir, jobs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (dir, server) = (dir.path(), Server::start(jobs.path(), &[]));
    let spec = ["submit", "--size", "512x512", "--steps", "1000"];
    let job = succeeds(dir, &server.url, &spec);
    let mut fetch = tessera(dir, &server.url)
        .args(["fetch", job.trim(), "--out", "a.tiff", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut lines = BufReader::new(fetch.stdout.take().unwrap());
    lines.read_line(&mut line).unwrap();
    assert!(line.contains("queued"), "{line}");
    let asked = Command::new("kill").args(["-INT", &fetch.id().to_string()]).status().unwrap();
    assert!(asked.success());
    assert_eq!(fetch.wait().unwrap().code(), Some(130));
    assert_eq!(names(dir), [] as [String; 0]);
}

#[test]
fn tls_client_certificates_and_tokens_are_shown_to_who_asks_for_them() {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use sha2::Digest as _;

    let (dir, jobs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (dir, jobs) = (dir.path(), jobs.path());
    let mut authority = CertificateParams::new([]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let certificate = authority.self_signed(&authority_key).unwrap();
    fs::write(dir.join("ca.pem"), certificate.pem()).unwrap();
    let issuer = Issuer::from_params(&authority, &authority_key);
    for name in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let hosts = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let certificate = CertificateParams::new(hosts).unwrap().signed_by(&key, &issuer).unwrap();
        fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    let hash: String = sha2::Sha256::digest("open").iter().map(|b| format!("{b:02x}")).collect();
    fs::write(dir.join("tokens"), format!("anna {hash}\n")).unwrap();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (cert, key) = (path("server.pem"), path("server.key"));
    let (ca, tokens) = (path("ca.pem"), path("tokens"));
    let flags = ["--tls-cert", &cert, "--tls-key", &key, "--client-ca", &ca, "--tokens", &tokens];
    let server = Server::start(jobs, &flags);
    let url = &server.url;
    assert!(url.starts_with("https://"), "{url}");
    let shown = ["--ca", "ca.pem", "--cert", "client.pem", "--key", "client.key"];
    let all = [&shown[..], &["--token", "open"]].concat();
    let with = |flags: &[&'static str]| [&["jobs"], flags].concat();
    assert!(succeeds(dir, url, &with(&all)).starts_with("JOB"));
    let by_environment =
        tessera(dir, url).env("TESSERA_TOKEN", "open").args(with(&shown)).output().unwrap();
    assert!(by_environment.status.success());
    refused(dir, url, &with(&shown), 1, &["token"]);
    refused(dir, url, &with(&[&shown[..], &["--token", "close"]].concat()), 1, &["token"]);
    // No certificate, and an authority that did not sign the server's.
    refused(dir, url, &with(&["--ca", "ca.pem", "--token", "open"]), 1, &["can't be reached"]);
    let stranger = ["--ca", "client.pem", "--cert", "client.pem", "--key", "client.key"];
    refused(dir, url, &with(&stranger), 1, &["can't be reached", "certificate"]);
    refused(dir, url, &with(&["--ca", "tokens"]), 1, &["can't be reached"]);
}
