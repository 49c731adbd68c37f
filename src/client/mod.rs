//! The client of the service.
//!
//! [`Client::get`], [`Client::watch`] and [`Client::fetch`] survive broken connections and restarts of the server, and with
//! [`Client::connect_lazy`] they wait for a server that is not there yet: they reconnect with the last sequence number, so
//! every event is delivered once, and give up after [`Retry::give_up`]. A fetched file has the same bytes
//! as one generated locally with the same seed, model and kind of device; the CRC32C of every tile is checked.
//!
//! Responses are not trusted: sizes are checked before allocation, control characters are removed from texts, and no name
//! sent by the server becomes a path.

mod fetch;
mod incoming;
mod retry;
mod run;
mod status;
mod watch;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio_stream::Stream;
use tonic::{
    Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

pub use fetch::FetchOptions;
pub use retry::Retry;
pub use run::run;
pub use watch::{Watch, job_failure};

use crate::{
    api::{
        CancelJobRequest, CreateJobRequest, DamagedJob, DeleteJobRequest, EditPictureRequest,
        GetJobRequest, GetTileRequest, ImageFormat, Job, JobState, ListDamagedJobsRequest,
        ListJobsRequest, StreamOptions, Tile, WatchJobRequest, WatchJobResponse,
        edit_picture_request::Part, job_service_client::JobServiceClient,
    },
    config::Secret,
    engine::plan::MAX_TILE,
    error::{Detail, Error, Expected, Kind, Result},
    jobs::MAX_REQUEST_ID,
};

/// Default address of the server.
pub const DEFAULT_SERVER: &str = "http://127.0.0.1:50051";

/// Largest accepted message: a raw tile of the largest size with 16 bits a sample, and its envelope.
pub const MAX_MESSAGE: usize = MAX_TILE * MAX_TILE * 6 + (1 << 20);

/// Longest text of a server that is shown, in characters.
const MAX_TEXT: usize = 1000;
/// Page size of lists.
const PAGE: u32 = 1000;
/// Flow-control window in bytes: a few tiles, so that a distant server need not wait after each.
const WINDOW: u32 = 8 << 20;
/// Timeout of connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of a unary call.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Interval of keep-alive pings on an idle connection, and timeout of their acknowledgement.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Attempts to create a job.
const CREATE_ATTEMPTS: u32 = 4;
/// Bytes of a picture per message.
const CHUNK: usize = 32 << 10;

/// Address, credentials and retry policy.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Address, such as [`DEFAULT_SERVER`]; `https` for TLS. A path is the one under which a proxy offers the server.
    pub server: String,
    /// Bearer token of every call.
    pub token: Option<Secret>,
    /// Authority of the server's certificate, as PEM; the system's authorities by default.
    pub ca: Option<Vec<u8>>,
    /// Certificate and key of this client, as PEM.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Retry policy.
    pub retry: Retry,
}

impl Settings {
    /// The server at `address`, without token or certificates.
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            server: address.into(),
            token: None,
            ca: None,
            identity: None,
            retry: Retry::default(),
        }
    }
}

/// A connection to a server; it reconnects automatically. Clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    calls: JobServiceClient<InterceptedService<Channel, Bearer>>,
    server: String,
    retry: Retry,
}

/// Adds the token to every call.
#[derive(Clone, Debug)]
struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// `request` with a `request_id`, which makes it idempotent.
fn with_request_id(mut request: CreateJobRequest) -> Result<CreateJobRequest> {
    if request.request_id.is_empty() {
        request.request_id = uuid::Uuid::now_v7().to_string();
    }
    let length = request.request_id.chars().count();
    if length > MAX_REQUEST_ID {
        let limit = Expected::at_most(format!("{MAX_REQUEST_ID} characters"));
        return Err(Error::invalid("request_id", format!("{length} characters long"), limit));
    }
    Ok(request)
}

/// The messages of an upload.
fn upload(
    request: CreateJobRequest,
    file: Arc<Vec<u8>>,
) -> impl Stream<Item = EditPictureRequest> + Send + 'static {
    let message = |part| EditPictureRequest { part: Some(part) };
    let data = (0..file.len().div_ceil(CHUNK)).map(move |i| {
        let bytes = &file[i * CHUNK..file.len().min((i + 1) * CHUNK)];
        message(Part::Data(bytes.to_vec()))
    });
    tokio_stream::iter(std::iter::once(message(Part::Job(request))).chain(data))
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::error::Kind::InvalidArgument) naming the invalid setting;
    /// [`Unavailable`](crate::error::Kind::Unavailable) if the server can't be reached.
    pub async fn connect(settings: &Settings) -> Result<Self> {
        let (endpoint, bearer) = (endpoint(settings)?, bearer(settings)?);
        let connected = endpoint.connect().await;
        let channel = connected.map_err(|error| status::unreachable(&settings.server, &error))?;
        Ok(Self::over(channel, bearer, &endpoint, settings))
    }

    /// A client that connects at its first call. It must be called in the context of a Tokio runtime.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::error::Kind::InvalidArgument) naming the invalid setting.
    pub fn connect_lazy(settings: &Settings) -> Result<Self> {
        let (endpoint, bearer) = (endpoint(settings)?, bearer(settings)?);
        Ok(Self::over(endpoint.connect_lazy(), bearer, &endpoint, settings))
    }

    /// A client whose calls go to the path of the endpoint.
    fn over(channel: Channel, bearer: Bearer, endpoint: &Endpoint, settings: &Settings) -> Self {
        let service = InterceptedService::new(channel, bearer);
        let calls = JobServiceClient::with_origin(service, endpoint.uri().clone())
            .max_decoding_message_size(MAX_MESSAGE);
        Self { calls, server: settings.server.clone(), retry: settings.retry }
    }

    /// Creates a job. If the response is lost the request is repeated with the same `request_id`, which is generated if it is
    /// empty; so only one job is created.
    ///
    /// # Errors
    /// Those of the server; [`Unavailable`](crate::error::Kind::Unavailable) if it can't be reached.
    pub async fn create(&self, request: CreateJobRequest) -> Result<Job> {
        let request = with_request_id(request)?;
        self.with_retries(CREATE_ATTEMPTS, || async {
            let answer = self.calls.clone().create_job(with_timeout(request.clone())).await?;
            required("job", answer.into_inner().job)
        })
        .await
    }

    /// Creates a job that edits the picture `file`, with retries as in [`Client::create`].
    ///
    /// # Errors
    /// Those of the server; [`Unavailable`](crate::error::Kind::Unavailable) if it can't be reached.
    pub async fn edit(&self, request: CreateJobRequest, file: Vec<u8>) -> Result<Job> {
        let (request, file) = (with_request_id(request)?, Arc::new(file));
        self.with_retries(CREATE_ATTEMPTS, || async {
            let answer =
                self.calls.clone().edit_picture(upload(request.clone(), file.clone())).await?;
            required("job", answer.into_inner().job)
        })
        .await
    }

    /// Returns a job, waiting for a server that is unavailable.
    ///
    /// # Errors
    /// [`NotFound`](crate::error::Kind::NotFound); [`Unavailable`](crate::error::Kind::Unavailable) after
    /// [`Retry::give_up`].
    pub async fn get(&self, name: &str) -> Result<Job> {
        self.with_retries(u32::MAX, || self.try_get(name)).await
    }

    /// Returns all jobs, oldest first.
    ///
    /// # Errors
    /// Those of the server; [`Unavailable`](crate::error::Kind::Unavailable) if it can't be reached.
    pub async fn list(&self) -> Result<Vec<Job>> {
        let mut jobs = Vec::new();
        let mut page_token = String::new();
        loop {
            let token = page_token.clone();
            let request =
                ListJobsRequest { page_size: PAGE, page_token: token, ..Default::default() };
            let answer = self.calls.clone().list_jobs(with_timeout(request)).await;
            let page = answer.map_err(|status| self.error(&status))?.into_inner();
            jobs.extend(page.jobs);
            // A page that refers to itself would be an endless list.
            if page.next_page_token.is_empty() || page.next_page_token == page_token {
                return Ok(jobs);
            }
            page_token = page.next_page_token;
        }
    }

    /// Returns the directories of jobs that the server could not read.
    ///
    /// # Errors
    /// Those of the server; [`Unavailable`](crate::error::Kind::Unavailable) if it can't be reached.
    pub async fn list_damaged(&self) -> Result<Vec<DamagedJob>> {
        let request = with_timeout(ListDamagedJobsRequest {});
        let answer = self.calls.clone().list_damaged_jobs(request).await;
        answer.map(|answer| answer.into_inner().jobs).map_err(|status| self.error(&status))
    }

    /// Cancels a job; the device stops working on it within one step or tile.
    ///
    /// # Errors
    /// [`NotFound`](crate::error::Kind::NotFound); [`Unavailable`](crate::error::Kind::Unavailable).
    pub async fn cancel(&self, name: &str) -> Result<Job> {
        let request = CancelJobRequest { name: full_name(name) };
        let answer = self.calls.clone().cancel_job(with_timeout(request)).await;
        let answer = answer.and_then(|answer| required("job", answer.into_inner().job));
        answer.map_err(|status| self.error(&status))
    }

    /// Deletes a job with its pixels.
    ///
    /// # Errors
    /// [`NotFound`](crate::error::Kind::NotFound); [`Unavailable`](crate::error::Kind::Unavailable).
    pub async fn delete(&self, name: &str) -> Result<()> {
        let request = DeleteJobRequest { name: full_name(name) };
        let answer = self.calls.clone().delete_job(with_timeout(request)).await;
        answer.map(drop).map_err(|status| self.error(&status))
    }

    /// Watches a job, starting after the sequence number `after`.
    pub fn watch(&self, name: &str, after: u64, options: StreamOptions) -> Watch {
        Watch::new(self.clone(), full_name(name), after, options)
    }

    async fn try_get(&self, name: &str) -> Result<Job, Status> {
        let request = GetJobRequest { name: full_name(name) };
        let answer = self.calls.clone().get_job(with_timeout(request)).await?;
        required("job", answer.into_inner().job)
    }

    async fn try_tile(&self, name: &str, column: u32, row: u32) -> Result<Tile, Status> {
        let format = ImageFormat::Raw.into();
        let request = GetTileRequest { name: full_name(name), column, row, format };
        let answer = self.calls.clone().get_tile(with_timeout(request)).await?;
        required("tile", answer.into_inner().tile)
    }

    async fn try_watch(
        &self,
        request: WatchJobRequest,
    ) -> Result<Streaming<WatchJobResponse>, Status> {
        Ok(self.calls.clone().watch_job(request).await?.into_inner())
    }

    /// Repeats a call while its failure is transient, at most `attempts` times and within [`Retry::give_up`].
    async fn with_retries<T, F>(&self, attempts: u32, call: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut backoff = self.retry.backoff();
        let mut attempt = 1;
        loop {
            match call().await {
                Ok(answer) => return Ok(answer),
                Err(status) if attempt < attempts && status::is_transient(&status) => {
                    if attempt == 1 {
                        let limit = self.retry.give_up;
                        tracing::warn!("{}; trying again for up to {limit:?}", self.error(&status));
                    }
                    if !backoff.pause().await {
                        return Err(self.given_up(&status));
                    }
                    attempt += 1;
                }
                Err(status) => return Err(self.error(&status)),
            }
        }
    }

    /// The error after [`Retry::give_up`]; its cause is the last failure.
    fn given_up(&self, why: &Status) -> Error {
        let (operation, limit) = ("retrying without progress".into(), Some(self.retry.give_up));
        let detail = Detail::Expired { operation, limit };
        Error::new(Kind::Unavailable, detail).with_source(self.error(why))
    }

    fn error(&self, status: &Status) -> Error {
        status::error(&self.server, status)
    }
}

/// The endpoint of an address, with TLS for `https`.
fn endpoint(settings: &Settings) -> Result<Endpoint> {
    let Settings { server, ca, identity, .. } = settings;
    let expected = || format!("an address like {DEFAULT_SERVER}");
    let refused = || Error::invalid("server", format!("{server:?}"), expected());
    // Names of methods follow the path.
    let address = server.trim_end_matches('/');
    let secure = match address.split_once("://") {
        Some(("http", host)) if !host.contains(['?', '#']) => false,
        Some(("https", host)) if !host.contains(['?', '#']) => true,
        _ => return Err(refused()),
    };
    let mut endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(|error| refused().with_source(error))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    if !secure {
        for (field, given) in [("ca", ca.is_some()), ("cert", identity.is_some())] {
            if given {
                let value = format!("given for server {server:?}");
                return Err(Error::invalid(field, value, "an https address as server"));
            }
        }
        if settings.token.is_some() && !is_loopback(endpoint.uri().host().unwrap_or_default()) {
            tracing::warn!("the token goes to {server} without encryption; https hides it");
        }
        return Ok(endpoint);
    }
    let mut tls = match ca {
        Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    if let Some((cert, key)) = identity {
        tls = tls.identity(Identity::from_pem(cert, key));
    }
    endpoint = endpoint.tls_config(tls).map_err(|error| {
        let cause = status::root_cause(&error);
        Error::invalid("ca, cert or key", "unusable", "PEM files that fit together")
            .with_source(cause)
    })?;
    Ok(endpoint)
}

/// The token of the settings.
fn bearer(settings: &Settings) -> Result<Bearer> {
    settings.token.as_ref().map(authorization).transpose().map(Bearer)
}

/// The authorization header.
fn authorization(token: &Secret) -> Result<MetadataValue<Ascii>> {
    let refused =
        || Error::invalid("token", "(secret)", "printable ASCII characters without spaces");
    if !token.reveal().bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(refused());
    }
    let value = format!("Bearer {}", token.reveal()).parse();
    let mut value: MetadataValue<Ascii> = value.map_err(|_| refused())?;
    value.set_sensitive(true);
    Ok(value)
}

/// True for a loopback name or address.
fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// A request with the timeout of unary calls.
fn with_timeout<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// A required field of a response.
fn required<T>(field: &str, value: Option<T>) -> Result<T, Status> {
    value.ok_or_else(|| Status::internal(format!("the server's answer has no {field}")))
}

/// `models/{id}` of a name or an id.
pub fn full_model_name(model: &str) -> String {
    if model.starts_with("models/") { model.to_owned() } else { format!("models/{model}") }
}

/// `jobs/{id}` of a name or an id.
pub fn full_name(job: &str) -> String {
    if job.starts_with("jobs/") { job.to_owned() } else { format!("jobs/{job}") }
}

/// Replaces control characters and limits the length of a text from a server.
pub fn sanitize(text: &str) -> String {
    let visible = |c: char| if c.is_control() { '\u{FFFD}' } else { c };
    let mut out: String = text.chars().take(MAX_TEXT).map(visible).collect();
    if text.chars().nth(MAX_TEXT).is_some() {
        out.push('…');
    }
    out
}

/// Name of a state: `queued`, `denoising`, ...
pub fn state_name(state: JobState) -> String {
    state.as_str_name().trim_start_matches("JOB_STATE_").to_ascii_lowercase()
}

/// True for the states of ended jobs.
pub fn is_last(state: JobState) -> bool {
    matches!(state, JobState::Finished | JobState::Failed | JobState::Cancelled)
}

/// Converts a timestamp; `None` if it is absent or out of range.
pub fn time(timestamp: Option<&prost_types::Timestamp>) -> Option<SystemTime> {
    timestamp.and_then(|&time| SystemTime::try_from(time).ok())
}

/// Converts a time to a timestamp.
pub fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    time.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_addresses_are_named() {
        for server in [
            "",
            "127.0.0.1:50051",
            "ftp://host",
            "http://",
            "https:///",
            "http://a b",
            "http://host/path?query",
            "http://host/#part",
        ] {
            let error = endpoint(&Settings::new(server)).err();
            assert_eq!(error.as_ref().and_then(Error::field), Some("server"), "{server}");
        }
        let ca = Settings { ca: Some(b"PEM".to_vec()), ..Settings::new(DEFAULT_SERVER) };
        let error = endpoint(&ca).err();
        assert_eq!(error.as_ref().and_then(Error::field), Some("ca"));
    }

    #[test]
    fn control_characters_of_server_texts_are_replaced() {
        assert_eq!(sanitize("a\u{1b}[2Jb\n"), "a\u{FFFD}[2Jb\u{FFFD}");
        assert_eq!(sanitize(&"x".repeat(MAX_TEXT + 5)).chars().count(), MAX_TEXT + 1);
        assert_eq!(sanitize(&"x".repeat(MAX_TEXT)).chars().count(), MAX_TEXT);
    }

    #[test]
    fn resource_names_may_be_bare_ids() {
        assert_eq!(full_name("7"), "jobs/7");
        assert_eq!(full_name("jobs/7"), "jobs/7");
        assert_eq!(full_model_name("a"), full_model_name("models/a"));
        assert!(is_loopback("127.0.0.1") && is_loopback("[::1]") && !is_loopback("10.0.0.1"));
        assert_eq!(state_name(JobState::Denoising), "denoising");
    }
}
