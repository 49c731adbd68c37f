//! The crate's one error type: what went wrong, about which field, with which value and limit.

use std::{fmt, io, path::PathBuf};

/// Result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure an [`Error`] is; front ends choose exit and status codes by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// The caller asked for something impossible: a size, a step count, a name. Exit code 2.
    InvalidArgument,
    /// A checkpoint or latent file is damaged, hostile, or does not fit its architecture.
    InvalidModel,
    /// A picture can't be read.
    InvalidImage,
    /// No device of the kind asked for was found, or it was lost.
    Device,
    /// Reading or writing a file failed.
    Io,
    /// The work was cancelled.
    Cancelled,
    /// There is nothing of the name that was given.
    NotFound,
    /// The thing asked for is not in a state that allows it, such as a tile that is not decoded yet.
    NotReady,
    /// A limit of this server is reached, such as its queue or its memory; later there may be room.
    Exhausted,
    /// The deadline that was given has passed.
    Expired,
    /// The server can't answer now, such as while it shuts down; the same call may go through later.
    Unavailable,
    /// The call needs a token that the server knows.
    Unauthenticated,
    /// A defect of this program.
    Internal,
}

impl Kind {
    /// Its name for programs: `invalid_argument`, `io`, ...
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::InvalidModel => "invalid_model",
            Self::InvalidImage => "invalid_image",
            Self::Device => "device",
            Self::Io => "io",
            Self::Cancelled => "cancelled",
            Self::NotFound => "not_found",
            Self::NotReady => "not_ready",
            Self::Exhausted => "exhausted",
            Self::Expired => "expired",
            Self::Unavailable => "unavailable",
            Self::Unauthenticated => "unauthenticated",
            Self::Internal => "internal",
        }
    }
}

/// An error: its kind, a message that names the field, the value and the limit, and its cause.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Something impossible was asked for. The message names field, value and limit.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidArgument, message)
    }

    /// A checkpoint can't be used. The message names the tensor or field, its value and the limit.
    pub fn model(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidModel, message)
    }

    /// A device is missing, lost or too small.
    pub fn device(message: impl Into<String>) -> Self {
        Self::new(Kind::Device, message)
    }

    /// A file operation on `path` failed.
    pub fn io(action: &str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        Self::new(Kind::Io, format!("{action} {}", path.display())).with_source(source)
    }

    /// The same error with its cause.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|s| s as _)
    }
}
