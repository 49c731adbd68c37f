//! What a job takes, and how fast the devices are.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    engine::plan::{CostBreakdown, Plan},
    jobs::files::Layout,
};

/// What a job takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Quote {
    /// Most bytes of memory at one time, weights included.
    pub memory_bytes: u64,
    /// Bytes of disk until the job is deleted.
    pub disk_bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Those of encoding the picture that is edited.
    pub encode_flops: u64,
    /// Those of one denoising step.
    pub step_flops: u64,
    /// Those of the decoder's global stage.
    pub global_flops: u64,
    /// Those of one tile, on average.
    pub tile_flops: u64,
    /// Time on the device if nothing else ran, by its speed so far.
    pub compute_time: Duration,
}

/// What `plan` takes.
pub(super) fn quote(plan: &Plan, compute_time: Duration) -> Quote {
    let CostBreakdown { encode_flops, step_flops, global_flops, tile_flops } = plan.cost;
    Quote {
        memory_bytes: plan.peak_bytes,
        disk_bytes: Layout::new(plan).bytes(),
        flops: plan.flops,
        encode_flops,
        step_flops,
        global_flops,
        tile_flops,
        compute_time,
    }
}

/// Speed of the devices: what they did lately, and how long it took. Short units count for little, so that what a call
/// costs whatever its size does not pass for slowness.
#[derive(Debug, Default)]
pub(super) struct Speed(Mutex<Work>);

/// Operations and seconds, the older the less of them.
#[derive(Debug, Default)]
struct Work {
    flops: f64,
    seconds: f64,
}

impl Speed {
    /// Seconds of work after which what came before counts for a third.
    const MEMORY: f64 = 10.0;

    fn work(&self) -> MutexGuard<'_, Work> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, flops: u64, took: Duration) {
        let seconds = took.as_secs_f64();
        let (mut work, kept) = (self.work(), (-seconds / Self::MEMORY).exp());
        work.flops = work.flops * kept + flops as f64;
        work.seconds = work.seconds * kept + seconds;
    }

    /// Operations per second; 0 until something was measured.
    pub(super) fn mean(&self) -> f64 {
        let work = self.work();
        if work.seconds > 0.0 { work.flops / work.seconds } else { 0.0 }
    }

    /// Time that `flops` take, in whole microseconds; 0 until something was measured.
    pub(super) fn time(&self, flops: u64) -> Duration {
        let speed = self.mean();
        let micros = if speed > 0.0 { 1e6 * flops as f64 / speed } else { 0.0 };
        Duration::from_micros(micros as u64)
    }
}

/// Denoising steps of all jobs, and in how many turns of a device they were taken: fewer, where jobs took them together.
#[derive(Debug, Default)]
pub struct StepCounts {
    taken: AtomicU64,
    turns: AtomicU64,
}

impl StepCounts {
    /// A turn in which `jobs` jobs took a step.
    pub(super) fn add(&self, jobs: u64) {
        self.taken.fetch_add(jobs, Ordering::Relaxed);
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// Steps.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Turns.
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }
}
