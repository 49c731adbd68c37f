//! The engine thread: time-slices a few jobs, one step or tile at a time.
//!
//! The next slice goes to the job that has used the least time on the device, so jobs of any size share it evenly; a new
//! job starts at the lowest time of the running ones. Time is measured: a slice of a tiny job costs many times its FLOPs.
//! Small pictures of equal shapes take their denoising steps in a batch: one evaluation of the network costs less than
//! several and gives the same bits. The `committer` makes results durable and publishes them while the next slice
//! computes. On an asynchronous device the next tile is submitted before the previous one is read back.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use tracing::field::Empty;

use crate::{
    engine::{
        Cancel, denoise,
        device::Device,
        plan::EstimatePlan,
        provenance,
        run::{Outcome, Run, Unit},
        tiles,
    },
    error::{Error, Kind, Result},
    exec::memory::MEMORY,
    graph::{Backend, Download},
    jobs::{
        Shared,
        committer::{Committer, Settled, Tile, Write, WriteRequest},
        estimates::Estimate,
        files::JobBuffer,
        job::Job,
        record::{Event, to_ms},
        upload,
    },
    model::{
        cost, precond,
        sampler::{Latent, NoisyLatents, SamplerState, latent_shapes},
    },
};

/// A running job.
struct ActiveJob<O: Backend> {
    job: Arc<Job>,
    /// Span of the job on this device, parent of the spans of its steps and tiles.
    span: tracing::Span,
    /// Written by the committer only; read here only before the first write request.
    buffer: Arc<Mutex<JobBuffer>>,
    run: Run<O>,
    /// Previews of the estimate, for each group of levels; empty until a client asks for them.
    estimates: Vec<EstimatePlan>,
    /// The latents before the present step, if a preview of the estimate is due after it.
    before: Option<Vec<Latent>>,
    /// Time that the job has used, from the initial value on.
    served: Duration,
}

impl<O: Backend> ActiveJob<O> {
    /// Number of the next denoising step, from 1.
    fn next_step(&self) -> Option<usize> {
        match self.run.next(self.job.task()) {
            Some(Unit::Step(step)) => Some(step),
            _ => None,
        }
    }

    /// Keeps the latents of the next step if a preview of the estimate is due after it.
    fn keep_for_estimate(&mut self) -> Result<()> {
        self.before = None;
        let job = &self.job;
        let (Some(step), Some(sampling)) = (self.next_step(), self.run.sampling()) else {
            return Ok(());
        };
        if !job.estimates.wanted() || !job.plan.schedule.active(step - 1) {
            return Ok(());
        }
        if self.estimates.is_empty() {
            self.estimates = job.plan.estimates(&job.model.arch)?;
        }
        let EstimatePlan { level, period } = self.estimates[job.plan.schedule.group(step - 1)];
        // A level that has settled has a preview of its own, which shows as much.
        let has_settled = (0..=level).any(|level| job.plan.schedule.settled(level) <= step);
        if step.is_multiple_of(period) && !has_settled {
            self.before = Some(sampling.z.clone());
        }
        Ok(())
    }
}

/// A tile whose read-back from the device is pending.
struct Readback {
    job: Arc<Job>,
    buffer: Arc<Mutex<JobBuffer>>,
    index: usize,
    pixels: Download,
}

/// Most FLOPs of a batched step. On two cores a step of 0.4 GFLOP takes 17 % less time in a batch of four than alone, one of
/// 6 GFLOP the same (`benches/nets.rs`, `unet 512 256 4`).
const MAX_BATCH_FLOPS: u64 = 4_000_000_000;

fn panicked() -> Error {
    Error::internal("the engine panicked")
}

/// Runs until the queue is closed. `devices` are the same device, number `index` of the server, with the weights of each
/// model.
pub(super) fn run(shared: &Shared, index: usize, devices: Vec<Device>) {
    let Some(first) = devices.first() else { return };
    let fault = shared.settings.fault.filter(|fault| fault.device == index);
    let names = Names { name: first.name(), on: first.description() };
    let health = Health { units_left: fault.map(|fault| fault.after), lost: false };
    let mut cpus = Vec::new();
    #[cfg(feature = "gpu")]
    let mut gpus = Vec::new();
    for device in devices {
        match device {
            Device::Cpu(ops) => cpus.push(ops),
            #[cfg(feature = "gpu")]
            Device::Gpu(ops) => gpus.push(*ops),
        }
    }
    std::thread::scope(|scope| {
        let committer = Committer::start(scope, shared);
        #[cfg(feature = "gpu")]
        if !gpus.is_empty() {
            return Worker::new(shared, committer, gpus, names, health).run();
        }
        Worker::new(shared, committer, cpus, names, health).run();
    });
}

/// Opens the job's files, publishes that it has started, and returns its sampler state; `None` if the source picture has to
/// be encoded first.
pub(super) fn open(
    shared: &Shared,
    job: &Job,
    device: &str,
) -> Result<(JobBuffer, Option<SamplerState>)> {
    job.check()?;
    let buffer = job.directory.open_arena(&job.layout)?;
    let plan = &job.plan;
    let sampling = match job.checkpoint() {
        Some(saved) => Some(buffer.load(plan, saved)?),
        None if job.request.source_sha256.is_some() => None,
        None => Some(denoise::begin(plan)),
    };
    let now = job.snapshot();
    // The first start only: time in which the server was stopped is no wait in the queue.
    if now.sequence == 1 {
        let waited = to_ms(SystemTime::now()).saturating_sub(now.created_ms);
        shared.timings.queue_wait.observe(waited as f64 / 1e3);
    }
    job.publish(vec![Event::Started { device: device.to_owned() }])?;
    Ok((buffer, sampling))
}

/// Names of a device.
struct Names {
    /// In files.
    name: String,
    /// Description for people.
    on: String,
}

/// The state of a device.
struct Health {
    /// For tests: units of work until the device fails.
    units_left: Option<u64>,
    /// True once the device is not used any more.
    lost: bool,
}

struct Worker<'a, O: Backend> {
    shared: &'a Shared,
    committer: Committer,
    /// The device with the weights of each model, in the order of the models.
    ops: Vec<O>,
    names: Names,
    health: Health,
    active: Vec<ActiveJob<O>>,
    /// Read-back of the newest tile; it is finished after the next slice has begun, or when there is none.
    pending_readback: Option<Readback>,
    /// Time of read-backs that was counted for their jobs, not for that of the slice in which they ended.
    read_back: Duration,
}

/// The levels that settled with the last step and were not published before, coarsest first.
fn settled(job: &Job, sampling: &SamplerState) -> Vec<usize> {
    let (schedule, known) = (&job.plan.schedule, job.settled());
    // Levels that are settled from the start are published with the first step.
    let is_first = sampling.step <= job.plan.first_step + 1;
    let news = if is_first { 0 } else { sampling.step }..=sampling.step;
    let levels = (0..sampling.z.len()).rev();
    levels
        .filter(|&level| news.contains(&schedule.settled(level)))
        .filter(|&level| known.is_none_or(|known| level < known))
        .collect()
}

impl<'a, O: Backend> Worker<'a, O> {
    fn new(
        shared: &'a Shared,
        committer: Committer,
        ops: Vec<O>,
        names: Names,
        health: Health,
    ) -> Self {
        let (active, pending_readback, read_back) = (Vec::new(), None, Duration::ZERO);
        Self { shared, committer, ops, names, health, active, pending_readback, read_back }
    }

    fn run(mut self) {
        if let Err(error) = self.measure() {
            self.health.lost = self.shared.take_off(&self.names.on, &error);
            if !self.health.lost {
                self.shared.device_failed(&error);
            }
        }
        while !self.health.lost
            && let Some(admitted) = self.shared.next(&self.active_jobs())
        {
            for job in admitted {
                self.begin(job);
            }
            if let Some(turn) = self.next_index() {
                self.run_slice(turn);
            }
            if self.active.is_empty() {
                self.finish_readback();
            }
        }
        self.finish_readback();
        for ActiveJob { job, .. } in self.active.drain(..) {
            match self.health.lost {
                true => self.committer.send(WriteRequest { job, write: Write::HandBack }),
                false => tracing::info!("job {} resumes at the next start", job.id),
            }
        }
    }

    /// True if the device that has failed with `error` does not respond any more and others take its jobs.
    fn is_lost(&mut self, error: &Error) -> bool {
        if !self.health.lost && error.kind() == Kind::Device && self.measure().is_err() {
            self.health.lost = self.shared.take_off(&self.names.on, error);
        }
        self.health.lost
    }

    /// For tests: fails once the device has computed as many units as it was given.
    fn check_fault(&mut self, units: u64) -> Result<()> {
        match &mut self.health.units_left {
            Some(left) if *left < units.max(1) => {
                Err(Error::device(self.names.on.clone(), "was made to fail"))
            }
            Some(left) => {
                *left -= units;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Measures the device's speed by one evaluation of the network at the smallest size.
    fn measure(&mut self) -> Result<()> {
        self.check_fault(0)?;
        let (model, ops) = (self.shared.models.first(), &mut self.ops[0]);
        let arch = &model.arch;
        let side = arch.coarsest_factor();
        let z: Vec<Latent> = latent_shapes(arch, 1, side, side)
            .into_iter()
            .map(|shape| Latent { shape, data: vec![0.5; shape.len()] })
            .collect();
        // The first evaluation packs weights and compiles shaders.
        let noisy = [NoisyLatents { z: &z, group: 0, sigma: 1.0, guidance: None }];
        precond::denoise(ops, model, &noisy)?;
        let began = Instant::now();
        precond::denoise(ops, model, &noisy)?;
        let cost = cost::unet_cost(arch, 0, 1, &MEMORY, side, side)?;
        self.shared.speed.add(cost.flops, began.elapsed());
        Ok(())
    }

    fn active_jobs(&self) -> Vec<Arc<Job>> {
        self.active.iter().map(|active| active.job.clone()).collect()
    }

    /// Starts or resumes a job.
    fn begin(&mut self, job: Arc<Job>) {
        match open(self.shared, &job, &self.names.on) {
            Ok((buffer, sampling)) => {
                let served = self.active.iter().map(|active| active.served).min();
                let served = served.unwrap_or_default();
                let buffer = Arc::new(Mutex::new(buffer));
                let source = job.directory.source();
                let mut run = match sampling {
                    Some(sampling) => Run::resume(sampling, job.tiles_done()),
                    None => Run::edit(&job.plan, move || upload::read(&source)),
                };
                run.repeat_tiles(job.take_damaged());
                let spec = &job.plan.spec;
                let span = tracing::info_span!(
                    "job",
                    id = %job.id,
                    width = spec.width,
                    height = spec.height,
                    device = %self.names.on
                );
                let (estimates, before) = (Vec::new(), None);
                self.active.push(ActiveJob { job, span, buffer, run, estimates, before, served });
            }
            Err(error) => self.committer.send(WriteRequest { job, write: Write::Fail(error) }),
        }
    }

    /// Index of the running job that gets the next slice.
    fn next_index(&self) -> Option<usize> {
        (0..self.active.len()).min_by_key(|&i| self.active[i].served)
    }

    fn run_slice(&mut self, turn: usize) {
        let mut first = self.active.swap_remove(turn);
        let mut peers = self.batch_peers(&first);
        let began = Instant::now();
        let together = !peers.is_empty()
            && self
                .step_batch(&mut first, &mut peers)
                .inspect_err(|error| tracing::debug!("a batched step failed: {}", error.report()))
                .is_ok();
        if together {
            let flops = first.job.quote.step_flops;
            peers.push(first);
            let jobs = peers.len() as u64;
            let took = began.elapsed();
            self.shared.steps.add(jobs);
            self.shared.speed.add(flops * jobs, took);
            self.shared.timings.step.observe(took.as_secs_f64());
            for mut active in peers {
                active.served += took / jobs as u32;
                self.complete(active, |worker, active| worker.after_step(active).map(drop));
            }
            return;
        }
        // After a failed batch each job takes its step alone, so that an error affects one job only.
        self.active.append(&mut peers);
        self.complete(first, |worker, active| {
            let timings = &worker.shared.timings;
            let histogram = match active.run.next(active.job.task()) {
                Some(Unit::Step(_)) => Some(&timings.step),
                Some(Unit::Tile) => Some(&timings.tile),
                Some(Unit::Encode | Unit::GlobalStage) | None => None,
            };
            let flops = worker.run_unit(active)?;
            worker.shared.speed.add(flops, began.elapsed());
            if let Some(histogram) = histogram {
                histogram.observe(began.elapsed().as_secs_f64());
            }
            Ok(())
        });
    }

    /// Removes from the running jobs those that can take their next step in a batch with `first`: same latent shapes, model and
    /// sampler. Empty if the device is fully used by one.
    fn batch_peers(&mut self, first: &ActiveJob<O>) -> Vec<ActiveJob<O>> {
        let plan = &first.job.plan;
        let room = MAX_BATCH_FLOPS / first.job.quote.step_flops.max(1);
        let fits = |active: &mut ActiveJob<O>| {
            let other = &active.job.plan;
            active.next_step().is_some()
                && Arc::ptr_eq(&active.job.model, &first.job.model)
                && (&other.latents, other.spec.sampler) == (&plan.latents, plan.spec.sampler)
                && active.job.check().is_ok()
        };
        if first.next_step().is_none() || room < 2 {
            return Vec::new();
        }
        self.active.sort_by_key(|active| active.served);
        let fitting = self.active.extract_if(.., fits);
        fitting.take(room as usize - 1).collect()
    }

    /// Takes the next step of `first` and its `peers` in one batch.
    fn step_batch(&mut self, first: &mut ActiveJob<O>, peers: &mut [ActiveJob<O>]) -> Result<()> {
        self.finish_readback();
        self.check_fault(1)?;
        let model = first.job.model.clone();
        let ops = &mut self.ops[self.shared.models.index_of(&model)];
        first.job.check()?;
        first.keep_for_estimate()?;
        peers.iter_mut().try_for_each(ActiveJob::keep_for_estimate)?;
        let _spans: Vec<_> = (std::iter::once(&*first).chain(&*peers))
            .filter_map(|active| {
                let step = active.next_step()?;
                Some(tracing::info_span!(parent: &active.span, "step", step))
            })
            .collect();
        let mut members: Vec<_> = (std::iter::once(first).chain(peers))
            .map(|ActiveJob { job, run, .. }| (job.task(), run))
            .collect();
        // A job that is cancelled meanwhile ends after this step without affecting its peers.
        let cancel = Cancel::default();
        let steps = || Run::advance_batch(ops, &mut members, &cancel);
        catch_unwind(AssertUnwindSafe(steps)).unwrap_or_else(|_| Err(panicked()))
    }

    /// Runs `unit` for a job, counts its time, and handles its result: continue, finish or fail.
    fn complete(
        &mut self,
        mut active: ActiveJob<O>,
        unit: impl FnOnce(&mut Self, &mut ActiveJob<O>) -> Result<()>,
    ) {
        let job = active.job.clone();
        let _span = active.span.clone().entered();
        let (began, read_back) = (Instant::now(), self.read_back);
        // A panic fails this job, not the server.
        let done = catch_unwind(AssertUnwindSafe(|| unit(self, &mut active)));
        active.served += began.elapsed().saturating_sub(self.read_back - read_back);
        match done.unwrap_or_else(|_| Err(panicked())) {
            Ok(()) => match active.run.next(job.task()) {
                None => {
                    self.finish_readback();
                    let write = match self.health.lost {
                        true => Write::HandBack,
                        false => Write::End(self.finished(&job)),
                    };
                    self.committer.send(WriteRequest { job, write });
                }
                Some(_) => self.active.push(active),
            },
            Err(error) => {
                let write = match self.is_lost(&error) {
                    true => Write::HandBack,
                    false => Write::Fail(error),
                };
                self.committer.send(WriteRequest { job, write });
            }
        }
    }

    /// Computes the job's next unit and returns its FLOPs.
    fn run_unit(&mut self, active: &mut ActiveJob<O>) -> Result<u64> {
        active.job.check()?;
        active.keep_for_estimate()?;
        let ActiveJob { job, buffer, run, .. } = active;
        let Some(unit) = run.next(job.task()) else { return Ok(0) };
        self.check_fault(1)?;
        if unit == Unit::Tile {
            run.repeat_tiles(job.take_damaged());
        } else {
            self.finish_readback();
        }
        let span = match unit {
            Unit::Encode => tracing::info_span!("encode"),
            Unit::Step(step) => tracing::info_span!("step", step),
            Unit::GlobalStage => tracing::info_span!("global_stage"),
            Unit::Tile => tracing::info_span!("tile", column = Empty, row = Empty),
        }
        .entered();
        // The levels that settle with the last step, before its latents are decoded.
        let levels = match (unit, run.sampling()) {
            (Unit::GlobalStage, Some(sampling)) => settled(job, sampling),
            _ => Vec::new(),
        };
        let ops = &mut self.ops[self.shared.models.index_of(&job.model)];
        let pick = |begun: &[bool]| {
            let index = job.next_tile(begun)?;
            let tile = &job.plan.tiling.tiles[index];
            span.record("column", tile.column).record("row", tile.row);
            Some(index)
        };
        match run.advance(ops, job.task(), pick)? {
            Outcome::Encoded => Ok(job.quote.encode_flops),
            Outcome::Step => {
                self.shared.steps.add(1);
                self.after_step(active)
            }
            Outcome::GlobalStage => {
                if let (false, Some(decoder)) = (levels.is_empty(), run.decoder()) {
                    let picture = Some(decoder.preview(ops)?);
                    let write = Write::Settled(Settled { levels, picture });
                    self.committer.send(WriteRequest { job: job.clone(), write });
                }
                Ok(job.quote.global_flops)
            }
            Outcome::Tile { index, pixels } => {
                let (job, buffer) = (job.clone(), buffer.clone());
                let (flops, is_ready) = (job.quote.tile_flops, pixels.is_ready());
                self.finish_readback();
                self.pending_readback = Some(Readback { job, buffer, index, pixels });
                if is_ready {
                    self.finish_readback();
                }
                Ok(flops)
            }
            Outcome::Complete => Ok(0),
        }
    }

    /// Waits for the pending read-back and sends its tile to the committer.
    fn finish_readback(&mut self) {
        let Some(Readback { job, buffer, index, pixels }) = self.pending_readback.take() else {
            return;
        };
        let began = Instant::now();
        let (rect, bits) = (job.plan.tiling.tiles[index].rect, job.plan.spec.bits);
        let samples = pixels.wait().and_then(|values| tiles::samples(rect, &values, bits));
        let write = match samples {
            Ok(samples) => Write::Tile(Tile { buffer, index, samples }),
            // The job is handed back with this tile not done.
            Err(error) if self.is_lost(&error) => return,
            Err(error) => Write::TileFailed(error),
        };
        // The job of the current slice is not among them: its time is counted as a whole.
        if let Some(other) = self.active.iter_mut().find(|active| Arc::ptr_eq(&active.job, &job)) {
            other.served += began.elapsed();
            self.read_back += began.elapsed();
        }
        self.committer.send(WriteRequest { job, write });
    }

    /// Sends a step to the committer, with a preview if levels have settled; returns the step's FLOPs.
    fn after_step(&mut self, active: &mut ActiveJob<O>) -> Result<u64> {
        let ActiveJob { job, buffer, run, estimates, before, .. } = active;
        let sampling = run.sampling().ok_or_else(|| Error::internal("a step without latents"))?;
        let ops = &mut self.ops[self.shared.models.index_of(&job.model)];
        let estimated = before.take();
        if let Some(before) = &estimated {
            let group = job.plan.schedule.group(sampling.step - 1);
            let level = estimates[group].level;
            job.estimates.add(Estimate::new(ops, job, level, before, sampling)?);
        }
        let last = sampling.step == job.plan.schedule.steps();
        // Levels that settle with the last step are published with the global stage, which computes their preview.
        let levels = if last { Vec::new() } else { settled(job, sampling) };
        let picture = match levels.last() {
            Some(&finest) if job.previews_wanted() => {
                let (model, z) = (&job.model, sampling.z.clone());
                let (latents, seed) = (denoise::denormalise(model, z), job.plan.spec.seed);
                Some(tiles::preview(ops, &model.arch, &latents, finest, seed)?)
            }
            _ => None,
        };
        let settled = Settled { levels, picture };
        let needed = last || !settled.levels.is_empty() || estimated.is_some();
        let (job, buffer) = (job.clone(), buffer.clone());
        let flops = job.quote.step_flops;
        let request = || {
            let write = Write::Step { buffer, sampling: sampling.clone(), settled };
            WriteRequest { job, write }
        };
        self.committer.try_send(needed, request);
        Ok(flops)
    }

    fn finished(&self, job: &Job) -> Event {
        let source = job.request.source_sha256.as_deref().zip(Some(&job.request.attribution));
        let metadata = provenance::generated(&job.model, &self.names.name, &job.plan.spec, source);
        let receipt = serde_json::Value::Object(metadata.receipt).to_string();
        Event::Finished { receipt, description: metadata.description }
    }
}
