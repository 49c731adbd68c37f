//! The command line: one file per subcommand.
//!
//! Results go to standard output, progress and errors to standard error; with `--json`, standard output carries one
//! JSON event per line and nothing else. Exit codes: 0 success, 2 invalid input, 130 interrupted, 1 other errors.

mod args;
mod devices;
mod edit;
#[cfg(feature = "service")]
mod fetch;
mod generate;
mod inspect;
mod install;
#[cfg(feature = "service")]
mod jobs;
mod latents;
#[cfg(feature = "service")]
mod memory;
mod output;
mod progress;
#[cfg(feature = "service")]
mod prune;
#[cfg(feature = "service")]
mod quantity;
mod reconstruct;
#[cfg(feature = "service")]
mod serve;
#[cfg(feature = "service")]
mod server;
#[cfg(feature = "service")]
mod service;
mod signals;
#[cfg(feature = "service")]
mod submit;
mod text;
#[cfg(feature = "service")]
mod watch;

use std::process::ExitCode;

use clap::{
    CommandFactory as _, Parser, Subcommand,
    error::{ContextKind, ContextValue},
};
#[cfg(feature = "service")]
use tokio_util::sync::CancellationToken;

use crate::{
    config::{self, Config},
    engine::Cancel,
    error::{Kind, Result},
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
    Completions(install::CompletionsArgs),
    Manual(install::ManualArgs),
    #[cfg(feature = "service")]
    #[command(flatten)]
    Service(service::Command),
}

impl Command {
    /// True if errors are printed as JSON too.
    fn json(&self) -> bool {
        match self {
            Self::Generate(args) => args.progress.json,
            Self::Edit(args) => args.progress.json,
            Self::Reconstruct(args) => args.progress.json,
            Self::Encode(args) => args.progress.json,
            Self::Decode(args) => args.progress.json,
            Self::Inspect(args) => args.progress.json,
            Self::Devices(args) => args.progress.json,
            Self::Completions(_) | Self::Manual(_) => false,
            #[cfg(feature = "service")]
            Self::Service(command) => command.progress().json,
        }
    }

    /// Form of the log.
    fn log_style(&self) -> telemetry::Style {
        match self {
            #[cfg(feature = "service")]
            Self::Service(command) => command.log_style(),
            _ => telemetry::Style::Command,
        }
    }

    /// URL of the collector of traces.
    fn collector(&self) -> Option<&str> {
        match self {
            #[cfg(feature = "service")]
            Self::Service(command) => command.collector(),
            _ => None,
        }
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        let variable = variable_of(&error);
        if let Some(variable) = variable {
            eprintln!("note: the value is that of the environment variable {variable}");
        }
        error.exit()
    });
    let mut progress = Progress::new(cli.command.json());
    match run(&cli.command, &mut progress).and_then(|()| progress.finish()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress.failed(&error);
            exit_code(error.kind())
        }
    }
}

fn run(command: &Command, progress: &mut Progress) -> Result<()> {
    let config = Config::from_env()?;
    let _traces =
        telemetry::start(command.log_style(), config.log.as_deref(), command.collector())?;
    let cancel = Cancel::default();
    #[cfg(feature = "service")]
    let token = CancellationToken::new();
    let on_signal = {
        let cancel = cancel.clone();
        #[cfg(feature = "service")]
        let token = token.clone();
        move || {
            cancel.cancel();
            #[cfg(feature = "service")]
            token.cancel();
        }
    };
    signals::handle(on_signal)?;
    match command {
        Command::Generate(args) => generate::run(args, &config, progress, &cancel),
        Command::Edit(args) => edit::run(args, &config, progress, &cancel),
        Command::Reconstruct(args) => reconstruct::run(args, &config, progress, &cancel),
        Command::Encode(args) => latents::encode(args, &config, progress, &cancel),
        Command::Decode(args) => latents::decode(args, &config, progress, &cancel),
        Command::Inspect(args) => inspect::run(args, progress),
        Command::Devices(args) => devices::run(args, progress),
        Command::Completions(args) => install::completions(args, progress),
        Command::Manual(args) => install::manual(args, progress),
        #[cfg(feature = "service")]
        Command::Service(command) => command.run(&config, progress, &token),
    }
}

/// The environment variable whose value `error` rejects; `None` if the value is that of a flag.
fn variable_of(error: &clap::Error) -> Option<String> {
    let ContextValue::String(rejected) = error.get(ContextKind::InvalidArg)? else { return None };
    let words: Vec<_> = config::arguments();
    let mut command = Cli::command();
    command.build();
    let subcommand = words.iter().find_map(|word| command.find_subcommand(word))?;
    let arg = subcommand.get_arguments().find(|arg| arg.to_string() == *rejected)?;
    let flag = format!("--{}", arg.get_long()?);
    let given = words.iter().any(|word| word.split('=').next() == Some(&flag));
    let variable = arg.get_env()?.to_str()?.to_owned();
    (!given).then_some(variable)
}

/// The exit code of an error.
fn exit_code(kind: Kind) -> ExitCode {
    ExitCode::from(match kind {
        Kind::InvalidArgument | Kind::InvalidModel | Kind::InvalidImage => 2,
        Kind::Cancelled => 130,
        _ => 1,
    })
}
