//! The output file: checked before the work and written after it.

use std::{
    fs::File,
    io::{IsTerminal as _, Read as _},
    path::{Path, PathBuf},
};

use clap::Args;
use tempfile::TempDir;

use super::{args, progress::Progress};
use crate::{
    config::Config,
    engine::{Cancel, tiles::PixelBuffer},
    error::{Error, Kind, Result},
    image_out::{self, Compression, Format, Metadata, TiffOptions},
    store,
};

/// Path that stands for standard output.
const STDOUT: &str = "-";

/// Bytes that are copied to standard output at a time.
const CHUNK: usize = 1 << 20;

/// Form of the picture's file.
#[derive(Debug, Args)]
pub(super) struct FileArgs {
    /// Format of a picture that goes to standard output, tiff or png; png if not given. That of a file is its extension
    #[arg(long, value_name = "FORMAT", value_parser = args::names::<Format>())]
    format: Option<Format>,
    /// Compression of a TIFF, without loss; deflate if not given
    #[arg(long, value_name = "METHOD", value_parser = args::names::<Compression>())]
    compression: Option<Compression>,
    /// Lay a TIFF out as a Cloud Optimized GeoTIFF: all directories first, then the tiles, small overviews before large ones
    #[arg(long)]
    cog: bool,
}

/// Where a picture goes: to a file or, by way of a temporary one, to standard output.
pub(super) struct Output {
    /// The file that is written.
    path: PathBuf,
    tiff: TiffOptions,
    /// Directory of the temporary file, if the picture goes to standard output.
    temporary: Option<TempDir>,
}

impl Output {
    /// Checks before any work that `out` can be written and would not replace one of `inputs`.
    pub(super) fn new<'a>(
        out: &Path,
        form: &FileArgs,
        inputs: impl IntoIterator<Item = &'a PathBuf>,
        progress: &Progress,
    ) -> Result<Self> {
        let (path, format, temporary) = if is_stdout(out) {
            if progress.is_json() {
                let expected = "a file, because --json writes events to standard output";
                return Err(Error::invalid("out", STDOUT, expected));
            }
            if std::io::stdout().is_terminal() {
                let expected = "a file, or standard output that is no terminal";
                return Err(Error::invalid("out", STDOUT, expected));
            }
            let format = form.format.unwrap_or(Format::Png);
            let temporary =
                tempfile::tempdir().map_err(|e| Error::io("create", "a temporary directory", e))?;
            (
                temporary.path().join("picture").with_extension(format.name()),
                format,
                Some(temporary),
            )
        } else {
            if let Some(format) = form.format {
                let expected = "none: the format of a file is that of its extension";
                return Err(Error::invalid("format", format.name(), expected));
            }
            let format = Format::of(out)?;
            writable(out)?;
            keeps(out, inputs)?;
            (out.to_owned(), format, None)
        };
        if let (Format::Png, Some(compression)) = (format, form.compression) {
            let expected = "none for a PNG, which has its own";
            return Err(Error::invalid("compression", compression.name(), expected));
        }
        if format == Format::Png && form.cog {
            return Err(Error::invalid("cog", true, "false for a PNG: only TIFF has this layout"));
        }
        let tiff = TiffOptions {
            compression: form.compression.unwrap_or_default(),
            cloud_optimized: form.cog,
            ..TiffOptions::default()
        };
        Ok(Self { path, tiff, temporary })
    }

    /// The file to write.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Form of a TIFF.
    #[cfg(feature = "service")]
    pub(super) fn tiff(&self) -> TiffOptions {
        self.tiff
    }

    /// Its name for people and events.
    pub(super) fn name(&self) -> &Path {
        if self.temporary.is_some() { Path::new(STDOUT) } else { &self.path }
    }

    /// Directory for temporary files.
    pub(super) fn directory(&self) -> PathBuf {
        directory(&self.path)
    }

    /// Writes the picture atomically and returns the length of the file.
    pub(super) fn write(
        &self,
        canvas: &PixelBuffer,
        metadata: Metadata,
        config: &Config,
        cancel: &Cancel,
    ) -> Result<u64> {
        let metadata = Metadata { created: config.created, ..metadata };
        image_out::write_with(&self.path, &canvas.source(cancel), &metadata, self.tiff)?;
        length(&self.path)
    }

    /// Prints the result for people; then a picture for standard output is copied there, and the line goes to standard
    /// error. A reader that closes the pipe early has had enough: this is no error, as for other results.
    pub(super) fn finish(&self, progress: &Progress, line: &str) -> Result<()> {
        if self.temporary.is_none() {
            return progress.result(&format!("{line}\n"));
        }
        progress.line(line);
        let failed = |e| Error::io("read", &self.path, e);
        let mut file = File::open(&self.path).map_err(failed)?;
        let mut chunk = vec![0; CHUNK];
        loop {
            let len = file.read(&mut chunk).map_err(failed)?;
            if len == 0 || !progress.raw(&chunk[..len])? {
                return Ok(());
            }
        }
    }
}

/// True for the path that stands for standard output.
pub(super) fn is_stdout(path: &Path) -> bool {
    path == Path::new(STDOUT)
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

/// Directory of `path`.
fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Length of a file in bytes.
pub(super) fn length(path: &Path) -> Result<u64> {
    std::fs::metadata(path).map(|m| m.len()).map_err(|e| Error::io("read", path, e))
}
