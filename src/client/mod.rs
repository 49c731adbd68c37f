//! The client of the service: nothing is lost and nothing comes twice, whatever becomes of the connection.
//!
//! [`Client::watch`] and [`Client::fetch`] outlive broken connections and restarts of the server: they ask again with the
//! last sequence number seen, and end with what an undisturbed connection ends with. A server that stays away is given up
//! ([`Retry::give_up`]). A fetched file has the bytes of one
//! made here from the same seed, model and kind of device; every tile in it was checked by its CRC32C.
//!
//! What the server says is not trusted: sizes are checked before anything is allocated, texts are freed of control
//! characters, and no name of the server's becomes a path.

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

pub use retry::Retry;
pub use run::run;
pub use watch::{Watch, ended_badly};

use crate::{
    api::{
        CancelJobRequest, CreateJobRequest, DeleteJobRequest, EditPictureRequest, GetJobRequest,
        GetTileRequest, ImageFormat, Job, JobState, ListJobsRequest, StreamOptions, Tile,
        WatchJobRequest, WatchJobResponse, edit_picture_request::Part,
        job_service_client::JobServiceClient,
    },
    config::Secret,
    engine::plan::MAX_TILE,
    error::{Detail, Error, Expected, Kind, Result},
    jobs::MAX_REQUEST_ID,
};

/// Where the service is looked for if nothing else is said.
pub const DEFAULT_SERVER: &str = "http://127.0.0.1:50051";

/// Largest message that is read: a raw tile of the largest size with 16 bits a sample, and what stands around it.
pub const MAX_MESSAGE: usize = MAX_TILE * MAX_TILE * 6 + (1 << 20);

/// Longest text of the server's that is passed on in a message, in characters.
const MAX_TEXT: usize = 1000;
/// Jobs of a page of the list.
const PAGE: u32 = 1000;
/// Bytes that may be on their way, so that a distant server is not made to wait after every tile.
const WINDOW: u32 = 8 << 20;
/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest wait for the answer of a call that is no stream.
const ANSWER: Duration = Duration::from_secs(60);
/// A connection on which nothing arrives for so long is asked for a sign of life, and given up after as long again.
const SILENCE: Duration = Duration::from_secs(20);
/// How often a job is ordered if the answer is lost.
const ORDERS: u32 = 4;
/// Bytes of a picture that go in one message.
const PART: usize = 32 << 10;

/// How to reach a server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its address, such as [`DEFAULT_SERVER`]; `https` for TLS.
    pub server: String,
    /// Bearer token that every call carries.
    pub token: Option<Secret>,
    /// Authority that signed the server's certificate, as PEM; the machine's own authorities if there is none.
    pub ca: Option<Vec<u8>>,
    /// Certificate and key of this client, as PEM, for servers that ask for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Pauses between attempts.
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

/// A connection to a server, which comes back by itself. Cloning shares it.
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

/// `order` with a name of its own, which makes it safe to send again.
fn named(mut order: CreateJobRequest) -> Result<CreateJobRequest> {
    if order.request_id.is_empty() {
        order.request_id = uuid::Uuid::now_v7().to_string();
    }
    let length = order.request_id.chars().count();
    if length > MAX_REQUEST_ID {
        let limit = Expected::at_most(format!("{MAX_REQUEST_ID} characters"));
        return Err(Error::invalid("request_id", format!("{length} characters long"), limit));
    }
    Ok(order)
}

/// The messages that carry `order` and the picture in `file`.
fn parts(
    order: CreateJobRequest,
    file: Arc<Vec<u8>>,
) -> impl Stream<Item = EditPictureRequest> + Send + 'static {
    let message = |part| EditPictureRequest { part: Some(part) };
    let data = (0..file.len().div_ceil(PART)).map(move |i| {
        let bytes = &file[i * PART..file.len().min((i + 1) * PART)];
        message(Part::Data(bytes.to_vec()))
    });
    tokio_stream::iter(std::iter::once(message(Part::Job(order))).chain(data))
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::error::Kind::InvalidArgument) naming the setting that can't be used;
    /// [`Unavailable`](crate::error::Kind::Unavailable) when the server can't be reached.
    pub async fn connect(settings: &Settings) -> Result<Self> {
        let Settings { server, token, retry, .. } = settings;
        let endpoint = endpoint(settings)?;
        let bearer = token.as_ref().map(bearer).transpose()?;
        let channel =
            endpoint.connect().await.map_err(|error| status::unreachable(server, &error))?;
        let calls = JobServiceClient::with_interceptor(channel, Bearer(bearer))
            .max_decoding_message_size(MAX_MESSAGE);
        Ok(Self { calls, server: server.clone(), retry: *retry })
    }

    /// Queues a job. If the answer is lost the order is sent again with the same `request_id`, which is made up if the
    /// order has none, so that there is one job in the end.
    ///
    /// # Errors
    /// What the server says, or that it can't be reached.
    pub async fn create(&self, order: CreateJobRequest) -> Result<Job> {
        let order = named(order)?;
        self.repeatedly(ORDERS, || async {
            let answer = self.calls.clone().create_job(limited(order.clone())).await?;
            present("job", answer.into_inner().job)
        })
        .await
    }

    /// Queues a job that edits the picture in `file`. If the answer is lost all is sent again, as in [`Client::create`].
    ///
    /// # Errors
    /// What the server says, or that it can't be reached.
    pub async fn edit(&self, order: CreateJobRequest, file: Vec<u8>) -> Result<Job> {
        let (order, file) = (named(order)?, Arc::new(file));
        self.repeatedly(ORDERS, || async {
            let answer =
                self.calls.clone().edit_picture(parts(order.clone(), file.clone())).await?;
            present("job", answer.into_inner().job)
        })
        .await
    }

    /// Reads a job.
    ///
    /// # Errors
    /// [`NotFound`](crate::error::Kind::NotFound); what else the server says, or that it can't be reached.
    pub async fn get(&self, name: &str) -> Result<Job> {
        self.repeatedly(1, || self.try_get(name)).await
    }

    /// All jobs, oldest first.
    ///
    /// # Errors
    /// What the server says, or that it can't be reached.
    pub async fn list(&self) -> Result<Vec<Job>> {
        let mut jobs = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListJobsRequest { page_size: PAGE, page_token: page_token.clone() };
            let answer = self.calls.clone().list_jobs(limited(request)).await;
            let page = answer.map_err(|status| self.error(&status))?.into_inner();
            jobs.extend(page.jobs);
            // A page that leads to itself would never end.
            if page.next_page_token.is_empty() || page.next_page_token == page_token {
                return Ok(jobs);
            }
            page_token = page.next_page_token;
        }
    }

    /// Asks for a job's end, which takes one step or tile.
    ///
    /// # Errors
    /// [`NotFound`](crate::error::Kind::NotFound); what else the server says, or that it can't be reached.
    pub async fn cancel(&self, name: &str) -> Result<Job> {
        let request = CancelJobRequest { name: full_name(name) };
        let answer = self.calls.clone().cancel_job(limited(request)).await;
        let answer = answer.and_then(|answer| present("job", answer.into_inner().job));
        answer.map_err(|status| self.error(&status))
    }

    /// Removes a job with its pixels.
    ///
    /// # Errors
    /// [`NotFound`](crate::error::Kind::NotFound); what else the server says, or that it can't be reached.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let request = DeleteJobRequest { name: full_name(name) };
        let answer = self.calls.clone().delete_job(limited(request)).await;
        answer.map(drop).map_err(|status| self.error(&status))
    }

    /// Watches a job from the event after the sequence number `after`.
    pub fn watch(&self, name: &str, after: u64, options: StreamOptions) -> Watch {
        Watch::new(self.clone(), full_name(name), after, options)
    }

    async fn try_get(&self, name: &str) -> Result<Job, Status> {
        let request = GetJobRequest { name: full_name(name) };
        let answer = self.calls.clone().get_job(limited(request)).await?;
        present("job", answer.into_inner().job)
    }

    async fn try_tile(&self, name: &str, column: u32, row: u32) -> Result<Tile, Status> {
        let format = ImageFormat::Raw.into();
        let request = GetTileRequest { name: full_name(name), column, row, format };
        let answer = self.calls.clone().get_tile(limited(request)).await?;
        present("tile", answer.into_inner().tile)
    }

    async fn try_watch(
        &self,
        request: WatchJobRequest,
    ) -> Result<Streaming<WatchJobResponse>, Status> {
        Ok(self.calls.clone().watch_job(request).await?.into_inner())
    }

    /// Makes a call until it has an answer, at most `attempts` times, and until the server is given up.
    async fn repeatedly<T, F>(&self, attempts: u32, call: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut backoff = self.retry.backoff();
        let mut attempt = 1;
        loop {
            match call().await {
                Ok(answer) => return Ok(answer),
                Err(status) if attempt < attempts && status::may_pass(&status) => {
                    tracing::debug!("{}: {status}; trying again", self.server);
                    if !backoff.pause().await {
                        return Err(self.given_up(&status));
                    }
                    attempt += 1;
                }
                Err(status) => return Err(self.error(&status)),
            }
        }
    }

    /// The error of a server that was waited for in vain, for the last time because of `why`.
    fn given_up(&self, why: &Status) -> Error {
        let (operation, limit) = ("retrying without progress".into(), Some(self.retry.give_up));
        let detail = Detail::Expired { operation, limit };
        Error::new(Kind::Unavailable, detail).with_source(self.error(why))
    }

    fn error(&self, status: &Status) -> Error {
        status::error(&self.server, status)
    }
}

/// The address and how to speak to it.
fn endpoint(settings: &Settings) -> Result<Endpoint> {
    let Settings { server, ca, identity, .. } = settings;
    let expected = || format!("an address like {DEFAULT_SERVER}");
    let refused = || Error::invalid("server", format!("{server:?}"), expected());
    let secure = match server.split_once("://") {
        Some(("http", host)) if !host.is_empty() => false,
        Some(("https", host)) if !host.is_empty() => true,
        _ => return Err(refused()),
    };
    let mut endpoint = Endpoint::from_shared(server.clone())
        .map_err(|error| refused().with_source(error))?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .http2_keep_alive_interval(SILENCE)
        .keep_alive_timeout(SILENCE);
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

/// The header that shows `token`.
fn bearer(token: &Secret) -> Result<MetadataValue<Ascii>> {
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

/// Whether the name or address is this machine's own.
fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// A call that ends if the server stays silent.
fn limited<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(ANSWER);
    request
}

/// The part of an answer that has to be there.
fn present<T>(field: &str, value: Option<T>) -> Result<T, Status> {
    value.ok_or_else(|| Status::internal(format!("the server's answer has no {field}")))
}

/// `models/{id}`, also if only the id was given.
pub fn full_model_name(model: &str) -> String {
    if model.starts_with("models/") { model.to_owned() } else { format!("models/{model}") }
}

/// `jobs/{id}`, also if only the id was given.
pub fn full_name(job: &str) -> String {
    if job.starts_with("jobs/") { job.to_owned() } else { format!("jobs/{job}") }
}

/// A text of the server's without control characters, and not without end.
pub fn plain(text: &str) -> String {
    let visible = |c: char| if c.is_control() { '\u{FFFD}' } else { c };
    let mut out: String = text.chars().take(MAX_TEXT).map(visible).collect();
    if text.chars().nth(MAX_TEXT).is_some() {
        out.push('…');
    }
    out
}

/// A job's state in a word: `queued`, `denoising`, ...
pub fn state_name(state: JobState) -> String {
    state.as_str_name().trim_start_matches("JOB_STATE_").to_ascii_lowercase()
}

/// Whether a job in this state has ended.
pub fn is_last(state: JobState) -> bool {
    matches!(state, JobState::Finished | JobState::Failed | JobState::Cancelled)
}

/// A time of the API's. `None` if it was not sent or is none.
pub fn time(timestamp: Option<&prost_types::Timestamp>) -> Option<SystemTime> {
    timestamp.and_then(|&time| SystemTime::try_from(time).ok())
}

/// A time for the API.
pub fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    time.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_can_not_be_used_are_named() {
        for server in ["", "127.0.0.1:50051", "ftp://host", "http://", "https://", "http://a b"] {
            let error = endpoint(&Settings::new(server)).err();
            assert_eq!(error.as_ref().and_then(Error::field), Some("server"), "{server}");
        }
        let ca = Settings { ca: Some(b"PEM".to_vec()), ..Settings::new(DEFAULT_SERVER) };
        let error = endpoint(&ca).err();
        assert_eq!(error.as_ref().and_then(Error::field), Some("ca"));
    }

    #[test]
    fn texts_of_the_server_can_not_move_the_cursor() {
        assert_eq!(plain("a\u{1b}[2Jb\n"), "a\u{FFFD}[2Jb\u{FFFD}");
        assert_eq!(plain(&"x".repeat(MAX_TEXT + 5)).chars().count(), MAX_TEXT + 1);
        assert_eq!(plain(&"x".repeat(MAX_TEXT)).chars().count(), MAX_TEXT);
    }

    #[test]
    fn names_may_leave_out_their_collection() {
        assert_eq!(full_name("7"), "jobs/7");
        assert_eq!(full_name("jobs/7"), "jobs/7");
        assert_eq!(full_model_name("a"), full_model_name("models/a"));
        assert!(is_loopback("127.0.0.1") && is_loopback("[::1]") && !is_loopback("10.0.0.1"));
        assert_eq!(state_name(JobState::Denoising), "denoising");
    }
}
