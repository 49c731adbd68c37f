//! `tessera prune`: removes the ended jobs of a folder that no server uses.

use std::{path::PathBuf, time::Duration};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    progress::{Progress, ProgressArgs},
    quantity, text,
};
use crate::{
    client::{full_name, sanitize},
    error::{Error, Result},
    jobs::{self, Pruned, Retention},
};

/// Remove ended jobs, oldest first, from a folder that no server uses at this time
///
/// Jobs that are queued or running are kept. A running server removes jobs by itself with the options
/// --prune-older-than and --keep-bytes of "serve".
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("limit").required(true).multiple(true))]
pub(super) struct Args {
    /// Directory of the jobs
    #[arg(long, value_name = "DIR", default_value = "tessera-jobs")]
    jobs: PathBuf,
    /// Remove jobs that ended longer ago, in s, m, h, d or w: 30d
    #[arg(long, value_name = "TIME", value_parser = quantity::duration, group = "limit")]
    older_than: Option<Duration>,
    /// Then remove the oldest until all jobs have at most this many bytes, with K, M, G, T or Ki, Mi, Gi, Ti: 50G
    #[arg(long, value_name = "SIZE", value_parser = quantity::bytes, group = "limit")]
    keep_bytes: Option<u64>,
    /// Print what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(super) progress: ProgressArgs,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event<'a> {
    Pruned {
        job: &'a str,
        reason: &'static str,
        /// Seconds since its end.
        age: u64,
        bytes: u64,
        dry_run: bool,
    },
    Finished {
        removed: usize,
        removed_bytes: u64,
        kept: usize,
        kept_bytes: u64,
        dry_run: bool,
    },
}

pub(super) fn run(args: &Args, progress: &mut Progress, cancel: &CancellationToken) -> Result<()> {
    let Args { older_than, keep_bytes, dry_run, .. } = *args;
    let retention = Retention { older_than, keep_bytes };
    let (mut removed, mut removed_bytes) = (0, 0);
    let kept = jobs::prune(&args.jobs, retention, dry_run, &mut |pruned: Pruned| {
        let Pruned { id, age, bytes, reason } = pruned;
        let job = full_name(&id);
        (removed, removed_bytes) = (removed + 1, removed_bytes + bytes);
        let (reason, seconds) = (reason.name(), age.as_secs());
        progress.json(&Event::Pruned { job: &job, reason, age: seconds, bytes, dry_run });
        let (age, size) = (text::age(age), text::bytes(bytes));
        progress.result(&format!("{}  ended {age} ago  {size}\n", sanitize(&job)))?;
        match cancel.is_cancelled() {
            true => Err(Error::cancelled("removing jobs")),
            false => Ok(()),
        }
    })?;
    let jobs::Kept { jobs: kept, bytes: kept_bytes } = kept;
    progress.json(&Event::Finished { removed, removed_bytes, kept, kept_bytes, dry_run });
    let verb = if dry_run { "would remove" } else { "removed" };
    progress.result(&format!(
        "{verb} {removed} {}, {}; {kept} {}, {} left\n",
        text::jobs(removed),
        text::bytes(removed_bytes),
        text::jobs(kept),
        text::bytes(kept_bytes),
    ))
}
