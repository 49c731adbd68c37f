//! Jobs: queue, admission, engine threads, recovery after a crash.
//!
//! Guarantees: an event is published only after it is durable, and a call returns only after its effect is: a job that was
//! created exists after a crash, one that was cancelled stays so, one that was deleted does not come back. A queued job
//! survives a restart, resumes at its last step or tile, and ends with the same bytes as an uninterrupted run. A watcher that
//! reconnects with its last sequence number misses no event. The last event is final. (`simulation` checks this for
//! crashes at any operation of the disk.)
//!
//! # Scheduling
//!
//! Each device time-slices a few jobs (see `worker`). `admission` decides which ones, with a bound of the time that a job
//! waits. The quoted memory of all running jobs stays within the budget. One thread ends jobs whose deadline has passed and
//! queues paused jobs again.

mod admission;
mod committer;
mod estimates;
pub mod files;
mod job;
mod models;
mod observe;
mod prune;
mod quote;
pub mod record;
mod recovery;
mod shared;
#[cfg(test)]
mod simulation;
mod state;
mod timings;
mod upload;
mod worker;

use std::{
    ops::Bound,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

pub use estimates::Estimate;
pub use files::DISK;
pub use job::Job;
pub use models::{Models, is_model_name};
pub use observe::{Ended, EndedLabels, PrunedCount, PrunedLabels};
pub use prune::{Kept, PruneReason, Pruned, Retention, prune};
pub use quote::{Quote, StepCounts};
pub use recovery::{DamagedJob, recover};
pub use state::{Pause, Phase, Snapshot};
pub use timings::{Timings, seconds};
pub use upload::{MAX_UPLOAD, Receiving, Upload};

use crate::{
    engine::{
        device::{Choice, Device, Precision},
        plan::{Plan, Rect, Spec},
    },
    error::{Error, Expected, Resource, Result},
    image_out::{self, Bits, Format, Metadata, PixelSource},
    model::{arch::Arch, checkpoint::Checkpoint},
    store::{self, DirectoryLock},
};
use files::{JobDirectory, Layout};
use record::{Event, JobRequest, Record, StoredSpec, to_ms};
use shared::Shared;

/// Most characters of a `request_id`.
pub const MAX_REQUEST_ID: usize = 128;

/// Suggested delay before a client calls a full or stopping server again.
pub const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The error of calls to a server that is shutting down.
pub fn shutting_down() -> Error {
    Error::unavailable("the server", "it is shutting down").with_retry_after(RETRY_AFTER)
}

/// Directory, devices and limits of the jobs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directory of the jobs; one process at a time may use it.
    pub directory: PathBuf,
    /// Devices; each has its own engine thread. All take jobs from one queue.
    pub devices: Vec<Choice>,
    /// For tests: a device that fails.
    #[doc(hidden)]
    pub fault: Option<DeviceFault>,
    /// Number format of multiplications.
    pub precision: Precision,
    /// Directory of compiled and measured GPU kernels.
    pub gpu_cache: Option<PathBuf>,
    /// Memory budget of a device: upper bound of the quoted bytes of its running jobs.
    pub memory: u64,
    /// Most queued jobs.
    pub queue: usize,
    /// Slots of a device: jobs that it time-slices.
    pub active: usize,
    /// Ended jobs that are kept; the others are deleted.
    pub retention: Retention,
}

/// For tests: the device that stops to respond, and the number of units of work that it computes before.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct DeviceFault {
    /// Its index in [`Settings::devices`].
    pub device: usize,
    /// Units of work, those of measurements not counted.
    pub after: u64,
}

/// Order of a list of jobs, by the time of their creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// From the first to the last.
    OldestFirst,
    /// From the last to the first.
    NewestFirst,
}

/// A request for a job.
#[derive(Clone, Debug)]
pub struct Request {
    /// One of the server's models.
    pub model: Arc<Checkpoint>,
    /// The spec.
    pub spec: Spec,
    /// Identifier chosen by the client, which makes the request idempotent; empty: none.
    pub request_id: String,
    /// Time by which the job must have ended.
    pub deadline: Option<SystemTime>,
    /// Rectangle whose tiles are decoded first.
    pub viewport: Option<Rect>,
    /// Name of the client; empty if the server has no tokens.
    pub owner: String,
    /// Source picture of an edit; the spec then has a strength and the picture's size.
    pub source: Option<Upload>,
}

impl Request {
    /// Validates the request and plans it. Capacity is not checked.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`](crate::error::Kind) naming field, value and limit.
    pub fn plan(&self) -> Result<Plan> {
        if self.spec.strength.is_some() != self.source.is_some() {
            let value = if self.source.is_some() { "absent" } else { "given" };
            let expected = "a value if and only if a picture is edited";
            return Err(Error::invalid("strength", value, expected));
        }
        let length = self.request_id.chars().count();
        if length > MAX_REQUEST_ID {
            return Err(Error::invalid(
                "request_id",
                format!("{length} characters long"),
                Expected::at_most(format!("{MAX_REQUEST_ID} characters")),
            ));
        }
        let plan = plan(self.spec.clone(), &self.model.arch)?;
        if let Some(rect) = self.viewport {
            plan.check_rect("viewport", rect)?;
        }
        Ok(plan)
    }
}

/// The plan of `spec`. The simulation has few specs and makes millions of jobs, so it keeps plans.
fn plan(spec: Spec, arch: &Arch) -> Result<Plan> {
    #[cfg(test)]
    if let Some(plan) = simulation::kept_plan(&spec) {
        return Ok(plan);
    }
    Plan::new(spec, arch)
}

/// The jobs of a server. Clones share them.
#[derive(Clone, Debug)]
pub struct Jobs {
    shared: Arc<Shared>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Jobs {
    /// Locks the directory, reads its jobs, opens the devices and resumes unfinished jobs.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`](crate::error::Kind) if another process has locked the directory or a setting is out of range;
    /// [`Kind::Io`](crate::error::Kind) if it can't be read; [`Kind::Device`](crate::error::Kind) if a device can't be opened.
    pub fn open(settings: Settings, models: Models) -> Result<Self> {
        for (field, value) in [("queue", settings.queue), ("active", settings.active)] {
            if value == 0 {
                return Err(Error::invalid(field, value, "at least 1"));
            }
        }
        let disk = Arc::new(DirectoryLock::acquire(&settings.directory)?);
        let devices = settings.devices.iter();
        let devices: Vec<_> = devices
            .map(|&choice| open_for_all(choice, &settings, &models))
            .collect::<Result<_>>()?;
        let shared = Shared::open(settings, models, disk)?;
        let threads = devices.into_iter().enumerate().map(|(i, device)| {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name(format!("engine-{i}"))
                .spawn(move || worker::run(&shared, i, device))
                .map_err(|e| Error::io("start", "an engine thread", e))
        });
        let mut threads: Vec<_> = threads.collect::<Result<_>>()?;
        let caretaker = shared.clone();
        let spawned = std::thread::Builder::new()
            .name("deadlines".to_owned())
            .spawn(move || caretaker.look_after_all());
        threads.push(spawned.map_err(|e| Error::io("start", "the thread of deadlines", e))?);
        if !shared.settings.retention.keeps_all() {
            let pruner = shared.clone();
            let spawned = std::thread::Builder::new()
                .name("prune".to_owned())
                .spawn(move || pruner.prune_all());
            threads.push(spawned.map_err(|e| Error::io("start", "the thread of removals", e))?);
        }
        Ok(Self { shared, threads: Arc::new(Mutex::new(threads)) })
    }

    /// The models of the server.
    pub fn models(&self) -> &Models {
        &self.shared.models
    }

    /// Plans and quotes `spec` for `model`, with the numbers that admission uses.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`](crate::error::Kind) if the spec is invalid.
    pub fn quote(&self, spec: &Spec, model: &Checkpoint) -> Result<(Plan, Quote)> {
        let plan = plan(spec.clone(), &model.arch)?;
        let quote = self.quote_plan(&plan);
        Ok((plan, quote))
    }

    fn quote_plan(&self, plan: &Plan) -> Quote {
        quote::quote(plan, self.shared.speed.time(plan.flops))
    }

    /// Creates a job; it is durable when this returns.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`](crate::error::Kind) if the request is invalid; [`Kind::Exhausted`](crate::error::Kind) if the job
    /// exceeds the memory budget, or the queue or the disk is full; [`Kind::Unavailable`](crate::error::Kind) while the server is
    /// shutting down; [`Kind::Io`](crate::error::Kind).
    pub fn create(&self, request: Request) -> Result<Arc<Job>> {
        let plan = request.plan()?;
        let quote = self.quote_plan(&plan);
        let Request { model, spec, request_id, deadline, viewport, owner, source } = request;
        let memory = self.shared.settings.memory;
        if quote.memory_bytes > memory {
            // No later attempt can succeed: the budget is that of an idle device.
            return Err(Error::exhausted("memory_bytes", quote.memory_bytes, memory));
        }
        let disk = store::capacity(&self.shared.settings.directory);
        let arena = Layout::new(&plan).bytes();
        if let Some(disk) = disk.filter(|&disk| arena > disk) {
            // Nor if the disk were empty. Downloads may never be asked for.
            return Err(Error::exhausted(DISK, arena, disk));
        }
        let job_request = JobRequest {
            spec: StoredSpec::from(&spec),
            model_sha256: model.sha256.clone(),
            request_id,
            deadline_ms: deadline.map(to_ms),
            owner,
            source_sha256: source.as_ref().map(|source| source.sha256().to_owned()),
            attribution: source
                .as_ref()
                .map(|source| source.attribution().clone())
                .unwrap_or_default(),
            notices: source.as_ref().map(|source| source.notices(spec.bits)).unwrap_or_default(),
            viewport: viewport.map(|r| [r.x, r.y, r.width, r.height]),
        };
        let id = uuid::Uuid::now_v7().simple().to_string();
        if let Some(known) = self.reserve(&job_request, &id)? {
            return Ok(known);
        }
        let made = self.make(&id, model, job_request.clone(), plan, quote, source);
        let mut table = self.shared.table();
        table.reserved -= 1;
        match made {
            Ok(job) => {
                if let Some(deadline) = job.request.deadline_ms {
                    table.deadlines.insert((deadline, id.clone()));
                }
                table.jobs.insert(id, job.clone());
                table.waiting.push(job.clone(), job.size());
                // Its files take space.
                table.prune_due = true;
                drop(table);
                self.shared.changed.notify_all();
                Ok(job)
            }
            Err(error) => {
                table.requests.remove(&job_request.key());
                Err(error)
            }
        }
    }

    /// Reserves a queue entry for the job `id`, or returns the job that an earlier request with the same `request_id` created.
    fn reserve(&self, job_request: &JobRequest, id: &str) -> Result<Option<Arc<Job>>> {
        let mut table = self.shared.table();
        if table.closed {
            return Err(shutting_down());
        }
        let request_id = &job_request.request_id;
        let key = job_request.key();
        if let Some(known) = table.requests.get(&key).filter(|_| !request_id.is_empty()) {
            return match table.jobs.get(known) {
                Some(job) if job.request.is_same_request(job_request) => Ok(Some(job.clone())),
                Some(_) => Err(Error::invalid(
                    "request_id",
                    format!("{request_id:?}"),
                    "an id that no different request has used",
                )),
                None => Err(Error::unavailable(
                    format!("request_id {request_id:?}"),
                    "another call is creating its job",
                )
                .with_retry_after(RETRY_AFTER)),
            };
        }
        let (waiting, queue) = (table.waiting.len() + table.reserved, self.shared.settings.queue);
        if waiting >= queue {
            let error = Error::exhausted("queued_jobs", waiting as u64 + 1, queue as u64);
            return Err(error.with_retry_after(RETRY_AFTER));
        }
        if !request_id.is_empty() {
            table.requests.insert(key, id.to_owned());
        }
        table.reserved += 1;
        Ok(None)
    }

    fn make(
        &self,
        id: &str,
        model: Arc<Checkpoint>,
        job_request: JobRequest,
        plan: Plan,
        quote: Quote,
        source: Option<Upload>,
    ) -> Result<Arc<Job>> {
        let disk = self.shared.disk.clone();
        let directory = JobDirectory::new(disk, &self.shared.settings.directory, id);
        let compute_us = quote.compute_time.as_micros() as u64;
        let latent_values = files::latent_values(&plan) as u64;
        let first =
            Record::now(Event::Queued { request: job_request.clone(), compute_us, latent_values });
        let layout = Layout::new(&plan);
        let job =
            Job::new(id, model, job_request, plan, quote, directory.clone(), vec![first.clone()]);
        job.belongs_to(&self.shared);
        let mut failed = self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner);
        // Before another attempt can succeed, and have a repeated request make a second job.
        while let Some(earlier) = failed.last() {
            earlier.undo_create().map_err(|error| files::stored(error, layout.bytes()))?;
            failed.pop();
        }
        drop(failed);
        if let Err(error) = directory.create(&first, &layout, source.as_ref().map(Upload::path)) {
            if directory.undo_create().is_err() {
                let failed = self.shared.failed.lock();
                failed.unwrap_or_else(PoisonError::into_inner).push(directory);
            }
            return Err(error);
        }
        observe::log(&job, &first.event);
        Ok(Arc::new(job))
    }

    /// Starts an upload.
    ///
    /// # Errors
    /// [`Kind::Io`](crate::error::Kind).
    pub fn receive(&self) -> Result<Receiving> {
        Receiving::create(&self.shared.settings.directory)
    }

    /// The job `id`.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::error::Kind).
    pub fn get(&self, id: &str) -> Result<Arc<Job>> {
        let job = self.shared.table().jobs.get(id).cloned();
        job.ok_or_else(|| Error::not_found(Resource::Job, id))
    }

    /// At most `most` jobs of one client or of all, those that follow the job with the id `after` in `order`; empty: from
    /// the first.
    pub fn list(
        &self,
        owner: Option<&str>,
        order: Order,
        after: &str,
        most: usize,
    ) -> Vec<Arc<Job>> {
        let table = self.shared.table();
        let unbounded = Bound::Unbounded;
        let begin = if after.is_empty() { unbounded } else { Bound::Excluded(after) };
        let asked = |job: &&Arc<Job>| owner.is_none_or(|owner| job.request.owner == owner);
        match order {
            Order::OldestFirst => {
                let jobs = table.jobs.range::<str, _>((begin, unbounded)).map(|(_, job)| job);
                jobs.filter(asked).take(most).cloned().collect()
            }
            Order::NewestFirst => {
                let jobs = table.jobs.range::<str, _>((unbounded, begin)).map(|(_, job)| job);
                jobs.rev().filter(asked).take(most).cloned().collect()
            }
        }
    }

    /// Directories of jobs that could not be read at the start; they are left as they are.
    pub fn damaged(&self) -> &[DamagedJob] {
        &self.shared.damaged
    }

    /// Number of queued jobs, of one client or of all.
    pub fn waiting(&self, owner: Option<&str>) -> usize {
        let table = self.shared.table();
        let asked = |job: &&Arc<Job>| owner.is_none_or(|owner| job.request.owner == owner);
        table.waiting.iter().filter(asked).count()
    }

    /// Number of jobs in each phase.
    pub fn phases(&self) -> Vec<(Phase, usize)> {
        let jobs: Vec<_> = self.shared.table().jobs.values().cloned().collect();
        let mut count: Vec<_> = Phase::ALL.iter().map(|&phase| (phase, 0)).collect();
        for job in jobs {
            let now = job.snapshot().phase;
            count.iter_mut().filter(|(phase, _)| *phase == now).for_each(|(_, n)| *n += 1);
        }
        count
    }

    /// Measured speed of the devices in FLOPs per second.
    pub fn flops_per_second(&self) -> f64 {
        self.shared.speed.mean()
    }

    /// Denoising steps since the start.
    pub fn steps(&self) -> &StepCounts {
        &self.shared.steps
    }

    /// Histograms of durations since the start.
    pub fn timings(&self) -> &Timings {
        &self.shared.timings
    }

    /// Cancels the job durably; a device stops working on it within one step or tile. An ended job is returned unchanged.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::error::Kind); [`Kind::Exhausted`](crate::error::Kind) if the disk is full;
    /// [`Kind::Io`](crate::error::Kind). The job is unchanged then.
    pub fn cancel(&self, id: &str) -> Result<Arc<Job>> {
        let job = self.get(id)?;
        self.shared.end(&job, Event::Cancelled)?;
        match job.is_deleted() {
            true => Err(Error::not_found(Resource::Job, id)),
            false => Ok(job),
        }
    }

    /// Cancels the job if necessary and deletes it with its files; a crash does not bring it back. Its `request_id` may then
    /// be used for another job.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::error::Kind); [`Kind::Io`](crate::error::Kind): the call can be repeated.
    pub fn delete(&self, id: &str) -> Result<()> {
        self.shared.delete(id)
    }

    /// Path of the finished picture as a file of `format`; the file is written at the first call.
    ///
    /// # Errors
    /// [`Kind::NotReady`](crate::error::Kind) if it is not finished; [`Kind::Exhausted`](crate::error::Kind) if the disk is
    /// full; [`Kind::Damaged`](crate::error::Kind) for a damaged tile (see [`Job::read_tile`]); [`Kind::Io`](crate::error::Kind).
    pub fn picture(&self, job: &Job, format: Format) -> Result<PathBuf> {
        job.need_finished()?;
        let path = job.picture_file(format.name());
        if !path.exists() {
            let (description, receipt) = job.receipt().unwrap_or_default();
            let receipt = serde_json::from_str(&receipt).unwrap_or_default();
            let metadata = Metadata { description, created: None, receipt };
            let checked = Mutex::new(vec![false; job.plan.tiling.tiles.len()]);
            let needed = job.quote.disk_bytes - job.layout.bytes();
            image_out::write(&path, &Pixels { job, checked }, &metadata)
                .map_err(|error| files::stored(error, needed))?;
            job.has_grown();
        }
        Ok(path)
    }

    /// Number of devices that respond.
    pub fn devices(&self) -> usize {
        match self.is_healthy() {
            true => self.shared.devices.load(Ordering::Relaxed),
            false => 0,
        }
    }

    /// True if a device responds.
    pub fn is_healthy(&self) -> bool {
        self.shared.healthy.load(Ordering::Relaxed)
    }

    /// Stops: no new jobs are created, and running ones stop after their last durable step or tile and resume at the next start.
    /// Returns when the devices are idle.
    pub fn close(&self) {
        self.shared.table().closed = true;
        self.shared.changed.notify_all();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("an engine's thread panicked");
            }
        }
    }
}

/// Pixel source of a finished job. Each tile is compared to its checksum once.
struct Pixels<'a> {
    job: &'a Job,
    /// True for each tile that is intact.
    checked: Mutex<Vec<bool>>,
}

impl PixelSource for Pixels<'_> {
    fn width(&self) -> u32 {
        self.job.plan.spec.width as u32
    }

    fn height(&self) -> u32 {
        self.job.plan.spec.height as u32
    }

    fn bits(&self) -> Bits {
        self.job.plan.spec.bits
    }

    fn read(&self, area: Rect, buffer: &mut [u8]) -> Result<()> {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        for index in self.job.tiles_in(area) {
            if !checked[index] {
                self.job.read_tile(index)?;
                checked[index] = true;
            }
        }
        drop(checked);
        buffer.copy_from_slice(&self.job.read_unchecked(area)?);
        Ok(())
    }
}

/// Opens a device, as one backend for each model.
fn open_for_all(choice: Choice, settings: &Settings, models: &Models) -> Result<Vec<Device>> {
    let Settings { precision, gpu_cache, .. } = settings;
    let weights = models.first().weights.clone();
    let first = Device::open(choice, *precision, gpu_cache.as_deref(), weights)?;
    let others: Vec<_> =
        models.all().skip(1).map(|model| first.with_weights(model.weights.clone())).collect();
    Ok(std::iter::once(first).chain(others).collect())
}
