//! Reconstructs the jobs of a directory from their journals.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use crate::{
    engine::plan::{Plan, Spec},
    error::{Error, Expected, Kind, Result},
    jobs::{
        Job, Models,
        files::{JobDirectory, UNFINISHED},
        quote::quote,
        record::{Event, Record},
        upload,
    },
};

/// Upper bound of `latent_values` in a journal, far above that of the largest picture.
const MAX_LATENT_VALUES: u64 = 1 << 40;

/// Reads the jobs of a directory. Leftovers of interrupted creations and removals are deleted; unreadable jobs are logged and
/// skipped.
pub(super) fn read_jobs(directory: &Path, models: &Models) -> Result<BTreeMap<String, Arc<Job>>> {
    let failed = |e| Error::io("read", directory, e);
    let mut jobs = BTreeMap::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_directory = entry.file_type().map_err(failed)?.is_dir();
        let leftover = match is_directory {
            true => name.starts_with(UNFINISHED),
            false => upload::is_name(&name),
        };
        if leftover {
            let path = entry.path();
            let removed = if is_directory {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
            removed.map_err(|e| Error::io("remove", path, e))?;
        }
        if leftover || !is_directory {
            continue;
        }
        match read_job(directory, &name, models) {
            Ok(job) => {
                jobs.insert(name, Arc::new(job));
            }
            Err(error) => tracing::error!("skipping unreadable job {name}: {}", error.report()),
        }
    }
    Ok(jobs)
}

fn read_job(root: &Path, id: &str, models: &Models) -> Result<Job> {
    let directory = JobDirectory::new(root, id);
    let (_, records) = directory.open_journal()?;
    let job = recover(directory, id, records, models)?;
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
    let plan = Plan::new(Spec::try_from(&request.spec)?, &model.arch)?;
    let quote = quote(&plan, compute_time);
    Ok(Job::new(id, model, request, plan, quote, directory, records))
}
