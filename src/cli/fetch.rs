//! `tessera fetch`: a server's picture as a file, written while its tiles arrive.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use serde::Serialize;

use super::{
    output,
    progress::{Progress, ProgressArgs},
    server::{Follow, PatienceArgs, ServerArgs},
    text,
};
use crate::{
    client::{self, plain},
    config::Config,
    engine::Cancel,
    error::Result,
};

/// Write a server's picture to a file, while it is being made or after
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name of the job, as "submit" prints it
    #[arg(value_name = "JOB")]
    job: String,
    /// Picture to write, .tiff or .png
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    patience: PatienceArgs,
    #[command(flatten)]
    pub(super) progress: ProgressArgs,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "fetched")]
struct Fetched<'a> {
    job: &'a str,
    out: &'a Path,
    bytes: u64,
    seconds: f64,
}

pub(super) fn run(
    args: &Args,
    config: &Config,
    progress: &mut Progress,
    cancel: &Cancel,
) -> Result<()> {
    let began = Instant::now();
    output::check(&args.out)?;
    let name = client::full_name(&args.job);
    let job = client::run(cancel, async {
        let client = args.server.connect_with(config, args.patience.retry()).await?;
        let job = client.get(&name).await?;
        let mut follow = Follow::new(&job, progress);
        let mut show = |event: &crate::api::JobEvent| follow.show(event, progress);
        client.fetch(&name, &args.out, config.created, &mut show).await?;
        Ok(job)
    })?;
    progress.leave();
    let bytes = output::length(&args.out)?;
    let took = began.elapsed();
    let seconds = took.as_secs_f64();
    progress.json(&Fetched { job: &name, out: &args.out, bytes, seconds });
    let spec = job.spec.unwrap_or_default();
    progress.result(&format!(
        "{}  {}  {} x {}  {} bit  {}  {}\n",
        args.out.display(),
        plain(&name),
        spec.width,
        spec.height,
        spec.bits,
        text::bytes(bytes),
        text::seconds(took)
    ))
}
