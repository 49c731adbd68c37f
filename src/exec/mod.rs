//! The backends: implementations of [`crate::graph::Backend`].

pub mod cpu;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod memory;
pub mod reference;
mod winograd;
