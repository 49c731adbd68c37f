//! `tessera encode` and `tessera decode`: pictures to files of latents and back.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use serde::Serialize;

use super::{
    args::{self, DecodeFlags, DeviceArgs, ModelArgs},
    output::{self, FileArgs, Output},
    progress::{Progress, ProgressArgs, path_text},
    text,
};
use crate::{
    config::Config,
    engine::{
        self, Cancel, Event, Observer as _,
        device::with_ops,
        encode,
        latents::LatentFile,
        plan::Tiling,
        provenance::{self, DigitalSource},
        tiles::PixelBuffer,
    },
    error::Result,
    image_in::Photo,
};

/// Encode a picture to a safetensors file of latents
#[derive(Debug, clap::Args)]
pub(super) struct EncodeArgs {
    /// Picture to read: JPEG, PNG, TIFF or WebP, 8 or 16 bit
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Latents to write
    #[arg(value_name = "LATENTS.safetensors")]
    out: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    pub(super) progress: ProgressArgs,
}

/// Decode a safetensors file of latents to a picture
#[derive(Debug, clap::Args)]
pub(super) struct DecodeArgs {
    /// Latents to read
    #[arg(value_name = "LATENTS.safetensors")]
    input: PathBuf,
    /// Picture to write: .tiff or .png; - for standard output
    #[arg(value_name = "OUT")]
    out: PathBuf,
    #[command(flatten)]
    form: FileArgs,
    /// Seed of the decoder's noise, for models that have it
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    decode: DecodeFlags,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    pub(super) progress: ProgressArgs,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "started")]
struct Started<'a> {
    width: usize,
    height: usize,
    model: &'a str,
    model_sha256: &'a str,
    device: &'a str,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "finished")]
struct Finished<'a> {
    #[serde(serialize_with = "path_text")]
    out: &'a Path,
    bytes: u64,
    seconds: f64,
}

pub(super) fn encode(
    args: &EncodeArgs,
    config: &Config,
    progress: &mut Progress,
    cancel: &Cancel,
) -> Result<()> {
    let began = Instant::now();
    output::check_latents(&args.out)?;
    output::keeps(&args.out, args.model.model.iter().chain([&args.input]))?;
    let model = args.model.open()?;
    let Photo { picture, notices, .. } = args::read_picture(&args.input)?;
    for message in notices {
        progress.event(Event::Notice { message });
    }
    let (width, height) = (picture.width as usize, picture.height as usize);
    let mut device = args.device.open(config, &model)?;
    let on = device.description();
    progress.json(&Started {
        width,
        height,
        model: &model.arch.name,
        model_sha256: &model.sha256,
        device: &on,
    });
    progress.line(&format!("{}  {width} x {height}  on {on}", args.input.display()));
    progress.stage("encode");
    let latents = with_ops!(&mut device, ops => encode::encode(ops, &model.arch, picture))?;
    cancel.check()?;
    LatentFile { width, height, latents }.write(&args.out, &model)?;
    let bytes = output::length(&args.out)?;
    let line = done(progress, &args.out, width, height, bytes, began);
    progress.result(&format!("{line}\n"))
}

pub(super) fn decode(
    args: &DecodeArgs,
    config: &Config,
    progress: &mut Progress,
    cancel: &Cancel,
) -> Result<()> {
    let began = Instant::now();
    let inputs = args.model.model.iter().chain([&args.input]);
    let out = Output::new(&args.out, &args.form, inputs, progress)?;
    let model = args.model.open()?;
    let LatentFile { width, height, latents } = LatentFile::read(&args.input, &model)
        .map_err(|error| args::named_input(error, "latents", &args.input))?;
    let tiling = Tiling::new(&model.arch, width, height, args.decode.tile)?;
    let mut device = args.device.open(config, &model)?;
    let (name, on) = (device.name(), device.description());
    progress.json(&Started {
        width,
        height,
        model: &model.arch.name,
        model_sha256: &model.sha256,
        device: &on,
    });
    progress.line(&format!("{}  {width} x {height}  on {on}", args.input.display()));
    let canvas = PixelBuffer::create(&out.directory(), width, height, args.decode.bits)?;
    let arch = &model.arch;
    let canvas = with_ops!(&mut device, ops => {
        engine::decode(ops, arch, (&latents, args.seed), &tiling, canvas, progress, cancel)
    })?;
    progress.stage("write");
    let description = format!("decoded by {}", model.arch.name);
    let source = DigitalSource::TrainedAlgorithmicMedia;
    let metadata = provenance::decoded(&model, &name, (width, height), description, source);
    let bytes = out.write(&canvas, metadata, config, cancel)?;
    let line = done(progress, out.name(), width, height, bytes, began);
    out.finish(progress, &line)
}

/// Ends the progress and returns the result for people.
fn done(
    progress: &mut Progress,
    out: &Path,
    width: usize,
    height: usize,
    bytes: u64,
    began: Instant,
) -> String {
    progress.leave();
    let took = began.elapsed();
    progress.json(&Finished { out, bytes, seconds: took.as_secs_f64() });
    format!(
        "{}  {width} x {height}  {}  {}",
        out.display(),
        text::bytes(bytes),
        text::seconds(took)
    )
}
