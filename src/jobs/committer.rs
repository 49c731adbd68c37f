//! The committer: makes results durable and publishes their events while the engine thread computes.
//!
//! Each engine thread has one. Requests are processed in order, so events are in the order of the work. The queue is bounded;
//! consecutive tiles in it are committed together. If the queue is full the engine thread blocks; step checkpoints are skipped
//! instead of blocking.
//!
//! If a result can't be made durable because the disk is full or the journal can't be written, the job pauses: nothing is
//! announced, its later results are dropped, and it is queued again (`Shared::look_after`) to go on from its last record.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::Scope,
    time::Instant,
};

use crate::{
    engine::plan::Rect,
    error::{Error, Kind, Result},
    image_out::{self, Bits, Metadata, RawPixels},
    jobs::{
        Shared,
        files::{self, JobBuffer},
        job::Job,
        record::Event,
    },
    model::sampler::SamplerState,
};

/// A result to make durable.
pub(super) struct WriteRequest {
    pub(super) job: Arc<Job>,
    pub(super) write: Write,
}

/// Content of a [`WriteRequest`].
#[allow(clippy::large_enum_variant, reason = "at most a handful is queued")]
pub(super) enum Write {
    /// A denoising step and the levels that settled with it.
    Step { buffer: Arc<Mutex<JobBuffer>>, sampling: SamplerState, settled: Settled },
    /// The levels that settled with the last step.
    Settled(Settled),
    /// A decoded tile.
    Tile(Tile),
    /// The error of a tile, which ends the job.
    TileFailed(Error),
    /// The last event; the device has released the job.
    End(Event),
    /// The error that ends the job; the device has released it.
    Fail(Error),
    /// The device does not respond and has released the job, which goes on elsewhere.
    HandBack,
}

/// A decoded tile: see [`Write::Tile`].
pub(super) struct Tile {
    pub(super) buffer: Arc<Mutex<JobBuffer>>,
    pub(super) index: usize,
    pub(super) samples: Vec<u8>,
}

/// Settled levels, coarsest first.
pub(super) struct Settled {
    pub(super) levels: Vec<usize>,
    /// Preview, RGB of 8 bits.
    pub(super) picture: Option<(Rect, Vec<u8>)>,
}

impl Settled {
    /// Writes the preview durably and returns the events. Without a preview the job goes on.
    fn write(&self, job: &Job) -> Vec<Event> {
        let write = |&level: &usize| {
            let written = self.picture.as_ref().map(|picture| preview(job, level, picture));
            let pictured = matches!(written, Some(Ok(())));
            if let Some(Err(error)) = written {
                tracing::warn!("job {}: no preview: {}", job.id, error.report());
            }
            let grid = job.plan.latents[level];
            Event::Settled { level, rows: grid.h, columns: grid.w, pictured }
        };
        self.levels.iter().map(write).collect()
    }
}

/// Writes the file of a preview.
fn preview(job: &Job, level: usize, (rect, samples): &(Rect, Vec<u8>)) -> Result<()> {
    let (width, height) = (rect.width as u32, rect.height as u32);
    let source = RawPixels::new(samples, width, height, Bits::Eight)?;
    let description = format!("{}, levels from {level} on", job.model.arch.name);
    let receipt = serde_json::Map::new();
    let metadata = Metadata { description, created: None, receipt };
    image_out::write_png(&job.directory.preview(level), &source, &metadata)
}

/// Sender of write requests. When it is dropped the thread processes the remaining requests and ends.
pub(super) struct Committer {
    requests: SyncSender<WriteRequest>,
    waiting: Arc<AtomicUsize>,
}

/// Capacity of the queue: the requests of the last steps, where level after level settles.
const WAITING: usize = 4;

impl Committer {
    /// Starts the thread.
    pub(super) fn start<'scope, 'env>(
        scope: &'scope Scope<'scope, 'env>,
        shared: &'env Shared,
    ) -> Self {
        let (requests, receiver) = sync_channel(WAITING);
        let waiting = Arc::<AtomicUsize>::default();
        let inbox = Inbox { requests: receiver, waiting: waiting.clone(), next: None };
        scope.spawn(move || run(shared, inbox));
        Self { requests, waiting }
    }

    /// Sends a request; blocks while the queue is full.
    pub(super) fn send(&self, request: WriteRequest) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if self.requests.send(request).is_err() {
            // The thread ends before its senders only by a panic, which the scope propagates.
            tracing::error!("a result is lost: its committer has panicked");
        }
    }

    /// Sends the request if it is `needed` or if no other one is queued.
    pub(super) fn try_send(&self, needed: bool, request: impl FnOnce() -> WriteRequest) {
        if needed || self.waiting.load(Ordering::Relaxed) == 0 {
            self.send(request());
        }
    }
}

/// Receiver of write requests.
struct Inbox {
    requests: Receiver<WriteRequest>,
    /// Number of queued requests.
    waiting: Arc<AtomicUsize>,
    /// A received request that does not belong to the preceding tiles.
    next: Option<WriteRequest>,
}

impl Inbox {
    /// The next request; blocks. `None` when the sender is dropped.
    fn take(&mut self) -> Option<WriteRequest> {
        let request = self.next.take().or_else(|| self.requests.recv().ok())?;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        Some(request)
    }

    /// The queued tiles of `job` that directly follow.
    fn tiles(&mut self, job: &Arc<Job>) -> Vec<Tile> {
        let mut tiles = Vec::new();
        while self.next.is_none() {
            let Ok(request) = self.requests.try_recv() else { break };
            match request.write {
                Write::Tile(tile) if Arc::ptr_eq(&request.job, job) => {
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                    tiles.push(tile);
                }
                write => self.next = Some(WriteRequest { write, ..request }),
            }
        }
        tiles
    }
}

fn run(shared: &Shared, mut inbox: Inbox) {
    while let Some(WriteRequest { job, write }) = inbox.take() {
        let more = match &write {
            Write::Tile(_) => inbox.tiles(&job),
            _ => Vec::new(),
        };
        commit(shared, &job, write, more);
    }
}

/// Makes a result durable and publishes its events; `more` are tiles that follow a tile.
pub(super) fn commit(shared: &Shared, job: &Arc<Job>, write: Write, more: Vec<Tile>) {
    let is_handed_back = matches!(write, Write::HandBack);
    let is_end = is_handed_back || matches!(write, Write::End(_) | Write::Fail(_));
    if !job.is_halted() {
        let committed = match write {
            Write::TileFailed(error) | Write::Fail(error) => Err(error),
            Write::End(last) => job.publish(vec![last]).map(drop),
            Write::HandBack => Ok(()),
            Write::Step { buffer, sampling, settled } => {
                timed(shared, || step(job, &buffer, &sampling, &settled))
            }
            Write::Settled(settled) => job.publish(settled.write(job)).map(drop),
            Write::Tile(first) => {
                let all: Vec<_> = std::iter::once(first).chain(more).collect();
                timed(shared, || tiles(job, &all))
            }
        };
        if let Err(error) = committed {
            fail(shared, job, &error);
        }
    }
    if is_end {
        job.released();
        if job.is_halted() {
            shared.resume_later(job.clone());
        } else if is_handed_back {
            shared.queue_again(job.clone());
        }
    }
}

/// Runs `commit` and records its duration.
fn timed(shared: &Shared, commit: impl FnOnce() -> Result<()>) -> Result<()> {
    let began = Instant::now();
    let done = commit();
    shared.timings.commit.observe(began.elapsed().as_secs_f64());
    done
}

fn locked(buffer: &Mutex<JobBuffer>) -> std::sync::MutexGuard<'_, JobBuffer> {
    // Only this thread writes, so the buffer is consistent after a panic elsewhere.
    buffer.lock().unwrap_or_else(PoisonError::into_inner)
}

fn step(
    job: &Job,
    buffer: &Mutex<JobBuffer>,
    sampling: &SamplerState,
    settled: &Settled,
) -> Result<()> {
    let slot = job.checkpoint().map_or(0, |saved| 1 - saved.slot.min(1));
    let crc32c = locked(buffer).save(sampling, slot)?;
    let (step, of) = (sampling.step, job.plan.schedule.steps());
    let sigma = job.plan.schedule.reached(step);
    let mut events = vec![Event::Step { step, of, sigma, slot, crc32c }];
    events.extend(settled.write(job));
    job.publish(events).map(drop)
}

/// Makes at least one tile durable. A tile that was decoded before must have the same samples.
fn tiles(job: &Job, tiles: &[Tile]) -> Result<()> {
    let (mut placed, mut events, mut again) = (Vec::new(), Vec::new(), Vec::new());
    for Tile { index, samples, .. } in tiles {
        let crc32c = files::checksum(samples, job.plan.spec.bits);
        match job.checksum(*index) {
            None => events.push(Event::Tile { index: *index, crc32c }),
            Some(known) if known == crc32c => again.push(*index),
            Some(_) => {
                job.repaired(*index, false);
                continue;
            }
        }
        placed.push((job.plan.tiling.tiles[*index].rect, samples.as_slice()));
    }
    if !placed.is_empty() {
        locked(&tiles[0].buffer).put(&placed)?;
    }
    again.into_iter().for_each(|index| job.repaired(index, true));
    if events.is_empty() { Ok(()) } else { job.publish(events).map(drop) }
}

/// Ends the job with an error, or pauses it if that can't be made durable; an ended job is left unchanged.
fn fail(shared: &Shared, job: &Job, error: &Error) {
    if job.is_over() {
        // It was cancelled or deleted, or was to decode damaged tiles again.
        return tracing::debug!("job {}: {}", job.id, error.report());
    }
    if files::is_full_disk(error) {
        return job.pause(error);
    }
    let last = match error.kind() {
        Kind::Cancelled => Event::Cancelled,
        kind => {
            if kind == Kind::Device {
                shared.device_failed(error);
            }
            Event::Failed { kind, message: error.report().to_string() }
        }
    };
    // The engine thread drops the job at its next slice.
    match job.publish(vec![last.clone()]) {
        Ok(_) => job.cancel.cancel(),
        Err(error) if job.directory.is_gone() => {
            tracing::error!("job {}: its files are gone: {}", job.id, error.report());
            job.cancel.cancel();
            job.end_without_journal(last);
        }
        Err(error) => job.pause(&error),
    }
}
