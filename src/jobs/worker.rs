//! The engine's thread: takes jobs from the queue and works on a few of them in turns, a step or a tile at a time.
//!
//! The turn goes to the job that has had least of the device so far, counted in floating-point operations, so that jobs
//! share it evenly whatever their sizes; one that comes later starts where the least served one stands. Every unit is
//! durable before it is announced, and before the next one begins.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Instant, SystemTime},
};

use crate::{
    engine::{
        self, denoise,
        device::Device,
        plan, receipt,
        tiles::{self, TileDecoder},
    },
    error::{Error, Kind, Result},
    exec::trace,
    image_out::{self, Bits, Metadata, RawPixels},
    jobs::{
        Shared,
        files::Canvas,
        job::Job,
        record::{Event, to_ms},
    },
    model::sampler::{Latent, Sampling},
    ops::Ops,
};

/// A job that is being worked on.
struct Active<O: Ops> {
    job: Arc<Job>,
    canvas: Canvas,
    work: Work<O>,
    /// Operations that the device has spent on it, from where it started.
    served: u64,
}

enum Work<O: Ops> {
    Denoise(Sampling),
    Decode(TileDecoder<O>),
}

/// Works until the queue is closed.
pub(super) fn run(shared: &Shared, device: Device) {
    let name = device.name();
    match device {
        Device::Cpu(mut ops) => Worker { shared, ops: &mut ops, name, active: Vec::new() }.run(),
        Device::Gpu(mut ops) => {
            Worker { shared, ops: ops.as_mut(), name, active: Vec::new() }.run();
        }
    }
}

struct Worker<'a, O: Ops> {
    shared: &'a Shared,
    ops: &'a mut O,
    name: String,
    active: Vec<Active<O>>,
}

impl<O: Ops> Worker<'_, O> {
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
        }
        for active in self.active.drain(..) {
            tracing::info!("job {} stays at its last event", active.job.id);
        }
    }

    /// The device's speed, by one evaluation of the network at the smallest size.
    fn measure(&mut self) -> Result<()> {
        let arch = &self.shared.model.arch;
        let side = arch.coarsest_factor();
        let z: Vec<Latent> = plan::latent_shapes(arch, side, side)
            .into_iter()
            .map(|shape| Latent { shape, data: vec![0.5; shape.len()] })
            .collect();
        // The first one packs weights and compiles shaders.
        crate::model::precond::denoise(self.ops, arch, &z, 1.0)?;
        let began = Instant::now();
        crate::model::precond::denoise(self.ops, arch, &z, 1.0)?;
        self.shared.speed.add(trace::unet_cost(arch, side, side)?.flops, began.elapsed());
        Ok(())
    }

    fn held(&self) -> Vec<Arc<Job>> {
        self.active.iter().map(|active| active.job.clone()).collect()
    }

    /// Takes a job on, where it stands.
    fn begin(&mut self, job: Arc<Job>) {
        let opened = self.open(&job);
        match opened {
            Ok((canvas, work)) => {
                let served = self.active.iter().map(|active| active.served).min().unwrap_or(0);
                self.active.push(Active { job, canvas, work, served });
            }
            Err(error) => self.fail(&job, &error),
        }
    }

    fn open(&mut self, job: &Job) -> Result<(Canvas, Work<O>)> {
        let canvas = job.directory.open_arena(&job.layout, &self.shared.lock)?;
        let plan = &job.plan;
        let sampling = match job.checkpoint() {
            Some((step, crc32c)) => canvas.load(plan, step, crc32c)?,
            None => Sampling::start(&plan.schedule, &plan.latents, plan.spec.seed),
        };
        job.announce(vec![Event::Started { device: self.name.clone() }])?;
        Ok((canvas, Work::Denoise(sampling)))
    }

    /// The active job whose turn it is.
    fn turn(&self) -> Option<usize> {
        (0..self.active.len()).min_by_key(|&i| self.active[i].served)
    }

    fn take_turn(&mut self, turn: usize) {
        let mut active = self.active.swap_remove(turn);
        let began = Instant::now();
        let job = active.job.clone();
        let _span = tracing::debug_span!("unit", job = %job.id).entered();
        // A defect ends the job that met it, not the server.
        let done = catch_unwind(AssertUnwindSafe(|| self.unit(&mut active)));
        match done.unwrap_or_else(|_| Err(Error::new(Kind::Internal, "the engine panicked"))) {
            Ok(flops) => {
                active.served += flops;
                self.shared.speed.add(flops, began.elapsed());
                match job.snapshot().phase.is_last() {
                    true => self.release(&job),
                    false => self.active.push(active),
                }
            }
            Err(error) => self.fail(&job, &error),
        }
    }

    /// One step or one tile: the operations it took.
    fn unit(&mut self, active: &mut Active<O>) -> Result<u64> {
        let Active { job, canvas, work, .. } = active;
        let (arch, plan) = (&self.shared.model.arch, &job.plan);
        job.cancel.check()?;
        if job.order.deadline_ms.is_some_and(|deadline| to_ms(SystemTime::now()) >= deadline) {
            return Err(Error::new(Kind::Expired, "the job's deadline has passed"));
        }
        match work {
            Work::Denoise(sampling) if sampling.step < plan.schedule.steps() => {
                let events = denoise::step(self.ops, arch, plan, sampling, &job.cancel)?;
                let crc32c = canvas.save(sampling)?;
                let mut records = Vec::new();
                for event in events {
                    match event {
                        engine::Event::Step { step, of, sigma } => {
                            records.push(Event::Step { step, of, sigma, crc32c });
                        }
                        engine::Event::Settled { level, rows, columns, .. } => {
                            self.preview(job, &sampling.z, level)?;
                            records.push(Event::Settled { level, rows, columns });
                        }
                        _ => {}
                    }
                }
                job.announce(records)?;
                Ok(job.quote.step_flops)
            }
            Work::Denoise(sampling) => {
                let latents = denoise::denormalise(&self.shared.model, sampling.z.clone());
                *work = Work::Decode(TileDecoder::new(self.ops, arch, &latents)?);
                Ok(job.quote.global_flops)
            }
            Work::Decode(decoder) => {
                // None is left when the last record was lost with the power.
                let Some(index) = job.next_tile() else {
                    return job.announce(vec![self.finished(job)]).map(|()| 0);
                };
                let tile = &plan.tiling.tiles[index];
                let values = decoder.decode(self.ops, arch, tile)?;
                let samples = tiles::samples(tile.rect, &values, plan.spec.bits)?;
                let crc32c = canvas.put(tile.rect, &samples)?;
                let mut records = vec![Event::Tile { index, crc32c }];
                if job.snapshot().tiles_done + 1 == plan.tiling.tiles.len() {
                    records.push(self.finished(job));
                }
                job.announce(records)?;
                Ok(job.quote.tile_flops)
            }
        }
    }

    fn finished(&self, job: &Job) -> Event {
        let metadata = receipt::generated(&self.shared.model, &self.name, &job.plan.spec);
        let receipt = serde_json::Value::Object(metadata.receipt).to_string();
        Event::Finished { receipt, description: metadata.description }
    }

    /// Writes the picture of the levels from `level` on.
    fn preview(&mut self, job: &Job, z: &[Latent], level: usize) -> Result<()> {
        let model = &self.shared.model;
        let latents = denoise::denormalise(model, z.to_vec());
        let settled = latents.len() - level;
        let (rect, samples) = tiles::preview(self.ops, &model.arch, &latents, settled)?;
        let (width, height) = (rect.width as u32, rect.height as u32);
        let source = RawPixels::new(&samples, width, height, Bits::Eight)?;
        let description = format!("{}, levels from {level} on", model.arch.name);
        let metadata = Metadata { description, created: None, receipt: serde_json::Map::new() };
        image_out::write_png(&job.directory.preview(level), &source, &metadata)
    }

    /// Ends the job by an error.
    fn fail(&self, job: &Job, error: &Error) {
        let last = match error.kind() {
            Kind::Cancelled => Event::Cancelled,
            kind => {
                tracing::error!("job {}: {error}", job.id);
                if kind == Kind::Device {
                    self.shared.device_failed(error);
                }
                Event::Failed { kind, message: error.to_string() }
            }
        };
        if let Err(error) = job.announce(vec![last]) {
            tracing::error!("job {}: {error}", job.id);
            job.abandon(&error);
        }
        self.release(job);
    }

    fn release(&self, job: &Job) {
        if let Err(error) = job.released() {
            tracing::error!("job {}: {error}", job.id);
        }
    }
}
