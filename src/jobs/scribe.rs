//! The scribe: makes durable what the engine computed, and then announces it, while the engine goes on computing.
//!
//! One for each engine. Deeds are done in the order in which they were sent, so events keep the order of the work. At most one
//! waits: a disk that is slower than the device holds the engine up, but for denoising steps, which are passed over then.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::Scope,
};

use crate::{
    engine::plan::Rect,
    error::{Error, Kind, Result},
    image_out::{self, Bits, Metadata, RawPixels},
    jobs::{Shared, files::Canvas, job::Job, record::Event},
    model::sampler::Sampling,
};

/// Something that was computed for a job.
pub(super) struct Deed {
    pub(super) job: Arc<Job>,
    pub(super) work: Work,
}

/// See [`Deed`].
pub(super) enum Work {
    /// A denoising step, and the levels that settled with it.
    Step { canvas: Arc<Mutex<Canvas>>, sampling: Sampling, preview: Option<Preview> },
    /// The levels that settled with the last step.
    Settled(Preview),
    /// The samples of a tile.
    Tile { canvas: Arc<Mutex<Canvas>>, index: usize, samples: Vec<u8> },
    /// The last event.
    End(Event),
    /// The end by an error.
    Fail(Error),
}

/// The layout when levels have settled.
pub(super) struct Preview {
    /// The coarsest first.
    levels: Vec<usize>,
    rect: Rect,
    /// RGB, 8 bits.
    samples: Vec<u8>,
}

impl Preview {
    pub(super) fn new(levels: Vec<usize>, (rect, samples): (Rect, Vec<u8>)) -> Self {
        Self { levels, rect, samples }
    }

    /// Writes the pictures, of which the events then tell.
    fn write(&self, shared: &Shared, job: &Job) -> Result<Vec<Event>> {
        let (width, height) = (self.rect.width as u32, self.rect.height as u32);
        let source = RawPixels::new(&self.samples, width, height, Bits::Eight)?;
        let write = |&level: &usize| {
            let description = format!("{}, levels from {level} on", shared.model.arch.name);
            let metadata = Metadata { description, created: None, receipt: serde_json::Map::new() };
            image_out::write_png(&job.directory.preview(level), &source, &metadata)?;
            let grid = job.plan.latents[level];
            Ok(Event::Settled { level, rows: grid.h, columns: grid.w })
        };
        self.levels.iter().map(write).collect()
    }
}

/// Where the engine hands its deeds in. The thread ends, all deeds done, when the value goes.
pub(super) struct Scribe(SyncSender<Deed>);

impl Scribe {
    /// Starts the thread.
    pub(super) fn start<'scope, 'env>(
        scope: &'scope Scope<'scope, 'env>,
        shared: &'env Shared,
    ) -> Self {
        let (sender, receiver) = sync_channel(1);
        scope.spawn(move || run(shared, &receiver));
        Self(sender)
    }

    /// Hands a deed in; waits while another one waits.
    pub(super) fn send(&self, deed: Deed) {
        if self.0.send(deed).is_err() {
            // Only a panic of the scribe's thread ends it before the engine, and the scope passes that on.
            tracing::error!("what was computed can't be kept");
        }
    }

    /// Hands the deed in if it is `needed`, or if no other one waits.
    pub(super) fn send_if(&self, needed: bool, deed: impl FnOnce() -> Deed) {
        if needed {
            self.send(deed());
        } else if let Err(TrySendError::Disconnected(_)) = self.0.try_send(deed()) {
            tracing::error!("what was computed can't be kept");
        }
    }
}

fn run(shared: &Shared, deeds: &Receiver<Deed>) {
    for Deed { job, work } in deeds {
        let ended = match work {
            Work::Fail(error) => Err(error),
            Work::End(last) => job.announce(vec![last]).map(|()| true),
            Work::Step { canvas, sampling, preview } => {
                step(shared, &job, &canvas, &sampling, preview.as_ref()).map(|()| false)
            }
            Work::Settled(preview) => {
                preview.write(shared, &job).and_then(|events| job.announce(events)).map(|()| false)
            }
            Work::Tile { canvas, index, samples } => {
                let rect = job.plan.tiling.tiles[index].rect;
                let written = locked(&canvas).put(rect, &samples);
                let told =
                    written.and_then(|crc32c| job.announce(vec![Event::Tile { index, crc32c }]));
                told.map(|()| false)
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
    shared: &Shared,
    job: &Job,
    canvas: &Mutex<Canvas>,
    sampling: &Sampling,
    preview: Option<&Preview>,
) -> Result<()> {
    let (slot, crc32c) = locked(canvas).save(sampling)?;
    let (step, of) = (sampling.step, job.plan.schedule.steps());
    let sigma = job.plan.schedule.sigma(step);
    let mut events = vec![Event::Step { step, of, sigma, slot, crc32c }];
    if let Some(preview) = preview {
        events.extend(preview.write(shared, job)?);
    }
    job.announce(events)
}

/// Ends the job by an error; one that has ended stays as it is.
fn fail(shared: &Shared, job: &Job, error: &Error) {
    let last = match error.kind() {
        Kind::Cancelled => Event::Cancelled,
        kind => {
            tracing::error!("job {}: {error}", job.id);
            if kind == Kind::Device {
                shared.device_failed(error);
            }
            Event::Failed { kind, message: error.to_string() }
        }
    };
    if let Err(error) = job.announce(vec![last]) {
        tracing::error!("job {}: {error}", job.id);
        job.abandon(&error);
    }
    release(job);
}

fn release(job: &Job) {
    if let Err(error) = job.released() {
        tracing::error!("job {}: {error}", job.id);
    }
}
