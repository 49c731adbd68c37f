//! Writes a job's picture to a file while its tiles arrive. The file is complete under its final name, or absent.
//!
//! Tiles are stored in an unnamed temporary file in the same directory. A writer thread produces the file area by area and
//! waits for the tiles of each, so most of a TIFF is written when the last tile arrives. Dropping the future stops the thread
//! and removes its temporary file.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::SystemTime,
};

use tokio::sync::oneshot;

use super::{
    Client,
    incoming::{Incoming, Layout},
    sanitize,
    watch::job_failure,
};
use crate::{
    api::{
        ImageFormat, JobEvent, StreamOptions, Tile,
        job_event::{Event, Finished},
    },
    error::{Error, Expected, Kind, Result},
    image_out::{self, Format, Metadata, TiffOptions},
    store,
};

/// Longest receipt and description in bytes; typical ones have a few hundred.
const MAX_METADATA: usize = 1 << 18;

/// Form of a fetched file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FetchOptions {
    /// Creation time that the file states.
    pub created: Option<SystemTime>,
    /// Form of a TIFF.
    pub tiff: TiffOptions,
}

impl Client {
    /// Writes the picture of the job `name` to `out`, a TIFF or PNG by its extension, waiting for the end of the job. The file
    /// has the form of `options`. Every event is passed to `seen`.
    ///
    /// The file has the same bytes as one generated locally with the same seed, model and kind of device.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if `out` can't be written; [`Kind::NotFound`] if the job does not exist;
    /// [`Kind::Cancelled`] and others as the job ended; [`Kind::Io`] if a tile is damaged twice or the disk is full;
    /// [`Kind::Unavailable`] if the server does not respond within [`Retry::give_up`](super::Retry::give_up).
    pub async fn fetch(
        &self,
        name: &str,
        out: &Path,
        options: FetchOptions,
        seen: &mut dyn FnMut(&JobEvent),
    ) -> Result<()> {
        let format = Format::of(out)?;
        store::preflight(out)?;
        let job = self.with_retries(u32::MAX, || self.try_get(name)).await?;
        let layout = Layout::of(&job)?;
        let incoming = Arc::new(Incoming::new(directory(out), layout)?);
        let FetchOptions { created, tiff } = options;
        let mut writer = Writer::start(incoming.clone(), out.to_owned(), format, tiff)?;
        let options = StreamOptions {
            tile_format: ImageFormat::Raw.into(),
            without_previews: true,
            ..StreamOptions::default()
        };
        let mut watch = self.watch(name, 0, options);
        let finished = loop {
            let event = tokio::select! {
                ended = writer.ended() => return Err(ended.err().unwrap_or_else(unfinished)),
                event = watch.next() => event?.ok_or_else(unfinished)?,
            };
            seen(&event);
            match event.event {
                Some(Event::Tile(tile)) => {
                    let (index, samples) = self.checked(name, tile, layout).await?;
                    incoming.put(index, samples)?;
                }
                Some(Event::Finished(finished)) => break finished,
                Some(event) => job_failure(name, &event).map_or(Ok(()), Err)?,
                // An event type of a newer server.
                None => {}
            }
        };
        incoming.finish(metadata(finished, created)?)?;
        writer.ended().await
    }

    /// Index and samples of the tile; a damaged tile is requested again once.
    async fn checked(&self, job: &str, tile: Tile, layout: Layout) -> Result<(usize, Vec<u8>)> {
        let index = layout.index(&tile)?;
        let Err(damage) = layout.check(&tile) else { return Ok((index, tile.data)) };
        tracing::warn!("{}: {damage}; requesting it again", sanitize(job));
        let (column, row) = (tile.column, tile.row);
        let again = self.with_retries(u32::MAX, || self.try_tile(job, column, row)).await?;
        if layout.index(&again)? != index {
            let expected = format!("column {column}, row {row}");
            return Err(Error::wrong(Kind::Internal, "the server's tile", "another one", expected));
        }
        layout.check(&again)?;
        Ok((index, again.data))
    }
}

fn unfinished() -> Error {
    Error::wrong(Kind::Internal, "the server's stream", "ended", "the picture's end first")
}

/// Metadata of the file.
fn metadata(finished: Finished, created: Option<SystemTime>) -> Result<Metadata> {
    let Finished { receipt, description } = finished;
    for (field, text) in [("receipt", &receipt), ("description", &description)] {
        if text.len() > MAX_METADATA {
            let value = format!("{} bytes long", text.len());
            let limit = Expected::at_most(format!("{MAX_METADATA} bytes"));
            return Err(Error::wrong(
                Kind::Internal,
                format!("the server's {field}"),
                value,
                limit,
            ));
        }
    }
    let receipt = serde_json::from_str(&receipt).map_err(|error| {
        Error::wrong(Kind::Internal, "the server's receipt", "malformed", "a JSON object")
            .with_source(error)
    })?;
    Ok(Metadata { description, created, receipt })
}

/// Directory of `path`, used for temporary files too.
fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The writer thread.
struct Writer {
    incoming: Arc<Incoming>,
    thread: Option<JoinHandle<()>>,
    ended: oneshot::Receiver<Result<()>>,
}

impl Writer {
    fn start(
        incoming: Arc<Incoming>,
        out: PathBuf,
        format: Format,
        options: TiffOptions,
    ) -> Result<Self> {
        let (done, ended) = oneshot::channel();
        let source = incoming.clone();
        let write = move || {
            let written = match format {
                Format::Tiff => {
                    image_out::write_tiff_with(&out, source.as_ref(), || source.metadata(), options)
                }
                // A PNG has its text before its pixels.
                Format::Png => source
                    .metadata()
                    .and_then(|metadata| image_out::write_png(&out, source.as_ref(), &metadata)),
            };
            // Fails if the future was dropped.
            let _ = done.send(written);
        };
        let thread = std::thread::Builder::new()
            .name("writer".to_owned())
            .spawn(write)
            .map_err(|e| Error::io("start", "a writer thread", e))?;
        Ok(Self { incoming, thread: Some(thread), ended })
    }

    /// Waits for the end of the writer. Must not be called again after it has returned.
    async fn ended(&mut self) -> Result<()> {
        match (&mut self.ended).await {
            Ok(written) => written,
            Err(_) => Err(Error::internal("the writer thread panicked")),
        }
    }
}

impl Drop for Writer {
    /// Stops the thread and waits for it, so that its temporary file is removed.
    fn drop(&mut self) {
        self.incoming.fail(Error::cancelled("writing the picture"));
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by `ended`.
            let _ = thread.join();
        }
    }
}
