//! Which device: what was asked for, what there is, and the interpreter of [`Ops`](crate::ops::Ops) that follows.

use std::{str::FromStr, sync::Arc};

use crate::{
    error::{Error, Kind, Result},
    exec::{cpu::Cpu, gpu::Gpu},
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
