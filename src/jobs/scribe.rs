//! The scribe: makes durable what the engine computed, and then announces it, while the engine goes on computing.
//!
//! One for each engine. Deeds are done in the order in which they were sent, so events keep the order of the work. A few may
//! wait, and tiles that wait together become durable together. A disk that is slower than the device even so holds the
//! engine up, but for denoising steps, which are passed over while anything waits.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::Scope,
};

use crate::{
    engine::plan::Rect,
    error::{Error, Kind, Result},
    image_out::{self, Bits, Metadata, RawPixels},
    jobs::{Shared, files::Canvas, job::Job, record::Event},
    model::sampler::SamplerState,
};

/// Something that was computed for a job.
pub(super) struct Deed {
    pub(super) job: Arc<Job>,
    pub(super) work: Work,
}

/// See [`Deed`].
pub(super) enum Work {
    /// A denoising step, and the levels that settled with it.
    Step { canvas: Arc<Mutex<Canvas>>, sampling: SamplerState, settled: Settled },
    /// The levels that settled with the last step.
    Settled(Settled),
    /// The samples of a tile.
    Tile(Tile),
    /// The last event.
    End(Event),
    /// The end by an error.
    Fail(Error),
}

/// See [`Work::Tile`].
pub(super) struct Tile {
    pub(super) canvas: Arc<Mutex<Canvas>>,
    pub(super) index: usize,
    pub(super) samples: Vec<u8>,
}

/// Levels that have settled, the coarsest first.
pub(super) struct Settled {
    pub(super) levels: Vec<usize>,
    /// The layout, RGB with 8 bits.
    pub(super) picture: Option<(Rect, Vec<u8>)>,
}

impl Settled {
    /// The events that tell of them, once the picture is on the disk.
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

/// Where the engine hands its deeds in. The thread ends, all deeds done, when the value goes.
pub(super) struct Scribe {
    deeds: SyncSender<Deed>,
    waiting: Arc<AtomicUsize>,
}

/// Deeds that may wait: those of the last steps of a denoising, when level after level settles.
const WAITING: usize = 4;

impl Scribe {
    /// Starts the thread.
    pub(super) fn start<'scope, 'env>(
        scope: &'scope Scope<'scope, 'env>,
        shared: &'env Shared,
    ) -> Self {
        let (deeds, receiver) = sync_channel(WAITING);
        let waiting = Arc::<AtomicUsize>::default();
        let inbox = Inbox { deeds: receiver, waiting: waiting.clone(), next: None };
        scope.spawn(move || run(shared, inbox));
        Self { deeds, waiting }
    }

    /// Hands a deed in; waits while too many wait.
    pub(super) fn send(&self, deed: Deed) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if self.deeds.send(deed).is_err() {
            // Only a panic of the scribe's thread ends it before the engine, and the scope passes that on.
            tracing::error!("what was computed can't be kept");
        }
    }

    /// Hands the deed in if it is `needed`, or if no other one waits.
    pub(super) fn send_if(&self, needed: bool, deed: impl FnOnce() -> Deed) {
        if needed || self.waiting.load(Ordering::Relaxed) == 0 {
            self.send(deed());
        }
    }
}

/// What the scribe takes its deeds from.
struct Inbox {
    deeds: Receiver<Deed>,
    /// Deeds that were sent and not taken.
    waiting: Arc<AtomicUsize>,
    /// Taken, and found not to belong to those before it.
    next: Option<Deed>,
}

impl Inbox {
    /// The next deed. Waits for it; `None` when there will be none.
    fn take(&mut self) -> Option<Deed> {
        let deed = self.next.take().or_else(|| self.deeds.recv().ok())?;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        Some(deed)
    }

    /// The tiles of `job` that wait behind the one that was taken.
    fn tiles(&mut self, job: &Arc<Job>) -> Vec<Tile> {
        let mut tiles = Vec::new();
        while self.next.is_none() {
            let Ok(deed) = self.deeds.try_recv() else { break };
            match deed.work {
                Work::Tile(tile) if Arc::ptr_eq(&deed.job, job) => {
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                    tiles.push(tile);
                }
                work => self.next = Some(Deed { work, ..deed }),
            }
        }
        tiles
    }
}

fn run(shared: &Shared, mut inbox: Inbox) {
    while let Some(Deed { job, work }) = inbox.take() {
        let ended = match work {
            Work::Fail(error) => Err(error),
            Work::End(last) => job.announce(vec![last]).map(|()| true),
            Work::Step { canvas, sampling, settled } => {
                step(&job, &canvas, &sampling, &settled).map(|()| false)
            }
            Work::Settled(settled) => {
                settled.write(&job).and_then(|events| job.announce(events)).map(|()| false)
            }
            Work::Tile(first) => {
                let mut all = vec![first];
                all.extend(inbox.tiles(&job));
                tiles(&job, &all).map(|()| false)
            }
        };
        match ended {
            Ok(false) => {}
            Ok(true) => release(&job),
            Err(error) => {
                // The engine, if it still works on the job, lets go of it at its next turn.
                job.cancel.cancel();
                fail(shared, &job, &error);
            }
        }
    }
}

fn locked(canvas: &Mutex<Canvas>) -> std::sync::MutexGuard<'_, Canvas> {
    // Only the scribe writes: a panic elsewhere leaves it whole.
    canvas.lock().unwrap_or_else(PoisonError::into_inner)
}

fn step(
    job: &Job,
    canvas: &Mutex<Canvas>,
    sampling: &SamplerState,
    settled: &Settled,
) -> Result<()> {
    let (slot, crc32c) = locked(canvas).save(sampling)?;
    let (step, of) = (sampling.step, job.plan.schedule.steps());
    let sigma = job.plan.schedule.sigma(step);
    let mut events = vec![Event::Step { step, of, sigma, slot, crc32c }];
    events.extend(settled.write(job)?);
    job.announce(events)
}

/// Makes tiles durable together, at least one.
fn tiles(job: &Job, tiles: &[Tile]) -> Result<()> {
    let placed = tiles.iter().map(|tile| {
        let rect = job.plan.tiling.tiles[tile.index].rect;
        (rect, tile.samples.as_slice())
    });
    let sums = locked(&tiles[0].canvas).put(&placed.collect::<Vec<_>>())?;
    let events = tiles.iter().zip(sums);
    job.announce(events.map(|(tile, crc32c)| Event::Tile { index: tile.index, crc32c }).collect())
}

/// Ends the job by an error; one that has ended stays as it is.
fn fail(shared: &Shared, job: &Job, error: &Error) {
    let last = match error.kind() {
        Kind::Cancelled => Event::Cancelled,
        kind => {
            tracing::error!("job {}: {}", job.id, error.report());
            if kind == Kind::Device {
                shared.device_failed(error);
            }
            Event::Failed { kind, message: error.report().to_string() }
        }
    };
    if let Err(error) = job.announce(vec![last]) {
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
