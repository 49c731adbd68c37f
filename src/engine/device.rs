//! Which device: what was asked for, what there is, and the interpreter of [`Ops`](crate::ops::Ops) that follows.

use std::{str::FromStr, sync::Arc};

use serde::Serialize;

use crate::{
    error::{Error, Kind, Result},
    exec::cpu::Cpu,
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
        match choice {
            Choice::Auto | Choice::Cpu => Ok(Self::Cpu(Cpu::new(weights))),
            Choice::Gpu(index) => {
                let index = index.unwrap_or(0);
                Err(Error::device(format!("there is no gpu:{index}; found: {}", cpu_name())))
            }
        }
    }

    /// Its name, for people and files.
    pub fn name(&self) -> String {
        match self {
            Self::Cpu(_) => cpu_name(),
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
    vec![Info { selector: "cpu".into(), description: cpu_name(), software: false, auto: true }]
}

fn cpu_name() -> String {
    let threads = rayon::current_num_threads();
    format!("CPU, {threads} thread{}", if threads == 1 { "" } else { "s" })
}
