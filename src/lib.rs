//! Tessera: ultra-high-resolution image synthesis with a pyramid of latents.
//!
//! # The layers
//!
//! A module imports from those above it in this list, or from itself; `tests/layering.rs` enforces it.
//!
//! 1. [`error`], [`config`], [`telemetry`]: what everything stands on.
//! 2. [`model::arch`] and [`ops`]: the shape of a model, and the operators that networks are written in.
//! 3. [`model`]: the networks, once, generic over [`ops::Ops`]; samplers, schedule, noise, checkpoints. [`store`],
//!    [`image_in`], [`image_out`]: bytes and pictures.
//! 4. [`exec`]: interpreters of the operators: naive reference, native CPU, GPU, and a tracer that only counts.
//! 5. [`engine`]: one image.
//! 6. [`jobs`]: many images: queue, admission, and what survives a crash.
//! 7. [`api`]: the messages of the service.
//! 8. [`client`]: calls to the service, and pictures fetched from it.
//! 9. [`cli`]: the command line.
//!
//! # The journey of one image
//!
//! 1. [`cli`] reads the flags into a [`engine::plan::Spec`]; [`engine::plan::Plan`] turns it and the model's
//!    [`model::arch::Arch`] into grids, steps, tiles and bytes, and refuses the impossible.
//! 2. [`engine::device`] opens the device with the checkpoint's weights ([`model::checkpoint`]).
//! 3. [`engine::denoise`] samples the latents: per step one evaluation of [`model::unet`] (two with Heun). Coarse levels
//!    settle first.
//! 4. [`engine::tiles`] runs the decoder's global stage once, then its local stage tile by tile into a memory-mapped
//!    [`store::Arena`].
//! 5. [`image_out`] reads the arena and writes the file: temporary name, sync, rename.

pub mod api;
pub mod cli;
pub mod client;
pub mod config;
pub mod engine;
pub mod error;
pub mod exec;
pub mod image_in;
pub mod image_out;
pub mod jobs;
pub mod model;
pub mod ops;
pub mod service;
pub mod store;
pub mod telemetry;
