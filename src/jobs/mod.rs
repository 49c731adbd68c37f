//! Jobs: queue, admission, engine threads, recovery after a crash.
//!
//! Guarantees: an event is published only after it is durable. A queued job survives a restart, resumes at its last step or
//! tile, and ends with the same bytes as an uninterrupted run. A watcher that reconnects with its last sequence number
//! misses no event.
//!
//! # Scheduling
//!
//! Each device time-slices a few jobs (see `worker`). Jobs are admitted oldest first. The last slot goes to the smallest
//! queued job. A job at most half the size of every running job is admitted beyond the slot limit, so a preview never waits
//! behind large pictures and large pictures are never starved. The quoted memory of all running jobs stays within the budget.

mod committer;
pub mod files;
mod job;
mod models;
mod observe;
mod quote;
pub mod record;
mod recovery;
mod timings;
mod upload;
mod worker;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

pub use job::{Job, Phase, Snapshot};
pub use models::{Models, is_model_name};
pub use observe::{Ended, EndedLabels};
pub use quote::{Quote, StepCounts};
pub use recovery::recover;
pub use timings::{Timings, seconds};
pub use upload::{MAX_UPLOAD, Receiving, Upload};

use crate::{
    engine::{
        device::{Choice, Device, Precision},
        plan::{Plan, Rect, Spec},
    },
    error::{Error, Expected, Resource, Result},
    image_out::{self, Bits, Format, Metadata, PixelSource},
    model::checkpoint::Checkpoint,
    store::{self, DirectoryLock},
};
use files::{JobDirectory, Layout};
use quote::Speed;
use record::{Event, JobRequest, Record, StoredSpec, to_ms};

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
    /// Devices; each has its own engine thread.
    pub devices: Vec<Choice>,
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
        let plan = Plan::new(self.spec.clone(), &self.model.arch)?;
        if let Some(rect) = self.viewport {
            plan.check_rect("viewport", rect)?;
        }
        Ok(plan)
    }
}

/// The jobs of a server. Clones share them.
#[derive(Clone, Debug)]
pub struct Jobs {
    shared: Arc<Shared>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

/// State shared by the engine threads and the callers.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    models: Models,
    lock: DirectoryLock,
    /// Jobs and queue. Locked briefly: never while computing or waiting for a disk.
    table: Mutex<Table>,
    /// Notified when a job is queued or cancelled and when the queue closes.
    changed: Condvar,
    speed: Speed,
    steps: StepCounts,
    timings: Timings,
    /// True if every device responds.
    healthy: AtomicBool,
}

#[derive(Debug, Default)]
struct Table {
    /// Jobs by id; ids sort by creation time.
    jobs: BTreeMap<String, Arc<Job>>,
    /// Job ids by owner and `request_id`.
    requests: HashMap<(String, String), String>,
    /// Queued jobs, the oldest first.
    waiting: VecDeque<Arc<Job>>,
    /// Queue entries reserved for jobs that are being created.
    reserved: usize,
    /// True after [`Jobs::close`]: no new jobs and no new time slices.
    closed: bool,
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
        let lock = DirectoryLock::acquire(&settings.directory)?;
        let devices = settings.devices.iter();
        let devices: Vec<_> = devices
            .map(|&choice| open_for_all(choice, &settings, &models))
            .collect::<Result<_>>()?;
        let timings = Timings::default();
        let jobs = recovery::read_jobs(&settings.directory, &models)?;
        jobs.values().for_each(|job| job.count_in(&timings.ended));
        let requests = jobs.values().filter(|job| !job.request.request_id.is_empty());
        let requests = requests.map(|job| (job.request.key(), job.id.clone()));
        let unfinished = jobs.values().filter(|job| !job.snapshot().phase.is_last());
        let table = Table {
            requests: requests.collect(),
            waiting: unfinished.cloned().collect(),
            jobs,
            ..Table::default()
        };
        let shared = Arc::new(Shared {
            settings,
            models,
            lock,
            table: Mutex::new(table),
            changed: Condvar::new(),
            speed: Speed::default(),
            steps: StepCounts::default(),
            timings,
            healthy: AtomicBool::new(true),
        });
        let threads = devices.into_iter().enumerate().map(|(i, device)| {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name(format!("engine-{i}"))
                .spawn(move || worker::run(&shared, device))
                .map_err(|e| Error::io("start", "an engine thread", e))
        });
        let threads = Arc::new(Mutex::new(threads.collect::<Result<_>>()?));
        Ok(Self { shared, threads })
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
        let plan = Plan::new(spec.clone(), &model.arch)?;
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
        if let Some(disk) = disk.filter(|&disk| quote.disk_bytes > disk) {
            // Nor if the disk were empty.
            return Err(Error::exhausted("disk_bytes", quote.disk_bytes, disk));
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
        };
        let id = uuid::Uuid::now_v7().simple().to_string();
        if let Some(known) = self.reserve(&job_request, &id)? {
            return Ok(known);
        }
        let made = self.make(&id, model, job_request.clone(), plan, quote, viewport, source);
        let mut table = self.shared.table();
        table.reserved -= 1;
        match made {
            Ok(job) => {
                table.jobs.insert(id, job.clone());
                table.waiting.push_back(job.clone());
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

    #[allow(clippy::too_many_arguments, reason = "what a job is made of")]
    fn make(
        &self,
        id: &str,
        model: Arc<Checkpoint>,
        job_request: JobRequest,
        plan: Plan,
        quote: Quote,
        viewport: Option<Rect>,
        source: Option<Upload>,
    ) -> Result<Arc<Job>> {
        let directory = JobDirectory::new(&self.shared.settings.directory, id);
        let compute_us = quote.compute_time.as_micros() as u64;
        let latent_values = files::latent_values(&plan) as u64;
        let first =
            Record::now(Event::Queued { request: job_request.clone(), compute_us, latent_values });
        let layout = Layout::new(&plan);
        let job =
            Job::new(id, model, job_request, plan, quote, directory.clone(), vec![first.clone()]);
        job.count_in(&self.shared.timings.ended);
        job.set_viewport(viewport)?;
        directory.create(&first, &layout, source.as_ref().map(Upload::path), &self.shared.lock)?;
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

    /// At most `most` jobs of one client or of all, with ids after `after`, oldest first.
    pub fn list(&self, owner: Option<&str>, after: &str, most: usize) -> Vec<Arc<Job>> {
        let table = self.shared.table();
        let later = table.jobs.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        let later = later.map(|(_, job)| job);
        let asked = later.filter(|job| owner.is_none_or(|owner| job.request.owner == owner));
        asked.take(most).cloned().collect()
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

    /// Cancels the job: immediately if it is queued, else within one step or tile. An ended job is returned unchanged.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::error::Kind); [`Kind::Io`](crate::error::Kind).
    pub fn cancel(&self, id: &str) -> Result<Arc<Job>> {
        let job = self.get(id)?;
        job.cancel.cancel();
        let mut table = self.shared.table();
        let waited = table.waiting.iter().position(|waiting| waiting.id == id);
        if let Some(place) = waited {
            table.waiting.remove(place);
            drop(table);
            job.publish(vec![Event::Cancelled])?;
        }
        Ok(job)
    }

    /// Cancels the job if necessary and deletes it with its files.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::error::Kind); [`Kind::Io`](crate::error::Kind).
    pub fn delete(&self, id: &str) -> Result<()> {
        let job = self.cancel(id)?;
        let mut table = self.shared.table();
        table.jobs.remove(id);
        table.requests.remove(&job.request.key());
        drop(table);
        job.delete()
    }

    /// Path of the finished picture as a file of `format`; the file is written at the first call.
    ///
    /// # Errors
    /// [`Kind::NotReady`](crate::error::Kind) if it is not finished; [`Kind::Io`](crate::error::Kind).
    pub fn picture(&self, job: &Job, format: Format) -> Result<PathBuf> {
        job.need_finished()?;
        let path = job.picture_file(match format {
            Format::Tiff => "tiff",
            Format::Png => "png",
        });
        if !path.exists() {
            let (description, receipt) = job.receipt().unwrap_or_default();
            let receipt = serde_json::from_str(&receipt).unwrap_or_default();
            let metadata = Metadata { description, created: None, receipt };
            image_out::write(&path, &Pixels(job), &metadata)?;
        }
        Ok(path)
    }

    /// True if every device responds.
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

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Each change of the table is one insertion or removal, so it is consistent after a panic elsewhere.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Jobs to run in addition to the `active` ones. Blocks if there is nothing to do. `None`: the queue is closed.
    fn next(&self, active: &[Arc<Job>]) -> Option<Vec<Arc<Job>>> {
        let mut table = self.table();
        loop {
            if table.closed {
                return None;
            }
            let admitted = self.admit(&mut table, active);
            if !(admitted.is_empty() && active.is_empty()) {
                return Some(admitted);
            }
            table = self.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Removes jobs from the queue that slots and memory allow to run.
    fn admit(&self, table: &mut Table, active: &[Arc<Job>]) -> Vec<Arc<Job>> {
        let mut memory: u64 = active.iter().map(|job| job.quote.memory_bytes).sum();
        let mut least = active.iter().map(|job| job.quote.flops).min().unwrap_or(u64::MAX);
        let (slots, mut admitted) = (self.settings.active, Vec::new());
        loop {
            let slot = active.len() + admitted.len() + 1;
            // The last slot is for the smallest job.
            let smallest = slot >= slots && slot > 1;
            let size = |&i: &usize| if smallest { table.waiting[i].quote.flops } else { 0 };
            let Some(next) = (0..table.waiting.len()).min_by_key(size) else { break };
            let quote = &table.waiting[next].quote;
            // Beyond the limit, only a job at most half the size of every running one; so their number is logarithmic.
            if slot > slots && quote.flops > least / 2 {
                break;
            }
            if memory + quote.memory_bytes > self.settings.memory && slot > 1 {
                break;
            }
            (memory, least) = (memory + quote.memory_bytes, least.min(quote.flops));
            admitted.extend(table.waiting.remove(next));
        }
        admitted
    }

    /// Records that a device does not respond.
    fn device_failed(&self, error: &Error) {
        tracing::error!("device: {}", error.report());
        self.healthy.store(false, Ordering::Relaxed);
    }
}

/// Pixel source of a finished job.
struct Pixels<'a>(&'a Job);

impl PixelSource for Pixels<'_> {
    fn width(&self) -> u32 {
        self.0.plan.spec.width as u32
    }

    fn height(&self) -> u32 {
        self.0.plan.spec.height as u32
    }

    fn bits(&self) -> Bits {
        self.0.plan.spec.bits
    }

    fn read(&self, area: Rect, buffer: &mut [u8]) -> Result<()> {
        buffer.copy_from_slice(&self.0.read(area)?);
        Ok(())
    }
}

/// Opens a device once for the weights of each model. [`Choice::Auto`] is resolved once.
fn open_for_all(choice: Choice, settings: &Settings, models: &Models) -> Result<Vec<Device>> {
    let Settings { precision, gpu_cache, .. } = settings;
    let mut devices: Vec<Device> = Vec::new();
    for model in models.all() {
        let choice = devices.first().map_or(choice, Device::choice);
        let weights = model.weights.clone();
        devices.push(Device::open(choice, *precision, gpu_cache.as_deref(), weights)?);
    }
    Ok(devices)
}
