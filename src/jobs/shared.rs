//! The table of jobs and the queue, shared by the engine threads and the callers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use super::{
    Settings,
    admission::{Admitted, Limits, Queue},
    files::JobDirectory,
    job::Job,
    models::Models,
    quote::{Speed, StepCounts},
    record::{Event, to_ms},
    recovery::{self, DamagedJob},
    timings::Timings,
};
use crate::{
    error::{Error, Resource, Result},
    store::Disk,
};

/// Delay before a paused job is queued again, in milliseconds.
const RESUME_AFTER_MS: u64 = 1000;

/// State shared by the engine threads and the callers.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) models: Models,
    /// The directory, which this process alone uses.
    pub(super) disk: Arc<dyn Disk>,
    /// Directories of jobs that could not be read at the start.
    pub(super) damaged: Vec<DamagedJob>,
    /// Jobs and queue. Locked briefly: never while computing or waiting for a disk.
    pub(super) table: Mutex<Table>,
    /// Directories of creations that failed and could not be taken back yet.
    pub(super) failed: Mutex<Vec<JobDirectory>>,
    /// Notified when a job is queued or has a deadline or a pause, and when the queue closes.
    pub(super) changed: Condvar,
    pub(super) speed: Speed,
    pub(super) steps: StepCounts,
    pub(super) timings: Timings,
    /// Devices that respond; the last one is never taken off.
    pub(super) devices: AtomicUsize,
    /// False once work has failed on the last device that responds.
    pub(super) healthy: AtomicBool,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    /// Jobs by id; ids sort by creation time.
    pub(super) jobs: BTreeMap<String, Arc<Job>>,
    /// Job ids by owner and `request_id`.
    pub(super) requests: HashMap<(String, String), String>,
    /// Queued jobs, and finished ones with damaged tiles.
    pub(super) waiting: Queue<Arc<Job>>,
    /// Paused jobs, and the times in milliseconds since 1970 at which they are queued again.
    pub(super) paused: Vec<(u64, Arc<Job>)>,
    /// Deadlines in milliseconds since 1970 of jobs that may not have ended, with their ids.
    pub(super) deadlines: BTreeSet<(u64, String)>,
    /// Queue entries reserved for jobs that are being created.
    pub(super) reserved: usize,
    /// True after [`Jobs::close`]: no new jobs and no new time slices.
    pub(super) closed: bool,
    /// True if a job was created or has ended since the last removal of ended jobs.
    pub(super) prune_due: bool,
}

impl Shared {
    /// Reads the jobs of the directory, which is on `disk`; unfinished ones are queued.
    pub(super) fn open(
        settings: Settings,
        models: Models,
        disk: Arc<dyn Disk>,
    ) -> Result<Arc<Self>> {
        let (jobs, damaged) = recovery::read_jobs(&disk, &settings.directory, &models)?;
        let mut table = Table { jobs, ..Table::default() };
        for (id, job) in &table.jobs {
            if !job.request.request_id.is_empty() {
                table.requests.insert(job.request.key(), id.clone());
            }
            if !job.snapshot().phase.is_last() {
                table.waiting.push(job.clone(), job.size());
                table.deadlines.extend(job.request.deadline_ms.map(|at| (at, id.clone())));
            }
        }
        let shared = Arc::new(Self {
            devices: AtomicUsize::new(settings.devices.len()),
            settings,
            models,
            disk,
            damaged,
            table: Mutex::new(table),
            failed: Mutex::default(),
            changed: Condvar::new(),
            speed: Speed::default(),
            steps: StepCounts::default(),
            timings: Timings::default(),
            healthy: AtomicBool::new(true),
        });
        shared.table().jobs.values().for_each(|job| job.belongs_to(&shared));
        Ok(shared)
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        // Each change of the table is one insertion or removal, so it is consistent after a panic elsewhere.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Jobs to run in addition to the `active` ones. Blocks if there is nothing to do. `None`: the queue is closed.
    pub(super) fn next(&self, active: &[Arc<Job>]) -> Option<Vec<Arc<Job>>> {
        let mut table = self.table();
        loop {
            if table.closed {
                return None;
            }
            let admitted: Vec<_> =
                self.admit(&mut table, active).into_iter().map(|admitted| admitted.item).collect();
            if !(admitted.is_empty() && active.is_empty()) {
                return Some(admitted);
            }
            table = self.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Removes jobs from the queue that may begin beside the `active` ones.
    pub(super) fn admit(&self, table: &mut Table, active: &[Arc<Job>]) -> Vec<Admitted<Arc<Job>>> {
        let running: Vec<_> = active.iter().map(|job| job.size()).collect();
        let Settings { active: slots, memory, .. } = self.settings;
        let admitted = table.waiting.admit(&running, Limits { slots, memory });
        for Admitted { item: job, in_slot } in &admitted {
            tracing::debug!(id = %job.id, in_slot, "job admitted");
            job.hold();
        }
        admitted
    }

    /// Ends the job durably by `last`, if it has not ended.
    ///
    /// # Errors
    /// Those of [`Job::publish`]; the job is unchanged then.
    pub(super) fn end(&self, job: &Job, last: Event) -> Result<()> {
        if job.publish(vec![last])? {
            job.cancel.cancel();
            self.table().waiting.remove(|waiting| waiting.id == job.id);
        }
        Ok(())
    }

    /// Deletes a job; see [`Jobs::delete`](super::Jobs::delete).
    ///
    /// # Errors
    /// Those of [`Jobs::delete`](super::Jobs::delete).
    pub(super) fn delete(&self, id: &str) -> Result<()> {
        let job = self.table().jobs.get(id).cloned();
        let job = job.ok_or_else(|| Error::not_found(Resource::Job, id))?;
        job.delete()?;
        let mut table = self.table();
        table.jobs.remove(id);
        if table.requests.get(&job.request.key()).is_some_and(|known| known == id) {
            table.requests.remove(&job.request.key());
        }
        table.waiting.remove(|waiting| waiting.id == id);
        Ok(())
    }

    /// Called when a job has ended.
    pub(super) fn ended(&self) {
        if !self.settings.retention.keeps_all() {
            self.table().prune_due = true;
            self.changed.notify_all();
        }
    }

    /// Waits until something changes, at most for `most`.
    pub(super) fn wait<'a>(
        &self,
        table: MutexGuard<'a, Table>,
        most: Duration,
    ) -> MutexGuard<'a, Table> {
        self.changed.wait_timeout(table, most).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Queues a paused job again after [`RESUME_AFTER_MS`].
    pub(super) fn resume_later(&self, job: Arc<Job>) {
        let at = to_ms(SystemTime::now()).saturating_add(RESUME_AFTER_MS);
        self.table().paused.push((at, job));
        self.changed.notify_all();
    }

    /// Queues a finished job whose damaged tiles are to be decoded again. A running job decodes them while it runs.
    pub(super) fn repair(&self, id: &str) {
        let mut table = self.table();
        let Some(job) = table.jobs.get(id).cloned() else { return };
        let queued = table.waiting.iter().any(|waiting| waiting.id == id);
        if !queued && !job.is_held() && job.needs_repair() {
            table.waiting.push(job.clone(), job.size());
            drop(table);
            self.changed.notify_all();
        }
    }

    /// Ends the jobs whose deadline has passed at `now_ms`, and queues the paused ones again that are due.
    pub(super) fn look_after(&self, now_ms: u64) {
        let mut table = self.table();
        let (due, later) =
            std::mem::take(&mut table.paused).into_iter().partition(|&(at, _)| at <= now_ms);
        table.paused = later;
        drop(table);
        due.into_iter().for_each(|(_, job)| self.queue_again(job));
        let mut table = self.table();
        let still = table.deadlines.split_off(&(now_ms + 1, String::new()));
        let passed = std::mem::replace(&mut table.deadlines, still);
        let passed: Vec<_> =
            passed.into_iter().filter_map(|(_, id)| table.jobs.get(&id).cloned()).collect();
        drop(table);
        for job in passed {
            let error = Error::expired("the job", None);
            let last = Event::Failed { kind: error.kind(), message: error.report().to_string() };
            if let Err(error) = self.end(&job, last) {
                tracing::error!("job {}: its deadline has passed: {}", job.id, error.report());
                let again = now_ms.saturating_add(RESUME_AFTER_MS);
                self.table().deadlines.insert((again, job.id.clone()));
            }
        }
    }

    /// Calls [`Self::look_after`] whenever something is due, until the queue is closed.
    pub(super) fn look_after_all(&self) {
        loop {
            let now = to_ms(SystemTime::now());
            self.look_after(now);
            let table = self.table();
            if table.closed {
                return;
            }
            let paused = table.paused.iter().map(|&(at, _)| at).min();
            let deadline = table.deadlines.first().map(|&(at, _)| at);
            let wait = |lock| match paused.into_iter().chain(deadline).min() {
                Some(at) => {
                    // The clock may be set meanwhile.
                    let most =
                        Duration::from_millis(at.saturating_sub(now).clamp(1, RESUME_AFTER_MS));
                    drop(self.wait(lock, most));
                }
                None => drop(self.changed.wait(lock)),
            };
            wait(table);
        }
    }

    /// Queues a job again that a device hands back.
    pub(super) fn queue_again(&self, job: Arc<Job>) {
        let goes_on = !job.snapshot().phase.is_last() || job.needs_repair();
        let mut table = self.table();
        if goes_on && table.jobs.contains_key(&job.id) {
            table.waiting.push(job.clone(), job.size());
            drop(table);
            self.changed.notify_all();
        }
    }

    /// Takes a device that does not respond off the list; false for the last one.
    pub(super) fn take_off(&self, name: &str, error: &Error) -> bool {
        let less = |devices: usize| (devices > 1).then(|| devices - 1);
        let left = self.devices.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        match left {
            Ok(devices) => {
                let left = devices - 1;
                tracing::error!(
                    "device {name} does not respond and is not used any more; its jobs go on on the {left} left: {}",
                    error.report()
                );
                true
            }
            Err(_) => false,
        }
    }

    /// Records that the last device does not respond.
    pub(super) fn device_failed(&self, error: &Error) {
        tracing::error!("device: {}", error.report());
        self.healthy.store(false, Ordering::Relaxed);
    }
}
