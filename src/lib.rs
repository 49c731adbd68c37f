//! Tessera: images of up to 16384 pixels a side from a diffusion model over a pyramid of latents.
//!
//! ```
//! use tessera::engine::{self, Cancel, Event, plan::{Plan, Spec}, provenance};
//! use tessera::{exec::cpu::Cpu, image_out, model::checkpoint::Checkpoint};
//!
//! # fn main() -> tessera::error::Result<()> {
//! let model = Checkpoint::open("tests/fixtures/net-a.safetensors".as_ref())?;
//! let plan = Plan::new(Spec { steps: 4.into(), ..Spec::new(&model.arch, 7) }, &model.arch)?;
//! let mut ops = Cpu::new(model.weights.clone());
//! let (folder, cancel) = (std::env::temp_dir(), Cancel::default());
//! let mut observer = |event: Event| eprintln!("{event:?}");
//! let canvas = engine::generate(&mut ops, &model, &plan, &folder, &mut observer, &cancel)?;
//! let metadata = provenance::generated(&model, "CPU", &plan.spec, None);
//! image_out::write(&folder.join("seed-7.png"), &canvas.source(&cancel), &metadata)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! All are on by default. Without any of them the library generates on the CPU from a checkpoint file, as above.
//!
//! | feature | adds |
//! |---|---|
//! | `service` | jobs that survive a crash, the service over gRPC and HTTP, its client: `jobs`, `api`, `service`, `client` |
//! | `cli` | the command `tessera`: `cli`, `telemetry` |
//! | `gpu` | the GPU backend: `exec::gpu`, `engine::device::Device::Gpu` |
//! | `default-model` | the embedded model: [`Checkpoint::default_model`](model::checkpoint::Checkpoint::default_model) |
//! | `zstd` | TIFF files in Zstandard: `image_out::Compression::Zstd` |
//! | `otlp` (off by default) | traces for an OpenTelemetry collector |
//!
//! # The layers
//!
//! A module imports only from those above it in this list, or from itself; `tests/it/layering.rs` enforces it.
//!
//! 1. [`error`], [`attribution`], [`config`], [`geometry`], `pem`, `telemetry`: errors, author and date of a photograph,
//!    settings, rectangles, certificates, log.
//! 2. [`model::arch`] and [`ops`]: the architecture of a model, and the operator set.
//! 3. [`graph`]: networks before they run, with their costs. [`store`], [`image_in`], [`image_out`]: files and pictures.
//! 4. [`model`]: the networks as graphs; samplers, schedule, noise, checkpoints.
//! 5. [`exec`]: the backends of the operators: naive reference, CPU, GPU.
//! 6. [`engine`]: one image.
//! 7. `jobs`: many images: queue, admission, and recovery after a crash. `api`: the messages of the service.
//! 8. `service`, and `client` for calls to it.
//! 9. `cli`: the command line.
//!
//! # From a seed to a file
//!
//! 1. [`engine::plan::Plan`] turns a [`engine::plan::Spec`] and the model's [`model::arch::Arch`] into grids, steps, tiles and
//!    bytes, and refuses what can't be made.
//! 2. [`engine::device`] opens the device with the checkpoint's weights ([`model::checkpoint`]).
//! 3. [`engine::denoise`] samples the latents: one evaluation of [`model::unet`] per step, two with Heun. Coarse levels
//!    settle first.
//! 4. [`engine::tiles`] runs the decoder's global stage once, then its local stage tile by tile into a memory-mapped
//!    [`store::BackingFile`].
//! 5. [`image_out`] reads the backing file and writes the picture: temporary name, sync, rename.

#[cfg(feature = "service")]
pub mod api;
pub mod attribution;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "service")]
pub mod client;
pub mod config;
pub mod engine;
pub mod error;
pub mod exec;
pub mod geometry;
pub mod graph;
pub mod image_in;
pub mod image_out;
#[cfg(feature = "service")]
pub mod jobs;
pub mod model;
pub mod ops;
#[cfg(feature = "service")]
pub mod pem;
#[cfg(feature = "service")]
pub mod service;
pub mod store;
#[cfg(feature = "cli")]
pub mod telemetry;
