//! `tessera jobs`, `tessera cancel`, `tessera delete`: a server's jobs.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    progress::{Progress, ProgressArgs},
    server::ServerArgs,
    text,
};
use crate::{
    api::{DamagedJob, Job, JobState},
    client::{self, sanitize},
    error::Result,
};

/// List a server's jobs, oldest first
#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// List directories of jobs that the server can't read, and has left as they are
    #[arg(long)]
    damaged: bool,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    pub(super) progress: ProgressArgs,
}

/// Cancel a server's job
#[derive(Debug, clap::Args)]
pub(super) struct CancelArgs {
    /// Name of the job, as printed by "submit"
    #[arg(value_name = "JOB")]
    job: String,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    pub(super) progress: ProgressArgs,
}

/// Cancel a server's job if necessary and delete it with its pixels
#[derive(Debug, clap::Args)]
pub(super) struct DeleteArgs {
    /// Name of the job, as printed by "submit"
    #[arg(value_name = "JOB")]
    job: String,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    pub(super) progress: ProgressArgs,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "jobs")]
struct Report<'a> {
    jobs: Vec<Row<'a>>,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "damaged_jobs")]
struct DamagedReport<'a> {
    jobs: Vec<DamagedRow<'a>>,
}

#[derive(Serialize)]
struct DamagedRow<'a> {
    directory: &'a str,
    reason: &'a str,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Done<'a> {
    /// `state` is another one if the job had ended before.
    Cancelled {
        job: &'a str,
        state: String,
    },
    Deleted {
        job: &'a str,
    },
}

#[derive(Serialize)]
struct Row<'a> {
    job: &'a str,
    state: String,
    width: u32,
    height: u32,
    seed: u64,
    steps_done: u32,
    steps: u32,
    tiles_done: u32,
    tiles: u32,
    /// Seconds since its creation.
    age: f64,
    /// Client that created it, on a server with tokens.
    #[serde(skip_serializing_if = "str::is_empty")]
    owner: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
    /// Reason why it does not go on at this time.
    #[serde(skip_serializing_if = "str::is_empty")]
    paused: &'a str,
}

impl<'a> Row<'a> {
    fn new(job: &'a Job, now: SystemTime) -> Self {
        let spec = job.spec.clone().unwrap_or_default();
        let age = client::time(job.create_time.as_ref());
        let age = age.and_then(|created| now.duration_since(created).ok());
        Self {
            job: &job.name,
            state: client::state_name(job.state()),
            width: spec.width,
            height: spec.height,
            seed: spec.seed,
            steps_done: job.steps_done,
            steps: spec.steps,
            tiles_done: job.tiles_done,
            tiles: job.tile_columns.saturating_mul(job.tile_rows),
            age: age.unwrap_or_default().as_secs_f64(),
            owner: &job.owner,
            error: &job.error,
            paused: &job.paused,
        }
    }
}

pub(super) fn list(
    args: &ListArgs,
    progress: &mut Progress,
    cancel: &CancellationToken,
) -> Result<()> {
    if args.damaged {
        let jobs =
            client::run(cancel, async { args.server.connect().await?.list_damaged().await })?;
        let row = |job: &DamagedJob| (sanitize(&job.directory), sanitize(&job.reason));
        let rows: Vec<_> = jobs.iter().map(row).collect();
        let report = rows.iter().map(|(directory, reason)| DamagedRow { directory, reason });
        progress.json(&DamagedReport { jobs: report.collect() });
        let lines = rows.iter().map(|(directory, reason)| format!("{directory}  {reason}\n"));
        return progress.result(&lines.collect::<String>());
    }
    let jobs = client::run(cancel, async { args.server.connect().await?.list().await })?;
    let now = SystemTime::now();
    progress.json(&Report { jobs: jobs.iter().map(|job| Row::new(job, now)).collect() });
    progress.result(&table(&jobs, now))
}

pub(super) fn cancel(
    args: &CancelArgs,
    progress: &mut Progress,
    cancel: &CancellationToken,
) -> Result<()> {
    let work = async { args.server.connect().await?.cancel(&args.job).await };
    let job = client::run(cancel, work)?;
    let state = client::state_name(job.state());
    let line = format!("{}  {state}\n", sanitize(&job.name));
    progress.json(&Done::Cancelled { job: &job.name, state });
    progress.result(&line)
}

pub(super) fn delete(
    args: &DeleteArgs,
    progress: &mut Progress,
    cancel: &CancellationToken,
) -> Result<()> {
    let work = async { args.server.connect().await?.delete(&args.job).await };
    client::run(cancel, work)?;
    let name = client::full_name(&args.job);
    progress.json(&Done::Deleted { job: &name });
    progress.result(&format!("{}  deleted\n", sanitize(&name)))
}

/// The jobs as a table, with their owners if there are any.
fn table(jobs: &[Job], now: SystemTime) -> String {
    let mut rows = vec![
        ["JOB", "STATE", "SIZE", "SEED", "PROGRESS", "AGE", "OWNER", "NOTE"].map(str::to_owned),
    ];
    for job in jobs {
        let row = Row::new(job, now);
        rows.push([
            sanitize(row.job),
            row.state.clone(),
            format!("{} x {}", row.width, row.height),
            row.seed.to_string(),
            progress_of(job.state(), &row),
            text::age(Duration::try_from_secs_f64(row.age).unwrap_or_default()),
            sanitize(row.owner),
            sanitize(if row.paused.is_empty() { row.error } else { row.paused }),
        ]);
    }
    let mut rows: Vec<_> = rows.into_iter().map(Vec::from).collect();
    if jobs.iter().all(|job| job.owner.is_empty()) {
        rows.iter_mut().for_each(|row| drop(row.remove(6)));
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<_> = (0..rows[0].len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a String does not fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn progress_of(state: JobState, row: &Row<'_>) -> String {
    if row.tiles_done > 0 || state == JobState::Decoding {
        format!("tile {} of {}", row.tiles_done, row.tiles)
    } else {
        format!("step {} of {}", row.steps_done, row.steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::JobSpec;

    #[test]
    fn job_table_is_aligned_and_has_no_control_characters() {
        let spec = JobSpec { width: 256, height: 128, seed: 7, steps: 25, ..JobSpec::default() };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100_000);
        let created = Some(client::timestamp(now - Duration::from_secs(200)));
        let denoising = Job {
            name: "jobs/a".into(),
            state: JobState::Denoising.into(),
            spec: Some(spec.clone()),
            steps_done: 3,
            create_time: created,
            ..Job::default()
        };
        let failed = Job {
            name: "jobs/\u{7}b".into(),
            state: JobState::Failed.into(),
            spec: Some(spec),
            tiles_done: 1,
            tile_columns: 2,
            tile_rows: 1,
            error: "no\ndisk".into(),
            ..denoising.clone()
        };
        let owned = Job { owner: "anna".into(), ..denoising.clone() };
        let with_owner = table(&[denoising.clone(), owned], now);
        let lines: Vec<_> = with_owner.lines().collect();
        assert_eq!(
            lines[0],
            "JOB     STATE      SIZE       SEED  PROGRESS      AGE    OWNER  NOTE"
        );
        assert_eq!(lines[2], "jobs/a  denoising  256 x 128  7     step 3 of 25  3 min  anna");
        let table = table(&[denoising, failed], now);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines[0], "JOB      STATE      SIZE       SEED  PROGRESS      AGE    NOTE");
        assert_eq!(lines[1], "jobs/a   denoising  256 x 128  7     step 3 of 25  3 min");
        assert!(lines[2].starts_with("jobs/\u{FFFD}b  failed     256 x 128  7     tile 1 of 2 "));
        assert!(lines[2].ends_with("3 min  no\u{FFFD}disk"), "{}", lines[2]);
    }
}
