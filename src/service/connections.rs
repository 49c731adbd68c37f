//! Connections: accepting, TLS, HTTP/1.1 and HTTP/2 on each, limits, and their end when the server stops.
//!
//! Guarantees: the number of connections is bounded, and one whose client says nothing is closed: before its first bytes
//! and during the TLS handshake after [`START_TIMEOUT`], between and within the headers of HTTP/1.1 requests after
//! [`HEADER_TIMEOUT`], within the body of a request after [`BODY_TIMEOUT`] (uploads have their own rule), and an HTTP/2
//! connection that does not answer pings after twice [`KEEP_ALIVE`]. When the server stops, idle connections close at once,
//! and those on which calls still make progress within [`GRACE`].

use std::{
    convert::Infallible,
    future::Future as _,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{Request, Response},
};
use hyper::{
    body::{Body as _, Frame, Incoming, SizeHint},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use tower::ServiceExt as _;

use super::requests;

/// Time for the TLS handshake, and for the first bytes after it.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes that tell HTTP/2 from HTTP/1.1: the length of the HTTP/2 connection preface.
const START: u64 = 24;

/// Time for the headers of an HTTP/1.1 request, from the end of the one before.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for the body of a request that is not an upload.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Interval of HTTP/2 pings on an idle connection, and timeout of their acknowledgement.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// HTTP/2 streams that one connection may have open.
const MAX_STREAMS: u32 = 256;

/// Most bytes of the headers of an HTTP/2 request.
const MAX_HEADERS: u32 = 16 << 10;

/// Bytes that HTTP/2 buffers for a stream, and HTTP/1.1 for a connection, before the client has room for them.
pub(super) const SEND_BUFFER: usize = 64 << 10;

/// Time for the calls in progress when the server stops.
const GRACE: Duration = Duration::from_secs(10);

/// Time without a byte in either direction after which a connection of a stopping server is closed.
const STALLED: Duration = Duration::from_secs(2);

/// Pause after a failure to accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Address of the client. It is an extension of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer(pub SocketAddr);

/// The number of connections, and its limit.
#[derive(Debug)]
pub(super) struct Connections {
    limit: usize,
    free: Arc<Semaphore>,
    refused: AtomicU64,
}

impl Connections {
    /// No connection yet, at most `limit` at one time.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        let free = Arc::new(Semaphore::new(limit));
        Arc::new(Self { limit, free, refused: AtomicU64::new(0) })
    }

    /// Most connections at one time.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Open connections.
    pub(super) fn open(&self) -> usize {
        self.limit - self.free.available_permits()
    }

    /// Connections that were closed at once because of the limit.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}

/// Serves `router` on `listener` until `stopping` is cancelled, then waits until the connections have closed, at most for
/// [`GRACE`].
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    connections: &Connections,
    stopping: CancellationToken,
) {
    let server = Server { tls, router, http: http(), stopping: stopping.clone() };
    let server = Arc::new(server);
    let mut full = false;
    loop {
        let (stream, peer) = tokio::select! {
            accepted = accept(&listener) => accepted,
            () = stopping.cancelled() => break,
        };
        let Ok(permit) = connections.free.clone().try_acquire_owned() else {
            connections.refused.fetch_add(1, Relaxed);
            if !full {
                tracing::warn!(
                    "all {} connections are in use; others are closed",
                    connections.limit
                );
            }
            full = true;
            continue;
        };
        full = false;
        let server = server.clone();
        tokio::spawn(async move {
            server.connection(stream, peer).await;
            drop(permit);
        });
    }
    drop(listener);
    tracing::info!("stopping");
    let closed = connections.free.acquire_many(connections.limit as u32);
    if timeout(GRACE + STALLED, closed).await.is_err() {
        tracing::warn!("closing calls that did not end within {GRACE:?}");
    }
}

/// The next connection. Small responses are sent at once: Nagle's algorithm would hold them back until the client has
/// acknowledged what was sent before.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => match stream.set_nodelay(true) {
                Ok(()) => return (stream, peer),
                Err(error) => tracing::debug!("{peer}: {error}"),
            },
            Err(error) => {
                tracing::debug!("accepting a connection: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// HTTP/1.1 and HTTP/2 with their limits.
fn http() -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(SEND_BUFFER);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .max_pending_accept_reset_streams(64)
        .max_send_buf_size(SEND_BUFFER);
    http
}

struct Server {
    tls: Option<TlsAcceptor>,
    router: Router,
    http: auto::Builder<TokioExecutor>,
    stopping: CancellationToken,
}

impl Server {
    /// Serves one connection until it closes.
    async fn connection(&self, stream: TcpStream, peer: SocketAddr) {
        let Some(tls) = &self.tls else { return self.requests(stream, peer).await };
        let handshake = tokio::select! {
            handshake = timeout(START_TIMEOUT, tls.accept(stream)) => handshake,
            () = self.stopping.cancelled() => return,
        };
        match handshake {
            Ok(Ok(stream)) => self.requests(stream, peer).await,
            Ok(Err(error)) => tracing::debug!("{peer}: TLS: {error}"),
            Err(_) => tracing::debug!("{peer}: no TLS handshake within {START_TIMEOUT:?}"),
        }
    }

    /// Serves the requests on `stream`.
    async fn requests<S>(&self, stream: S, peer: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let activity = Arc::new(Activity::default());
        let io = TokioIo::new(Observed { stream, activity: activity.clone() });
        let service = service_fn(|request: Request<Incoming>| {
            let (router, calls) = (self.router.clone(), Call::begin(&activity));
            let mut request = request_with_limits(request, self.stopping.clone());
            request.extensions_mut().insert(Peer(peer));
            async move {
                let response: Result<Response<Body>, Infallible> = router.oneshot(request).await;
                drop(calls);
                response
            }
        });
        let mut connection = pin!(self.http.serve_connection(io, service));
        let mut start = pin!(sleep(START_TIMEOUT));
        let mut started = false;
        let ended = loop {
            tokio::select! {
                ended = &mut connection => break Some(ended),
                () = &mut start, if !started => {
                    started = activity.received.load(Relaxed) >= START;
                    if !started {
                        tracing::debug!("{peer}: no request within {START_TIMEOUT:?}");
                        return;
                    }
                }
                () = self.stopping.cancelled() => break None,
            }
        };
        match ended {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::debug!("{peer}: {error}"),
            None => {
                connection.as_mut().graceful_shutdown();
                // An error is a client that leaves before its calls have ended.
                let _ = timeout(GRACE, until_closed(connection, &activity)).await;
            }
        }
    }
}

/// Polls `connection` until it has closed, or until nothing useful is in progress on it.
async fn until_closed<F: Future>(mut connection: Pin<&mut F>, activity: &Activity) {
    let mut before = activity.progress();
    loop {
        tokio::select! {
            _ = &mut connection => return,
            () = sleep(STALLED) => {}
        }
        let now = activity.progress();
        if activity.calls.load(Relaxed) == 0 && now == before {
            return;
        }
        before = now;
    }
}

/// What a connection does.
#[derive(Debug, Default)]
struct Activity {
    /// Bytes received.
    received: AtomicU64,
    /// Bytes sent.
    sent: AtomicU64,
    /// Requests without the headers of their response.
    calls: AtomicUsize,
}

impl Activity {
    fn progress(&self) -> (u64, u64) {
        (self.received.load(Relaxed), self.sent.load(Relaxed))
    }
}

/// A request in progress.
struct Call(Arc<Activity>);

impl Call {
    fn begin(activity: &Arc<Activity>) -> Self {
        activity.calls.fetch_add(1, Relaxed);
        Self(activity.clone())
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Relaxed);
    }
}

/// A stream whose bytes are counted.
struct Observed<S> {
    stream: S,
    activity: Arc<Activity>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Observed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.activity.received.fetch_add((buffer.filled().len() - before) as u64, Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> Observed<S> {
    fn sent(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = polled {
            self.activity.sent.fetch_add(bytes as u64, Relaxed);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Observed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.sent(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.sent(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// `request` with a body that ends with an error when the server stops or the client takes too long to send it.
fn request_with_limits(request: Request<Incoming>, stopping: CancellationToken) -> Request<Body> {
    let paced = requests::has_own_pace(request.uri().path());
    request.map(|body| {
        if body.is_end_stream() {
            return Body::empty();
        }
        Body::new(Receiving {
            body,
            stopped: Box::pin(stopping.cancelled_owned()),
            limit: (!paced)
                .then(|| Box::pin(tokio::time::sleep_until(Instant::now() + BODY_TIMEOUT))),
        })
    })
}

/// The body of a request that is being received.
struct Receiving {
    body: Incoming,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    limit: Option<Pin<Box<Sleep>>>,
}

impl hyper::body::Body for Receiving {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        if self.stopped.as_mut().poll(cx).is_ready() {
            let status = Status::unavailable("the server is shutting down");
            return Poll::Ready(Some(Err(status.into())));
        }
        if self.limit.as_mut().is_some_and(|limit| limit.as_mut().poll(cx).is_ready()) {
            let text = format!("the request was not complete after {BODY_TIMEOUT:?}");
            return Poll::Ready(Some(Err(Status::deadline_exceeded(text).into())));
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn accepted_connections_send_without_delay() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, (stream, peer)) = tokio::join!(TcpStream::connect(address), accept(&listener));
        assert_eq!(peer, client.unwrap().local_addr().unwrap());
        assert!(stream.nodelay().unwrap());
    }
}
