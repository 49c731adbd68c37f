//! Which device: what was asked for, what there is, and the interpreter of [`Ops`](crate::ops::Ops) that follows.

use std::{str::FromStr, sync::Arc};

use serde::Serialize;

use crate::{
    error::{Error, Kind, Result},
    exec::{
        cpu::Cpu,
        gpu::{self, AdapterInfo, AdapterKind, Gpu},
    },
    ops::weights::Weights,
};

/// A device as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// A real GPU, else the CPU; a software GPU is never preferred to the CPU.
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
                _ => Err(format!("{text:?} is not auto, cpu, gpu or gpu:N")),
            },
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
    /// Opens the device that `choice` stands for.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`] when there is no such device, naming those that were found.
    pub fn open(choice: Choice, weights: Arc<Weights>) -> Result<Self> {
        let cpu = |weights| Ok(Self::Cpu(Cpu::new(weights)));
        let gpu = |index, weights| Ok(Self::Gpu(Box::new(Gpu::new(index, weights)?)));
        match choice {
            Choice::Cpu => cpu(weights),
            Choice::Gpu(index) => gpu(index, weights),
            Choice::Auto => match gpu::best_real() {
                None => cpu(weights),
                Some(index) => gpu(Some(index), weights.clone()).or_else(|error| {
                    tracing::warn!("{error}; the CPU takes its place");
                    cpu(weights)
                }),
            },
        }
    }

    /// Its name in files: the number of threads is left out, since it does not change a pixel.
    pub fn name(&self) -> String {
        match self {
            Self::Cpu(_) => CPU.to_owned(),
            Self::Gpu(gpu) => gpu_name(gpu.adapter()),
        }
    }

    /// Its name for people, with the number of threads.
    pub fn description(&self) -> String {
        match self {
            Self::Cpu(_) => cpu_description(),
            Self::Gpu(gpu) => gpu_name(gpu.adapter()),
        }
    }
}

/// Sets the number of threads of the CPU path, once per process.
///
/// # Errors
/// When threads were started before.
pub fn set_threads(threads: usize) -> Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|e| Error::new(Kind::Internal, "threads can't be started").with_source(e))
}

/// All devices of this machine.
pub fn list() -> Vec<Info> {
    let best = gpu::best_real();
    let cpu = Info {
        selector: "cpu".into(),
        description: cpu_description(),
        software: false,
        auto: best.is_none(),
    };
    let gpus = gpu::adapters().into_iter().map(|adapter| Info {
        selector: format!("gpu:{}", adapter.index),
        description: gpu_name(&adapter),
        software: adapter.software,
        auto: best == Some(adapter.index),
    });
    std::iter::once(cpu).chain(gpus).collect()
}

/// Name of the native CPU path.
const CPU: &str = "CPU";

fn cpu_description() -> String {
    let threads = rayon::current_num_threads();
    format!("{CPU}, {threads} thread{}", if threads == 1 { "" } else { "s" })
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
