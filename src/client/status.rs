//! What a gRPC status says, as the crate's error: the details' field names and delays stay readable.

use std::error::Error as StdError;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::plain;
use crate::error::{Error, Kind};

/// Whether the same call may succeed later: the server is away, or the connection broke.
pub(super) fn may_pass(status: &Status) -> bool {
    // A status that came over the wire has no source; one with a source is about the connection.
    status.code() == Code::Unavailable || status.source().is_some()
}

/// The error that `status` stands for.
pub(super) fn error(server: &str, status: &Status) -> Error {
    if status.source().is_some() {
        return unreachable(server, status.message(), status.source());
    }
    Error::new(kind(status.code()), message(server, status))
}

/// The error of a server that does not answer.
pub(super) fn unreachable(
    server: &str,
    what: &str,
    cause: Option<&(dyn StdError + 'static)>,
) -> Error {
    Error::new(
        Kind::Unavailable,
        format!("server {server} can't be reached: {}", causes(what, cause)),
    )
}

/// `what`, and its innermost cause.
pub(super) fn causes(what: &str, cause: Option<&(dyn StdError + 'static)>) -> String {
    let innermost = std::iter::successors(cause, |&error| error.source()).last();
    match innermost.map(ToString::to_string) {
        Some(cause) if !what.contains(&cause) => format!("{}: {}", plain(what), plain(&cause)),
        _ => plain(what),
    }
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

/// The server's message with what the details add to it.
fn message(server: &str, status: &Status) -> String {
    let mut message = match plain(status.message()) {
        empty if empty.is_empty() => format!("{server}: {}", status.code()),
        message => message,
    };
    let details = status.get_error_details();
    let fields = details.bad_request().into_iter().flat_map(|bad| &bad.field_violations);
    let fields = fields.map(|field| (&field.field, &field.description));
    let quotas = details.quota_failure().into_iter().flat_map(|quota| &quota.violations);
    let quotas = quotas.map(|quota| (&quota.subject, &quota.description));
    let mut notes = Vec::new();
    for (subject, description) in fields.chain(quotas) {
        match (status.message().contains(subject), status.message().contains(description)) {
            (true, true) => {}
            (false, true) => notes.push(plain(subject)),
            _ => notes.push(format!("{}: {}", plain(subject), plain(description))),
        }
    }
    if let Some(delay) = details.retry_info().and_then(|retry| retry.retry_delay) {
        notes.push(format!("try again in {:.1} s", delay.as_secs_f64()));
    }
    if !notes.is_empty() {
        message.push_str(&format!(" ({})", notes.join("; ")));
    }
    message
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn details_are_told_once() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("spec.width", "width is 100, not a multiple of 64");
        let text = "width is 100, not a multiple of 64";
        let status = Status::with_error_details(Code::InvalidArgument, text, details);
        let error = error("server", &status);
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert_eq!(error.to_string(), format!("{text} (spec.width)"));
    }

    #[test]
    fn a_full_queue_says_when_to_come_again() {
        let mut details = ErrorDetails::new();
        details
            .set_retry_info(Some(Duration::from_millis(2500)))
            .add_quota_failure_violation("queue", "8 jobs wait");
        let status = Status::with_error_details(Code::ResourceExhausted, "no room", details);
        let error = error("server", &status);
        assert_eq!(error.kind(), Kind::Exhausted);
        assert_eq!(error.to_string(), "no room (queue: 8 jobs wait; try again in 2.5 s)");
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
