//! Tessera: ultra-high-resolution image synthesis with a pyramid of latents.

pub mod cli;
pub mod config;
pub mod engine;
pub mod error;
pub mod exec;
pub mod image_in;
pub mod image_out;
pub mod model;
pub mod ops;
pub mod store;
pub mod telemetry;
