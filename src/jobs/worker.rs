//! The engine's thread: takes jobs from the queue and works on a few of them in turns, a step or a tile at a time.
//!
//! The turn goes to the job that has had least of the device so far, counted in floating-point operations, so that jobs
//! share it evenly whatever their sizes; one that comes later starts where the least served one stands. Small pictures of
//! one size take their denoising steps together: a run of the network for several costs less than one for each, and gives
//! each the same bits. What a turn gave is made durable, and only then announced, by the `scribe`, while the next turn
//! computes. A device that computes on its own is given the next tile before the last one's pixels are taken from it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    time::{Instant, SystemTime},
};

use crate::{
    engine::{
        Cancel, denoise,
        device::Device,
        plan, provenance,
        tiles::{self, TileDecoder},
    },
    error::{Error, Result},
    exec::memory::MEMORY,
    jobs::{
        Shared,
        files::Canvas,
        job::Job,
        record::{Event, to_ms},
        scribe::{Deed, Scribe, Settled, Tile, Work as Written},
        upload,
    },
    model::{
        cost, precond,
        sampler::{Latent, NoisyLatents, SamplerState},
    },
    ops::{Download, Ops},
};

/// A job that is being worked on.
struct Active<O: Ops> {
    job: Arc<Job>,
    /// The job's time on this device, around those of its steps and tiles.
    span: tracing::Span,
    /// Written by the scribe alone; read here only before its first deed.
    canvas: Arc<Mutex<Canvas>>,
    work: Work<O>,
    /// Tiles that are done or with the scribe.
    sent: Vec<bool>,
    /// Operations that the device has spent on it, from where it started.
    served: u64,
}

enum Work<O: Ops> {
    /// The picture that is edited has to be encoded first.
    Encode,
    Denoise(SamplerState),
    Decode(TileDecoder<O>),
}

impl<O: Ops> Active<O> {
    /// The number of the denoising step that comes next, from 1.
    fn next_step(&self) -> Option<usize> {
        match &self.work {
            Work::Denoise(sampling) => {
                Some(sampling.step + 1).filter(|&step| step <= self.job.plan.schedule.steps())
            }
            Work::Encode | Work::Decode(_) => None,
        }
    }
}

/// A tile whose pixels are on their way from the device.
struct Flight {
    job: Arc<Job>,
    canvas: Arc<Mutex<Canvas>>,
    index: usize,
    pixels: Download,
}

/// Most operations of the steps that jobs take together. On two cores a step of 0.4 GFLOP takes 17 % less time among four than
/// alone, one of 6 GFLOP the same (`benches/nets.rs`, `unet 512 256 4`).
const TOGETHER_FLOPS: u64 = 4_000_000_000;

/// Whether a job may go on.
///
/// # Errors
/// [`Kind::Cancelled`](crate::error::Kind) or [`Kind::Expired`](crate::error::Kind).
fn in_time(job: &Job) -> Result<()> {
    job.cancel.check()?;
    if job.order.deadline_ms.is_some_and(|deadline| to_ms(SystemTime::now()) >= deadline) {
        return Err(Error::expired("the job", None));
    }
    Ok(())
}

fn panicked() -> Error {
    Error::internal("the engine panicked")
}

/// Works until the queue is closed. `devices`: one and the same, for every model.
pub(super) fn run(shared: &Shared, devices: Vec<Device>) {
    let Some(first) = devices.first() else { return };
    let (name, on) = (first.name(), first.description());
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
        let scribe = Scribe::start(scope, shared);
        #[cfg(feature = "gpu")]
        if !gpus.is_empty() {
            return Worker::new(shared, scribe, gpus, name, on).run();
        }
        Worker::new(shared, scribe, cpus, name, on).run();
    });
}

struct Worker<'a, O: Ops> {
    shared: &'a Shared,
    scribe: Scribe,
    /// The device with the weights of every model, in their order.
    ops: Vec<O>,
    /// The device's name in files.
    name: String,
    /// The device's name for people.
    on: String,
    active: Vec<Active<O>>,
    /// The newest tile; it lands once the next turn has begun, or when there is none.
    flight: Option<Flight>,
}

/// The levels that have settled with the newest step, the coarsest first, but for those that were announced before.
fn settled(job: &Job, sampling: &SamplerState) -> Vec<usize> {
    let (schedule, known) = (&job.plan.schedule, job.settled());
    // Levels that had settled where sampling begins are announced with its first step.
    let is_first = sampling.step <= job.plan.first_step + 1;
    let news = if is_first { 0 } else { sampling.step }..=sampling.step;
    let levels = (0..sampling.z.len()).rev();
    levels
        .filter(|&level| news.contains(&schedule.settled(level)))
        .filter(|&level| known.is_none_or(|known| level < known))
        .collect()
}

impl<'a, O: Ops> Worker<'a, O> {
    fn new(shared: &'a Shared, scribe: Scribe, ops: Vec<O>, name: String, on: String) -> Self {
        Self { shared, scribe, ops, name, on, active: Vec::new(), flight: None }
    }

    fn run(mut self) {
        if let Err(error) = self.measure() {
            self.shared.device_failed(&error);
        }
        while let Some(fresh) = self.shared.next(&self.held()) {
            for job in fresh {
                self.begin(job);
            }
            if let Some(turn) = self.turn() {
                self.take_turn(turn);
            }
            if self.active.is_empty() {
                self.land();
            }
        }
        self.land();
        for active in self.active.drain(..) {
            tracing::info!("job {} stays at its last event", active.job.id);
        }
    }

    /// The device's speed, by one evaluation of the network at the smallest size.
    fn measure(&mut self) -> Result<()> {
        let (arch, ops) = (&self.shared.models.first().arch, &mut self.ops[0]);
        let side = arch.coarsest_factor();
        let z: Vec<Latent> = plan::latent_shapes(arch, side, side)
            .into_iter()
            .map(|shape| Latent { shape, data: vec![0.5; shape.len()] })
            .collect();
        // The first one packs weights and compiles shaders.
        let noisy = [NoisyLatents { z: &z, sigma: 1.0 }];
        precond::denoise(ops, arch, &noisy)?;
        let began = Instant::now();
        precond::denoise(ops, arch, &noisy)?;
        self.shared.speed.add(cost::unet_cost(arch, &MEMORY, side, side)?.flops, began.elapsed());
        Ok(())
    }

    fn held(&self) -> Vec<Arc<Job>> {
        self.active.iter().map(|active| active.job.clone()).collect()
    }

    /// Takes a job on, where it stands.
    fn begin(&mut self, job: Arc<Job>) {
        match self.open(&job) {
            Ok((canvas, sampling)) => {
                let served = self.active.iter().map(|active| active.served).min().unwrap_or(0);
                let canvas = Arc::new(Mutex::new(canvas));
                let work = sampling.map_or(Work::Encode, Work::Denoise);
                let sent = job.tiles_done();
                let spec = &job.plan.spec;
                let span = tracing::info_span!(
                    "job",
                    id = %job.id,
                    width = spec.width,
                    height = spec.height,
                    device = %self.on
                );
                self.active.push(Active { job, span, canvas, work, sent, served });
            }
            Err(error) => self.scribe.send(Deed { job, work: Written::Fail(error) }),
        }
    }

    /// The job's files, and where its sampling stands; it has not begun where a picture is to be encoded.
    fn open(&mut self, job: &Job) -> Result<(Canvas, Option<SamplerState>)> {
        let mut canvas = job.directory.open_arena(&job.layout, &self.shared.lock)?;
        let plan = &job.plan;
        let sampling = match job.checkpoint() {
            Some(saved) => Some(canvas.load(plan, saved)?),
            None if job.order.source_sha256.is_some() => None,
            None => Some(denoise::begin(plan)),
        };
        job.announce(vec![Event::Started { device: self.on.clone() }])?;
        Ok((canvas, sampling))
    }

    /// The active job whose turn it is.
    fn turn(&self) -> Option<usize> {
        (0..self.active.len()).min_by_key(|&i| self.active[i].served)
    }

    fn take_turn(&mut self, turn: usize) {
        let mut first = self.active.swap_remove(turn);
        let mut company = self.company(&first);
        let began = Instant::now();
        let together = !company.is_empty()
            && self
                .together(&mut first, &mut company)
                .inspect_err(|error| tracing::debug!("a batched step failed: {}", error.report()))
                .is_ok();
        if together {
            let flops = first.job.quote.step_flops;
            company.push(first);
            let jobs = company.len() as u64;
            self.shared.steps.add(jobs);
            self.shared.speed.add(flops * jobs, began.elapsed());
            for active in company {
                self.settle(active, |worker, active| worker.stepped(active));
            }
            return;
        }
        // One that can't take its step must not stop the others: each tries alone, and the error is its own.
        self.active.append(&mut company);
        self.settle(first, |worker, active| {
            let flops = worker.unit(active)?;
            worker.shared.speed.add(flops, began.elapsed());
            Ok(flops)
        });
    }

    /// Takes from the active jobs those that can take their next step together with `first`'s: denoising, at the same
    /// latents' shapes, by the same model and method. None where the device has enough to do with one.
    fn company(&mut self, first: &Active<O>) -> Vec<Active<O>> {
        let plan = &first.job.plan;
        let room = TOGETHER_FLOPS / first.job.quote.step_flops.max(1);
        let fits = |active: &mut Active<O>| {
            let other = &active.job.plan;
            active.next_step().is_some()
                && Arc::ptr_eq(&active.job.model, &first.job.model)
                && (&other.latents, other.spec.sampler) == (&plan.latents, plan.spec.sampler)
                && in_time(&active.job).is_ok()
        };
        if first.next_step().is_none() || room < 2 {
            return Vec::new();
        }
        self.active.sort_by_key(|active| active.served);
        let fitting = self.active.extract_if(.., fits);
        fitting.take(room as usize - 1).collect()
    }

    /// The next step of `first` and of its `company`, by the same runs of the network.
    fn together(&mut self, first: &mut Active<O>, company: &mut [Active<O>]) -> Result<()> {
        self.land();
        let model = first.job.model.clone();
        let ops = &mut self.ops[self.shared.models.place(&model)];
        in_time(&first.job)?;
        let _spans: Vec<_> = (std::iter::once(&*first).chain(&*company))
            .filter_map(|active| {
                let step = active.next_step()?;
                Some(tracing::info_span!(parent: &active.span, "step", step))
            })
            .collect();
        let mut members: Vec<_> = (std::iter::once(first).chain(company))
            .filter_map(|Active { job, work, .. }| match work {
                Work::Denoise(sampling) => Some((&job.plan, sampling)),
                Work::Encode | Work::Decode(_) => None,
            })
            .collect();
        // A job that is cancelled meanwhile ends after this step; the others' step must not.
        let cancel = Cancel::default();
        let steps = || denoise::step_together(ops, &model.arch, &mut members, &cancel);
        catch_unwind(AssertUnwindSafe(steps)).unwrap_or_else(|_| Err(panicked()))
    }

    /// Does `unit` for a job, and what follows from how it went.
    fn settle(
        &mut self,
        mut active: Active<O>,
        unit: impl FnOnce(&mut Self, &mut Active<O>) -> Result<u64>,
    ) {
        let job = active.job.clone();
        let _span = active.span.clone().entered();
        // A defect ends the job that met it, not the server.
        let done = catch_unwind(AssertUnwindSafe(|| unit(self, &mut active)));
        match done.unwrap_or_else(|_| Err(panicked())) {
            Ok(flops) => {
                active.served += flops;
                match active.sent.iter().all(|&sent| sent) {
                    true => {
                        self.land();
                        let last = self.finished(&job);
                        self.scribe.send(Deed { job, work: Written::End(last) });
                    }
                    false => self.active.push(active),
                }
            }
            Err(error) => self.scribe.send(Deed { job, work: Written::Fail(error) }),
        }
    }

    /// One step or one tile: the operations it took.
    fn unit(&mut self, active: &mut Active<O>) -> Result<u64> {
        in_time(&active.job)?;
        if !matches!(active.work, Work::Decode(_)) {
            self.land();
        }
        let more = active.next_step().is_some();
        let Active { job, canvas, work, sent, .. } = active;
        let (model, plan) = (&job.model, &job.plan);
        let (arch, ops) = (&model.arch, &mut self.ops[self.shared.models.place(model)]);
        match work {
            Work::Encode => {
                let _span = tracing::info_span!("encode").entered();
                let picture = upload::read(&job.directory.source())?;
                *work = Work::Denoise(denoise::begin_from(ops, model, plan, picture)?);
                Ok(job.quote.encode_flops)
            }
            Work::Denoise(sampling) if more => {
                let _span = tracing::info_span!("step", step = sampling.step + 1).entered();
                denoise::step(ops, arch, plan, sampling, &job.cancel)?;
                self.shared.steps.add(1);
                self.stepped(active)
            }
            Work::Denoise(sampling) => {
                let _span = tracing::info_span!("global_stage").entered();
                let latents = denoise::denormalise(model, sampling.z.clone());
                let decoder = TileDecoder::new(ops, arch, &latents)?;
                let levels = settled(job, sampling);
                if !levels.is_empty() {
                    let picture = Some(decoder.preview(ops)?);
                    let work = Written::Settled(Settled { levels, picture });
                    self.scribe.send(Deed { job: job.clone(), work });
                }
                *work = Work::Decode(decoder);
                Ok(job.quote.global_flops)
            }
            Work::Decode(decoder) => {
                // None is left when only the last record was lost.
                let Some(index) = job.next_tile(sent) else { return Ok(0) };
                let tile = &plan.tiling.tiles[index];
                let (column, row) = (tile.column, tile.row);
                let _span = tracing::info_span!("tile", column, row).entered();
                let pixels = decoder.begin(ops, arch, tile)?;
                sent[index] = true;
                let (job, canvas) = (job.clone(), canvas.clone());
                let (flops, is_here) = (job.quote.tile_flops, pixels.is_ready());
                self.land();
                self.flight = Some(Flight { job, canvas, index, pixels });
                if is_here {
                    self.land();
                }
                Ok(flops)
            }
        }
    }

    /// Hands the tile that is on its way to the scribe, once its pixels are there.
    fn land(&mut self) {
        let Some(Flight { job, canvas, index, pixels }) = self.flight.take() else { return };
        let (rect, bits) = (job.plan.tiling.tiles[index].rect, job.plan.spec.bits);
        let samples = pixels.wait().and_then(|values| tiles::samples(rect, &values, bits));
        let work = samples
            .map_or_else(Written::Fail, |samples| Written::Tile(Tile { canvas, index, samples }));
        self.scribe.send(Deed { job, work });
    }

    /// What follows a denoising step: previews of levels that have settled, and the news. The operations of the step.
    fn stepped(&mut self, active: &mut Active<O>) -> Result<u64> {
        let Active { job, canvas, work: Work::Denoise(sampling), .. } = active else {
            return Err(Error::internal("a decoding job took a denoising step"));
        };
        let last = sampling.step == job.plan.schedule.steps();
        // The levels that settle with the last step are announced with the global stage, which gives their preview.
        let levels = if last { Vec::new() } else { settled(job, sampling) };
        let picture = match levels.last() {
            Some(&finest) if job.previews_wanted() => {
                let (model, z) = (&job.model, sampling.z.clone());
                let ops = &mut self.ops[self.shared.models.place(model)];
                Some(tiles::preview(ops, &model.arch, &denoise::denormalise(model, z), finest)?)
            }
            _ => None,
        };
        let settled = Settled { levels, picture };
        let needed = last || !settled.levels.is_empty();
        let (job, canvas) = (job.clone(), canvas.clone());
        let flops = job.quote.step_flops;
        let deed = || {
            let work = Written::Step { canvas, sampling: sampling.clone(), settled };
            Deed { job, work }
        };
        self.scribe.send_if(needed, deed);
        Ok(flops)
    }

    fn finished(&self, job: &Job) -> Event {
        let source = job.order.source_sha256.as_deref();
        let metadata = provenance::generated(&job.model, &self.name, &job.plan.spec, source);
        let receipt = serde_json::Value::Object(metadata.receipt).to_string();
        Event::Finished { receipt, description: metadata.description }
    }
}
