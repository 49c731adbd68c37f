//! `tessera reconstruct`: encodes and decodes a picture and measures the difference.

use std::{path::PathBuf, time::Instant};

use serde::Serialize;

use super::{
    args::{self, DecodeFlags, DeviceArgs, ModelArgs},
    output::{FileArgs, Output},
    progress::{Progress, ProgressArgs, path_text},
    text,
};
use crate::{
    config::Config,
    engine::{
        self, Cancel, Event, Observer as _,
        device::with_ops,
        encode,
        plan::Tiling,
        provenance::{self, DigitalSource},
        tiles::PixelBuffer,
    },
    error::Result,
    image_in::{Photo, depth_notice},
};

/// Encode a picture, decode it again and measure the difference
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Picture to read: JPEG, PNG, TIFF or WebP, 8 or 16 bit
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Picture to write: .tiff or .png; - for standard output
    #[arg(value_name = "OUT")]
    out: PathBuf,
    #[command(flatten)]
    form: FileArgs,
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
    tiles: usize,
    model: &'a str,
    model_sha256: &'a str,
    device: &'a str,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "finished")]
struct Finished<'a> {
    #[serde(serialize_with = "path_text")]
    out: &'a std::path::Path,
    bytes: u64,
    /// Peak signal-to-noise ratio in dB; null for equal pictures.
    psnr: Option<f64>,
    seconds: f64,
}

pub(super) fn run(
    args: &Args,
    config: &Config,
    progress: &mut Progress,
    cancel: &Cancel,
) -> Result<()> {
    let began = Instant::now();
    let inputs = args.model.model.iter().chain([&args.input]);
    let out = Output::new(&args.out, &args.form, inputs, progress)?;
    let model = args.model.open()?;
    let Photo { picture, attribution, notices } = args::read_picture(&args.input)?;
    let depth = depth_notice(picture.bits, args.decode.bits.per_sample());
    for message in notices.into_iter().chain(depth) {
        progress.event(Event::Notice { message });
    }
    let (width, height) = (picture.width as usize, picture.height as usize);
    let tiling = Tiling::new(&model.arch, width, height, args.decode.tile)?;
    let mut device = args.device.open(config, &model)?;
    let (name, on) = (device.name(), device.description());
    progress.json(&Started {
        width,
        height,
        tiles: tiling.tiles.len(),
        model: &model.arch.name,
        model_sha256: &model.sha256,
        device: &on,
    });
    progress.line(&format!("{}  {width} x {height}  on {on}", args.input.display()));
    let canvas = PixelBuffer::create(&out.directory(), width, height, args.decode.bits)?;
    let (arch, original) = (&model.arch, picture.clone());
    progress.stage("encode");
    let canvas = with_ops!(&mut device, ops => {
        engine::reconstruct(ops, arch, picture, &tiling, canvas, progress, cancel)
    })?;
    let psnr = encode::psnr(&original, &canvas);
    progress.stage("write");
    let description = format!("reconstruction by {}", model.arch.name);
    let source = DigitalSource::CompositeWithTrainedAlgorithmicMedia;
    let mut metadata = provenance::decoded(&model, &name, (width, height), description, source);
    metadata.attribute(&attribution);
    let bytes = out.write(&canvas, metadata, config, cancel)?;
    progress.leave();
    let took = began.elapsed();
    progress.json(&Finished {
        out: out.name(),
        bytes,
        psnr: psnr.is_finite().then_some(psnr),
        seconds: took.as_secs_f64(),
    });
    let line = format!(
        "{}  {width} x {height}  PSNR {psnr:.2} dB  {}  {}",
        out.name().display(),
        text::bytes(bytes),
        text::seconds(took)
    );
    out.finish(progress, &line)
}
