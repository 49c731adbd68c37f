//! Which device: what was asked for, what there is, and the interpreter of [`Ops`](crate::ops::Ops) that follows.

use std::{path::Path, str::FromStr, sync::Arc};

use serde::Serialize;

use crate::{
    error::{Error, Kind, Result},
    exec::{
        cpu::{Cpu, Kernels},
        gpu::{self, AdapterInfo, AdapterKind, Gpu},
    },
    ops::weights::Weights,
};

/// A device as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// A real GPU, else the CPU, which also has bf16 if that is asked for; a software GPU is never preferred to the CPU.
    Auto,
    /// The native CPU path.
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
                _ => Err("auto, cpu, gpu or gpu:N".into()),
            },
        }
    }
}

/// What is multiplied in, as it is asked for; sums are f32 always. It changes pixels a little, so files say it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// bf16 on the CPU, by AMX or AVX512-BF16.
    Bf16,
    /// f16 on a GPU, for its convolutions, by cooperative matrices.
    F16,
    /// bf16 on a CPU that is faster with it, f16 on a real GPU that has it, else f32: software drivers are slow at f16.
    Auto,
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            "auto" => Ok(Self::Auto),
            _ => Err("f32, bf16, f16 or auto".into()),
        }
    }
}

/// An opened device: the interpreter of [`Ops`](crate::ops::Ops) with a model's weights.
pub enum Device {
    /// The native CPU path.
    Cpu(Cpu),
    /// A GPU.
    Gpu(Box<Gpu>),
}

/// One line of the list of devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Info {
    /// What to give as the device: `cpu`, `gpu:0`.
    pub selector: String,
    /// Its name, backend and kind, for people.
    pub description: String,
    /// Whether it is a GPU's driver that computes on the CPU.
    pub software: bool,
    /// Whether [`Choice::Auto`] takes it.
    pub auto: bool,
}

impl Device {
    /// Opens the device that `choice` stands for, to compute in `precision`. A GPU's compiled shaders lie in the folder
    /// `gpu_cache`, if there is one ([`Gpu::prepared`]).
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`] when there is no such device, naming those that were found, or it does not have the
    /// precision.
    pub fn open(
        choice: Choice,
        precision: Precision,
        gpu_cache: Option<&Path>,
        weights: Arc<Weights>,
    ) -> Result<Self> {
        let cpu = |weights| {
            let bf16 = match precision {
                Precision::F32 => None,
                Precision::Auto => Kernels::faster_bf16(),
                Precision::F16 => {
                    return Err(unsupported("f16", "f32, bf16 or auto on the CPU"));
                }
                Precision::Bf16 => Some(Kernels::best(true).ok_or_else(|| {
                    let expected = "f32 or auto on a CPU without AMX-BF16 and AVX512-BF16";
                    unsupported("bf16", expected)
                })?),
            };
            Ok(Self::Cpu(match bf16 {
                Some(kernels) => Cpu::with_kernels(weights, kernels)?,
                None => Cpu::new(weights),
            }))
        };
        let gpu = |index, weights| match precision {
            Precision::Bf16 => Err(unsupported("bf16", "f32, f16 or auto on a GPU")),
            _ => {
                let fast = precision == Precision::Auto && gpu::is_fast_in_f16(index);
                let open =
                    if fast || precision == Precision::F16 { Gpu::with_f16 } else { Gpu::new };
                Ok(Self::Gpu(Box::new(open(index, weights)?.prepared(gpu_cache))))
            }
        };
        match choice {
            Choice::Cpu => cpu(weights),
            Choice::Gpu(index) => gpu(index, weights),
            Choice::Auto => match gpu::best_real() {
                None => cpu(weights),
                Some(_) if precision == Precision::Bf16 => cpu(weights),
                Some(index) if precision == Precision::F16 => gpu(Some(index), weights),
                Some(index) => gpu(Some(index), weights.clone()).or_else(|error| {
                    tracing::warn!("{}; using the CPU instead", error.report());
                    cpu(weights)
                }),
            },
        }
    }

    /// What stands for this very device.
    pub fn choice(&self) -> Choice {
        match self {
            Self::Cpu(_) => Choice::Cpu,
            Self::Gpu(gpu) => Choice::Gpu(Some(gpu.adapter().index)),
        }
    }

    /// Its name in files: the number of threads is left out, since it does not change a pixel.
    pub fn name(&self) -> String {
        match self {
            Self::Cpu(cpu) => kernels_name(cpu.kernels()),
            Self::Gpu(gpu) => opened_name(gpu),
        }
    }

    /// Its name for people, with the number of threads.
    pub fn description(&self) -> String {
        match self {
            Self::Cpu(cpu) => format!("{}, {}", kernels_name(cpu.kernels()), threads()),
            Self::Gpu(gpu) => opened_name(gpu),
        }
    }
}

/// A precision that the device does not have.
fn unsupported(precision: &str, expected: &'static str) -> Error {
    Error::wrong(Kind::Device, "precision", precision, expected)
}

/// Sets the number of threads of the CPU path, once per process.
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
    let best = gpu::best_real();
    let cpu = Info {
        selector: "cpu".into(),
        description: match Kernels::best(true) {
            Some(kernels) => format!("{CPU}, {}, f32 or {}", threads(), kernels.name()),
            None => format!("{CPU}, {}", threads()),
        },
        software: false,
        auto: best.is_none(),
    };
    let gpus = gpu::adapters().into_iter().map(|adapter| Info {
        selector: format!("gpu:{}", adapter.index),
        description: match adapter.matrix {
            Some(_) => format!("{}, f32 or f16", gpu_name(&adapter)),
            None => gpu_name(&adapter),
        },
        software: adapter.software,
        auto: best == Some(adapter.index),
    });
    std::iter::once(cpu).chain(gpus).collect()
}

/// Name of the native CPU path.
const CPU: &str = "CPU";

/// The CPU path's name in files: kernels of bf16 change pixels a little, and are part of it.
fn kernels_name(kernels: Kernels) -> String {
    if kernels.is_bf16() { format!("{CPU}, {}", kernels.name()) } else { CPU.to_owned() }
}

fn threads() -> String {
    let threads = rayon::current_num_threads();
    format!("{threads} thread{}", if threads == 1 { "" } else { "s" })
}

/// A GPU's name in files: f16 changes pixels a little, and is part of it.
fn opened_name(gpu: &Gpu) -> String {
    let name = gpu_name(gpu.adapter());
    if gpu.is_f16() { format!("{name}, f16") } else { name }
}

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
