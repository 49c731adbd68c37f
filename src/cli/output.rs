//! The picture file: checked before the work, written after it, and what it says of itself.

use std::path::{Path, PathBuf};

use crate::{
    config::Config,
    engine::{Cancel, tiles::PixelBuffer},
    error::{Error, Kind, Result},
    image_out::{self, Format, Metadata},
    store,
};

/// Refuses a file that can't be written, before any work is done for it.
pub(super) fn check(path: &Path) -> Result<Format> {
    let format = Format::of(path)?;
    writable(path)?;
    Ok(format)
}

/// Refuses a path where no file can be made.
pub(super) fn writable(path: &Path) -> Result<()> {
    store::preflight(path).map_err(|error| match error.kind() {
        // A place that was named and can't be written to is bad input.
        Kind::Io => Error::invalid("out", path.display(), "a writable path").with_source(error),
        _ => error,
    })
}

/// Directory of `path`, where its working space goes as well: that disk has to hold the picture anyway.
pub(super) fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Writes the picture under a temporary name and renames it; gives the length of the file.
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
