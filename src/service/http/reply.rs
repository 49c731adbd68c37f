//! Responses: cache headers, entity tags and problem details.
//!
//! Guarantees: a response that can still change is never cached, one with a tag never changes, and errors do not reveal
//! internal details.

pub(super) use axum::body::Body;
use axum::{
    extract::Request,
    http::{HeaderMap, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::{
    error::{Detail, Error, Kind},
    jobs,
    service::convert,
};

/// Cache policy of final pixels: job ids are unique, and a finished picture never changes.
const FOREVER: &str = "private, max-age=31536000, immutable";

/// An error as a response.
#[derive(Debug)]
pub(in crate::service) struct Failure(Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl Failure {
    /// The HTTP status of the error.
    fn status(&self) -> StatusCode {
        match self.0.kind() {
            Kind::InvalidArgument | Kind::InvalidImage => StatusCode::BAD_REQUEST,
            Kind::Expired | Kind::Cancelled => StatusCode::REQUEST_TIMEOUT,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::NotReady => StatusCode::CONFLICT,
            Kind::Exhausted if self.is_about_disk() => StatusCode::INSUFFICIENT_STORAGE,
            Kind::Exhausted => StatusCode::TOO_MANY_REQUESTS,
            Kind::Damaged if self.0.retry_after().is_some() => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn is_about_disk(&self) -> bool {
        matches!(self.0.detail(), Detail::Exhausted { resource, .. } if resource == jobs::DISK)
    }

    /// The error as problem details (RFC 9457): the standard members, then `kind` and the error's fields.
    pub(in crate::service) fn with_status(&self, status: StatusCode) -> Response {
        let Self(error) = self;
        let report = error.report().to_string();
        if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE {
            tracing::error!("http: {report}");
        }
        let mut problem = convert::public_fields(error);
        for (name, value) in [
            ("type", "about:blank".into()),
            ("title", status.canonical_reason().unwrap_or_default().into()),
            ("status", status.as_u16().into()),
            ("detail", convert::public_message(error.kind(), &report).into()),
            ("kind", error.kind().name().into()),
        ] {
            problem.insert(name.to_owned(), value);
        }
        let headers = [
            (header::CONTENT_TYPE, "application/problem+json"),
            (header::CACHE_CONTROL, "no-store"),
        ];
        let text = serde_json::Value::Object(problem).to_string() + "\n";
        let mut response = (status, headers, text).into_response();
        if let Some(delay) = error.retry_after() {
            let seconds = delay.as_secs_f64().ceil() as u64;
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.with_status(self.status())
    }
}

/// True if a tag of `If-None-Match` equals `tag`.
pub(super) fn etag_matches(headers: &HeaderMap, tag: &str) -> bool {
    let tags = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|v| v.to_str().ok());
    tags.flat_map(|tags| tags.split(',')).any(|known| {
        let known = known.trim();
        known.strip_prefix("W/").unwrap_or(known) == tag
    })
}

/// Middleware that answers `If-None-Match: *` to GET and HEAD with 304 if there is a representation, whichever it is
/// (RFC 9110, 13.1.2).
pub(super) async fn unless_present(request: Request, next: Next) -> Response {
    let any = request.headers().get(header::IF_NONE_MATCH).is_some_and(|value| value == "*");
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let response = next.run(request).await;
    if !(any && reads && response.status().is_success()) {
        return response;
    }
    let (mut parts, _) = response.into_parts();
    parts.status = StatusCode::NOT_MODIFIED;
    for name in [header::CONTENT_TYPE, header::CONTENT_LENGTH, header::CONTENT_RANGE] {
        parts.headers.remove(name);
    }
    Response::from_parts(parts, Body::empty())
}

/// Not modified.
pub(super) fn not_modified(tag: &str) -> Response {
    let headers = [(header::ETAG, tag), (header::CACHE_CONTROL, FOREVER)];
    (StatusCode::NOT_MODIFIED, headers).into_response()
}

/// A response that never changes.
pub(super) fn immutable(kind: &str, tag: &str, body: impl Into<Body>) -> Response {
    let headers =
        [(header::CONTENT_TYPE, kind), (header::ETAG, tag), (header::CACHE_CONTROL, FOREVER)];
    (headers, body.into()).into_response()
}

/// A created resource at the URL `place`, described by `json`.
pub(super) fn created(place: &str, json: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::LOCATION, place),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (StatusCode::CREATED, headers, json).into_response()
}

/// A response that may change.
pub(in crate::service) fn no_store(kind: &str, body: impl Into<Body>) -> Response {
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")];
    (headers, body.into()).into_response()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    async fn problem(error: Error) -> (StatusCode, HeaderMap, serde_json::Value) {
        let response = Failure(error).into_response();
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
        (status, headers, serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn problem_json_hides_internal_details() {
        let inside = std::io::Error::other("secret");
        let (status, _, problem) = problem(Error::io("read", "/srv/jobs/x", inside)).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        let text = problem.to_string();
        assert!(!text.contains("/srv") && !text.contains("secret"), "{text}");
    }

    #[tokio::test]
    async fn problem_json_has_the_fields_of_the_error() {
        let (status, headers, found) = problem(Error::invalid("width", 100, "64")).await;
        assert_eq!((status, found["status"].as_u64()), (StatusCode::BAD_REQUEST, Some(400)));
        assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!((&found["field"], &found["value"]), (&"width".into(), &"100".into()));
        assert_eq!(found["kind"], "invalid_argument");
        assert!(!headers.contains_key(header::RETRY_AFTER));
        let full = Error::exhausted("queued_jobs", 9, 8);
        let (_, headers, found) = problem(full.with_retry_after(crate::jobs::RETRY_AFTER)).await;
        assert_eq!(headers[header::RETRY_AFTER], "5");
        assert_eq!((&found["needed"], &found["limit"]), (&9.into(), &8.into()));
    }

    #[tokio::test]
    async fn full_disk_is_insufficient_storage_and_damage_is_temporary_while_repaired() {
        let full = Error::exhausted(jobs::DISK, 9, None);
        assert_eq!(problem(full).await.0, StatusCode::INSUFFICIENT_STORAGE);
        let damaged = Error::wrong(Kind::Damaged, "tile", "damaged", "intact");
        assert_eq!(problem(damaged.clone()).await.0, StatusCode::INTERNAL_SERVER_ERROR);
        let (status, headers, _) = problem(damaged.with_retry_after(jobs::RETRY_AFTER)).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(headers.contains_key(header::RETRY_AFTER));
    }

    #[test]
    fn etags_match_in_lists_and_as_weak_tags() {
        let mut headers = HeaderMap::new();
        assert!(!etag_matches(&headers, "\"a\""));
        headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("\"b\", W/\"a\""));
        assert!(
            etag_matches(&headers, "\"a\"")
                && etag_matches(&headers, "\"b\"")
                && !etag_matches(&headers, "\"c\"")
        );
    }
}
