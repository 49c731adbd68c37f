//! What a gRPC status says, as the crate's error: the details' field names and delays stay readable.

use std::error::Error as StdError;

use tonic::{Code, Status};
use tonic_types::{ErrorInfo, StatusExt as _};

use super::plain;
use crate::{
    api::ERROR_DOMAIN,
    error::{Detail, Error, Kind},
};

/// Whether the same call may succeed later: the server is away, or the connection broke.
pub(super) fn may_pass(status: &Status) -> bool {
    // A status that came over the wire has no source; one with a source is about the connection.
    status.code() == Code::Unavailable || status.source().is_some()
}

/// The error that `status` stands for: of the fields in its details if they are this API's, else of its message.
pub(super) fn error(server: &str, status: &Status) -> Error {
    if let Some(cause) = status.source() {
        return unreachable(server, cause);
    }
    let details = status.get_error_details();
    let info = details.error_info().filter(|info| info.domain == ERROR_DOMAIN);
    let reason = |info: &ErrorInfo| {
        let named = |kind: &Kind| kind.name().eq_ignore_ascii_case(&info.reason);
        Kind::ALL.into_iter().find(named)
    };
    let kind = info.and_then(reason).unwrap_or_else(|| kind(status.code()));
    let fields = |info: &ErrorInfo| {
        Detail::from_fields(|name| info.metadata.get(name).map(|value| plain(value)))
    };
    let error = Error::new(kind, info.and_then(fields).unwrap_or_else(|| remote(server, status)));
    match details.retry_info().and_then(|retry| retry.retry_delay) {
        Some(delay) => error.with_retry_after(delay),
        None => error,
    }
}

/// A failure of which nothing but a message is known.
fn remote(server: &str, status: &Status) -> Detail {
    let message = match plain(status.message()) {
        empty if empty.is_empty() => status.code().to_string(),
        message => message,
    };
    Detail::Remote { origin: format!("server {server}"), message }
}

/// The error of a server that does not answer; `cause` is why.
pub(super) fn unreachable(server: &str, cause: &(dyn StdError + 'static)) -> Error {
    Error::unavailable(format!("server {server}"), root_cause(cause))
}

/// The text of an error's innermost cause.
pub(super) fn root_cause(error: &(dyn StdError + 'static)) -> String {
    let innermost = std::iter::successors(Some(error), |&error| error.source()).last();
    plain(&innermost.unwrap_or(error).to_string())
}

/// The kind of error that a code stands for.
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
        Code::DataLoss => Kind::Io,
        Code::Ok | Code::Unknown | Code::Unimplemented | Code::Internal => Kind::Internal,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Duration};

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn fields_in_the_details_become_those_of_the_error() {
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
    fn a_full_queue_says_when_to_come_again() {
        let mut details = ErrorDetails::new();
        details.set_retry_info(Some(Duration::from_millis(2500)));
        let status = Status::with_error_details(Code::ResourceExhausted, "no room", details);
        let error = error("server", &status);
        assert_eq!(error.kind(), Kind::Exhausted);
        assert_eq!(error.retry_after(), Some(Duration::from_millis(2500)));
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        assert!(may_pass(&Status::unavailable("draining")));
        let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let broken = Status::from_error(Box::new(broken));
        assert!(may_pass(&broken));
        assert_eq!(error("server", &broken).kind(), Kind::Unavailable);
        for status in [
            Status::not_found(""),
            Status::unauthenticated(""),
            Status::invalid_argument(""),
            Status::internal(""),
            Status::resource_exhausted(""),
        ] {
            assert!(!may_pass(&status), "{status}");
        }
    }
}
