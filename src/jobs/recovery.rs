//! Reconstructs the jobs of a directory from their journals.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use crate::{
    engine::plan::Spec,
    error::{Error, Expected, Kind, Result},
    jobs::{
        Job, Models,
        files::{self, JobDirectory, UNFINISHED},
        quote::quote,
        record::{Event, Record},
        upload,
    },
    store::{Disk, disk::Entry},
};

/// Upper bound of `latent_values` in a journal, far above that of the largest picture.
const MAX_LATENT_VALUES: u64 = 1 << 40;

/// A directory of a job that can't be read. It is left as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedJob {
    /// Name of the directory: the id of the job.
    pub id: String,
    /// What can't be read.
    pub reason: String,
}

/// The jobs of a directory by id, and those that can't be read.
pub(super) type Found = (BTreeMap<String, Arc<Job>>, Vec<DamagedJob>);

/// Reads the jobs of a directory. Leftovers of interrupted creations, removals and writes are deleted; jobs that can't be
/// read are logged and left alone.
pub(super) fn read_jobs(disk: &Arc<dyn Disk>, root: &Path, models: &Models) -> Result<Found> {
    let (mut jobs, mut damaged) = (BTreeMap::new(), Vec::new());
    sweep(disk, root)?;
    for name in directories(disk, root)? {
        let directory = JobDirectory::new(disk.clone(), root, &name);
        match read_job(directory.clone(), &name, models) {
            Ok(job) => {
                jobs.insert(name, Arc::new(job));
            }
            Err(error) => {
                let path = directory.path().display();
                tracing::error!("{path} can't be read and is left as it is: {}", error.report());
                let reason = match error.kind() {
                    Kind::Io => "a file of the job can't be read".to_owned(),
                    _ => error.to_string(),
                };
                damaged.push(DamagedJob { id: name, reason });
            }
        }
    }
    Ok((jobs, damaged))
}

/// Deletes what interrupted creations, removals and uploads have left in a directory of jobs.
pub(super) fn sweep(disk: &Arc<dyn Disk>, root: &Path) -> Result<()> {
    // Changes of a process that was killed may be in the system's memory only.
    disk.sync_directory(root).map_err(|e| Error::io("sync", root, e))?;
    for Entry { name, is_directory } in list(disk, root)? {
        let leftover = match is_directory {
            true => files::is_unfinished(&name),
            false => upload::is_name(&name),
        };
        if leftover {
            let path = root.join(&name);
            disk.remove(&path).map_err(|e| Error::io("remove", path, e))?;
        }
    }
    Ok(())
}

/// Names of the directories of jobs below `root`: the ids of the jobs.
pub(super) fn directories(disk: &Arc<dyn Disk>, root: &Path) -> Result<Vec<String>> {
    let is_job = |entry: &Entry| entry.is_directory && !entry.name.starts_with(UNFINISHED);
    Ok(list(disk, root)?.into_iter().filter(is_job).map(|entry| entry.name).collect())
}

fn list(disk: &Arc<dyn Disk>, root: &Path) -> Result<Vec<Entry>> {
    disk.list(root).map_err(|e| Error::io("read", root, e))
}

fn read_job(directory: JobDirectory, id: &str, models: &Models) -> Result<Job> {
    let (_, records) = directory.open_journal()?;
    let job = recover(directory, id, records, models)?;
    if let Err(error) = job.directory.sweep() {
        tracing::warn!("job {id}: {}", error.report());
    }
    job.restore_viewport();
    if !job.snapshot().phase.is_last() && job.request.model_sha256 != job.model.sha256 {
        let message = "its model is not among the server's any more".to_owned();
        job.publish(vec![Event::Failed { kind: Kind::InvalidModel, message }])?;
    }
    Ok(job)
}

/// Reconstructs the job `id` from its records, without reading files. If its model is no longer available, the first model
/// is used instead.
///
/// # Errors
/// [`Kind::InvalidArgument`] if the first record is not a valid request.
pub fn recover(
    directory: JobDirectory,
    id: &str,
    records: Vec<Record>,
    models: &Models,
) -> Result<Job> {
    let Some(Record { event: Event::Queued { request, compute_us, latent_values }, .. }) =
        records.first()
    else {
        return Err(Error::invalid("journal", "incomplete", "a Queued record first"));
    };
    if *latent_values > MAX_LATENT_VALUES {
        let limit = Expected::at_most(MAX_LATENT_VALUES);
        return Err(Error::invalid("latent_values", latent_values, limit));
    }
    let (request, compute_time) = (request.clone(), Duration::from_micros(*compute_us));
    let model = models.of(&request.model_sha256).unwrap_or(models.first()).clone();
    let plan = super::plan(Spec::try_from(&request.spec)?, &model.arch)?;
    let quote = quote(&plan, compute_time);
    Ok(Job::new(id, model, request, plan, quote, directory, records))
}
