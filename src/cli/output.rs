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

/// Refuses an output that would replace one of `inputs`.
pub(super) fn keeps<'a>(out: &Path, inputs: impl IntoIterator<Item = &'a PathBuf>) -> Result<()> {
    let place = |path: &Path| std::fs::canonicalize(path).ok();
    let Some(out_place) = place(out) else { return Ok(()) };
    for input in inputs {
        if place(input).as_ref() == Some(&out_place) {
            let expected = format!("another file than the input {}", input.display());
            return Err(Error::invalid("out", out.display(), expected));
        }
    }
    Ok(())
}

/// Refuses a name for latents that does not say so.
pub(super) fn check_latents(path: &Path) -> Result<()> {
    let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
    match ending.to_str() {
        Some("safetensors") => writable(path),
        _ => Err(Error::invalid("out", path.display(), "a name that ends in .safetensors")),
    }
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
