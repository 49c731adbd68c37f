//! The stream of a job's events: one task per watcher, which reads as fast as its client.

use std::{io::Cursor, sync::Arc};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    api::{self, ImageFormat, job_event},
    error::{Error, Kind, Result},
    jobs::{
        self, Job, Jobs,
        record::{Event, Record},
    },
    service::{blocking::blocking, convert, encode::Encoder},
};

/// Buffered events per client, in addition to its connection's window: one tile may be large.
const AHEAD: usize = 2;

/// Events read from a job at a time.
const BATCH: usize = 32;

/// Content and format of a watcher's events.
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

/// The image format of a request; RAW by default.
pub(super) fn format(value: i32, field: &'static str) -> Result<ImageFormat> {
    match ImageFormat::try_from(value) {
        Ok(ImageFormat::Unspecified) => Ok(ImageFormat::Raw),
        Ok(format) => Ok(format),
        Err(_) => Err(Error::invalid(field, value, "a number of enum ImageFormat")),
    }
}

/// A watcher of a job.
pub(super) struct Watcher {
    pub(super) jobs: Jobs,
    pub(super) job: Arc<Job>,
    pub(super) encoder: Arc<Encoder>,
    pub(super) view: View,
    /// Sequence number after which events are sent.
    pub(super) after: u64,
    /// Cancels the job if the client disconnects and there is no other watcher.
    pub(super) cancels: bool,
    pub(super) stopping: CancellationToken,
}

impl Watcher {
    /// Starts the task. Its stream ends after the job's last event, or with UNAVAILABLE when the server stops.
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
                Err(StreamEnd::Client) if cancels && job.watchers() == 0 => {
                    tracing::info!("job {}: its client has disconnected", job.id);
                    if let Err(error) = blocking(move || jobs.cancel(&job.id)).await {
                        tracing::warn!("cancelling an abandoned job: {}", error.report());
                    }
                }
                Err(StreamEnd::Client) => {}
                // Sending fails if the client has disconnected as well.
                Err(StreamEnd::Failed(error)) => {
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
    ) -> Result<(), StreamEnd> {
        let mut newest = self.job.newest();
        loop {
            newest.borrow_and_update();
            let events = self.job.events_after(self.after, BATCH);
            let waits = events.is_empty();
            for (sequence, record) in events {
                let last = record.event.is_last();
                let event = self.event(sequence, record).await?;
                sender.send(Ok(wrap(event))).await.map_err(|_| StreamEnd::Client)?;
                self.after = sequence;
                if last {
                    return Ok(());
                }
            }
            if waits && self.job.snapshot().phase.is_last() {
                // The client has asked for events after the last one.
                return Ok(());
            }
            let stopped = || StreamEnd::Failed(jobs::shutting_down());
            if waits {
                tokio::select! {
                    changed = newest.changed() => changed.map_err(|_| stopped())?,
                    () = sender.closed() => return Err(StreamEnd::Client),
                    () = self.stopping.cancelled() => return Err(stopped()),
                }
            } else if self.stopping.is_cancelled() {
                return Err(stopped());
            }
        }
    }

    /// Converts a record to a message for this watcher.
    async fn event(&self, sequence: u64, record: Record) -> Result<api::JobEvent, StreamEnd> {
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

/// Reason of an early end of a stream.
enum StreamEnd {
    Client,
    Failed(Error),
}

impl From<Error> for StreamEnd {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The preview of `level`.
pub(super) async fn preview(job: &Arc<Job>, level: usize) -> Result<api::Preview> {
    let read = job.clone();
    let data = blocking(move || read.preview(level)).await?;
    let header = image::ImageReader::with_format(Cursor::new(&data), image::ImageFormat::Png);
    let (width, height) =
        (header.into_dimensions()).map_err(|e| damaged_preview().with_source(e))?;
    let format = ImageFormat::Png.into();
    Ok(api::Preview { level: level as u32, width, height, format, data })
}

/// The error of a preview file that is not a PNG.
pub(super) fn damaged_preview() -> Error {
    Error::wrong(Kind::Io, "preview", "damaged", "a readable PNG")
}
