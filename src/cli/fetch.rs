//! `tessera fetch`: writes a server's picture to a file while its tiles arrive.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    output::{self, FileArgs, Output},
    progress::{Progress, ProgressArgs, path_text},
    server::{EventPrinter, RetryArgs, ServerArgs},
    text,
};
use crate::{
    client::{self, FetchOptions, sanitize},
    config::Config,
    error::Result,
};

/// Write a job's picture to a file, waiting for its end if necessary
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name of the job, as printed by "submit"
    #[arg(value_name = "JOB")]
    job: String,
    /// Picture to write, .tiff or .png; - for standard output
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    form: FileArgs,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    retry: RetryArgs,
    #[command(flatten)]
    pub(super) progress: ProgressArgs,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "fetched")]
struct Fetched<'a> {
    job: &'a str,
    #[serde(serialize_with = "path_text")]
    out: &'a Path,
    bytes: u64,
    seconds: f64,
}

pub(super) fn run(
    args: &Args,
    config: &Config,
    progress: &mut Progress,
    cancel: &CancellationToken,
) -> Result<()> {
    let began = Instant::now();
    let out = Output::new(&args.out, &args.form, [], progress)?;
    let name = client::full_name(&args.job);
    let job = client::run(cancel, async {
        let client = args.server.connect_lazy(args.retry.retry())?;
        let job = client.get(&name).await?;
        let mut printer = EventPrinter::new(&job, progress);
        let mut show = |event: &crate::api::JobEvent| printer.show(event, progress);
        let options = FetchOptions { created: config.created, tiff: out.tiff() };
        client.fetch(&name, out.path(), options, &mut show).await?;
        Ok(job)
    })?;
    progress.leave();
    let bytes = output::length(out.path())?;
    let took = began.elapsed();
    let seconds = took.as_secs_f64();
    progress.json(&Fetched { job: &name, out: out.name(), bytes, seconds });
    let spec = job.spec.unwrap_or_default();
    let line = format!(
        "{}  {}  {} x {}  {} bit  {}  {}",
        out.name().display(),
        sanitize(&name),
        spec.width,
        spec.height,
        spec.bits,
        text::bytes(bytes),
        text::seconds(took)
    );
    out.finish(progress, &line)
}
