//! Connection and output of the client commands.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use serde::Serialize;

use super::progress::Progress;
use crate::{
    api::{
        Job, JobEvent, Tile,
        job_event::{Event, Finished, LevelSettled, Queued, Started, Step},
    },
    client::{self, Client, Retry, Settings, sanitize},
    config::Secret,
    engine::{self, Observer as _},
    error::Result,
    pem::{self, PemFile},
};

/// Address of the server and credentials.
#[derive(Debug, Args)]
pub(super) struct ServerArgs {
    /// Address of the server, with the path under which a proxy offers it, if any
    #[arg(long, value_name = "URL", env = "TESSERA_SERVER", default_value = client::DEFAULT_SERVER)]
    server: String,
    /// Bearer token; flags are visible to other users of this machine, the variable is not
    #[arg(long, value_name = "TOKEN", env = "TESSERA_TOKEN", hide_env_values = true, value_parser = parse_secret)]
    token: Option<Secret>,
    /// Authority of the server's certificate, PEM; the system's authorities if not given
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Certificate of this client, PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Key of the certificate, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

fn parse_secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

impl ServerArgs {
    /// Connects to the server.
    pub(super) async fn connect(&self) -> Result<Client> {
        Client::connect(&self.settings(Retry::default())?).await
    }

    /// A client that waits for the server as `retry` says.
    pub(super) fn connect_lazy(&self, retry: Retry) -> Result<Client> {
        Client::connect_lazy(&self.settings(retry)?)
    }

    fn settings(&self, retry: Retry) -> Result<Settings> {
        let read = |field, path| PemFile::read(field, path);
        let ca = self.ca.as_deref().map(|path| read("ca", path)).transpose()?;
        let cert = self.cert.as_deref().map(|path| read("cert", path)).transpose()?;
        let key = self.key.as_deref().map(|path| read("key", path)).transpose()?;
        ca.as_ref().map(PemFile::certificates).transpose()?;
        let identity = cert.zip(key);
        identity.as_ref().map(|(cert, key)| pem::identity(cert, key)).transpose()?;
        Ok(Settings {
            token: self.token.clone(),
            ca: ca.map(PemFile::into_bytes),
            identity: identity.map(|(cert, key)| (cert.into_bytes(), key.into_bytes())),
            retry,
            ..Settings::new(&self.server)
        })
    }
}

/// Retry policy.
#[derive(Debug, Args)]
pub(super) struct RetryArgs {
    /// Give up after this many seconds without a connection and without progress, also while the server is not there yet; the
    /// job goes on
    #[arg(long, allow_negative_numbers = true, value_name = "SECONDS", default_value_t = Retry::default().give_up.as_secs())]
    give_up: u64,
}

impl RetryArgs {
    /// The policy.
    pub(super) fn retry(&self) -> Retry {
        Retry { give_up: Duration::from_secs(self.give_up), ..Retry::default() }
    }
}

/// Shows a job's events as bars, lines or JSON.
#[derive(Default)]
pub(super) struct EventPrinter {
    steps: usize,
    tiles: usize,
    tiles_done: usize,
    stage: Stage,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Waiting,
    Denoising,
    Decoding,
}

/// A job's event as JSON; `job_sequence` is an argument of `--after`.
#[derive(Serialize)]
struct Line<'a> {
    job_sequence: u64,
    #[serde(flatten)]
    event: EventJson<'a>,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum EventJson<'a> {
    Queued {
        job: String,
        width: u32,
        height: u32,
        seed: u64,
        seed_text: String,
        steps: u32,
        tiles: u32,
    },
    Started {
        device: String,
    },
    Step {
        step: u32,
        of: u32,
        sigma: f64,
    },
    LevelSettled {
        level: u32,
        rows: u32,
        columns: u32,
    },
    Tile {
        tile: usize,
        of: usize,
        column: u32,
        row: u32,
        x: u32,
        y: u32,
        width: u32,
        height: u32,
    },
    Finished {
        receipt: serde_json::Value,
        description: &'a str,
    },
}

impl EventPrinter {
    /// Starts at the state of `job`.
    pub(super) fn new(job: &Job, progress: &mut Progress) -> Self {
        let mut follow = Self::default();
        follow.know(job);
        if !progress.is_json() {
            progress.stage("queued");
        }
        follow
    }

    fn know(&mut self, job: &Job) {
        self.steps = job.spec.as_ref().map_or(0, |spec| spec.steps) as usize;
        self.tiles = (job.tile_columns as usize).saturating_mul(job.tile_rows as usize);
    }

    /// Shows `event`.
    pub(super) fn show(&mut self, event: &JobEvent, progress: &mut Progress) {
        if let Some(Event::Tile(_)) = event.event {
            self.tiles_done += 1;
        }
        if progress.is_json() {
            if let Some(json) = self.to_json(event) {
                progress.json(&Line { job_sequence: event.sequence, event: json });
            }
        } else {
            self.draw(event, progress);
        }
    }

    fn draw(&mut self, event: &JobEvent, progress: &mut Progress) {
        match &event.event {
            Some(Event::Queued(Queued { job: Some(job) })) => {
                self.know(job);
                let spec = job.spec.clone().unwrap_or_default();
                progress.line(&format!(
                    "{}  {} x {}  seed {}  {} steps",
                    sanitize(&job.name),
                    spec.width,
                    spec.height,
                    spec.seed,
                    spec.steps
                ));
            }
            Some(Event::Started(Started { device })) => {
                progress.line(&format!("  on {}", sanitize(device)));
            }
            Some(Event::Step(Step { step, of, sigma, .. })) => {
                self.enter(Stage::Denoising, progress);
                let (step, of) = (*step as usize, *of as usize);
                progress.event(engine::Event::Step { step, of, sigma: *sigma });
            }
            Some(Event::Tile(tile)) => {
                self.enter(Stage::Decoding, progress);
                let rect = tile.rect.unwrap_or_default();
                let [x, y, width, height] =
                    [rect.x, rect.y, rect.width, rect.height].map(|v| v as usize);
                let rect = engine::plan::Rect { x, y, width, height };
                let (tile, of) = (self.tiles_done, self.tiles);
                progress.event(engine::Event::Tile { tile, of, rect });
            }
            _ => {}
        }
    }

    fn enter(&mut self, stage: Stage, progress: &mut Progress) {
        if self.stage == stage {
            return;
        }
        self.stage = stage;
        match stage {
            Stage::Waiting => {}
            Stage::Denoising => progress.event(engine::Event::Denoising { of: self.steps }),
            Stage::Decoding => progress.event(engine::Event::Decoding { of: self.tiles }),
        }
    }

    /// The event as JSON; `None` for failures, which the command reports as its error.
    fn to_json<'a>(&self, event: &'a JobEvent) -> Option<EventJson<'a>> {
        Some(match event.event.as_ref()? {
            Event::Queued(Queued { job }) => {
                let job = job.clone().unwrap_or_default();
                let spec = job.spec.unwrap_or_default();
                EventJson::Queued {
                    job: job.name,
                    width: spec.width,
                    height: spec.height,
                    seed: spec.seed,
                    seed_text: spec.seed.to_string(),
                    steps: spec.steps,
                    tiles: job.tile_columns.saturating_mul(job.tile_rows),
                }
            }
            Event::Started(Started { device }) => EventJson::Started { device: device.clone() },
            Event::Step(Step { step, of, sigma, .. }) => {
                EventJson::Step { step: *step, of: *of, sigma: *sigma }
            }
            Event::LevelSettled(LevelSettled { level, rows, columns, .. }) => {
                EventJson::LevelSettled { level: *level, rows: *rows, columns: *columns }
            }
            Event::Tile(Tile { column, row, rect, .. }) => {
                let rect = rect.unwrap_or_default();
                EventJson::Tile {
                    tile: self.tiles_done,
                    of: self.tiles,
                    column: *column,
                    row: *row,
                    x: rect.x,
                    y: rect.y,
                    width: rect.width,
                    height: rect.height,
                }
            }
            Event::Finished(Finished { receipt, description }) => EventJson::Finished {
                receipt: serde_json::from_str(receipt).unwrap_or_default(),
                description,
            },
            Event::Failed(_) | Event::Cancelled(_) => return None,
        })
    }
}
