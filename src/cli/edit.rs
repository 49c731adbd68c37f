//! `tessera edit`: variations of a picture.

use std::path::PathBuf;

use super::{
    args::{self, DeviceArgs, LabelArgs, ModelArgs, SamplingArgs},
    generate::{self, Given},
    output::{FileArgs, Output},
    progress::{Progress, ProgressArgs},
};
use crate::{
    config::Config,
    engine::{
        Cancel,
        plan::{Plan, STRENGTH, Spec},
    },
    error::Result,
    image_in::{Photo, depth_notice},
    store::hash,
};

/// Make a variation of a picture: add noise and denoise it (SDEdit)
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
    /// Amount of change: 0 only encodes and decodes the picture, 1 makes an unrelated one
    #[arg(long, allow_negative_numbers = true, value_name = "SHARE", value_parser = args::parse_number, default_value_t = STRENGTH)]
    strength: f64,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    labels: LabelArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    pub(super) progress: ProgressArgs,
}

pub(super) fn run(
    args: &Args,
    config: &Config,
    progress: &mut Progress,
    cancel: &Cancel,
) -> Result<()> {
    let inputs = args.model.model.iter().chain([&args.input]);
    let out = Output::new(&args.out, &args.form, inputs, progress)?;
    let model = args.model.open()?;
    let Photo { picture, attribution, notices } = args::read_picture(&args.input)?;
    let written = args.sampling.decode.bits.per_sample();
    let sha256 = hash::sha256_file(&args.input)?;
    let mut spec = Spec {
        width: picture.width as usize,
        height: picture.height as usize,
        strength: Some(args.strength),
        ..args.sampling.spec(&model.arch)?
    };
    args.labels.apply(&model, &mut spec)?;
    let mut plan = Plan::new(spec, &model.arch)?;
    plan.notices.extend(notices.into_iter().chain(depth_notice(picture.bits, written)));
    let mut device = args.device.open(config, &model)?;
    let given = Some(Given { picture, sha256, attribution });
    generate::one(&model, &plan, given, &mut device, &out, config, progress, cancel)
}
