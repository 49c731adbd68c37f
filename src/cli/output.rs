//! The output file: checked before the work and written after it.

use std::path::{Path, PathBuf};

use crate::{
    config::Config,
    engine::{Cancel, tiles::PixelBuffer},
    error::{Error, Kind, Result},
    image_out::{self, Format, Metadata},
    store,
};

/// Checks that the file can be written, before any work.
pub(super) fn check(path: &Path) -> Result<Format> {
    let format = Format::of(path)?;
    writable(path)?;
    Ok(format)
}

/// Checks that a file can be created at `path`.
pub(super) fn writable(path: &Path) -> Result<()> {
    store::preflight(path).map_err(|error| match error.kind() {
        // An output path that can't be written is an invalid argument.
        Kind::Io => Error::invalid("out", path.display(), "a writable path").with_source(error),
        _ => error,
    })
}

/// Directory of `path`, used for temporary files too.
pub(super) fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Writes the picture atomically and returns the length of the file.
pub(super) fn write(
    path: &Path,
    canvas: &PixelBuffer,
    metadata: Metadata,
    config: &Config,
    cancel: &Cancel,
) -> Result<u64> {
    let metadata = Metadata { created: config.created, ..metadata };
    image_out::write(path, &canvas.source(cancel), &metadata)?;
    length(path)
}

/// Length of a file in bytes.
pub(super) fn length(path: &Path) -> Result<u64> {
    std::fs::metadata(path).map(|m| m.len()).map_err(|e| Error::io("read", path, e))
}
