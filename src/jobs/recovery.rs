//! The jobs that a directory holds, as their journals tell them.

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

/// Most values of a picture's latents that a journal may tell of: far more than the largest picture has.
const MAX_LATENT_VALUES: u64 = 1 << 40;

/// The jobs of a directory. What is left of those that were being made or removed goes away; what can't be read is
/// reported and left alone.
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
    if !job.snapshot().phase.is_last() && job.order.model_sha256 != job.model.sha256 {
        let message = "its model is not among the server's any more".to_owned();
        job.announce(vec![Event::Failed { kind: Kind::InvalidModel, message }])?;
    }
    Ok(job)
}

/// The job `id` as the records of its journal tell it; no file is looked at. Where its model is not there any more, the first
/// one stands for it.
///
/// # Errors
/// [`Kind::InvalidArgument`] when the first record is no order that the model can carry out.
pub fn recover(
    directory: JobDirectory,
    id: &str,
    records: Vec<Record>,
    models: &Models,
) -> Result<Job> {
    let Some(Record { event: Event::Queued { order, compute_us, latent_values }, .. }) =
        records.first()
    else {
        return Err(Error::invalid("journal", "incomplete", "a Queued record first"));
    };
    if *latent_values > MAX_LATENT_VALUES {
        let limit = Expected::at_most(MAX_LATENT_VALUES);
        return Err(Error::invalid("latent_values", latent_values, limit));
    }
    let (order, compute_time) = (order.clone(), Duration::from_micros(*compute_us));
    let model = models.of(&order.model_sha256).unwrap_or(models.first()).clone();
    let plan = Plan::new(Spec::try_from(&order.spec)?, &model.arch)?;
    let quote = quote(&plan, compute_time);
    Ok(Job::new(id, model, order, plan, quote, directory, records))
}
