//! Converts gRPC statuses to errors, from the fields in their details.

use std::{error::Error as StdError, io};

use tonic::{Code, Status};
use tonic_types::{ErrorInfo, StatusExt as _};

use super::sanitize;
use crate::{
    api::ERROR_DOMAIN,
    error::{Detail, Error, Kind},
};

/// True if the failure is transient: the server is unavailable or the connection broke.
pub(super) fn is_transient(status: &Status) -> bool {
    // A status that was received has no source; a local one has the connection's error.
    match status.source() {
        Some(cause) => !is_refusal(cause),
        None => status.code() == Code::Unavailable,
    }
}

/// True for errors of TLS, such as an unknown authority, which a later attempt meets too.
fn is_refusal(error: &(dyn StdError + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::InvalidData)
}

/// True if the server has refused the call because a limit is reached that may be lifted later.
pub(super) fn is_full(status: &Status) -> bool {
    let details = || status.get_error_details();
    status.code() == Code::ResourceExhausted && details().retry_info().is_some()
}

/// The error of a status: from the fields in its details or, if they are not of this API, from its message.
pub(super) fn error(server: &str, status: &Status) -> Error {
    if let Some(cause) = status.source() {
        return unreachable(server, cause);
    }
    let details = status.get_error_details();
    let info = details.error_info().filter(|info| info.domain == ERROR_DOMAIN);
    let reason = |info: &ErrorInfo| info.reason.to_ascii_lowercase().parse().ok();
    let kind = info.and_then(reason).unwrap_or_else(|| kind(status.code()));
    let fields = |info: &ErrorInfo| {
        Detail::from_fields(|name| info.metadata.get(name).map(|value| sanitize(value)))
    };
    let error = Error::new(kind, info.and_then(fields).unwrap_or_else(|| remote(server, status)));
    match details.retry_info().and_then(|retry| retry.retry_delay) {
        Some(delay) => error.with_retry_after(delay),
        None => error,
    }
}

/// A failure that is described by a message only.
fn remote(server: &str, status: &Status) -> Detail {
    let message = match sanitize(status.message()) {
        empty if empty.is_empty() => status.code().to_string(),
        message => message,
    };
    Detail::Remote { origin: format!("server {server}"), message }
}

/// The error of a server that can't be reached because of `cause`.
pub(super) fn unreachable(server: &str, cause: &(dyn StdError + 'static)) -> Error {
    Error::unavailable(format!("server {server}"), root_cause(cause))
}

/// The text of an error's innermost cause.
pub(super) fn root_cause(error: &(dyn StdError + 'static)) -> String {
    let innermost = std::iter::successors(Some(error), |&error| error.source()).last();
    sanitize(&innermost.unwrap_or(error).to_string())
}

/// The kind of error of a status code.
pub(super) fn kind(code: Code) -> Kind {
    match code {
        Code::InvalidArgument | Code::OutOfRange => Kind::InvalidArgument,
        Code::Unauthenticated | Code::PermissionDenied => Kind::Unauthenticated,
        Code::NotFound => Kind::NotFound,
        Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted => Kind::NotReady,
        Code::ResourceExhausted => Kind::Exhausted,
        Code::DeadlineExceeded => Kind::Expired,
        Code::Cancelled => Kind::Cancelled,
        Code::Unavailable => Kind::Unavailable,
        Code::DataLoss => Kind::Damaged,
        Code::Ok | Code::Unknown | Code::Unimplemented | Code::Internal => Kind::Internal,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Duration};

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn error_info_becomes_the_fields_of_the_error() {
        let mut details = ErrorDetails::new();
        let metadata = [("field", "width"), ("value", "100"), ("expected", "a multiple of 64")];
        let metadata: HashMap<_, _> = metadata.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        details.set_error_info("INVALID_IMAGE", ERROR_DOMAIN, metadata.clone());
        let status = Status::with_error_details(Code::InvalidArgument, "some text", details);
        let found = error("server", &status);
        assert_eq!((found.kind(), found.field()), (Kind::InvalidImage, Some("width")));
        assert_eq!(found.to_string(), "width is 100; expected a multiple of 64");
        let mut details = ErrorDetails::new();
        details.set_error_info("INVALID_IMAGE", "another.example", metadata);
        let status = Status::with_error_details(Code::InvalidArgument, "some text", details);
        let found = error("server", &status);
        assert_eq!((found.kind(), found.field()), (Kind::InvalidArgument, None));
        assert_eq!(found.to_string(), "server server: some text");
    }

    #[test]
    fn retry_info_becomes_retry_after() {
        let mut details = ErrorDetails::new();
        details.set_retry_info(Some(Duration::from_millis(2500)));
        let status = Status::with_error_details(Code::ResourceExhausted, "no room", details);
        assert!(is_full(&status) && !is_full(&Status::resource_exhausted("too large")));
        let error = error("server", &status);
        assert_eq!(error.kind(), Kind::Exhausted);
        assert_eq!(error.retry_after(), Some(Duration::from_millis(2500)));
    }

    #[test]
    fn only_transient_failures_are_retried() {
        assert!(is_transient(&Status::unavailable("draining")));
        let broken = |kind| Status::from_error(Box::new(io::Error::from(kind)));
        assert!(!is_transient(&broken(io::ErrorKind::InvalidData)), "TLS");
        let broken = broken(io::ErrorKind::ConnectionReset);
        assert!(is_transient(&broken));
        assert_eq!(error("server", &broken).kind(), Kind::Unavailable);
        for status in [
            Status::not_found(""),
            Status::unauthenticated(""),
            Status::invalid_argument(""),
            Status::internal(""),
            Status::resource_exhausted(""),
        ] {
            assert!(!is_transient(&status), "{status}");
        }
    }
}
