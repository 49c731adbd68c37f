//! The model: its architecture, the networks as [graphs](crate::graph), samplers and checkpoints.
//! It does not depend on any backend.

pub mod arch;
pub mod block;
pub mod checkpoint;
pub mod cost;
pub mod decoder;
pub mod encoder;
pub mod noise;
pub mod params;
pub mod place_noise;
pub mod precond;
pub mod safetensors;
pub mod sampler;
pub mod schedule;
pub mod unet;
