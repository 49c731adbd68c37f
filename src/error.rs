//! The crate's error type: its kind, the fields that describe the failure, and its cause.
//!
//! Everything that reports an error reads the fields: [`Display`](fmt::Display), the details of a gRPC status, problem
//! JSON over HTTP, and `--json` on the command line. No code reads a message.

use std::{borrow::Cow, fmt, io, ops::RangeInclusive, path::PathBuf, sync::Arc, time::Duration};

use serde_json::{Map, Value};
use strum::{EnumString, IntoStaticStr};

/// Result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Text that is usually a literal.
type Text = Cow<'static, str>;

/// Category of an [`Error`]: it determines exit codes and status codes.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    EnumString,
    IntoStaticStr,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// An argument is out of range, malformed or unknown. Exit code 2.
    InvalidArgument,
    /// A checkpoint or latent file is damaged or does not match its architecture. Exit code 2.
    InvalidModel,
    /// A picture can't be decoded. Exit code 2.
    InvalidImage,
    /// The requested device does not exist, lacks a feature, or was lost.
    Device,
    /// Reading or writing failed, or data of another program or machine is damaged.
    Io,
    /// Stored data can't be read as it was written. [`Error::retry_after`] is present if it is being computed again.
    Damaged,
    /// The operation was cancelled. Exit code 130.
    Cancelled,
    /// The named resource does not exist.
    NotFound,
    /// The resource exists, but its state does not allow the operation yet.
    NotReady,
    /// A limit is reached. [`Error::retry_after`] distinguishes a limit that may be lifted later from a permanent one.
    Exhausted,
    /// A deadline or time limit has passed.
    Expired,
    /// The server can't be reached or is shutting down; the same call may succeed later.
    Unavailable,
    /// The call has no valid token.
    Unauthenticated,
    /// A defect of this program or of the peer.
    Internal,
}

impl Kind {
    /// Machine-readable name: `invalid_argument`, `io`, ...
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// Type of a named thing in [`Detail::NotFound`] and [`Detail::State`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
#[non_exhaustive]
pub enum Resource {
    /// A job.
    Job,
    /// A model.
    Model,
    /// A tile of a picture.
    Tile,
    /// A preview of a job's picture.
    Preview,
    /// An address of the service over HTTP.
    Page,
}

impl Resource {
    /// Machine-readable name: `job`, `model`, ...
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// Values that a field accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expected {
    /// A number from `min` to `max`.
    Range {
        /// Smallest accepted value.
        min: u64,
        /// Largest accepted value.
        max: u64,
        /// Accepted value closest to the one given, if that was a number.
        nearest: Option<u64>,
    },
    /// A positive multiple of `of`, up to `max`.
    Multiple {
        /// Divisor.
        of: u64,
        /// Largest accepted value.
        max: u64,
        /// Accepted value closest to the one given.
        nearest: u64,
    },
    /// One of these words.
    OneOf(Vec<Text>),
    /// A description of the accepted values.
    Described(Text),
}

impl Expected {
    /// A number in `range`; the nearest one to `value` is suggested.
    pub fn range(range: RangeInclusive<usize>, value: usize) -> Self {
        let (min, max) = (*range.start(), *range.end());
        let nearest = Some(value.clamp(min, max.max(min)) as u64);
        Self::Range { min: min as u64, max: max as u64, nearest }
    }

    /// A number in `range`.
    pub fn within(range: RangeInclusive<usize>) -> Self {
        Self::Range { min: *range.start() as u64, max: *range.end() as u64, nearest: None }
    }

    /// At most `limit`.
    pub fn at_most(limit: impl fmt::Display) -> Self {
        Self::from(format!("at most {limit}"))
    }

    /// One of `words`.
    pub fn one_of<W: Into<Text>>(words: impl IntoIterator<Item = W>) -> Self {
        Self::OneOf(words.into_iter().map(Into::into).collect())
    }

    /// Accepted value closest to the one given, where it is known.
    pub fn nearest(&self) -> Option<u64> {
        match *self {
            Self::Range { nearest, .. } => nearest,
            Self::Multiple { nearest, .. } => Some(nearest),
            _ => None,
        }
    }
}

impl From<&'static str> for Expected {
    fn from(text: &'static str) -> Self {
        Self::Described(text.into())
    }
}

impl From<String> for Expected {
    fn from(text: String) -> Self {
        Self::Described(text.into())
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range { min, max, .. } => write!(f, "a number from {min} to {max}")?,
            Self::Multiple { of, max, .. } => write!(f, "a multiple of {of} from {of} to {max}")?,
            Self::OneOf(words) => write!(f, "one of {}", words.join(", "))?,
            Self::Described(text) => f.write_str(text)?,
        }
        match self.nearest() {
            Some(nearest) => write!(f, " (nearest: {nearest})"),
            None => Ok(()),
        }
    }
}

/// Fields that describe a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Detail {
    /// A field has a value that is not accepted.
    Invalid {
        /// Name of the field: an argument, a variable, a file, a tensor.
        field: Text,
        /// Its value; `None` if it is missing.
        value: Option<String>,
        /// Accepted values.
        expected: Expected,
    },
    /// More of a resource is needed than there is.
    Exhausted {
        /// Name of the resource with its unit: `memory_bytes`, `disk_bytes`, `queued_jobs`, `pixels`, ...
        resource: Text,
        /// Amount needed.
        needed: u64,
        /// Amount available in all; `None` if it is unknown.
        limit: Option<u64>,
    },
    /// A resource does not exist.
    NotFound {
        /// Its type.
        resource: Resource,
        /// Its name as it was given.
        name: String,
    },
    /// A resource is in a state that does not allow the operation.
    State {
        /// Its type.
        resource: Resource,
        /// Its name.
        name: String,
        /// Its state.
        state: Text,
        /// State that the operation requires.
        required: Text,
    },
    /// An input or output operation failed; the cause is the source.
    Io {
        /// The operation as a verb: `read`, `create`, ...
        action: Text,
        /// File, directory or address.
        path: PathBuf,
    },
    /// A device can't do the work.
    Device {
        /// Its name.
        device: Text,
        /// Description of the problem.
        problem: Text,
    },
    /// A peer can't be reached or accepts no work.
    Unavailable {
        /// The peer.
        service: Text,
        /// The reason.
        reason: Text,
    },
    /// An operation took longer than it was allowed to.
    Expired {
        /// The operation.
        operation: Text,
        /// Its time limit; `None` for a point in time.
        limit: Option<Duration>,
    },
    /// An operation was cancelled.
    Cancelled {
        /// The operation.
        operation: Text,
    },
    /// The caller could not be identified.
    Unauthenticated {
        /// The reason.
        reason: Text,
    },
    /// A failure as another program reported it.
    Remote {
        /// The job or server that failed.
        origin: String,
        /// Its message.
        message: String,
    },
    /// A defect.
    Internal {
        /// The operation that failed or the rule that was broken.
        problem: Text,
    },
}

impl Detail {
    /// The detail whose [`fields`](Self::fields) a peer has sent as text; `None` for those that are sent as prose.
    pub fn from_fields(field: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let text = |name| field(name).map(Text::from);
        let number = |name| field(name)?.parse().ok();
        let resource = || field("resource")?.parse().ok();
        if let Some(needed) = number("needed") {
            return Some(Self::Exhausted {
                resource: text("resource")?,
                needed,
                limit: number("limit"),
            });
        }
        if let Some(required) = text("required") {
            let (name, state) = (field("name")?, text("state")?);
            return Some(Self::State { resource: resource()?, name, state, required });
        }
        match (text("field"), text("expected")) {
            (Some(name), Some(expected)) => Some(Self::Invalid {
                field: name,
                value: field("value"),
                expected: Expected::Described(expected),
            }),
            _ => Some(Self::NotFound { resource: resource()?, name: field("name")? }),
        }
    }

    /// The fields by name, as programs get them; prose is not among them.
    pub fn fields(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        let mut put = |name: &str, value: Value| {
            if !value.is_null() {
                fields.insert(name.to_owned(), value);
            }
        };
        match self {
            Self::Invalid { field, value, expected } => {
                put("field", field.as_ref().into());
                put("value", value.clone().into());
                put("expected", expected.to_string().into());
                put("nearest", expected.nearest().into());
            }
            Self::Exhausted { resource, needed, limit } => {
                put("resource", resource.as_ref().into());
                put("needed", (*needed).into());
                put("limit", (*limit).into());
            }
            Self::NotFound { resource, name } => {
                put("resource", resource.name().into());
                put("name", name.as_str().into());
            }
            Self::State { resource, name, state, required } => {
                put("resource", resource.name().into());
                put("name", name.as_str().into());
                put("state", state.as_ref().into());
                put("required", required.as_ref().into());
            }
            Self::Io { action, path } => {
                put("action", action.as_ref().into());
                put("path", path.display().to_string().into());
            }
            Self::Device { device, .. } => put("device", device.as_ref().into()),
            Self::Unavailable { service, .. } => put("service", service.as_ref().into()),
            Self::Expired { operation, limit } => {
                put("operation", operation.as_ref().into());
                put("limit_seconds", limit.map(|limit| limit.as_secs_f64()).into());
            }
            Self::Cancelled { operation } => put("operation", operation.as_ref().into()),
            Self::Remote { origin, .. } => put("origin", origin.as_str().into()),
            Self::Unauthenticated { .. } | Self::Internal { .. } => {}
        }
        fields
    }
}

/// Most characters of a value or name in an error: statuses travel in headers, whose length is limited.
const MAX_VALUE: usize = 100;

fn excerpt(text: String) -> String {
    match text.char_indices().nth(MAX_VALUE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid { field, value: Some(value), expected } => {
                write!(f, "{field} is {value}; expected {expected}")
            }
            Self::Invalid { field, value: None, expected } => {
                write!(f, "{field} is missing; expected {expected}")
            }
            Self::Exhausted { resource, needed, limit: Some(limit) } => {
                write!(f, "{resource} is {needed}; the limit is {limit}")
            }
            Self::Exhausted { resource, needed, limit: None } => {
                write!(f, "{resource} is {needed}; less is available")
            }
            Self::NotFound { resource, name } => {
                write!(f, "{} {name:?} does not exist", resource.name())
            }
            Self::State { resource, name, state, required } => {
                write!(f, "{} {name} is {state}; it must be {required}", resource.name())
            }
            Self::Io { action, path } => write!(f, "can't {action} {}", path.display()),
            Self::Device { device, problem } => write!(f, "{device}: {problem}"),
            Self::Unavailable { service, reason } => {
                write!(f, "{service} is unavailable: {reason}")
            }
            Self::Expired { operation, limit: Some(limit) } => {
                write!(f, "{operation} exceeded its time limit of {} s", limit.as_secs_f64())
            }
            Self::Expired { operation, limit: None } => {
                write!(f, "{operation} exceeded its deadline")
            }
            Self::Cancelled { operation } => write!(f, "{operation} was cancelled"),
            Self::Unauthenticated { reason } => write!(f, "authentication failed: {reason}"),
            Self::Remote { origin, message } => write!(f, "{origin}: {message}"),
            Self::Internal { problem } => write!(f, "internal error: {problem}"),
        }
    }
}

/// An error: kind, fields and cause.
///
/// `Display` shows this error alone; [`Error::report`] adds its causes.
#[derive(Clone, Debug)]
pub struct Error(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    kind: Kind,
    detail: Detail,
    retry_after: Option<Duration>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` described by `detail`.
    pub fn new(kind: Kind, detail: Detail) -> Self {
        Self(Box::new(Inner { kind, detail, retry_after: None, source: None }))
    }

    /// An argument has a value that is not accepted.
    pub fn invalid(
        field: impl Into<Text>,
        value: impl fmt::Display,
        expected: impl Into<Expected>,
    ) -> Self {
        Self::wrong(Kind::InvalidArgument, field, value, expected)
    }

    /// A field of `kind`'s subject has a value that is not accepted: of an argument, a model, a picture, a stored file.
    pub fn wrong(
        kind: Kind,
        field: impl Into<Text>,
        value: impl fmt::Display,
        expected: impl Into<Expected>,
    ) -> Self {
        let (field, expected) = (field.into(), expected.into());
        Self::new(
            kind,
            Detail::Invalid { field, value: Some(excerpt(value.to_string())), expected },
        )
    }

    /// An argument is missing.
    pub fn missing(field: impl Into<Text>, expected: impl Into<Expected>) -> Self {
        let (field, expected) = (field.into(), expected.into());
        Self::new(Kind::InvalidArgument, Detail::Invalid { field, value: None, expected })
    }

    /// A checkpoint or latent file has a field or tensor that is not accepted.
    pub fn model(
        field: impl Into<Text>,
        value: impl fmt::Display,
        expected: impl Into<Expected>,
    ) -> Self {
        Self::wrong(Kind::InvalidModel, field, value, expected)
    }

    /// More of `resource`, whose name ends in its unit, is needed than its limit.
    pub fn exhausted(
        resource: impl Into<Text>,
        needed: u64,
        limit: impl Into<Option<u64>>,
    ) -> Self {
        let detail = Detail::Exhausted { resource: resource.into(), needed, limit: limit.into() };
        Self::new(Kind::Exhausted, detail)
    }

    /// A resource does not exist.
    pub fn not_found(resource: Resource, name: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, Detail::NotFound { resource, name: excerpt(name.into()) })
    }

    /// A resource is in `state` but must be in the state `required`.
    pub fn not_ready(
        resource: Resource,
        name: impl Into<String>,
        state: impl Into<Text>,
        required: impl Into<Text>,
    ) -> Self {
        let (name, state, required) = (excerpt(name.into()), state.into(), required.into());
        Self::new(Kind::NotReady, Detail::State { resource, name, state, required })
    }

    /// An operation on `path` failed; `action` is its verb.
    pub fn io(action: impl Into<Text>, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let detail = Detail::Io { action: action.into(), path: path.into() };
        Self::new(Kind::Io, detail).with_source(source)
    }

    /// A device is missing, lost or unable to do the work.
    pub fn device(device: impl Into<Text>, problem: impl Into<Text>) -> Self {
        let detail = Detail::Device { device: device.into(), problem: problem.into() };
        Self::new(Kind::Device, detail)
    }

    /// A peer can't be reached or accepts no work.
    pub fn unavailable(service: impl Into<Text>, reason: impl Into<Text>) -> Self {
        let detail = Detail::Unavailable { service: service.into(), reason: reason.into() };
        Self::new(Kind::Unavailable, detail)
    }

    /// An operation passed its time limit or, if that is `None`, its deadline.
    pub fn expired(operation: impl Into<Text>, limit: Option<Duration>) -> Self {
        Self::new(Kind::Expired, Detail::Expired { operation: operation.into(), limit })
    }

    /// An operation was cancelled.
    pub fn cancelled(operation: impl Into<Text>) -> Self {
        Self::new(Kind::Cancelled, Detail::Cancelled { operation: operation.into() })
    }

    /// The caller could not be identified.
    pub fn unauthenticated(reason: impl Into<Text>) -> Self {
        Self::new(Kind::Unauthenticated, Detail::Unauthenticated { reason: reason.into() })
    }

    /// A defect of this program.
    pub fn internal(problem: impl Into<Text>) -> Self {
        Self::new(Kind::Internal, Detail::Internal { problem: problem.into() })
    }

    /// The same error with its cause.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.0.source = Some(source.into().into());
        self
    }

    /// The same error with the time after which a new attempt may succeed.
    #[must_use]
    pub fn with_retry_after(mut self, delay: Duration) -> Self {
        self.0.retry_after = Some(delay);
        self
    }

    /// The same error about another field, if it is about a field: a caller's name for what the callee calls otherwise.
    #[must_use]
    pub fn with_field(mut self, name: impl Into<Text>) -> Self {
        if let Detail::Invalid { field, .. } = &mut self.0.detail {
            *field = name.into();
        }
        self
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The fields that describe it.
    pub fn detail(&self) -> &Detail {
        &self.0.detail
    }

    /// The field that has an unaccepted value.
    pub fn field(&self) -> Option<&str> {
        match &self.0.detail {
            Detail::Invalid { field, .. } => Some(field),
            _ => None,
        }
    }

    /// Time after which a new attempt may succeed; `None` if none is known to.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The error and its causes on one line, each once.
    pub fn report(&self) -> Report<'_> {
        Report(self)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.detail.fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// Displays an error followed by its causes: see [`Error::report`].
#[derive(Clone, Copy, Debug)]
pub struct Report<'a>(&'a Error);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        f.write_str(&text)?;
        let mut cause = std::error::Error::source(self.0);
        while let Some(error) = cause {
            let next = error.to_string();
            // Errors of other crates may show their own cause in their text.
            if !text.ends_with(&next) {
                write!(f, ": {next}")?;
            }
            (text, cause) = (next, error.source());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_made_of_fields() {
        let range = Error::invalid("steps", 0, Expected::range(1..=1000, 0));
        assert_eq!(range.to_string(), "steps is 0; expected a number from 1 to 1000 (nearest: 1)");
        assert_eq!(range.detail().fields()["nearest"], 1);
        let full = Error::exhausted("queued_jobs", 9, 8);
        assert_eq!(full.to_string(), "queued_jobs is 9; the limit is 8");
        let lost = Error::not_found(Resource::Job, "a");
        assert_eq!(lost.to_string(), "job \"a\" does not exist");
        assert_eq!(Error::missing("name", "a name").with_field("model").field(), Some("model"));
    }

    #[test]
    fn fields_survive_conversion_to_text() {
        for error in [
            Error::invalid("steps", 0, "a positive number"),
            Error::missing("name", "a name"),
            Error::exhausted("queued_jobs", 9, 8),
            Error::exhausted("disk_bytes", 9, None),
            Error::not_found(Resource::Model, "a"),
            Error::not_ready(Resource::Tile, "3", "pending", "decoded"),
        ] {
            let fields = error.detail().fields();
            let text = |name: &str| match fields.get(name)? {
                Value::String(text) => Some(text.clone()),
                other => Some(other.to_string()),
            };
            assert_eq!(Detail::from_fields(text).as_ref(), Some(error.detail()));
        }
    }

    #[test]
    fn long_values_are_cut() {
        let text = Error::invalid("name", "é".repeat(300), "a name").to_string();
        assert!(text.contains(&format!("{}…", "é".repeat(MAX_VALUE))), "{text}");
        assert!(!text.contains(&"é".repeat(MAX_VALUE + 1)));
    }

    #[test]
    fn causes_are_reported_once() {
        let cause = Error::io("read", "a/b", io::Error::other("gone"));
        let error = Error::invalid("model", "a/b", "a readable file").with_source(cause);
        assert_eq!(error.to_string(), "model is a/b; expected a readable file");
        let report = error.report().to_string();
        assert_eq!(report, "model is a/b; expected a readable file: can't read a/b: gone");
    }
}
