//! `tessera generate`: pictures from seeds.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Instant,
};

use serde::Serialize;

use super::{
    args::{DeviceArgs, LabelArgs, ModelArgs, PictureArgs, Size},
    output::{self, FileArgs, Output},
    progress::{Progress, ProgressArgs, path_text},
    text,
};
use crate::{
    attribution::Attribution,
    config::Config,
    engine::{
        self, Cancel,
        device::{Device, with_ops},
        plan::Plan,
        provenance,
        tiles::PixelBuffer,
    },
    error::{Error, Expected, Result},
    graph::Backend,
    image_in::Picture,
    model::checkpoint::Checkpoint,
};

/// Most pictures of one command.
const MAX_COUNT: u64 = 9999;

/// Make a picture from a seed
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    picture: PictureArgs,
    #[command(flatten)]
    labels: LabelArgs,
    /// Number of pictures, with consecutive seeds from --seed on
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 1)]
    count: u64,
    /// Picture to write, .tiff or .png; - for standard output; tessera-SEED.tiff if not given
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    form: FileArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    pub(super) progress: ProgressArgs,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "started")]
struct Started<'a> {
    seed: u64,
    seed_text: String,
    width: usize,
    height: usize,
    steps: usize,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    group_steps: BTreeMap<&'a str, usize>,
    sampler: &'a str,
    tiles: usize,
    model: &'a str,
    model_sha256: &'a str,
    device: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    strength: Option<f64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<&'a str, &'a str>,
    guidance: f64,
    arena_bytes: u64,
    peak_bytes: u64,
    flops: u64,
    #[serde(serialize_with = "path_text")]
    out: &'a Path,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "finished")]
struct Finished<'a> {
    seed: u64,
    seed_text: String,
    #[serde(serialize_with = "path_text")]
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
    let jobs = jobs(args)?.into_iter().map(|(seed, path)| {
        Ok((seed, Output::new(&path, &args.form, &args.model.model, progress)?))
    });
    let jobs: Vec<_> = jobs.collect::<Result<_>>()?;
    let model = args.model.open()?;
    let mut spec = args.picture.sampling.spec(&model.arch)?;
    if let Some(Size { width, height }) = args.picture.size {
        (spec.width, spec.height) = (width, height);
    }
    args.labels.apply(&model, &mut spec)?;
    let mut plan = Plan::new(spec, &model.arch)?;
    let mut device = args.device.open(config, &model)?;
    for (seed, out) in &jobs {
        plan.spec.seed = *seed;
        args.labels.apply(&model, &mut plan.spec)?;
        one(&model, &plan, None, &mut device, out, config, progress, cancel)?;
        // Notices are shown with the first picture only.
        plan.notices.clear();
    }
    Ok(())
}

/// A source picture.
pub(super) struct Given {
    pub(super) picture: Picture,
    /// SHA-256 of its file.
    pub(super) sha256: String,
    pub(super) attribution: Attribution,
}

/// Makes one picture from `plan.spec.seed` and the source picture, if any, and writes it to `out`.
#[allow(clippy::too_many_arguments, reason = "all of them differ between the callers")]
pub(super) fn one(
    model: &Checkpoint,
    plan: &Plan,
    given: Option<Given>,
    device: &mut Device,
    out: &Output,
    config: &Config,
    progress: &mut Progress,
    cancel: &Cancel,
) -> Result<()> {
    let began = Instant::now();
    let spec = &plan.spec;
    let (name, on) = (device.name(), device.description());
    progress.json(&Started {
        seed: spec.seed,
        seed_text: spec.seed.to_string(),
        width: spec.width,
        height: spec.height,
        steps: spec.steps.total(),
        group_steps: provenance::group_steps(model, spec),
        sampler: spec.sampler.name(),
        tiles: plan.tiling.tiles.len(),
        model: &model.arch.name,
        model_sha256: &model.sha256,
        device: &on,
        strength: spec.strength,
        labels: provenance::labels(model, spec),
        guidance: spec.guidance,
        arena_bytes: plan.picture_bytes,
        peak_bytes: plan.peak_bytes,
        flops: plan.flops,
        out: out.name(),
    });
    progress.line(&format!(
        "{}  {} x {}  seed {}  {} {} steps  on {on}",
        model.arch.name,
        spec.width,
        spec.height,
        spec.seed,
        spec.sampler.name(),
        spec.steps.total(),
    ));
    let scratch = &out.directory();
    let (picture, source) =
        given.map(|given| (given.picture, (given.sha256, given.attribution))).unzip();
    let canvas = with_ops!(device, ops => {
        canvas(ops, model, plan, picture, scratch, progress, cancel)
    })?;
    progress.stage("write");
    let source = source.as_ref().map(|(sha256, attribution)| (sha256.as_str(), attribution));
    let metadata = provenance::generated(model, &name, spec, source);
    let bytes = out.write(&canvas, metadata, config, cancel)?;
    progress.leave();
    let took = began.elapsed();
    progress.json(&Finished {
        seed: spec.seed,
        seed_text: spec.seed.to_string(),
        out: out.name(),
        bytes,
        seconds: took.as_secs_f64(),
    });
    let line = format!(
        "{}  {} x {}  {} bit  {}  {}",
        out.name().display(),
        spec.width,
        spec.height,
        spec.bits.per_sample(),
        text::bytes(bytes),
        text::seconds(took)
    );
    out.finish(progress, &line)
}

fn canvas<O: Backend>(
    ops: &mut O,
    model: &Checkpoint,
    plan: &Plan,
    picture: Option<Picture>,
    scratch: &Path,
    progress: &mut Progress,
    cancel: &Cancel,
) -> Result<PixelBuffer> {
    match picture {
        Some(picture) => engine::edit(ops, model, plan, picture, scratch, progress, cancel),
        None => engine::generate(ops, model, plan, scratch, progress, cancel),
    }
}

/// Seed and file of each picture.
fn jobs(args: &Args) -> Result<Vec<(u64, PathBuf)>> {
    if !(1..=MAX_COUNT).contains(&args.count) {
        let (min, max, nearest) = (1, MAX_COUNT, Some(args.count.clamp(1, MAX_COUNT)));
        let expected = Expected::Range { min, max, nearest };
        return Err(Error::invalid("count", args.count, expected));
    }
    if args.picture.sampling.seed.checked_add(args.count - 1).is_none() {
        let (seed, count) = (args.picture.sampling.seed, args.count);
        let expected = Expected::at_most(u64::MAX - (count - 1));
        return Err(Error::invalid("seed", format!("{seed} with count {count}"), expected));
    }
    if args.count > 1 && args.out.as_deref().is_some_and(output::is_stdout) {
        return Err(Error::invalid("count", args.count, "1 for standard output"));
    }
    let seeds = (0..args.count).map(|i| args.picture.sampling.seed + i);
    Ok(match &args.out {
        None => seeds.map(|seed| (seed, format!("tessera-{seed}.tiff").into())).collect(),
        Some(out) if args.count == 1 => vec![(args.picture.sampling.seed, out.clone())],
        Some(out) => seeds.zip(1..).map(|(seed, i)| (seed, numbered(out, i))).collect(),
    })
}

/// The path of the seventh picture of `dir/name.tiff` is `dir/name-0007.tiff`.
fn numbered(path: &Path, number: u64) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{number:04}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_files_are_numbered_before_the_extension() {
        assert_eq!(numbered(Path::new("a/out.b.tiff"), 7), Path::new("a/out.b-0007.tiff"));
        assert_eq!(numbered(Path::new("out"), 12345), Path::new("out-12345"));
    }
}
