//! Devices: their list, the choice among them, and opening one as a [`Backend`](crate::graph::Backend).

use std::{path::Path, str::FromStr, sync::Arc};

use serde::Serialize;
use strum::{EnumString, VariantNames};

#[cfg(feature = "gpu")]
use crate::exec::gpu::{self, AdapterInfo, AdapterKind, Gpu};
use crate::{
    error::{Error, Kind, Result},
    exec::cpu::{Cpu, Kernels},
    ops::weights::Weights,
};

/// A request for a device.
///
/// ```
/// use tessera::engine::device::Choice;
///
/// assert_eq!("gpu:1".parse(), Ok(Choice::Gpu(Some(1))));
/// assert!("tpu".parse::<Choice>().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// A real GPU, else the CPU. The CPU also if the precision is bf16, and instead of a GPU's software driver.
    Auto,
    /// The CPU.
    Cpu,
    /// The first GPU, or the one with this number in the list of devices.
    Gpu(Option<usize>),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "gpu" => Ok(Self::Gpu(None)),
            _ => match text.strip_prefix("gpu:").map(str::parse) {
                Some(Ok(index)) => Ok(Self::Gpu(Some(index))),
                _ => Err("expected auto, cpu, gpu or gpu:N".into()),
            },
        }
    }
}

/// Requested format of the factors of products; sums are always f32. It changes pixels slightly, so the device's name
/// in files includes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// bf16 on the CPU, with AMX or AVX512-BF16.
    Bf16,
    /// f16 in the convolutions of a GPU, with cooperative matrices.
    F16,
    /// bf16 on a CPU that is faster with it, f16 on a real GPU that has it, else f32; software drivers are slow at f16.
    Auto,
}

/// An opened device: a [`Backend`](crate::graph::Backend) with a model's weights.
pub enum Device {
    /// The CPU.
    Cpu(Cpu),
    /// A GPU.
    #[cfg(feature = "gpu")]
    Gpu(Box<Gpu>),
}

/// Evaluates an expression with the operators of a [`Device`], whichever it is.
#[cfg(feature = "cli")]
macro_rules! with_ops {
    ($device:expr, $ops:ident => $body:expr) => {
        match $device {
            $crate::engine::device::Device::Cpu($ops) => $body,
            #[cfg(feature = "gpu")]
            $crate::engine::device::Device::Gpu(gpu) => {
                let $ops = gpu.as_mut();
                $body
            }
        }
    };
}
#[cfg(feature = "cli")]
pub(crate) use with_ops;

/// A device of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Info {
    /// The text that [`Choice`] parses: `cpu`, `gpu:0`.
    pub selector: String,
    /// Name, backend and kind, to be shown.
    pub description: String,
    /// True for a GPU's driver that computes on the CPU.
    pub software: bool,
    /// True for the device that [`Choice::Auto`] opens.
    pub auto: bool,
}

impl Device {
    /// Opens the device `choice` with the precision `precision`. A GPU's compiled shaders are kept in the folder
    /// `gpu_cache`, if there is one.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`] when there is no such device, naming those that were found, or it does not have
    /// the precision.
    pub fn open(
        choice: Choice,
        precision: Precision,
        gpu_cache: Option<&Path>,
        weights: Arc<Weights>,
    ) -> Result<Self> {
        match choice {
            Choice::Cpu => open_cpu(precision, weights),
            Choice::Gpu(index) => open_gpu(index, precision, gpu_cache, weights),
            Choice::Auto => match best_gpu() {
                None => open_cpu(precision, weights),
                Some(_) if precision == Precision::Bf16 => open_cpu(precision, weights),
                Some(index) if precision == Precision::F16 => {
                    open_gpu(Some(index), precision, gpu_cache, weights)
                }
                Some(index) => open_gpu(Some(index), precision, gpu_cache, weights.clone())
                    .or_else(|error| {
                        tracing::warn!("{}; using the CPU instead", error.report());
                        open_cpu(precision, weights)
                    }),
            },
        }
    }

    /// The same device with the weights of another model: a GPU is opened once, whatever the number of models.
    #[must_use]
    pub fn with_weights(&self, weights: Arc<Weights>) -> Self {
        match self {
            Self::Cpu(cpu) => Self::Cpu(cpu.with_weights(weights)),
            #[cfg(feature = "gpu")]
            Self::Gpu(gpu) => Self::Gpu(Box::new(gpu.with_weights(weights))),
        }
    }

    /// Its name in files, without the number of threads, which does not change a pixel.
    pub fn name(&self) -> String {
        match self {
            Self::Cpu(cpu) => kernels_name(cpu.kernels()),
            #[cfg(feature = "gpu")]
            Self::Gpu(gpu) => opened_name(gpu),
        }
    }

    /// Its name to be shown, with the number of threads.
    pub fn description(&self) -> String {
        match self {
            Self::Cpu(cpu) => format!("{}, {}", kernels_name(cpu.kernels()), threads()),
            #[cfg(feature = "gpu")]
            Self::Gpu(gpu) => opened_name(gpu),
        }
    }
}

/// A precision that the device does not have.
fn unsupported(precision: &str, expected: &'static str) -> Error {
    Error::wrong(Kind::Device, "precision", precision, expected)
}

/// Sets the number of threads of the CPU backend, once per process.
///
/// # Errors
/// When threads were started before.
pub fn set_threads(threads: usize) -> Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|e| Error::internal("starting the CPU's threads").with_source(e))
}

/// All devices of this machine.
pub fn list() -> Vec<Info> {
    let best = best_gpu();
    let cpu = Info {
        selector: "cpu".into(),
        description: match Kernels::best(true) {
            Some(kernels) => format!("{CPU}, {}, f32 or {}", threads(), kernels.name()),
            None => format!("{CPU}, {}", threads()),
        },
        software: false,
        auto: best.is_none(),
    };
    std::iter::once(cpu).chain(list_gpus(best)).collect()
}

/// Every GPU that is no software driver; the CPU if there is none.
pub fn all() -> Vec<Choice> {
    let hardware = list_gpus(None).filter(|info| !info.software);
    let mut all: Vec<_> = hardware.filter_map(|info| info.selector.parse().ok()).collect();
    if all.is_empty() {
        all.push(Choice::Cpu);
    }
    all
}

fn open_cpu(precision: Precision, weights: Arc<Weights>) -> Result<Device> {
    let bf16 = match precision {
        Precision::F32 => None,
        Precision::Auto => Kernels::faster_bf16(),
        Precision::F16 => return Err(unsupported("f16", "f32, bf16 or auto on the CPU")),
        Precision::Bf16 => Some(Kernels::best(true).ok_or_else(|| {
            unsupported("bf16", "f32 or auto on a CPU without AMX-BF16 and AVX512-BF16")
        })?),
    };
    Ok(Device::Cpu(match bf16 {
        Some(kernels) => Cpu::with_kernels(weights, kernels)?,
        None => Cpu::new(weights),
    }))
}

#[cfg(feature = "gpu")]
fn open_gpu(
    index: Option<usize>,
    precision: Precision,
    cache: Option<&Path>,
    weights: Arc<Weights>,
) -> Result<Device> {
    let f16 = match precision {
        Precision::F32 => false,
        Precision::F16 => true,
        Precision::Auto => gpu::is_fast_in_f16(index),
        Precision::Bf16 => return Err(unsupported("bf16", "f32, f16 or auto on a GPU")),
    };
    let gpu = if f16 { Gpu::with_f16(index, weights)? } else { Gpu::new(index, weights)? };
    Ok(Device::Gpu(Box::new(gpu.prepared(cache))))
}

#[cfg(not(feature = "gpu"))]
fn open_gpu(_: Option<usize>, _: Precision, _: Option<&Path>, _: Arc<Weights>) -> Result<Device> {
    Err(Error::device("gpu", "this program was built without the feature gpu"))
}

/// Index of the best GPU that is no software driver.
fn best_gpu() -> Option<usize> {
    #[cfg(feature = "gpu")]
    return gpu::best_real();
    #[cfg(not(feature = "gpu"))]
    None
}

/// The GPUs of this machine, software drivers among them; `best` is the one that [`Choice::Auto`] takes.
#[cfg(feature = "gpu")]
fn list_gpus(best: Option<usize>) -> impl Iterator<Item = Info> {
    gpu::adapters().into_iter().map(move |adapter| Info {
        selector: format!("gpu:{}", adapter.index),
        description: match adapter.matrix {
            Some(_) => format!("{}, f32 or f16", gpu_name(&adapter)),
            None => gpu_name(&adapter),
        },
        software: adapter.software,
        auto: best == Some(adapter.index),
    })
}

#[cfg(not(feature = "gpu"))]
fn list_gpus(_: Option<usize>) -> impl Iterator<Item = Info> {
    std::iter::empty()
}

/// Name of the CPU backend in files.
const CPU: &str = "CPU";

/// Name of the CPU with `kernels` in files; bf16 kernels change pixels slightly and are part of it.
fn kernels_name(kernels: Kernels) -> String {
    if kernels.is_bf16() { format!("{CPU}, {}", kernels.name()) } else { CPU.to_owned() }
}

fn threads() -> String {
    let threads = rayon::current_num_threads();
    format!("{threads} thread{}", if threads == 1 { "" } else { "s" })
}

/// Name of a GPU in files; f16 changes pixels slightly and is part of it.
#[cfg(feature = "gpu")]
fn opened_name(gpu: &Gpu) -> String {
    let name = gpu_name(gpu.adapter());
    if gpu.is_f16() { format!("{name}, f16") } else { name }
}

#[cfg(feature = "gpu")]
fn gpu_name(adapter: &AdapterInfo) -> String {
    let kind = match adapter.kind {
        AdapterKind::Discrete => ", discrete",
        AdapterKind::Integrated => ", integrated",
        AdapterKind::Virtual => ", virtual",
        AdapterKind::Software => ", software",
        AdapterKind::Other => "",
    };
    format!("{}, {}{kind}", adapter.name, adapter.backend)
}
