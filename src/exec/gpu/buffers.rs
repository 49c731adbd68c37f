//! Tensors in device memory, and the pool that recycles their buffers.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::device::Device;
use crate::{
    error::{Detail, Error, Kind, Result},
    ops::{Shape, product},
};

/// A tensor in memory; clones share the memory, which returns to the pool with the last one.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub(super) shape: Shape,
    pub(super) block: Arc<Block>,
}

impl Tensor {
    /// Its shape.
    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// The tensor as a shader binding.
    pub(super) fn binding(&self) -> wgpu::BindingResource<'_> {
        self.block.binding(self.shape.len() as u64 * 4)
    }
}

/// Device memory that returns to its pool when dropped.
///
/// It may be reused while queued work still reads it, as the next owner's work comes later in the same queue. Only
/// writes from the host would overtake queued work, so [`super::Gpu`] submits before them.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) buffer: wgpu::Buffer,
    pool: Pool,
}

impl Block {
    /// The first `bytes` as a shader binding.
    pub(super) fn binding(&self, bytes: u64) -> wgpu::BindingResource<'_> {
        let size = std::num::NonZeroU64::new(bytes);
        wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer: &self.buffer, offset: 0, size })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut idle = self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let age = idle.age;
        idle.by_size.entry(self.buffer.size()).or_default().push((self.buffer.clone(), age));
    }
}

/// Buffers that no tensor uses.
#[derive(Debug, Default)]
struct Idle {
    /// Buffers by size in bytes, each with the age at which it was returned.
    by_size: BTreeMap<u64, Vec<(wgpu::Buffer, u64)>>,
    /// Number of submissions.
    age: u64,
    /// Bytes of all buffers that the pool has created.
    created: u64,
}

/// Recycles the buffers of dropped tensors.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool {
    /// Shared with every block, which may be dropped on any thread.
    idle: Arc<Mutex<Idle>>,
}

/// Submissions after which an idle buffer is freed.
const MAX_AGE: u64 = 8;

impl Pool {
    /// A block of at least `bytes`; `what` names it in errors. The contents are arbitrary.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`] when the device's memory is exhausted.
    pub(super) fn block(&self, device: &Device, bytes: u64, what: &str) -> Result<Block> {
        let size = size_class(bytes).min(device.max_tensor_bytes() & !3);
        if let Some(buffer) = self.take(size) {
            return Ok(Block { buffer, pool: self.clone() });
        }
        let buffer = device.caught(|d| {
            d.create_buffer(&wgpu::BufferDescriptor {
                label: Some(what),
                size,
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_SRC
                    | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        })?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).created += size;
        Ok(Block { buffer, pool: self.clone() })
    }

    /// Bytes of all buffers that it has created.
    pub(super) fn created(&self) -> u64 {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).created
    }

    fn take(&self, size: u64) -> Option<wgpu::Buffer> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.by_size.get_mut(&size)?.pop().map(|(buffer, _)| buffer)
    }

    /// Frees all idle buffers.
    pub(super) fn clear(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).by_size.clear();
    }

    /// Counts a submission and frees buffers that were idle for [`MAX_AGE`] of them.
    pub(super) fn submitted(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.age += 1;
        let age = idle.age;
        idle.by_size.retain(|_, buffers| {
            buffers.retain(|(_, since)| since + MAX_AGE > age);
            !buffers.is_empty()
        });
    }
}

/// Checks that a block of `bytes` does not exceed the device's limit; `what` names it in errors.
///
/// # Errors
/// [`crate::error::Kind::Device`] naming the limit.
pub(super) fn check_size(device: &Device, bytes: u64, what: &str) -> Result<()> {
    let (limit, name) = (device.max_tensor_bytes(), &device.info.name);
    if bytes > limit {
        let resource = format!("buffer_bytes of {what} on {name}").into();
        let detail = Detail::Exhausted { resource, needed: bytes, limit: Some(limit) };
        return Err(Error::new(Kind::Device, detail));
    }
    Ok(())
}

/// Sizes are rounded up to 1, 1.25, 1.5 or 1.75 times a power of two, so that tensors of nearly the same size share.
fn size_class(bytes: u64) -> u64 {
    let bytes = bytes.max(256);
    let step = (1u64 << bytes.ilog2()) / 4;
    bytes.next_multiple_of(step)
}

/// Bytes of a tensor of `shape`, saturating.
pub(super) fn bytes(shape: Shape) -> u64 {
    product(&[shape.n, shape.h, shape.w, shape.c, 4])
}

#[cfg(test)]
mod tests {
    use super::size_class;

    /// A size class holds its sizes, wastes at most a quarter, and keeps the alignment of copies.
    #[test]
    fn size_classes_waste_at_most_a_quarter() {
        for bytes in (1..10_000).chain([1 << 27, (1 << 27) + 1, 123_456_789]) {
            let class = size_class(bytes);
            assert!(class >= bytes && class.is_multiple_of(4), "{bytes} {class}");
            assert!(bytes < 256 || class <= bytes + bytes / 4 + 1, "{bytes} {class}");
            assert_eq!(size_class(class), class);
        }
    }
}
