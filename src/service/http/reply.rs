//! Answers: what may be cached, by whom, and what an error says.
//!
//! The guarantee: an answer that can still change is never stored, one with a tag never changes, and no error tells
//! a client about the inside of the server.

pub(super) use axum::body::Body;
use axum::{
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};

use crate::error::{Error, Kind};

/// For final pixels: a job's id is never used again, and its picture never changes.
const FOREVER: &str = "private, max-age=31536000, immutable";

/// An error on its way to a client.
#[derive(Debug)]
pub(super) struct Failure(Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl Failure {
    /// Status and text; errors that are not the client's are only logged.
    pub(super) fn parts(&self) -> (StatusCode, String) {
        let status = match self.0.kind() {
            Kind::InvalidArgument | Kind::InvalidImage => StatusCode::BAD_REQUEST,
            Kind::Expired => StatusCode::REQUEST_TIMEOUT,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::NotReady => StatusCode::CONFLICT,
            Kind::Exhausted => StatusCode::TOO_MANY_REQUESTS,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
            _ => {
                tracing::error!("http: {}", self.0);
                return (
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the server failed; its log says why".into(),
                );
            }
        };
        (status, self.0.to_string())
    }
}

/// Whether the client already has what `tag` names.
pub(super) fn knows(headers: &HeaderMap, tag: &str) -> bool {
    let tags = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|v| v.to_str().ok());
    tags.flat_map(|tags| tags.split(',')).any(|known| {
        let known = known.trim();
        known.strip_prefix("W/").unwrap_or(known) == tag
    })
}

/// The client has it.
pub(super) fn unchanged(tag: &str) -> Response {
    let headers = [(header::ETAG, tag), (header::CACHE_CONTROL, FOREVER)];
    (StatusCode::NOT_MODIFIED, headers).into_response()
}

/// What will never change.
pub(super) fn lasting(kind: &str, tag: &str, body: impl Into<Body>) -> Response {
    let headers =
        [(header::CONTENT_TYPE, kind), (header::ETAG, tag), (header::CACHE_CONTROL, FOREVER)];
    (headers, body.into()).into_response()
}

/// Something new, at `place`; `json` tells of it.
pub(super) fn created(place: &str, json: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::LOCATION, place),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (StatusCode::CREATED, headers, json).into_response()
}

/// What may have changed by the next time.
pub(super) fn fleeting(kind: &str, body: impl Into<Body>) -> Response {
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")];
    (headers, body.into()).into_response()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn errors_of_the_server_say_nothing_of_its_inside() {
        let inside = std::io::Error::other("secret");
        let (status, text) = Failure(Error::io("can't read", "/srv/jobs/x", inside)).parts();
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!text.contains("/srv") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn tags_are_found_in_lists_and_weak_ones_count() {
        let mut headers = HeaderMap::new();
        assert!(!knows(&headers, "\"a\""));
        headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("\"b\", W/\"a\""));
        assert!(knows(&headers, "\"a\"") && knows(&headers, "\"b\"") && !knows(&headers, "\"c\""));
    }
}
