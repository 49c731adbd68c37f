//! Flags that several subcommands share.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use strum::VariantNames;

use crate::{
    config::Config,
    engine::{
        device::{self, Choice, Device, Precision},
        encode,
        plan::{MAX_TILE, MIN_TILE, Spec, Steps, TileSize},
    },
    error::{Detail, Error, Kind, Result},
    image_in::{self, Photo},
    image_out::Bits,
    model::{arch::Arch, checkpoint::Checkpoint, sampler::Sampler},
};

/// The checkpoint.
#[derive(Debug, Args)]
pub(super) struct ModelArgs {
    /// Checkpoint to use instead of the embedded one
    #[arg(long, value_name = "FILE", env = "TESSERA_MODEL")]
    pub(super) model: Option<PathBuf>,
}

impl ModelArgs {
    /// Opens the checkpoint, or the embedded one if none is given.
    pub(super) fn open(&self) -> Result<Checkpoint> {
        open_model(self.model.as_ref())
    }
}

/// Opens the checkpoint at `path`, or the embedded one.
pub(super) fn open_model(path: Option<&PathBuf>) -> Result<Checkpoint> {
    match path {
        Some(path) => Checkpoint::open(path).map_err(|error| named_input(error, "model", path)),
        None => Checkpoint::default_model(),
    }
}

/// Reads the picture at `path`.
pub(super) fn read_picture(path: &Path) -> Result<Photo> {
    image_in::read(path, encode::LIMITS).map_err(|error| named_input(error, "picture", path))
}

/// An error of reading the input file of `field`. A file that can't be opened is an invalid argument.
pub(super) fn named_input(error: Error, field: &'static str, path: &Path) -> Error {
    let kind = match error.kind() {
        Kind::Io => Kind::InvalidArgument,
        kind => kind,
    };
    match (error.kind(), error.detail()) {
        // The detail has everything but the file's name.
        (Kind::InvalidImage, Detail::Invalid { .. }) => {
            error.with_field(format!("{field} {}", path.display()))
        }
        _ => Error::wrong(kind, field, path.display(), "a usable file").with_source(error),
    }
}

/// The device and how it computes.
#[derive(Debug, Args)]
pub(super) struct DeviceArgs {
    /// auto, cpu, gpu or gpu:N; auto selects a hardware GPU, else the CPU
    #[arg(long, value_name = "DEVICE", env = "TESSERA_DEVICE", default_value = "auto")]
    device: Choice,
    #[command(flatten)]
    pub(super) compute: ComputeArgs,
}

/// Number format, threads and kernel cache of the devices.
#[derive(Debug, Args)]
pub(super) struct ComputeArgs {
    /// Number format of multiplications; bf16 needs a CPU with AMX or AVX512-BF16, f16 a GPU with cooperative matrices,
    /// auto selects the fastest
    #[arg(long, value_name = "PRECISION", env = "TESSERA_PRECISION", value_parser = names::<Precision>(), default_value = "f32")]
    pub(super) precision: Precision,
    /// Threads of the CPU path, 1 to 1024; all cores if not given
    #[arg(long, allow_negative_numbers = true, value_name = "N", env = "TESSERA_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Directory of compiled and measured GPU kernels, or "none"; the user's cache directory if not given
    #[arg(long, value_name = "DIR", env = "TESSERA_GPU_CACHE")]
    gpu_cache: Option<PathBuf>,
}

/// A parser of an enum by the names of its variants.
pub(super) fn names<T>() -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>
        + VariantNames
        + Clone
        + Send
        + Sync
        + 'static,
{
    PossibleValuesParser::new(T::VARIANTS).try_map(|name| name.parse::<T>())
}

impl DeviceArgs {
    /// Opens the device with the model's weights.
    pub(super) fn open(&self, config: &Config, model: &Checkpoint) -> Result<Device> {
        self.compute.set_threads()?;
        let (precision, cache) = (self.compute.precision, self.compute.gpu_cache(config));
        Device::open(self.device, precision, cache.as_deref(), model.weights.clone())
    }
}

impl ComputeArgs {
    /// Directory of compiled GPU kernels; `None`: they are not kept.
    pub(super) fn gpu_cache(&self, config: &Config) -> Option<PathBuf> {
        match &self.gpu_cache {
            Some(directory) => Some(directory.clone()).filter(|path| path != Path::new("none")),
            None => config.gpu_cache.clone(),
        }
    }

    /// Sets the number of threads of the CPU path.
    pub(super) fn set_threads(&self) -> Result<()> {
        self.threads.map_or(Ok(()), |threads| device::set_threads(usize::from(threads)))
    }
}

/// Size and sampling of a new picture.
#[derive(Debug, Args)]
pub(super) struct PictureArgs {
    /// Size in pixels; the size the model was trained for if not given
    #[arg(long, value_name = "WxH", allow_hyphen_values = true)]
    pub(super) size: Option<Size>,
    #[command(flatten)]
    pub(super) sampling: SamplingArgs,
}

/// Sampling and decoding.
#[derive(Debug, Args)]
pub(super) struct SamplingArgs {
    /// Seed of the noise; the same seed gives the same picture. "random" draws one, which is printed
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = parse_seed, default_value = "0")]
    pub(super) seed: u64,
    /// Denoising steps, 1 to 1000; or those of each of the model's groups of levels, as in layout=30,detail=12
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value = "25")]
    pub(super) steps: StepsArg,
    /// Sampler: heun is best, dpmpp fastest
    #[arg(long, value_name = "NAME", value_parser = names::<Sampler>(), default_value = "dpmpp")]
    pub(super) sampler: Sampler,
    #[command(flatten)]
    pub(super) decode: DecodeFlags,
}

impl SamplingArgs {
    /// The spec for a picture of the model's size.
    ///
    /// # Errors
    /// Those of [`Steps::named`].
    pub(super) fn spec(&self, arch: &Arch) -> Result<Spec> {
        Ok(Spec {
            steps: match &self.steps {
                StepsArg::Total(steps) => Steps::Total(*steps),
                StepsArg::PerGroup(named) => {
                    Steps::named(arch, named.iter().map(|(name, steps)| (name.as_str(), *steps)))?
                }
            },
            sampler: self.sampler,
            tile: self.decode.tile,
            bits: self.decode.bits,
            ..Spec::new(arch, self.seed)
        })
    }
}

/// Denoising steps, as in `25` or `layout=30,detail=12`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StepsArg {
    /// Of all groups of levels together.
    Total(usize),
    /// Of each group by its name.
    PerGroup(BTreeMap<String, usize>),
}

impl FromStr for StepsArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(steps) = text.parse() {
            return Ok(Self::Total(steps));
        }
        let mut named = BTreeMap::new();
        for part in text.split(',') {
            let (name, steps) = part.split_once('=').unwrap_or_default();
            match steps.parse() {
                Ok(steps) if !name.is_empty() => {
                    if named.insert(name.to_owned(), steps).is_some() {
                        return Err(format!("{name} is given twice"));
                    }
                }
                _ => {
                    return Err(format!(
                        "{text:?} is not a number, nor steps of groups such as layout=30,detail=12"
                    ));
                }
            }
        }
        Ok(Self::PerGroup(named))
    }
}

/// Labels of a new picture.
#[derive(Debug, Args)]
pub(super) struct LabelArgs {
    /// Value of one of the model's labels, as in time=dusk; may be given several times, what is not given is drawn by the
    /// seed
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// Strength of the labels, from 1 (none) to 20; 2 for a model with labels if not given
    #[arg(long, allow_negative_numbers = true, value_name = "SCALE", value_parser = parse_number)]
    pub(super) guidance: Option<f64>,
}

/// A label's name and value.
fn parse_label(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err("expected NAME=VALUE, such as time=dusk"),
    }
}

impl LabelArgs {
    /// The values by the names of the labels.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] if a label is given twice.
    pub(super) fn named(&self) -> Result<BTreeMap<String, String>> {
        let mut named = BTreeMap::new();
        for (name, value) in &self.labels {
            if let Some(other) = named.insert(name.clone(), value.clone()) {
                let field = format!("labels.{name}");
                return Err(Error::invalid(field, format!("{other} and {value}"), "one value"));
            }
        }
        Ok(named)
    }

    /// Sets the labels and the guidance of `spec`, whose seed draws what is not given.
    pub(super) fn apply(&self, model: &Checkpoint, spec: &mut Spec) -> Result<()> {
        spec.labels = model.labels(spec.seed, &self.named()?)?;
        if let Some(guidance) = self.guidance {
            spec.guidance = guidance;
        }
        Ok(())
    }
}

/// Decoding.
#[derive(Debug, Args)]
pub(super) struct DecodeFlags {
    /// Side of a decoded tile in pixels, 64 to 1024, or "whole"; it does not change the picture
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = parse_tile, default_value = "512")]
    pub(super) tile: TileSize,
    /// Bits per sample, 8 or 16
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

/// Parses a seed, or draws one of at most ten digits for "random".
fn parse_seed(text: &str) -> Result<u64, String> {
    match text {
        "random" => Ok(u64::from(fastrand::u32(..))),
        _ => text.parse().map_err(|_| {
            format!("{text:?} is not a whole number from 0 to {}, nor random", u64::MAX)
        }),
    }
}

/// Parses a number; its range is checked by the plan.
pub(super) fn parse_number(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number"))
}

/// Parses a number of pixels or "whole"; its range is checked by the plan.
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
    fn steps_are_a_number_or_those_of_named_groups() {
        assert_eq!("25".parse(), Ok(StepsArg::Total(25)));
        let named = [("layout", 30), ("detail", 12)].map(|(name, n)| (name.to_owned(), n));
        assert_eq!("layout=30,detail=12".parse(), Ok(StepsArg::PerGroup(named.into())));
        for text in ["", "-1", "1.5", "layout=", "=3", "layout=3,", "a=1,a=2", "layout=x"] {
            assert!(text.parse::<StepsArg>().is_err(), "{text}");
        }
    }

    #[test]
    fn tile_sizes_are_numbers_or_whole() {
        assert_eq!(parse_tile("64"), Ok(TileSize::Pixels(64)));
        assert_eq!(parse_tile("whole"), Ok(TileSize::Whole));
        assert!(parse_tile("half").is_err());
    }
}
