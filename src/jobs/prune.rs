//! Removal of ended jobs: those that ended too long ago, and then the oldest until the jobs take little enough space.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use strum::IntoStaticStr;

use crate::{
    error::Result,
    jobs::{
        files::JobDirectory,
        observe,
        record::{Event, Record, to_ms},
        recovery,
        shared::Shared,
    },
    store::{DirectoryLock, Disk},
};

/// Longest time between two removals by a server; it also removes when a job was created or has ended.
const EVERY: Duration = Duration::from_secs(60);

/// Which ended jobs are kept. Jobs that have not ended are kept always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Jobs that ended longer ago are removed; `None`: no limit.
    pub older_than: Option<Duration>,
    /// The jobs that ended first are removed until the files of all jobs, also of those that have not ended, have at most
    /// so many bytes; `None`: no limit.
    pub keep_bytes: Option<u64>,
}

impl Retention {
    /// True if every job is kept.
    pub fn keeps_all(self) -> bool {
        self == Self::default()
    }
}

/// Reason for a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum PruneReason {
    /// The job ended longer ago than [`Retention::older_than`].
    Age,
    /// The jobs took more than [`Retention::keep_bytes`].
    Bytes,
}

impl PruneReason {
    /// Its machine-readable name.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// An ended job that is removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// Its id.
    pub id: String,
    /// Time since its end.
    pub age: Duration,
    /// Bytes of its files.
    pub bytes: u64,
    /// Why it is removed.
    pub reason: PruneReason,
}

/// Jobs and bytes that [`prune`] has left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Number of jobs.
    pub jobs: usize,
    /// Bytes of their files.
    pub bytes: u64,
}

/// A job as the choice sees it.
#[derive(Clone, Debug)]
struct Candidate {
    id: String,
    /// Time of its end in milliseconds since 1970; `None`: it has not ended.
    ended_ms: Option<u64>,
    bytes: u64,
}

/// The jobs to remove at `now_ms`, those that ended first coming first.
fn choose(jobs: Vec<Candidate>, retention: Retention, now_ms: u64) -> Vec<Pruned> {
    let mut total: u64 = jobs.iter().map(|job| job.bytes).sum();
    let mut ended: Vec<_> =
        jobs.into_iter().filter_map(|job| Some((job.ended_ms?, job.id, job.bytes))).collect();
    ended.sort();
    let judge = |(ended_ms, id, bytes)| {
        let age = Duration::from_millis(now_ms.saturating_sub(ended_ms));
        let reason = if retention.older_than.is_some_and(|limit| age > limit) {
            PruneReason::Age
        } else if retention.keep_bytes.is_some_and(|limit| total > limit) {
            PruneReason::Bytes
        } else {
            return None;
        };
        total = total.saturating_sub(bytes);
        Some(Pruned { id, age, bytes, reason })
    };
    // Later ones are younger, and the total does not grow.
    ended.into_iter().map_while(judge).collect()
}

/// Removes ended jobs from a directory that no server uses at this time; jobs that can't be read are left as they are and
/// not counted. Each removed job is passed to `seen`, those that ended first coming first; an error of it ends the work.
/// With `dry_run` nothing is removed.
///
/// # Errors
/// [`Kind::InvalidArgument`](crate::error::Kind) if no server has used the directory, or if one does now;
/// [`Kind::Io`](crate::error::Kind); those of `seen`.
pub fn prune(
    directory: &Path,
    retention: Retention,
    dry_run: bool,
    seen: &mut dyn FnMut(Pruned) -> Result<()>,
) -> Result<Kept> {
    let disk: Arc<dyn Disk> = Arc::new(DirectoryLock::acquire_existing(directory)?);
    prune_on(&disk, directory, retention, dry_run, seen)
}

/// As [`prune`], of a directory on `disk`.
pub(super) fn prune_on(
    disk: &Arc<dyn Disk>,
    root: &Path,
    retention: Retention,
    dry_run: bool,
    seen: &mut dyn FnMut(Pruned) -> Result<()>,
) -> Result<Kept> {
    if !dry_run {
        recovery::sweep(disk, root)?;
    }
    let mut jobs = Vec::new();
    for id in recovery::directories(disk, root)? {
        let directory = JobDirectory::new(disk.clone(), root, &id);
        match directory.open_journal() {
            Ok((_, records)) => {
                let ended_ms = ended_ms(&records);
                jobs.push(Candidate { id, ended_ms, bytes: directory.bytes() });
            }
            Err(error) => {
                let path = directory.path().display();
                tracing::warn!("{path} can't be read and is left as it is: {}", error.report());
            }
        }
    }
    let bytes = jobs.iter().map(|job| job.bytes).sum();
    let mut kept = Kept { jobs: jobs.len(), bytes };
    for pruned in choose(jobs, retention, to_ms(SystemTime::now())) {
        if !dry_run {
            let directory = JobDirectory::new(disk.clone(), root, &pruned.id);
            directory.mark_deleted()?;
            directory.erase();
        }
        kept.jobs -= 1;
        kept.bytes -= pruned.bytes;
        seen(pruned)?;
    }
    Ok(kept)
}

/// Time of the end of the job with `records`, in milliseconds since 1970.
fn ended_ms(records: &[Record]) -> Option<u64> {
    let is_request = |record: &Record| matches!(record.event, Event::Queued { .. });
    let last = records.last().filter(|record| record.event.is_last())?;
    records.first().is_some_and(is_request).then_some(last.time_ms)
}

impl Shared {
    /// Removes ended jobs as `retention` says at `now_ms`, and returns those whose removal was begun. A failed removal is
    /// logged; the next call repeats it.
    pub(super) fn prune(&self, retention: Retention, now_ms: u64) -> Vec<Pruned> {
        let jobs: Vec<_> = self.table().jobs.values().cloned().collect();
        let candidate = |job: &Arc<super::Job>| {
            let ended_ms = job.snapshot().ended_ms;
            Candidate { id: job.id.clone(), ended_ms, bytes: job.bytes() }
        };
        let chosen = choose(jobs.iter().map(candidate).collect(), retention, now_ms);
        let remove = |pruned: &Pruned| {
            if self.table().closed {
                return false;
            }
            match self.delete(&pruned.id) {
                Ok(()) => observe::pruned(&self.timings, pruned),
                // A client has deleted it meanwhile.
                Err(error) if error.kind() == crate::error::Kind::NotFound => {}
                Err(error) => tracing::error!("job {}: not pruned: {}", pruned.id, error.report()),
            }
            true
        };
        chosen.into_iter().take_while(remove).collect()
    }

    /// Removes ended jobs as the settings say: now, when a job is created or ends, and each minute, until the queue is closed.
    pub(super) fn prune_all(&self) {
        loop {
            self.prune(self.settings.retention, to_ms(SystemTime::now()));
            let again = Instant::now() + EVERY;
            let mut table = self.table();
            while !table.closed && !std::mem::take(&mut table.prune_due) {
                let left = again.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                table = self.wait(table, left);
            }
            if table.closed {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Random;

    /// The rule, checked on random jobs: only ended jobs, those that ended first; each has its reason; none too few or too
    /// many.
    #[test]
    fn the_oldest_ended_jobs_are_removed_and_no_more_than_needed() {
        let mut random = Random::new(21);
        for _ in 0..2000 {
            let mut below = |limit: u64| random.bits() % limit;
            let now_ms = 1000;
            let jobs: Vec<_> = (0..below(12))
                .map(|id| Candidate {
                    id: id.to_string(),
                    ended_ms: (below(3) > 0).then(|| below(1000)),
                    bytes: below(100),
                })
                .collect();
            let older_than = (below(2) == 0).then(|| Duration::from_millis(below(1000)));
            let keep_bytes = (below(2) == 0).then(|| below(600));
            let retention = Retention { older_than, keep_bytes };
            let chosen = choose(jobs.clone(), retention, now_ms);

            let end = |id: &str| jobs.iter().find(|job| job.id == id).unwrap().ended_ms;
            let removed: Vec<_> = chosen.iter().map(|job| end(&job.id).unwrap()).collect();
            assert!(removed.is_sorted(), "{chosen:?}");
            let gone = |job: &&Candidate| chosen.iter().any(|pruned| pruned.id == job.id);
            let kept: Vec<_> = jobs.iter().filter(|job| !gone(job)).collect();
            let oldest_kept = kept.iter().filter_map(|job| job.ended_ms).min();
            assert!(oldest_kept.is_none_or(|kept| removed.iter().all(|&gone| gone <= kept)));
            let too_old = |ended: u64| {
                older_than.is_some_and(|limit| Duration::from_millis(now_ms - ended) > limit)
            };
            assert!(oldest_kept.is_none_or(|ended| !too_old(ended)));
            let bytes: u64 = kept.iter().map(|job| job.bytes).sum();
            assert!(oldest_kept.is_none() || keep_bytes.is_none_or(|limit| bytes <= limit));
            // Without its last removal the jobs would not be within the limits.
            if let Some(last) = chosen.last() {
                let beyond = keep_bytes.is_some_and(|limit| bytes + last.bytes > limit);
                let old = too_old(end(&last.id).unwrap());
                assert!(if last.reason == PruneReason::Age { old } else { beyond && !old });
            }
        }
    }
}
