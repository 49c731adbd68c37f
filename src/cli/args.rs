//! Flags that several subcommands share, and how their values are read.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::Args;

use crate::{
    config::{self, Config},
    engine::{
        device::{self, Choice, Device, Precision},
        encode,
        plan::{MAX_TILE, MIN_TILE, Spec, TileSize},
    },
    error::{Error, Kind, Result},
    image_in::{self, Picture},
    image_out::Bits,
    model::{arch::Arch, checkpoint::Checkpoint, sampler::Sampler},
};

/// Which weights.
#[derive(Debug, Args)]
pub(super) struct ModelArgs {
    /// Checkpoint to use in place of the embedded one [env: TESSERA_MODEL]
    #[arg(long, value_name = "FILE")]
    pub(super) model: Option<PathBuf>,
}

impl ModelArgs {
    /// The checkpoint: flag, then environment, then the embedded one.
    pub(super) fn open(&self, config: &Config) -> Result<Checkpoint> {
        open_model(self.model.as_ref().or(config.model.as_ref()))
    }
}

/// The checkpoint at `path`, or the embedded one.
pub(super) fn open_model(path: Option<&PathBuf>) -> Result<Checkpoint> {
    match path {
        Some(path) => Checkpoint::open(path).map_err(|error| named_input(error, "model", path)),
        None => Checkpoint::default_model(),
    }
}

/// The picture at `path`.
pub(super) fn read_picture(path: &Path) -> Result<Picture> {
    image_in::read(path, encode::LIMITS).map_err(|error| named_input(error, "picture", path))
}

/// The error with the name of the input file; one that can't be opened is bad input, not a failure of the machine.
pub(super) fn named_input(error: Error, field: &'static str, path: &Path) -> Error {
    let kind = match error.kind() {
        Kind::Io => Kind::InvalidArgument,
        kind => kind,
    };
    Error::wrong(kind, field, path.display(), "a usable file").with_source(error)
}

/// Where the work is done.
#[derive(Debug, Args)]
pub(super) struct DeviceArgs {
    /// auto, cpu, gpu or gpu:N; auto takes a real GPU, else the CPU [env: TESSERA_DEVICE]
    #[arg(long, value_name = "DEVICE")]
    device: Option<Choice>,
    /// f32, bf16, f16 or auto: what is multiplied in; bf16 is for CPUs with AMX or AVX512-BF16, f16 for GPUs with
    /// cooperative matrices, auto takes what is faster [env: TESSERA_PRECISION] [default: f32]
    #[arg(long, value_name = "PRECISION")]
    precision: Option<Precision>,
    /// Threads of the CPU path; all cores if not given [env: TESSERA_THREADS]
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = config::parse_threads)]
    threads: Option<usize>,
    /// Folder for what was compiled and measured on a GPU, or "none"; the user's cache folder if not given [env:
    /// TESSERA_GPU_CACHE]
    #[arg(long, value_name = "DIR")]
    gpu_cache: Option<PathBuf>,
}

impl DeviceArgs {
    /// The device, with the model's weights.
    pub(super) fn open(&self, config: &Config, model: &Checkpoint) -> Result<Device> {
        let (choice, precision) = (self.choice(config)?, self.precision(config)?);
        let gpu_cache = self.gpu_cache(config);
        Device::open(choice, precision, gpu_cache.as_deref(), model.weights.clone())
    }

    /// Where a GPU's shaders lie: flag, then environment, then the user's cache folder.
    pub(super) fn gpu_cache(&self, config: &Config) -> Option<PathBuf> {
        match &self.gpu_cache {
            Some(folder) => config::folder_or_none(folder.clone()),
            None => config.gpu_cache.clone(),
        }
    }

    /// What it multiplies in: flag, then environment, then f32.
    pub(super) fn precision(&self, config: &Config) -> Result<Precision> {
        match (self.precision, &config.precision) {
            (Some(precision), _) => Ok(precision),
            (None, Some(text)) => text
                .parse()
                .map_err(|expected: String| Error::invalid("TESSERA_PRECISION", text, expected)),
            (None, None) => Ok(Precision::default()),
        }
    }

    /// Which device: flag, then environment; sets the threads of the CPU path on the way.
    pub(super) fn choice(&self, config: &Config) -> Result<Choice> {
        let choice = match (&self.device, &config.device) {
            (Some(choice), _) => *choice,
            (None, Some(text)) => text
                .parse()
                .map_err(|expected: String| Error::invalid("TESSERA_DEVICE", text, expected))?,
            (None, None) => Choice::Auto,
        };
        if let Some(threads) = self.threads.or(config.threads) {
            device::set_threads(threads)?;
        }
        Ok(choice)
    }
}

/// Which picture.
#[derive(Debug, Args)]
pub(super) struct PictureArgs {
    /// Size in pixels; the size the model was trained for if not given
    #[arg(long, value_name = "WxH", allow_hyphen_values = true)]
    pub(super) size: Option<Size>,
    #[command(flatten)]
    pub(super) sampling: SamplingArgs,
}

/// How it is sampled and decoded.
#[derive(Debug, Args)]
pub(super) struct SamplingArgs {
    /// Key of the noise; the same seed gives the same picture
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
    /// Denoising steps, 1 to 1000
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 25)]
    pub(super) steps: usize,
    /// heun (best), dpmpp (fastest) or ddim
    #[arg(long, value_name = "NAME", value_parser = parse_method, default_value = "dpmpp")]
    pub(super) sampler: Sampler,
    #[command(flatten)]
    pub(super) decode: DecodeFlags,
}

impl SamplingArgs {
    /// What they say of a picture of the model's size.
    pub(super) fn spec(&self, arch: &Arch) -> Spec {
        Spec {
            steps: self.steps,
            sampler: self.sampler,
            tile: self.decode.tile,
            bits: self.decode.bits,
            ..Spec::new(arch, self.seed)
        }
    }
}

/// How pixels are decoded.
#[derive(Debug, Args)]
pub(super) struct DecodeFlags {
    /// Side of a decoded tile in pixels, 64 to 1024, or "whole"; the picture is the same for all
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = parse_tile, default_value = "512")]
    pub(super) tile: TileSize,
    /// Bits of a sample, 8 or 16
    #[arg(long, allow_negative_numbers = true, value_name = "BITS", value_parser = parse_bits, default_value = "8")]
    pub(super) bits: Bits,
}

/// Width and height, as in `2048x1024`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    /// Width in pixels.
    pub(super) width: usize,
    /// Height in pixels.
    pub(super) height: usize,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sides = text.split_once(['x', 'X', '×']);
        match sides.map(|(width, height)| (width.parse(), height.parse())) {
            Some((Ok(width), Ok(height))) => Ok(Self { width, height }),
            _ => Err(format!("{text:?} is not a width and a height in pixels, such as 2048x1024")),
        }
    }
}

/// A number of pixels or "whole"; whether the number is in range is the plan's to say.
pub(super) fn parse_tile(text: &str) -> Result<TileSize, String> {
    match (text, text.parse()) {
        ("whole", _) => Ok(TileSize::Whole),
        (_, Ok(side)) => Ok(TileSize::Pixels(side)),
        _ => Err(format!("{text:?} is not from {MIN_TILE} to {MAX_TILE} pixels, nor whole")),
    }
}

fn parse_bits(text: &str) -> Result<Bits, String> {
    match text {
        "8" => Ok(Bits::Eight),
        "16" => Ok(Bits::Sixteen),
        _ => Err(format!("{text:?} bits are not 8 or 16")),
    }
}

/// A sampler by its name.
fn parse_method(text: &str) -> Result<Sampler, String> {
    let method = Sampler::ALL.into_iter().find(|method| method.name() == text);
    method.ok_or_else(|| format!("{text:?} is not {}", Sampler::ALL.map(Sampler::name).join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_either_cross_and_nothing_else() {
        let size = Ok(Size { width: 2048, height: 1024 });
        assert_eq!("2048x1024".parse::<Size>(), size);
        assert_eq!("2048×1024".parse::<Size>(), size);
        for text in ["2048", "2048x", "x", "-1x5", "2048x1024x3", "99999999999999999999999x1"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_tile_is_a_number_or_whole() {
        assert_eq!(parse_tile("64"), Ok(TileSize::Pixels(64)));
        assert_eq!(parse_tile("whole"), Ok(TileSize::Whole));
        assert!(parse_tile("half").is_err());
    }
}
