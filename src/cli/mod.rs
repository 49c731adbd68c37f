//! The command line: one file per subcommand, one for progress.
//!
//! Results go to standard output, progress and errors to standard error; with `--json`, standard output carries one
//! JSON event per line and nothing else. Exit codes: 0 done, 2 bad input, 130 interrupted, 1 anything else.

mod args;
mod devices;
mod edit;
#[cfg(feature = "service")]
mod fetch;
mod generate;
mod inspect;
#[cfg(feature = "service")]
mod jobs;
mod latents;
mod output;
mod progress;
mod reconstruct;
#[cfg(feature = "service")]
mod serve;
#[cfg(feature = "service")]
mod server;
#[cfg(feature = "service")]
mod service;
#[cfg(feature = "service")]
mod submit;
mod text;
#[cfg(feature = "service")]
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
    #[cfg(feature = "service")]
    #[command(flatten)]
    Service(service::Command),
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
            #[cfg(feature = "service")]
            Self::Service(command) => command.progress().json,
        }
    }

    /// URL of the collector that gets the spans.
    fn collector(&self) -> Option<&str> {
        match self {
            #[cfg(feature = "service")]
            Self::Service(command) => command.collector(),
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
        #[cfg(feature = "service")]
        Command::Service(command) => command.run(&config, progress, &cancel),
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
