//! Rules for all requests: `Host`, deadlines, unknown addresses, and what load balancers ask.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, Version, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
    routing::get,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    access,
    http::reply::{self, Failure},
};
use crate::{
    error::{Error, Resource},
    jobs::{self, Jobs},
};

/// Paths of uploads, which limit the time of their bodies themselves.
const UPLOADS: [&str; 2] = ["/tessera.v1.JobService/EditPicture", "/jobs"];

/// Prefix of the paths of reflection, whose requests are streams without an end.
const REFLECTION: &str = "/grpc.reflection.";

/// Units of `grpc-timeout` and their nanoseconds.
const UNITS: [(u8, u64); 6] = [
    (b'H', 3_600_000_000_000),
    (b'M', 60_000_000_000),
    (b'S', 1_000_000_000),
    (b'm', 1_000_000),
    (b'u', 1000),
    (b'n', 1),
];

/// True for paths whose requests may take longer than others.
pub(super) fn has_own_pace(path: &str) -> bool {
    UPLOADS.contains(&path) || path.starts_with(REFLECTION)
}

/// Middleware that rejects requests with several `Host` headers, and HTTP/1.1 requests without one (RFC 9112, 3.2). HTTP/2
/// has `:authority`.
pub(super) async fn check_host(request: Request, next: Next) -> Response {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    let required = usize::from(request.version() == Version::HTTP_11);
    if (required..=1).contains(&hosts) {
        return next.run(request).await;
    }
    let error = match hosts {
        0 => Error::missing("host", "one header"),
        _ => Error::invalid("host", format!("given {hosts} times"), "one header"),
    };
    Failure::from(error).into_response()
}

/// Middleware that ends a gRPC call without a response at its deadline, `grpc-timeout`.
pub(super) async fn check_deadline(request: Request, next: Next) -> Response {
    let limit = request.headers().get("grpc-timeout").and_then(grpc_timeout);
    let Some(limit) = limit.filter(|_| access::is_grpc(&request)) else {
        return next.run(request).await;
    };
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => access::grpc(Status::deadline_exceeded(format!("no response within {limit:?}"))),
    }
}

/// The value of `grpc-timeout`: at most 8 digits and a unit. Others are ignored, as by other servers.
fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let (&unit, digits) = value.as_bytes().split_last()?;
    let (_, nanoseconds) = UNITS.into_iter().find(|&(name, _)| name == unit)?;
    let valid = (1..=8).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    let count: u64 = std::str::from_utf8(digits).ok().filter(|_| valid)?.parse().ok()?;
    Some(Duration::from_nanos(count.checked_mul(nanoseconds)?))
}

/// The answer to unknown addresses: UNIMPLEMENTED for gRPC, otherwise 404.
pub(super) async fn not_found(request: Request) -> Response {
    let path = request.uri().path();
    if access::is_grpc(&request) {
        return access::grpc(Status::unimplemented(format!("there is no method {path:.200}")));
    }
    let path = path.chars().take(200).collect::<String>();
    Failure::from(Error::not_found(Resource::Page, path)).into_response()
}

/// State of the server as load balancers ask for it.
struct Probes {
    jobs: Jobs,
    stopping: CancellationToken,
}

/// `/healthz`: 200 while every device responds. `/readyz`: 200 while every device responds and the server is not stopping.
/// Otherwise 503. They need no token.
pub(super) fn probes(jobs: Jobs, stopping: CancellationToken) -> Router {
    Router::new()
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
        .with_state(Arc::new(Probes { jobs, stopping }))
}

async fn healthy(State(probes): State<Arc<Probes>>) -> Response {
    match probes.jobs.is_healthy() {
        true => reply::no_store("text/plain; charset=utf-8", "ok\n"),
        false => {
            let error = Error::unavailable("the server", "a device does not respond");
            Failure::from(error).with_status(StatusCode::SERVICE_UNAVAILABLE)
        }
    }
}

async fn ready(state: State<Arc<Probes>>) -> Response {
    if state.stopping.is_cancelled() {
        return Failure::from(jobs::shutting_down()).into_response();
    }
    healthy(state).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_parsed() {
        let parse = |text: &'static str| grpc_timeout(&HeaderValue::from_static(text));
        for (text, expected) in [
            ("1S", Some(Duration::from_secs(1))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999H", None),
            ("2H", Some(Duration::from_secs(7200))),
            ("100000u", Some(Duration::from_millis(100))),
            ("0n", Some(Duration::ZERO)),
            ("", None),
            ("S", None),
            ("1", None),
            ("-1S", None),
            ("+1S", None),
            ("123456789n", None),
            ("1s", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}
