//! Memory rules of the CPU and the GPU backend, for plans.

use super::winograd;
use crate::{
    graph::BackendMemory,
    ops::{Conv2d, Shape, product},
};

/// Upper bounds that hold for both backends.
pub static MEMORY: Memory = Memory;

/// The type of [`MEMORY`].
#[derive(Debug)]
pub struct Memory;

impl BackendMemory for Memory {
    fn packed_weights(&self, p: &Conv2d) -> u64 {
        winograd::packed_bytes(p)
    }

    fn conv2d_scratch(&self, x: Shape, p: &Conv2d) -> u64 {
        winograd::scratch_bytes(x, p)
    }

    /// Two copies of a picture's tensor in the order of the kernels.
    fn attention_scratch(&self, q: Shape) -> u64 {
        product(&[2, 4, q.h, q.w, q.c])
    }
}
