//! The stream of a job's events: one task per watcher, which reads as fast as its client.

use std::{io::Cursor, sync::Arc};

use prost::Message;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tonic::Response;

use crate::{
    api::{self, ImageFormat, job_event},
    error::{Error, Kind, Result},
    jobs::{
        self, Job, Jobs,
        record::{Event, Record},
    },
    service::{
        blocking::blocking,
        bodies::{self, End, Frames, Head, Sender},
        convert,
        encode::{Content, Encoder, Loaded},
    },
};

/// Numbers of fields on the way to a picture's bytes: of `WatchJobResponse` and `GenerateResponse`, of `JobEvent`, and of
/// `LevelSettled` and `Step`.
const EVENT: u32 = 1;
const STEP: u32 = 5;
const LEVEL_SETTLED: u32 = 6;
const TILE: u32 = 7;
const PREVIEW: u32 = 4;

/// Number of the only field of `GetTileResponse` and `GetPreviewResponse`.
const PART: u32 = 1;

/// Events read from a job at a time.
const BATCH: usize = 32;

/// Content and format of a watcher's events.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    format: ImageFormat,
    tile_data: bool,
    previews: bool,
    estimates: bool,
}

impl TryFrom<Option<api::StreamOptions>> for View {
    type Error = Error;

    fn try_from(options: Option<api::StreamOptions>) -> Result<Self> {
        let options = options.unwrap_or_default();
        Ok(Self {
            format: format(options.tile_format, "tile_format")?,
            tile_data: !options.without_tile_data,
            previews: !options.without_previews,
            estimates: options.estimates,
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
    /// Starts the task; `place` is one of the streams of the server. The stream ends after the job's last event, or with
    /// UNAVAILABLE when the server stops.
    pub(super) fn start(self, place: OwnedSemaphorePermit) -> Frames {
        if self.view.previews {
            self.job.want_previews();
        }
        if self.view.estimates {
            self.job.want_estimates();
        }
        let (sender, frames) = bodies::channel(place);
        tokio::spawn(async move {
            let (jobs, job, cancels) = (self.jobs.clone(), self.job.clone(), self.cancels);
            match self.run(&sender).await {
                Ok(()) => sender.end(Ok(())).await,
                Err(End::Failed(error)) => sender.end(Err(error)).await,
                Err(End::Gone) if cancels && job.watchers() == 0 => {
                    tracing::info!("job {}: its client has disconnected", job.id);
                    if let Err(error) = blocking(move || jobs.cancel(&job.id)).await {
                        tracing::warn!("cancelling an abandoned job: {}", error.report());
                    }
                }
                Err(End::Gone) => {}
            }
        });
        frames
    }

    async fn run(mut self, sender: &Sender) -> Result<(), End> {
        let mut newest = self.job.newest();
        loop {
            newest.borrow_and_update();
            let events = self.job.events_after(self.after, BATCH);
            let waits = events.is_empty();
            for (sequence, record) in events {
                if self.stopping.is_cancelled() {
                    return Err(jobs::shutting_down().into());
                }
                let last = record.event.is_last();
                self.send(sender, sequence, record).await?;
                self.after = sequence;
                if last {
                    return Ok(());
                }
            }
            if waits && self.job.snapshot().phase.is_last() {
                // The client has asked for events after the last one.
                return Ok(());
            }
            let stopped = || End::from(jobs::shutting_down());
            if waits {
                tokio::select! {
                    changed = newest.changed() => changed.map_err(|_| stopped())?,
                    () = sender.closed() => return Err(End::Gone),
                    () = self.stopping.cancelled() => return Err(stopped()),
                }
            }
        }
    }

    /// Sends a record as this watcher has asked for it.
    async fn send(&self, sender: &Sender, sequence: u64, record: Record) -> Result<(), End> {
        use job_event::Event as Message;
        let job = &self.job;
        let event =
            api::JobEvent { sequence, time: Some(convert::timestamp(record.time_ms)), event: None };
        let message = match record.event {
            Event::Queued { .. } => {
                let job = convert::queued_message(job, self.jobs.models());
                Message::Queued(job_event::Queued { job: Some(job) })
            }
            Event::Started { device } => Message::Started(job_event::Started { device }),
            Event::Step { step, of, sigma, .. } => {
                let (number, of) = (step as u32, of as u32);
                let done = job_event::Step { step: number, of, sigma, estimate: None };
                let estimate = job.estimate_at(step).filter(|_| self.view.estimates);
                if let Some(estimate) = estimate {
                    let level = estimate.level;
                    drop(estimate);
                    let head = |loaded: &Loaded| {
                        let preview = preview_message(level, loaded)?;
                        let head = Head::data(loaded.data.len()).within(PREVIEW, &preview);
                        Ok(head.within(STEP, &done).within(EVENT, &event))
                    };
                    let content = Content::Estimate { step };
                    match sender.content(&self.encoder, job, content, head).await {
                        // The job has replaced it while this watcher had no room.
                        Err(End::Failed(error)) if error.kind() == Kind::NotReady => {}
                        sent => return sent,
                    }
                }
                Message::Step(done)
            }
            Event::Settled { level, rows, columns, pictured } => {
                let settled = job_event::LevelSettled {
                    level: level as u32,
                    rows: rows as u32,
                    columns: columns as u32,
                    preview: None,
                };
                if pictured && self.view.previews {
                    let head = |loaded: &Loaded| {
                        let preview = preview_message(level, loaded)?;
                        let head = Head::data(loaded.data.len()).within(PREVIEW, &preview);
                        Ok(head.within(LEVEL_SETTLED, &settled).within(EVENT, &event))
                    };
                    let content = Content::Preview { level };
                    return sender.content(&self.encoder, job, content, head).await;
                }
                Message::LevelSettled(settled)
            }
            Event::Tile { index, .. } if self.view.tile_data => {
                let format = self.view.format;
                let head = |loaded: &Loaded| {
                    let tile = tile_message(job, index, format, loaded.crc32c);
                    Ok(Head::data(loaded.data.len()).within(TILE, &tile).within(EVENT, &event))
                };
                let content = Content::Tile { index, format };
                return sender.content(&self.encoder, job, content, head).await;
            }
            Event::Tile { index, crc32c } => {
                Message::Tile(tile_message(job, index, ImageFormat::Unspecified, crc32c))
            }
            Event::Finished { receipt, description } => {
                Message::Finished(job_event::Finished { receipt, description })
            }
            Event::Failed { kind, message } => Message::Failed(job_event::Failed {
                code: convert::job_code(kind).into(),
                message: convert::job_error(kind, &message),
            }),
            Event::Cancelled => Message::Cancelled(job_event::Cancelled {}),
        };
        let event = api::JobEvent { event: Some(message), ..event };
        // `GenerateResponse` has the same fields.
        sender.message(&api::WatchJobResponse { event: Some(event) }).await
    }
}

/// The response to `GetTile` or `GetPreview`, whose message consists of the field 1: a part of a picture.
pub(super) fn unary<T: Default, M: Message + 'static>(
    place: OwnedSemaphorePermit,
    encoder: Arc<Encoder>,
    job: Arc<Job>,
    content: Content,
    fields: M,
) -> Response<T> {
    let (sender, frames) = bodies::channel(place);
    tokio::spawn(async move {
        let head = |loaded: &Loaded| Ok(Head::data(loaded.data.len()).within(PART, &fields));
        match sender.content(&encoder, &job, content, head).await {
            Ok(()) => sender.end(Ok(())).await,
            Err(End::Failed(error)) => sender.end(Err(error)).await,
            Err(End::Gone) => {}
        }
    });
    bodies::respond(T::default(), frames)
}

/// A tile without its data.
pub(super) fn tile_message(job: &Job, index: usize, format: ImageFormat, crc32c: u32) -> api::Tile {
    let tile = &job.plan.tiling.tiles[index];
    api::Tile {
        column: tile.column as u32,
        row: tile.row as u32,
        rect: Some(convert::rect_message(tile.rect)),
        format: format.into(),
        data: Vec::new(),
        crc32c,
        level: 0,
    }
}

/// A preview without its data.
pub(super) fn preview_message(level: usize, loaded: &Loaded) -> Result<api::Preview> {
    let file = Cursor::new(&loaded.data);
    let header = image::ImageReader::with_format(file, image::ImageFormat::Png);
    let (width, height) =
        (header.into_dimensions()).map_err(|e| damaged_preview().with_source(e))?;
    let format = ImageFormat::Png.into();
    Ok(api::Preview { level: level as u32, width, height, format, data: Vec::new() })
}

/// The error of a preview file that is not a PNG.
pub(super) fn damaged_preview() -> Error {
    Error::wrong(Kind::Io, "preview", "damaged", "a readable PNG")
}
