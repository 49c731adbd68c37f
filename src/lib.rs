//! Tessera: ultra-high-resolution image synthesis with a pyramid of latents.

pub mod error;
pub mod exec;
pub mod model;
pub mod ops;
