//! The commands that start the service or call one.

use clap::Subcommand;
use tokio_util::sync::CancellationToken;

use super::{
    fetch, jobs,
    progress::{Progress, ProgressArgs},
    prune, serve, submit, watch,
};
use crate::{config::Config, error::Result, telemetry};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Serve(Box<serve::Args>),
    Submit(submit::Args),
    Watch(watch::Args),
    Fetch(fetch::Args),
    Jobs(jobs::ListArgs),
    Cancel(jobs::CancelArgs),
    Delete(jobs::DeleteArgs),
    Prune(prune::Args),
}

impl Command {
    /// Output format of progress.
    pub(super) fn progress(&self) -> &ProgressArgs {
        match self {
            Self::Serve(args) => &args.progress,
            Self::Submit(args) => &args.progress,
            Self::Watch(args) => &args.progress,
            Self::Fetch(args) => &args.progress,
            Self::Jobs(args) => &args.progress,
            Self::Cancel(args) => &args.progress,
            Self::Delete(args) => &args.progress,
            Self::Prune(args) => &args.progress,
        }
    }

    /// Form of the log.
    pub(super) fn log_style(&self) -> telemetry::Style {
        match self {
            Self::Serve(args) => telemetry::Style::Service(args.log_format),
            _ => telemetry::Style::Command,
        }
    }

    /// URL of the collector of traces.
    pub(super) fn collector(&self) -> Option<&str> {
        match self {
            Self::Serve(args) => args.otlp_endpoint.as_deref(),
            _ => None,
        }
    }

    pub(super) fn run(
        &self,
        config: &Config,
        progress: &mut Progress,
        cancel: &CancellationToken,
    ) -> Result<()> {
        match self {
            Self::Serve(args) => serve::run(args, config, progress, cancel),
            Self::Submit(args) => submit::run(args, progress, cancel),
            Self::Watch(args) => watch::run(args, progress, cancel),
            Self::Fetch(args) => fetch::run(args, config, progress, cancel),
            Self::Jobs(args) => jobs::list(args, progress, cancel),
            Self::Cancel(args) => jobs::cancel(args, progress, cancel),
            Self::Delete(args) => jobs::delete(args, progress, cancel),
            Self::Prune(args) => prune::run(args, progress, cancel),
        }
    }
}
