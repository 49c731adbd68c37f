//! `tessera submit`: creates a job on a server.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    args::{self, LabelArgs, PictureArgs, Size, StepsArg},
    progress::{Progress, ProgressArgs},
    server::ServerArgs,
    text,
};
use crate::{
    api::{CreateJobRequest, Job, JobSpec, Quote, Sampler},
    client::{self, sanitize},
    engine::plan::{MAX_STEPS, MAX_TILE, MIN_TILE, TileSize},
    error::{Error, Expected, Result},
    model::sampler,
};

/// Longest `--deadline`: a year.
const MAX_DEADLINE: u64 = 366 * 24 * 3600;

/// Create a job on a server and print its name
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    picture: PictureArgs,
    #[command(flatten)]
    labels: LabelArgs,
    /// Picture to edit: JPEG, PNG, TIFF or WebP; its size is the job's
    #[arg(long, value_name = "FILE")]
    edit: Option<PathBuf>,
    /// Amount of change, from 0 to 1 [default: 0.5]
    #[arg(long, allow_negative_numbers = true, value_name = "SHARE", value_parser = args::parse_number, requires = "edit")]
    strength: Option<f64>,
    /// One of the server's models; its default if not given
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Identifier of the request, at most 128 characters; a repeated request returns the same job
    #[arg(long, value_name = "TEXT")]
    request_id: Option<String>,
    /// Fail the job if it has not ended after this many seconds
    #[arg(long, allow_negative_numbers = true, value_name = "SECONDS")]
    deadline: Option<u64>,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    pub(super) progress: ProgressArgs,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "submitted")]
struct Submitted<'a> {
    job: &'a str,
    state: String,
    width: u32,
    height: u32,
    tiles: u32,
    memory_bytes: u64,
    disk_bytes: u64,
    flops: u64,
    compute_seconds: f64,
}

pub(super) fn run(args: &Args, progress: &mut Progress, cancel: &CancellationToken) -> Result<()> {
    let request = request(args)?;
    let picture = args.edit.as_ref().map(|path| {
        std::fs::read(path)
            .map_err(|e| args::named_input(Error::io("read", path, e), "picture", path))
    });
    let picture = picture.transpose()?;
    let job = client::run(cancel, async {
        let client = args.server.connect().await?;
        match picture {
            Some(picture) => client.edit(request, picture).await,
            None => client.create(request).await,
        }
    })?;
    report(&job, progress)
}

fn report(job: &Job, progress: &mut Progress) -> Result<()> {
    let spec = job.spec.clone().unwrap_or_default();
    let quote = job.quote.clone().unwrap_or_default();
    let Quote { memory_bytes, disk_bytes, flops, tiles, .. } = quote;
    let compute = quote.compute_time.and_then(|time| Duration::try_from(time).ok());
    let compute = compute.unwrap_or_default();
    progress.json(&Submitted {
        job: &job.name,
        state: client::state_name(job.state()),
        width: spec.width,
        height: spec.height,
        tiles,
        memory_bytes,
        disk_bytes,
        flops,
        compute_seconds: compute.as_secs_f64(),
    });
    for notice in &quote.notices {
        progress.line(&format!("  note     {}", sanitize(notice)));
    }
    // Zero: the server has not measured its speed yet.
    if !compute.is_zero() {
        progress.line(&format!("  about    {}", text::seconds(compute)));
    }
    progress.result(&format!("{}\n", sanitize(&job.name)))
}

/// The request of the flags.
fn request(args: &Args) -> Result<CreateJobRequest> {
    let (picture, sampling) = (&args.picture, &args.picture.sampling);
    let number = |field: &'static str, value: usize| {
        u32::try_from(value).map_err(|_| Error::invalid(field, value, Expected::at_most(u32::MAX)))
    };
    let (width, height) = match picture.size {
        Some(Size { width: 0, .. } | Size { height: 0, .. }) => {
            return Err(Error::invalid("size", "0 pixels a side", "at least 1"));
        }
        Some(Size { width, height }) => (number("width", width)?, number("height", height)?),
        None => (0, 0),
    };
    let tiles = || Expected::within(MIN_TILE..=MAX_TILE);
    let tile_size = match sampling.decode.tile {
        TileSize::Pixels(0) => return Err(Error::invalid("tile", 0, tiles())),
        TileSize::Pixels(pixels) => number("tile", pixels)?,
        TileSize::Whole => {
            return Err(Error::invalid("tile", "whole", tiles()));
        }
    };
    let (steps, group_steps) = match &sampling.steps {
        StepsArg::Total(0) => {
            return Err(Error::invalid("steps", 0, Expected::range(1..=MAX_STEPS, 0)));
        }
        StepsArg::Total(steps) => (number("steps", *steps)?, BTreeMap::new()),
        StepsArg::PerGroup(named) => {
            let named = named.iter().map(|(name, &n)| Ok((name.clone(), number("steps", n)?)));
            (0, named.collect::<Result<_>>()?)
        }
    };
    let sampler = match sampling.sampler {
        sampler::Sampler::Dpmpp => Sampler::Dpmpp,
        sampler::Sampler::Heun => Sampler::Heun,
        sampler::Sampler::Ddim => Sampler::Ddim,
    };
    let deadline = match args.deadline {
        Some(seconds) if !(1..=MAX_DEADLINE).contains(&seconds) => {
            let expected = format!("from 1 to {MAX_DEADLINE} seconds");
            return Err(Error::invalid("deadline", seconds, expected));
        }
        Some(seconds) => SystemTime::now().checked_add(Duration::from_secs(seconds)),
        None => None,
    };
    if args.request_id.as_deref() == Some("") {
        return Err(Error::invalid("request_id", "empty", "at least one character"));
    }
    Ok(CreateJobRequest {
        spec: Some(JobSpec {
            model: args.model.as_deref().map(client::full_model_name).unwrap_or_default(),
            seed: sampling.seed,
            width,
            height,
            steps,
            group_steps,
            labels: args.labels.named()?,
            guidance: args.labels.guidance,
            sampler: sampler.into(),
            tile_size,
            bits: sampling.decode.bits.per_sample() as u32,
            strength: args.strength,
        }),
        request_id: args.request_id.clone().unwrap_or_default(),
        deadline: deadline.map(client::timestamp),
        viewport: None,
    })
}
