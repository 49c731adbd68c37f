//! The stream of a job's events: one task for each watcher, which reads what its client has room for.

use std::{io::Cursor, sync::Arc};

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::{
    api::{self, ImageFormat, job_event},
    error::{Error, Kind, Result},
    jobs::{
        self, Job, Jobs,
        record::{Event, Record},
    },
    service::{convert, encode::Encoder},
};

/// Events that wait for a client besides those that its connection holds: one tile may be large.
const AHEAD: usize = 2;

/// Events that are taken from a job at a time.
const BATCH: usize = 32;

/// What a watcher wants to see, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    format: ImageFormat,
    tile_data: bool,
    previews: bool,
}

impl TryFrom<Option<api::StreamOptions>> for View {
    type Error = Error;

    fn try_from(options: Option<api::StreamOptions>) -> Result<Self> {
        let options = options.unwrap_or_default();
        Ok(Self {
            format: format(options.tile_format, "tile_format")?,
            tile_data: !options.without_tile_data,
            previews: !options.without_previews,
        })
    }
}

/// A format of a request; RAW if none is given.
pub(super) fn format(value: i32, field: &'static str) -> Result<ImageFormat> {
    match ImageFormat::try_from(value) {
        Ok(ImageFormat::Unspecified) => Ok(ImageFormat::Raw),
        Ok(format) => Ok(format),
        Err(_) => Err(Error::invalid(field, value, "a number of enum ImageFormat")),
    }
}

/// Who wants to hear of a job.
pub(super) struct Watcher {
    pub(super) jobs: Jobs,
    pub(super) job: Arc<Job>,
    pub(super) encoder: Arc<Encoder>,
    pub(super) view: View,
    /// Events after this sequence.
    pub(super) after: u64,
    /// Cancels the job when the client goes away and nobody else watches.
    pub(super) cancels: bool,
    pub(super) stopping: watch::Receiver<bool>,
}

impl Watcher {
    /// Starts the task; its stream ends after the job's last event, or with UNAVAILABLE when the server stops.
    pub(super) fn stream<T: Send + 'static>(
        self,
        wrap: fn(api::JobEvent) -> T,
    ) -> ReceiverStream<Result<T, Status>> {
        if self.view.previews {
            self.job.want_previews();
        }
        let (sender, receiver) = mpsc::channel(AHEAD);
        tokio::spawn(async move {
            let (jobs, job, cancels) = (self.jobs.clone(), self.job.clone(), self.cancels);
            match self.run(&sender, wrap).await {
                Ok(()) => {}
                Err(Gone::Client) if cancels && job.watchers() == 0 => {
                    tracing::info!("job {}: its client is gone", job.id);
                    let cancelled = tokio::task::spawn_blocking(move || jobs.cancel(&job.id));
                    if let Ok(Err(error)) = cancelled.await {
                        tracing::warn!("cancelling an abandoned job: {}", error.report());
                    }
                }
                Err(Gone::Client) => {}
                // If the client is gone too, there is nobody to tell.
                Err(Gone::Failed(error)) => {
                    let _ = sender.send(Err(convert::status(&error))).await;
                }
            }
        });
        ReceiverStream::new(receiver)
    }

    async fn run<T>(
        mut self,
        sender: &mpsc::Sender<Result<T, Status>>,
        wrap: fn(api::JobEvent) -> T,
    ) -> Result<(), Gone> {
        let mut newest = self.job.newest();
        loop {
            newest.borrow_and_update();
            let events = self.job.events_after(self.after, BATCH);
            let waits = events.is_empty();
            for (sequence, record) in events {
                let last = record.event.is_last();
                let event = self.event(sequence, record).await?;
                sender.send(Ok(wrap(event))).await.map_err(|_| Gone::Client)?;
                self.after = sequence;
                if last {
                    return Ok(());
                }
            }
            if waits && self.job.snapshot().phase.is_last() {
                // Asked for what lies behind the last event.
                return Ok(());
            }
            let stopped = || Gone::Failed(jobs::shutting_down());
            if waits {
                tokio::select! {
                    changed = newest.changed() => changed.map_err(|_| stopped())?,
                    () = sender.closed() => return Err(Gone::Client),
                    _ = self.stopping.wait_for(|&stop| stop) => return Err(stopped()),
                }
            } else if *self.stopping.borrow() {
                return Err(stopped());
            }
        }
    }

    /// A record as this watcher wants it.
    async fn event(&self, sequence: u64, record: Record) -> Result<api::JobEvent, Gone> {
        use job_event::Event as Message;
        let job = &self.job;
        let message = match record.event {
            Event::Queued { .. } => {
                let job = convert::queued_message(job);
                Message::Queued(job_event::Queued { job: Some(job) })
            }
            Event::Started { device } => Message::Started(job_event::Started { device }),
            Event::Step { step, of, sigma, .. } => {
                Message::Step(job_event::Step { step: step as u32, of: of as u32, sigma })
            }
            Event::Settled { level, rows, columns, pictured } => {
                let preview = match pictured && self.view.previews {
                    true => Some(preview(job, level).await?),
                    false => None,
                };
                Message::LevelSettled(job_event::LevelSettled {
                    level: level as u32,
                    rows: rows as u32,
                    columns: columns as u32,
                    preview,
                })
            }
            Event::Tile { index, crc32c } => Message::Tile(match self.view.tile_data {
                true => self.encoder.tile(job, index, self.view.format).await?,
                false => {
                    let tile = &job.plan.tiling.tiles[index];
                    api::Tile {
                        column: tile.column as u32,
                        row: tile.row as u32,
                        rect: Some(convert::rect_message(tile.rect)),
                        format: ImageFormat::Unspecified.into(),
                        data: Vec::new(),
                        crc32c,
                        level: 0,
                    }
                }
            }),
            Event::Finished { receipt, description } => {
                Message::Finished(job_event::Finished { receipt, description })
            }
            Event::Failed { kind, message } => Message::Failed(job_event::Failed {
                code: convert::code(kind).into(),
                message: convert::public_message(kind, &message),
            }),
            Event::Cancelled => Message::Cancelled(job_event::Cancelled {}),
        };
        Ok(api::JobEvent {
            sequence,
            time: Some(convert::timestamp(record.time_ms)),
            event: Some(message),
        })
    }
}

/// Why a stream ends early.
enum Gone {
    Client,
    Failed(Error),
}

impl From<Error> for Gone {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The preview that came with `level`.
pub(super) async fn preview(job: &Arc<Job>, level: usize) -> Result<api::Preview> {
    let read = job.clone();
    let data = tokio::task::spawn_blocking(move || read.preview(level))
        .await
        .map_err(|e| Error::internal("reading a preview").with_source(e))??;
    let header = image::ImageReader::with_format(Cursor::new(&data), image::ImageFormat::Png);
    let (width, height) =
        (header.into_dimensions()).map_err(|e| damaged_preview().with_source(e))?;
    let format = ImageFormat::Png.into();
    Ok(api::Preview { level: level as u32, width, height, format, data })
}

/// The error of a preview whose file is not a PNG.
pub(super) fn damaged_preview() -> Error {
    Error::wrong(Kind::Io, "preview", "damaged", "a readable PNG")
}
