//! The committer: makes results durable and publishes their events while the engine thread computes.
//!
//! Each engine thread has one. Requests are processed in order, so events are in the order of the work. The queue is bounded;
//! consecutive tiles in it are committed together. If the queue is full the engine thread blocks; step checkpoints are skipped
//! instead of blocking.

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
    jobs::{Shared, files::JobBuffer, job::Job, record::Event},
    model::sampler::SamplerState,
};

/// A result to make durable.
pub(super) struct WriteRequest {
    pub(super) job: Arc<Job>,
    pub(super) write: Write,
}

/// Content of a [`WriteRequest`].
pub(super) enum Write {
    /// A denoising step and the levels that settled with it.
    Step { buffer: Arc<Mutex<JobBuffer>>, sampling: SamplerState, settled: Settled },
    /// The levels that settled with the last step.
    Settled(Settled),
    /// A decoded tile.
    Tile(Tile),
    /// The last event.
    End(Event),
    /// The error that ends the job.
    Fail(Error),
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
    /// Writes the preview durably and returns the events.
    fn write(&self, job: &Job) -> Result<Vec<Event>> {
        let write = |&level: &usize| {
            if let Some((rect, samples)) = &self.picture {
                let (width, height) = (rect.width as u32, rect.height as u32);
                let source = RawPixels::new(samples, width, height, Bits::Eight)?;
                let description = format!("{}, levels from {level} on", job.model.arch.name);
                let receipt = serde_json::Map::new();
                let metadata = Metadata { description, created: None, receipt };
                image_out::write_png(&job.directory.preview(level), &source, &metadata)?;
            }
            let (grid, pictured) = (job.plan.latents[level], self.picture.is_some());
            Ok(Event::Settled { level, rows: grid.h, columns: grid.w, pictured })
        };
        self.levels.iter().map(write).collect()
    }
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
        let ended = match write {
            Write::Fail(error) => Err(error),
            Write::End(last) => job.publish(vec![last]).map(|()| true),
            Write::Step { buffer, sampling, settled } => {
                timed(shared, || step(&job, &buffer, &sampling, &settled)).map(|()| false)
            }
            Write::Settled(settled) => {
                settled.write(&job).and_then(|events| job.publish(events)).map(|()| false)
            }
            Write::Tile(first) => {
                let mut all = vec![first];
                all.extend(inbox.tiles(&job));
                timed(shared, || tiles(&job, &all)).map(|()| false)
            }
        };
        match ended {
            Ok(false) => {}
            Ok(true) => release(&job),
            Err(error) => {
                // The engine thread drops the job at its next slice.
                job.cancel.cancel();
                fail(shared, &job, &error);
            }
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
    let (slot, crc32c) = locked(buffer).save(sampling)?;
    let (step, of) = (sampling.step, job.plan.schedule.steps());
    let sigma = job.plan.schedule.reached(step);
    let mut events = vec![Event::Step { step, of, sigma, slot, crc32c }];
    events.extend(settled.write(job)?);
    job.publish(events)
}

/// Makes at least one tile durable.
fn tiles(job: &Job, tiles: &[Tile]) -> Result<()> {
    let placed = tiles.iter().map(|tile| {
        let rect = job.plan.tiling.tiles[tile.index].rect;
        (rect, tile.samples.as_slice())
    });
    let sums = locked(&tiles[0].buffer).put(&placed.collect::<Vec<_>>())?;
    let events = tiles.iter().zip(sums);
    job.publish(events.map(|(tile, crc32c)| Event::Tile { index: tile.index, crc32c }).collect())
}

/// Ends the job with an error; an ended job is left unchanged.
fn fail(shared: &Shared, job: &Job, error: &Error) {
    let last = match error.kind() {
        Kind::Cancelled => Event::Cancelled,
        kind => {
            if kind == Kind::Device {
                shared.device_failed(error);
            }
            Event::Failed { kind, message: error.report().to_string() }
        }
    };
    if let Err(error) = job.publish(vec![last]) {
        tracing::error!("job {}: {}", job.id, error.report());
        job.abandon(&error);
    }
    release(job);
}

fn release(job: &Job) {
    if let Err(error) = job.released() {
        tracing::error!("job {}: {}", job.id, error.report());
    }
}
