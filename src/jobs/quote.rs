//! Cost of a job, and measured speed of the devices.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    engine::plan::{CostBreakdown, Plan},
    geometry::{Pyramid, TILE},
    jobs::files::Layout,
};

/// Cost of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Quote {
    /// Peak memory in bytes, weights included.
    pub memory_bytes: u64,
    /// Most disk space in bytes until the job is deleted: the arena, the journal, previews, and the picture's files once they
    /// are downloaded. An uploaded picture is not included.
    pub disk_bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// FLOPs of encoding the source picture.
    pub encode_flops: u64,
    /// FLOPs of one denoising step.
    pub step_flops: u64,
    /// FLOPs of the decoder's global stage.
    pub global_flops: u64,
    /// Mean FLOPs of one tile.
    pub tile_flops: u64,
    /// Time on an otherwise idle device, at its measured speed; 0: not measured yet.
    pub compute_time: Duration,
}

/// The cost of `plan`.
pub(super) fn quote(plan: &Plan, compute_time: Duration) -> Quote {
    let CostBreakdown { encode_flops, step_flops, global_flops, tile_flops } = plan.cost;
    Quote {
        memory_bytes: plan.peak_bytes,
        disk_bytes: Layout::new(plan).bytes() + file_bytes(plan),
        flops: plan.flops,
        encode_flops,
        step_flops,
        global_flops,
        tile_flops,
        compute_time,
    }
}

/// Upper bound of the bytes of a job's files without the arena.
fn file_bytes(plan: &Plan) -> u64 {
    /// Of metadata and headers of a file, with attributions of full length.
    const HEADER: usize = 32 << 10;
    /// Of a journal's record; most are shorter.
    const RECORD: usize = 256;
    let (width, height) = (plan.spec.width, plan.spec.height);
    let pixel = plan.spec.bits.pixel_len();
    // Deflate stores what it can't compress, with a few bytes for each block.
    let deflated = |bytes: usize| bytes + bytes / 256 + 64;
    let png = |width, height, pixel| deflated((width * pixel + 1) * height) + HEADER;
    let pyramid = Pyramid { width, height };
    let mut bytes = png(width, height, pixel) + HEADER;
    for level in 0..=pyramid.last() {
        let (width, height) = pyramid.size(level);
        let (columns, rows) = pyramid.tiles(level);
        // Beyond the picture's edges a tile repeats the last pixels.
        bytes +=
            deflated(width * height * pixel) + columns * rows * (TILE * TILE * pixel / 64 + 64);
    }
    let finest = plan.latents.first().map_or(0, |shape| shape.h * shape.w);
    bytes += plan
        .latents
        .iter()
        .map(|shape| png((4 * shape.h * shape.w).min(finest), 1, 3))
        .sum::<usize>();
    bytes +=
        HEADER + RECORD * (plan.schedule.steps() + plan.tiling.tiles.len() + plan.latents.len());
    bytes as u64
}

/// Speed of the devices: an exponentially weighted mean over recent work. Weights are durations, so the fixed overhead of
/// short units has little influence.
#[derive(Debug, Default)]
pub(super) struct Speed(Mutex<Throughput>);

/// Exponentially decayed sums of FLOPs and seconds.
#[derive(Debug, Default)]
struct Throughput {
    flops: f64,
    seconds: f64,
}

impl Speed {
    /// Time constant of the decay, in seconds of work.
    const MEMORY: f64 = 10.0;

    fn work(&self) -> MutexGuard<'_, Throughput> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, flops: u64, took: Duration) {
        let seconds = took.as_secs_f64();
        let (mut work, kept) = (self.work(), (-seconds / Self::MEMORY).exp());
        work.flops = work.flops * kept + flops as f64;
        work.seconds = work.seconds * kept + seconds;
    }

    /// FLOPs per second; 0 before the first measurement.
    pub(super) fn mean(&self) -> f64 {
        let work = self.work();
        if work.seconds > 0.0 { work.flops / work.seconds } else { 0.0 }
    }

    /// Time for `flops` in whole microseconds; 0 before the first measurement.
    pub(super) fn time(&self, flops: u64) -> Duration {
        let speed = self.mean();
        let micros = if speed > 0.0 { 1e6 * flops as f64 / speed } else { 0.0 };
        Duration::from_micros(micros as u64)
    }
}

/// Numbers of denoising steps of all jobs and of time slices in which they were taken; batched steps share a slice.
#[derive(Debug, Default)]
pub struct StepCounts {
    taken: AtomicU64,
    turns: AtomicU64,
}

impl StepCounts {
    /// Adds a time slice in which `jobs` jobs took a step.
    pub(super) fn add(&self, jobs: u64) {
        self.taken.fetch_add(jobs, Ordering::Relaxed);
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// Number of steps.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Number of time slices.
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }
}
