//! What is seen of the work while it goes on: bars on a terminal, a few lines elsewhere, JSON where it was asked for.

use std::{
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{kind_name, text};
use crate::{
    engine::{Event, Observer},
    error::{Error, Result},
};

/// How progress is shown.
#[derive(Debug, Args)]
pub(super) struct ProgressArgs {
    /// One JSON event per line on standard output
    #[arg(long)]
    pub(super) json: bool,
}

enum Show {
    Bars(MultiProgress),
    Lines,
    Json,
}

/// A stretch of work of one kind, such as denoising.
struct Phase {
    name: &'static str,
    started: Instant,
    bar: Option<ProgressBar>,
}

/// Progress of one command.
pub(super) struct Progress {
    show: Show,
    sequence: u64,
    phase: Option<Phase>,
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
}

impl Progress {
    /// Progress of a command; `json`: as events on standard output.
    pub(super) fn new(json: bool) -> Self {
        let show = match () {
            () if json => Show::Json,
            () if std::io::stderr().is_terminal() => Show::Bars(MultiProgress::new()),
            () => Show::Lines,
        };
        Self { show, sequence: 0, phase: None }
    }

    /// Whether events go to standard output as JSON.
    pub(super) fn is_json(&self) -> bool {
        matches!(self.show, Show::Json)
    }

    /// Writes `event` as one line of JSON, if that was asked for.
    pub(super) fn json(&mut self, event: &impl Serialize) {
        if !self.is_json() {
            return;
        }
        self.sequence += 1;
        if let Ok(line) = serde_json::to_string(&Line { sequence: self.sequence, event }) {
            // A reader that has gone away doesn't end the work: its result is the file.
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        }
    }

    /// A line for people.
    pub(super) fn say(&self, line: &str) {
        match &self.show {
            Show::Bars(bars) => {
                let _ = bars.println(line);
            }
            Show::Lines => eprintln!("{line}"),
            Show::Json => {}
        }
    }

    /// A result for people, on standard output.
    pub(super) fn result(&self, text: &str) -> Result<()> {
        if self.is_json() {
            return Ok(());
        }
        match std::io::stdout().lock().write_all(text.as_bytes()) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(Error::io("can't write to", "standard output", e))
            }
            _ => Ok(()),
        }
    }

    /// Goes on to a stretch of `of` units; the one before is done.
    fn enter(&mut self, name: &'static str, of: usize) {
        if self.phase.as_ref().is_some_and(|phase| phase.name == name) {
            return;
        }
        self.leave();
        let bar = match &self.show {
            Show::Bars(bars) => {
                let bar = bars.add(ProgressBar::new(of as u64));
                bar.set_style(style());
                bar.set_prefix(name);
                bar.enable_steady_tick(Duration::from_millis(120));
                Some(bar)
            }
            _ => None,
        };
        self.phase = Some(Phase { name, started: Instant::now(), bar });
    }

    /// Ends the stretch of work that is going on.
    pub(super) fn leave(&mut self) {
        let Some(phase) = self.phase.take() else { return };
        match phase.bar {
            Some(bar) => bar.finish_with_message(""),
            None => {
                self.say(&format!("  {:<8} {}", phase.name, text::seconds(phase.started.elapsed())))
            }
        }
    }

    /// A stretch of work without units.
    pub(super) fn busy(&mut self, name: &'static str) {
        self.leave();
        let bar = match &self.show {
            Show::Bars(bars) => {
                let bar = bars.add(ProgressBar::new_spinner());
                bar.set_style(spinner());
                bar.set_prefix(name);
                bar.enable_steady_tick(Duration::from_millis(120));
                Some(bar)
            }
            _ => None,
        };
        self.phase = Some(Phase { name, started: Instant::now(), bar });
    }

    /// Reports the failure of the whole command.
    pub(super) fn failed(&mut self, error: &Error) {
        // The bars stay as far as they came.
        if let Some(bar) = self.phase.take().and_then(|phase| phase.bar) {
            bar.abandon();
        }
        self.json(&Failed { kind: kind_name(error.kind()), message: error.to_string() });
        eprintln!("tessera: {error}");
    }

    /// Moves the bar of the stretch that is going on.
    fn advance(&mut self, to: usize, message: String) {
        if let Some(bar) = self.phase.as_ref().and_then(|phase| phase.bar.as_ref()) {
            bar.set_message(message);
            bar.set_position(to as u64);
        }
    }
}

impl Observer for Progress {
    fn event(&mut self, event: Event) {
        self.json(&event);
        match event {
            Event::Notice { message } => self.say(&format!("  note     {message}")),
            Event::Denoising { of } => self.enter("denoise", of),
            Event::Step { step, sigma, .. } => self.advance(step, format!("sigma {sigma:.3}")),
            Event::Settled { .. } => {}
            Event::Decoding { of } => self.enter("decode", of),
            Event::Tile { tile, .. } => self.advance(tile, String::new()),
        }
    }
}

fn style() -> ProgressStyle {
    let template =
        "  {prefix:<8} {bar:32.cyan/dim} {pos:>4} of {len:<4} {elapsed:>5.dim}  {msg:.dim}";
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━━─")
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("  {prefix:<8} {spinner:.cyan} {elapsed:>5.dim}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .tick_strings(&["⠋", "⠙", "⠸", "⠴", "⠦", "⠇", " "])
}
