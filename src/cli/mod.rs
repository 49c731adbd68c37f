//! The command line: one file per subcommand, one for progress.
//!
//! Results go to standard output, progress and errors to standard error; with `--json`, standard output carries one
//! JSON event per line and nothing else. Exit codes: 0 done, 2 bad input, 130 interrupted, 1 anything else.

mod args;
mod devices;
mod edit;
mod fetch;
mod generate;
mod inspect;
mod jobs;
mod latents;
mod output;
mod progress;
mod reconstruct;
mod serve;
mod server;
mod submit;
mod text;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{
    config::Config,
    engine::Cancel,
    error::{Error, Kind, Result},
    telemetry,
};
use progress::Progress;

/// Ultra-high-resolution image synthesis with a pyramid of latents.
#[derive(Debug, Parser)]
#[command(name = "tessera", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Generate(generate::Args),
    Edit(edit::Args),
    Reconstruct(reconstruct::Args),
    Encode(latents::EncodeArgs),
    Decode(latents::DecodeArgs),
    Inspect(inspect::Args),
    Devices(devices::Args),
    Serve(Box<serve::Args>),
    Submit(submit::Args),
    Watch(watch::Args),
    Fetch(fetch::Args),
    Jobs(jobs::ListArgs),
    Cancel(jobs::CancelArgs),
    Delete(jobs::DeleteArgs),
}

impl Command {
    /// Whether errors too are wanted as JSON.
    fn json(&self) -> bool {
        match self {
            Self::Generate(args) => args.progress.json,
            Self::Edit(args) => args.progress.json,
            Self::Reconstruct(args) => args.progress.json,
            Self::Encode(args) => args.progress.json,
            Self::Decode(args) => args.progress.json,
            Self::Inspect(args) => args.progress.json,
            Self::Devices(args) => args.progress.json,
            Self::Serve(args) => args.progress.json,
            Self::Submit(args) => args.progress.json,
            Self::Watch(args) => args.progress.json,
            Self::Fetch(args) => args.progress.json,
            Self::Jobs(args) => args.progress.json,
            Self::Cancel(args) => args.progress.json,
            Self::Delete(args) => args.progress.json,
        }
    }
}

impl Command {
    /// Where spans go.
    fn collector(&self) -> Option<&str> {
        match self {
            Self::Serve(args) => args.otlp_endpoint.as_deref(),
            _ => None,
        }
    }
}

/// Carries out the command line of this process and says how it went.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut progress = Progress::new(cli.command.json());
    match run(&cli.command, &mut progress) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress.failed(&error);
            exit_code(error.kind())
        }
    }
}

fn run(command: &Command, progress: &mut Progress) -> Result<()> {
    let config = Config::from_env()?;
    let _traces = telemetry::start(config.log.as_deref(), command.collector())?;
    let cancel = Cancel::default();
    let raised = cancel.clone();
    ctrlc::set_handler(move || raised.cancel())
        .map_err(|e| Error::internal("installing a signal handler").with_source(e))?;
    match command {
        Command::Generate(args) => generate::run(args, &config, progress, &cancel),
        Command::Edit(args) => edit::run(args, &config, progress, &cancel),
        Command::Reconstruct(args) => reconstruct::run(args, &config, progress, &cancel),
        Command::Encode(args) => latents::encode(args, &config, progress, &cancel),
        Command::Decode(args) => latents::decode(args, &config, progress, &cancel),
        Command::Inspect(args) => inspect::run(args, &config, progress),
        Command::Devices(args) => devices::run(args, progress),
        Command::Serve(args) => serve::run(args, &config, progress, &cancel),
        Command::Submit(args) => submit::run(args, &config, progress, &cancel),
        Command::Watch(args) => watch::run(args, &config, progress, &cancel),
        Command::Fetch(args) => fetch::run(args, &config, progress, &cancel),
        Command::Jobs(args) => jobs::list(args, &config, progress, &cancel),
        Command::Cancel(args) => jobs::cancel(args, &config, progress, &cancel),
        Command::Delete(args) => jobs::delete(args, &config, progress, &cancel),
    }
}

/// The exit code of a failure.
fn exit_code(kind: Kind) -> ExitCode {
    ExitCode::from(match kind {
        Kind::InvalidArgument | Kind::InvalidModel | Kind::InvalidImage => 2,
        Kind::Cancelled => 130,
        _ => 1,
    })
}
