//! Progress output: bars on a terminal, lines elsewhere, or JSON events.

use std::{
    io::{IsTerminal as _, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::text;
use crate::{
    engine::{Event, Observer},
    error::{Error, Result},
};

/// Output format of progress.
#[derive(Debug, Args)]
pub(super) struct ProgressArgs {
    /// One JSON event per line on standard output
    #[arg(long)]
    pub(super) json: bool,
}

enum Show {
    /// A progress bar on a terminal.
    Bars,
    /// A line at the end of each stage.
    Lines,
    /// JSON events on standard output only.
    Json,
}

/// A stage of the work, such as denoising.
struct Phase {
    name: &'static str,
    started: Instant,
    bar: Option<ProgressBar>,
}

/// Writes a line to standard error; failures are ignored.
fn print_error(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", visible(line));
}

/// `text` without control characters but line breaks: names in files must not command a terminal.
fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{FFFD}' } else { c }).collect()
}

/// A path in an event; bytes that are not UTF-8 become U+FFFD.
pub(super) fn path_text<S: serde::Serializer>(path: &&Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&path.to_string_lossy())
}

/// Progress of one command.
pub(super) struct Progress {
    show: Show,
    sequence: u64,
    phase: Option<Phase>,
    /// Why events were lost.
    lost: Option<Error>,
}

#[derive(Serialize)]
struct Line<'a, T: Serialize> {
    sequence: u64,
    #[serde(flatten)]
    event: &'a T,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "failed")]
struct Failed {
    kind: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_seconds: Option<f64>,
    /// The fields of [`Error::detail`].
    #[serde(flatten)]
    fields: serde_json::Map<String, serde_json::Value>,
}

impl Progress {
    /// Progress of a command, as JSON events if `json`.
    pub(super) fn new(json: bool) -> Self {
        let show = match () {
            () if json => Show::Json,
            () if std::io::stderr().is_terminal() => Show::Bars,
            () => Show::Lines,
        };
        Self { show, sequence: 0, phase: None, lost: None }
    }

    /// True if the output is JSON events.
    pub(super) fn is_json(&self) -> bool {
        matches!(self.show, Show::Json)
    }

    /// Writes `event` as a line of JSON if the output is JSON.
    pub(super) fn json(&mut self, event: &impl Serialize) {
        if !self.is_json() {
            return;
        }
        self.sequence += 1;
        let written = serde_json::to_string(&Line { sequence: self.sequence, event })
            .map_err(std::io::Error::from)
            .and_then(|line| {
                let mut out = std::io::stdout().lock();
                writeln!(out, "{line}").and_then(|()| out.flush())
            });
        match written {
            // A closed pipe does not end the work: its result is the file.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                self.lost.get_or_insert(Error::io("write to", "standard output", error));
            }
            _ => {}
        }
    }

    /// The end of a command that went well.
    ///
    /// # Errors
    /// When events could not be written.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.lost.take().map_or(Ok(()), Err)
    }

    /// Writes a line for people.
    pub(super) fn line(&self, line: &str) {
        match self.phase.as_ref().and_then(|phase| phase.bar.as_ref()) {
            Some(bar) => bar.println(visible(line)),
            None if self.is_json() => {}
            None => print_error(line),
        }
    }

    /// Writes a result for people to standard output.
    pub(super) fn result(&self, text: &str) -> Result<()> {
        if self.is_json() {
            return Ok(());
        }
        self.raw(visible(text).as_bytes()).map(drop)
    }

    /// Writes bytes to standard output as they are. False: its reader has closed it, which is no error.
    pub(super) fn raw(&self, bytes: &[u8]) -> Result<bool> {
        let mut out = std::io::stdout().lock();
        match out.write_all(bytes).and_then(|()| out.flush()) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
            Err(e) => Err(Error::io("write to", "standard output", e)),
        }
    }

    /// Ends the current stage and starts one of `of` units, or without units.
    fn enter(&mut self, name: &'static str, of: Option<usize>) {
        self.leave();
        let bar = matches!(self.show, Show::Bars).then(|| {
            let bar = match of {
                Some(of) => {
                    ProgressBar::new(of as u64).with_style(style(BAR).progress_chars("━━─"))
                }
                None => ProgressBar::new_spinner().with_style(style(SPINNER).tick_strings(&TICKS)),
            };
            bar.set_prefix(name);
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        self.phase = Some(Phase { name, started: Instant::now(), bar });
    }

    /// Starts a stage without units.
    pub(super) fn stage(&mut self, name: &'static str) {
        self.enter(name, None);
    }

    /// Ends the current stage.
    pub(super) fn leave(&mut self) {
        let Some(phase) = self.phase.take() else { return };
        match phase.bar {
            Some(bar) => bar.finish_with_message(""),
            None => {
                let took = text::seconds(phase.started.elapsed());
                self.line(&format!("  {:<8} {took}", phase.name));
            }
        }
    }

    /// Reports the error of the command.
    pub(super) fn failed(&mut self, error: &Error) {
        // The bar stays at its position.
        if let Some(bar) = self.phase.take().and_then(|phase| phase.bar) {
            bar.abandon();
        }
        let message = error.report().to_string();
        let retry_after_seconds = error.retry_after().map(|delay| delay.as_secs_f64());
        let hint = retry_after_seconds.map(|seconds| format!(" (try again in {seconds} s)"));
        print_error(&format!("tessera: {message}{}", hint.unwrap_or_default()));
        let (kind, fields) = (error.kind().name(), error.detail().fields());
        self.json(&Failed { kind, message, retry_after_seconds, fields });
    }

    /// Sets the position of the current bar.
    fn advance(&mut self, to: usize) {
        if let Some(bar) = self.phase.as_ref().and_then(|phase| phase.bar.as_ref()) {
            bar.set_position(to as u64);
            bar.set_message(format!("{} left", text::seconds(bar.eta())));
        }
    }
}

impl Observer for Progress {
    fn event(&mut self, event: Event) {
        self.json(&event);
        match event {
            Event::Notice { message } => self.line(&format!("  note     {message}")),
            Event::Denoising { of } => self.enter("denoise", Some(of)),
            Event::Step { step, .. } => self.advance(step),
            Event::Settled { .. } => {}
            Event::Decoding { of } => self.enter("decode", Some(of)),
            Event::Tile { tile, .. } => self.advance(tile),
        }
    }
}

const BAR: &str =
    "  {prefix:<8} {bar:32.cyan/dim} {pos:>4} of {len:<4} {elapsed:>5.dim}  {msg:.dim}";
const SPINNER: &str = "  {prefix:<8} {elapsed:.dim} {spinner:.cyan}";
const TICKS: [&str; 7] = ["⠋", "⠙", "⠸", "⠴", "⠦", "⠇", " "];

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
