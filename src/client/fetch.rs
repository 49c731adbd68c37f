//! A picture file from a job, written while its tiles arrive: whole under its final name, or not there.
//!
//! Tiles go into a nameless arena beside the file. A thread of its own writes the file and waits, area by area, until the
//! tiles under it are there; so when the last tile comes most of a TIFF is written. Dropping the future ends the thread,
//! and its temporary file goes.

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
    plain,
    watch::ended_badly,
};
use crate::{
    api::{
        ImageFormat, JobEvent, StreamOptions, Tile,
        job_event::{Event, Finished},
    },
    error::{Error, Expected, Kind, Result},
    image_out::{self, CLASSIC_LIMIT, Format, Metadata},
    store,
};

/// Longest receipt and description, in bytes; those of this program have a few hundred.
const MAX_METADATA: usize = 1 << 18;

impl Client {
    /// Fetches the picture of the job `name` into the file `out`, a TIFF or PNG by its ending, waiting for the job's end.
    /// The file states `created` as its time of making. Every event goes to `seen`.
    ///
    /// The file has the bytes that making the picture here would give it.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] when `out` can't be written; [`Kind::NotFound`] when there is no such job;
    /// [`Kind::Cancelled`] and others as the job ended; [`Kind::Io`] when a tile arrives damaged twice or the disk is
    /// full; [`Kind::Unavailable`] when the server is given up. One that is away is waited for until then.
    pub async fn fetch(
        &self,
        name: &str,
        out: &Path,
        created: Option<SystemTime>,
        seen: &mut dyn FnMut(&JobEvent),
    ) -> Result<()> {
        let format = Format::of(out)?;
        store::preflight(out)?;
        let job = self.repeatedly(u32::MAX, || self.try_get(name)).await?;
        let layout = Layout::of(&job)?;
        let incoming = Arc::new(Incoming::new(directory(out), layout)?);
        let mut writer = Writer::start(incoming.clone(), out.to_owned(), format)?;
        let options = StreamOptions {
            tile_format: ImageFormat::Raw.into(),
            without_previews: true,
            without_tile_data: false,
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
                Some(event) => ended_badly(name, &event).map_or(Ok(()), Err)?,
                // A kind of event that came later than this program.
                None => {}
            }
        };
        incoming.finish(metadata(finished, created)?)?;
        writer.ended().await
    }

    /// The tile's number and samples; damaged ones are asked for again, once.
    async fn checked(&self, job: &str, tile: Tile, layout: Layout) -> Result<(usize, Vec<u8>)> {
        let index = layout.index(&tile)?;
        let Err(damage) = layout.check(&tile) else { return Ok((index, tile.data)) };
        tracing::warn!("{}: {damage}; asking for it again", plain(job));
        let (column, row) = (tile.column, tile.row);
        let again = self.repeatedly(u32::MAX, || self.try_tile(job, column, row)).await?;
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

/// What the picture says of itself.
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

/// Directory of `path`, where its working space goes as well: that disk has to hold the picture anyway.
fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The thread that writes the file.
struct Writer {
    incoming: Arc<Incoming>,
    thread: Option<JoinHandle<()>>,
    ended: oneshot::Receiver<Result<()>>,
}

impl Writer {
    fn start(incoming: Arc<Incoming>, out: PathBuf, format: Format) -> Result<Self> {
        let (done, ended) = oneshot::channel();
        let source = incoming.clone();
        let write = move || {
            let written = match format {
                Format::Tiff => image_out::write_tiff_with(
                    &out,
                    source.as_ref(),
                    || source.metadata(),
                    CLASSIC_LIMIT,
                ),
                // Its text comes before its pixels.
                Format::Png => source
                    .metadata()
                    .and_then(|metadata| image_out::write_png(&out, source.as_ref(), &metadata)),
            };
            // Whoever has gone does not need to know.
            let _ = done.send(written);
        };
        let thread = std::thread::Builder::new()
            .name("writer".to_owned())
            .spawn(write)
            .map_err(|e| Error::io("start", "a writer thread", e))?;
        Ok(Self { incoming, thread: Some(thread), ended })
    }

    /// Waits until the file is written, or can't be. To be called until it has answered.
    async fn ended(&mut self) -> Result<()> {
        match (&mut self.ended).await {
            Ok(written) => written,
            Err(_) => Err(Error::internal("the writer thread panicked")),
        }
    }
}

impl Drop for Writer {
    /// Ends the thread, if it has not, and waits for it: then its temporary file is gone.
    fn drop(&mut self) {
        self.incoming.fail(Error::cancelled("writing the picture"));
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by `ended`.
            let _ = thread.join();
        }
    }
}
