//! How it is computed: the implementations of [`crate::ops::Ops`].

pub mod cpu;
pub mod gpu;
pub mod reference;
pub mod trace;
mod winograd;
