//! The backends: implementations of [`crate::ops::Ops`].

pub mod cpu;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod reference;
pub mod trace;
mod winograd;
