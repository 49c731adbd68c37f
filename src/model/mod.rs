//! What is computed: the architecture and, generic over [`crate::ops::Ops`], the networks. Knows no device.

pub mod arch;
pub mod block;
pub mod checkpoint;
pub mod decoder;
pub mod encoder;
pub mod noise;
pub mod params;
pub mod precond;
pub mod safetensors;
pub mod sampler;
pub mod schedule;
pub mod unet;
