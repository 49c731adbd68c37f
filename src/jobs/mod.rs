//! Jobs: queue, admission, the engine's threads, and what survives a crash.
//!
//! The guarantee: what was announced is durable. A job that was queued is there after a restart, goes on from its last
//! step or tile, and ends with the bytes that an undisturbed run ends with; whoever watches it may come back with the
//! last sequence number seen and misses nothing.
//!
//! # Order of work
//!
//! Each device works on a few jobs in turns (see `worker`). Waiting jobs come in by age, but the last place is for the
//! smallest waiting one, and one of half the size of all that are in needs no place: a preview is not stuck behind large
//! pictures, whenever it comes, and large ones are never starved. A job comes in only if the memory of all that are in,
//! as quoted, stays within the budget.

pub mod files;
mod job;
mod models;
mod quote;
pub mod record;
mod recovery;
mod scribe;
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
pub use models::Models;
pub use quote::{Quote, StepCounts};
pub use recovery::recover;
pub use upload::{MAX_UPLOAD, Receiving, Upload};

use crate::{
    engine::{
        device::{Choice, Device, Precision},
        plan::{Plan, Rect, Spec},
    },
    error::{Error, Expected, Resource, Result},
    image_out::{self, Bits, Format, Metadata, PixelSource},
    model::checkpoint::Checkpoint,
    store::DirectoryLock,
};
use files::{JobDirectory, Layout};
use quote::Speed;
use record::{Event, Order, Record, StoredSpec, to_ms};

/// Longest `request_id`.
pub const MAX_REQUEST_ID: usize = 128;

/// Time after which a client may ask a full or stopping server again.
pub const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The error of calls to a server that is shutting down.
pub fn shutting_down() -> Error {
    Error::unavailable("the server", "it is shutting down").with_retry_after(RETRY_AFTER)
}

/// How jobs are kept and worked on.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the jobs lie; one process at a time uses it.
    pub directory: PathBuf,
    /// One engine thread for each of these devices.
    pub devices: Vec<Choice>,
    /// What they multiply in.
    pub precision: Precision,
    /// Folder for what was compiled and measured on GPUs.
    pub gpu_cache: Option<PathBuf>,
    /// Most bytes of memory, as quoted, of the jobs that a device works on at one time.
    pub memory: u64,
    /// Most jobs that wait.
    pub queue: usize,
    /// Jobs that a device works on in turns.
    pub active: usize,
}

/// What a client asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The model to make it with, one of the server's.
    pub model: Arc<Checkpoint>,
    /// What to make.
    pub spec: Spec,
    /// The client's name for the request, by which it gets the same job again; empty: none.
    pub request_id: String,
    /// By when the job must have ended.
    pub deadline: Option<SystemTime>,
    /// What is looked at first.
    pub viewport: Option<Rect>,
    /// Who asks, where clients have names.
    pub owner: String,
    /// The picture to edit; the spec has a strength then, and the picture's size.
    pub source: Option<Upload>,
}

impl Request {
    /// What follows from the request, once nothing in it is wrong; whether there is room for it is not looked at.
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

/// All jobs of a server. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Jobs {
    shared: Arc<Shared>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

/// What the engine's threads and those who ask share.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    models: Models,
    lock: DirectoryLock,
    /// Guards the register and the queue. Held for short: never while computing or waiting for a disk.
    table: Mutex<Table>,
    /// Told when a job is queued or cancelled, and when the queue closes.
    changed: Condvar,
    speed: Speed,
    steps: StepCounts,
    /// Whether every device answers.
    healthy: AtomicBool,
}

#[derive(Debug, Default)]
struct Table {
    /// Every job by its id, which puts them in the order of their making.
    jobs: BTreeMap<String, Arc<Job>>,
    /// Jobs by their client's name for the request.
    requests: HashMap<String, String>,
    /// Jobs that wait, the oldest first.
    waiting: VecDeque<Arc<Job>>,
    /// Places in the queue that are being filled.
    reserved: usize,
    /// No new jobs, and no new units of work.
    closed: bool,
}

impl Jobs {
    /// Takes hold of the directory, reads the jobs in it, opens the devices and lets unfinished jobs go on.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`](crate::error::Kind) when another process has the directory or a setting is out of range;
    /// [`Kind::Io`](crate::error::Kind) when it can't be read; [`Kind::Device`](crate::error::Kind) when a device can't be opened.
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
        let jobs = recovery::read_jobs(&settings.directory, &models)?;
        let requests = jobs.values().filter(|job| !job.order.request_id.is_empty());
        let requests = requests.map(|job| (job.order.request_id.clone(), job.id.clone()));
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

    /// The models that pictures are made with.
    pub fn models(&self) -> &Models {
        &self.shared.models
    }

    /// What `spec` would take with `model`; admission goes by the same numbers.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`](crate::error::Kind) when it can't be made.
    pub fn quote(&self, spec: &Spec, model: &Checkpoint) -> Result<(Plan, Quote)> {
        let plan = Plan::new(spec.clone(), &model.arch)?;
        let quote = self.quote_plan(&plan);
        Ok((plan, quote))
    }

    fn quote_plan(&self, plan: &Plan) -> Quote {
        quote::quote(plan, self.shared.speed.time(plan.flops))
    }

    /// Queues a job; when this returns it is durable.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`](crate::error::Kind) when it can't be made; [`Kind::Exhausted`](crate::error::Kind) when it is too large for this server, the
    /// queue is full or the disk is; [`Kind::Unavailable`](crate::error::Kind) while the server is shutting down; [`Kind::Io`](crate::error::Kind).
    pub fn create(&self, request: Request) -> Result<Arc<Job>> {
        let plan = request.plan()?;
        let quote = self.quote_plan(&plan);
        let Request { model, spec, request_id, deadline, viewport, owner, source } = request;
        let memory = self.shared.settings.memory;
        if quote.memory_bytes > memory {
            // No later attempt can succeed: the budget is that of an idle device.
            return Err(Error::exhausted("memory_bytes", quote.memory_bytes, memory));
        }
        let order = Order {
            spec: StoredSpec::from(&spec),
            model_sha256: model.sha256.clone(),
            request_id,
            deadline_ms: deadline.map(to_ms),
            owner,
            source_sha256: source.as_ref().map(|source| source.sha256().to_owned()),
        };
        let id = uuid::Uuid::now_v7().simple().to_string();
        if let Some(known) = self.reserve(&order, &id)? {
            return Ok(known);
        }
        let made = self.make(&id, model, order.clone(), plan, quote, viewport, source);
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
                table.requests.remove(&order.request_id);
                Err(error)
            }
        }
    }

    /// Takes a place in the queue for the job `id`, or finds the one that the client has asked for before.
    fn reserve(&self, order: &Order, id: &str) -> Result<Option<Arc<Job>>> {
        let mut table = self.shared.table();
        if table.closed {
            return Err(shutting_down());
        }
        let request_id = &order.request_id;
        if let Some(known) = table.requests.get(request_id).filter(|_| !request_id.is_empty()) {
            return match table.jobs.get(known) {
                Some(job) if job.order.is_the_same_as(order) => Ok(Some(job.clone())),
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
            table.requests.insert(request_id.clone(), id.to_owned());
        }
        table.reserved += 1;
        Ok(None)
    }

    #[allow(clippy::too_many_arguments, reason = "what a job is made of")]
    fn make(
        &self,
        id: &str,
        model: Arc<Checkpoint>,
        order: Order,
        plan: Plan,
        quote: Quote,
        viewport: Option<Rect>,
        source: Option<Upload>,
    ) -> Result<Arc<Job>> {
        let directory = JobDirectory::new(&self.shared.settings.directory, id);
        let compute_us = quote.compute_time.as_micros() as u64;
        let latent_values = files::latent_values(&plan) as u64;
        let first = Record::now(Event::Queued { order: order.clone(), compute_us, latent_values });
        let layout = Layout::new(&plan);
        let job = Job::new(id, model, order, plan, quote, directory.clone(), vec![first.clone()]);
        job.set_viewport(viewport)?;
        directory.create(&first, &layout, source.as_ref().map(Upload::path), &self.shared.lock)?;
        Ok(Arc::new(job))
    }

    /// A place for a picture that comes from a client.
    ///
    /// # Errors
    /// [`Kind::Io`](crate::error::Kind).
    pub fn receive(&self) -> Result<Receiving> {
        Receiving::create(&self.shared.settings.directory)
    }

    /// The job of that name.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::error::Kind).
    pub fn get(&self, id: &str) -> Result<Arc<Job>> {
        let job = self.shared.table().jobs.get(id).cloned();
        job.ok_or_else(|| Error::not_found(Resource::Job, id))
    }

    /// At most `most` jobs after the id `after`, oldest first.
    pub fn list(&self, after: &str, most: usize) -> Vec<Arc<Job>> {
        let table = self.shared.table();
        let later = (Bound::Excluded(after), Bound::Unbounded);
        table.jobs.range::<str, _>(later).take(most).map(|(_, job)| job.clone()).collect()
    }

    /// Number of jobs that wait: of one client, or of all.
    pub fn waiting(&self, owner: Option<&str>) -> usize {
        let table = self.shared.table();
        let asked = |job: &&Arc<Job>| owner.is_none_or(|owner| job.order.owner == owner);
        table.waiting.iter().filter(asked).count()
    }

    /// Number of jobs in each phase.
    pub fn phases(&self) -> Vec<(Phase, usize)> {
        let jobs: Vec<_> = self.shared.table().jobs.values().cloned().collect();
        let mut count = Phase::ALL.map(|phase| (phase, 0));
        for job in jobs {
            let now = job.snapshot().phase;
            count.iter_mut().filter(|(phase, _)| *phase == now).for_each(|(_, n)| *n += 1);
        }
        count.to_vec()
    }

    /// Speed of the devices, in floating-point operations per second: a running mean.
    pub fn flops_per_second(&self) -> f64 {
        self.shared.speed.mean()
    }

    /// Denoising steps since the start.
    pub fn steps(&self) -> &StepCounts {
        &self.shared.steps
    }

    /// Cancels the job: at once while it waits, else within one step or tile. An ended job stays as it is.
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
            job.announce(vec![Event::Cancelled])?;
        }
        Ok(job)
    }

    /// Cancels the job if it has not ended, and removes it with its pixels.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::error::Kind); [`Kind::Io`](crate::error::Kind).
    pub fn delete(&self, id: &str) -> Result<()> {
        let job = self.cancel(id)?;
        let mut table = self.shared.table();
        table.jobs.remove(id);
        table.requests.remove(&job.order.request_id);
        drop(table);
        job.delete()
    }

    /// The finished picture as a file of `format`, which lies in the job's directory from the first call on.
    ///
    /// # Errors
    /// [`Kind::NotReady`](crate::error::Kind) while it is not finished; [`Kind::Io`](crate::error::Kind).
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

    /// Whether every device answers.
    pub fn is_healthy(&self) -> bool {
        self.shared.healthy.load(Ordering::Relaxed)
    }

    /// Ends the work: no new jobs, and the running ones stop at their last durable step or tile, to go on at the next
    /// start. Returns when the devices are idle.
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
        // Every change of the table is one insertion or removal: a panic elsewhere leaves it whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Jobs to take on beside the `held` ones. Waits while there is nothing at all to do. `None`: the queue is closed.
    fn next(&self, held: &[Arc<Job>]) -> Option<Vec<Arc<Job>>> {
        let mut table = self.table();
        loop {
            if table.closed {
                return None;
            }
            let fresh = self.admit(&mut table, held);
            if !(fresh.is_empty() && held.is_empty()) {
                return Some(fresh);
            }
            table = self.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes jobs out of the queue as far as there are places and memory for them.
    fn admit(&self, table: &mut Table, held: &[Arc<Job>]) -> Vec<Arc<Job>> {
        let mut memory: u64 = held.iter().map(|job| job.quote.memory_bytes).sum();
        let mut least = held.iter().map(|job| job.quote.flops).min().unwrap_or(u64::MAX);
        let (active, mut fresh) = (self.settings.active, Vec::new());
        loop {
            let place = held.len() + fresh.len() + 1;
            // The last place is for the smallest job.
            let smallest = place >= active && place > 1;
            let size = |&i: &usize| if smallest { table.waiting[i].quote.flops } else { 0 };
            let Some(next) = (0..table.waiting.len()).min_by_key(size) else { break };
            let quote = &table.waiting[next].quote;
            // Behind it, only one of half the size of all that are in: so there are never many.
            if place > active && quote.flops > least / 2 {
                break;
            }
            if memory + quote.memory_bytes > self.settings.memory && place > 1 {
                break;
            }
            (memory, least) = (memory + quote.memory_bytes, least.min(quote.flops));
            fresh.extend(table.waiting.remove(next));
        }
        fresh
    }

    /// A device does not answer any more.
    fn device_failed(&self, error: &Error) {
        tracing::error!("device: {}", error.report());
        self.healthy.store(false, Ordering::Relaxed);
    }
}

/// A finished job's pixels, for the writers of files.
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

/// A device with the weights of every model. What the choice stands for is found out once.
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
