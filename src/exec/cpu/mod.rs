//! The native CPU interpreter: all cores through rayon's current pool, SIMD chosen at run time.
//!
//! Guarantee: a pixel's bits depend on the inputs within the operator's reach alone, not on the tensor's extent, the
//! pixel's position, or the number of threads.

mod attention;
mod gemm;
mod math;
mod norm;
mod pool;
mod resample;

use std::{collections::HashMap, sync::Arc};

use gemm::{Grid, Packed};
use pool::{Buffer, Pool};

use crate::{
    error::Result,
    ops::{self, Conv2d, GroupNorm, Ops, PixelNorm, Shape, Window, weights::Weights},
};

/// A tensor in memory; cloning shares it.
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: Shape,
    data: Arc<Buffer>,
}

/// The native CPU as an interpreter of [`Ops`].
pub struct Cpu {
    weights: Arc<Weights>,
    /// Convolutions in the kernel's order, by layer name, packed on first use.
    packed: HashMap<String, Arc<Packed>>,
    pool: Arc<Pool>,
}

impl Cpu {
    /// An interpreter with these parameters.
    pub fn new(weights: Arc<Weights>) -> Self {
        Self { weights, packed: HashMap::new(), pool: Arc::default() }
    }

    /// The tensor of `shape` that `fill` writes, every element of it.
    fn make(&self, shape: Shape, fill: impl FnOnce(&mut [f32])) -> Tensor {
        let mut data = self.pool.take(shape.len());
        if !shape.is_empty() {
            fill(&mut data);
        }
        Tensor { shape, data: Arc::new(data) }
    }

    fn packed(&mut self, p: &Conv2d) -> Result<Arc<Packed>> {
        let taps = p.kernel * p.kernel;
        let extent = (taps, p.in_channels, p.out_channels);
        if let Some(packed) = self.packed.get(&p.name).filter(|packed| packed.extent() == extent) {
            return Ok(Arc::clone(packed));
        }
        let (weight, bias) = p.load(&self.weights)?;
        let at = |tap, i, o| weight[(o * p.in_channels + i) * taps + tap];
        let packed = Arc::new(Packed::new(extent, at, |o| bias[o]));
        self.packed.insert(p.name.clone(), Arc::clone(&packed));
        Ok(packed)
    }
}

impl Ops for Cpu {
    type Tensor = Tensor;

    fn shape(&self, x: &Tensor) -> Shape {
        x.shape
    }

    fn upload(&mut self, shape: Shape, data: &[f32]) -> Result<Tensor> {
        ops::check_upload(shape, data.len())?;
        Ok(self.make(shape, |out| out.copy_from_slice(data)))
    }

    fn download(&mut self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.data.to_vec())
    }

    fn scalar(&mut self, name: &str) -> Result<f32> {
        Ok(self.weights.get(name, &[1])?.data[0])
    }

    fn conv2d(&mut self, x: &Tensor, p: &Conv2d) -> Result<Tensor> {
        let shape = ops::conv2d::output_shape(x.shape, p)?;
        let packed = self.packed(p)?;
        let grid = Grid { shape: x.shape, data: &x.data };
        Ok(self.make(shape, |out| packed.run(grid, out)))
    }

    fn group_norm(&mut self, x: &Tensor, p: &GroupNorm) -> Result<Tensor> {
        let shape = ops::group_norm::output_shape(x.shape, p)?;
        let params = p.load(&self.weights)?;
        let run = if p.silu { norm::group_norm::<true> } else { norm::group_norm::<false> };
        Ok(self.make(shape, |out| run(out, &x.data, shape, p.groups, params)))
    }

    fn pixel_norm(&mut self, x: &Tensor, p: &PixelNorm) -> Result<Tensor> {
        let shape = ops::pixel_norm::output_shape(x.shape, p)?;
        let weight = p.load(&self.weights)?;
        let run = if p.silu { norm::pixel_norm::<true> } else { norm::pixel_norm::<false> };
        Ok(self.make(shape, |out| run(out, &x.data, weight)))
    }

    fn silu(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = ops::silu::output_shape(x.shape)?;
        Ok(self.make(shape, |out| math::map(out, &x.data, math::silu)))
    }

    fn scale_shift(&mut self, x: &Tensor, pair: &Tensor, silu: bool) -> Result<Tensor> {
        let shape = ops::scale_shift::output_shape(x.shape, pair.shape)?;
        let run = if silu { norm::scale_shift::<true> } else { norm::scale_shift::<false> };
        Ok(self.make(shape, |out| run(out, &x.data, shape, &pair.data)))
    }

    fn weighted_add(&mut self, a: &Tensor, b: &Tensor, wa: f32, wb: f32) -> Result<Tensor> {
        let shape = ops::weighted_add::output_shape(a.shape, b.shape)?;
        Ok(self.make(shape, |out| {
            math::zip(
                out,
                &a.data,
                &b.data,
                #[inline(always)]
                |a, b| wa * a + wb * b,
            )
        }))
    }

    fn concat(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let shape = ops::concat::output_shape(a.shape, b.shape)?;
        let (a, b) = ((&a.data[..], a.shape.c), (&b.data[..], b.shape.c));
        Ok(self.make(shape, |out| resample::concat(out, a, b)))
    }

    fn avg_pool2(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = ops::avg_pool2::output_shape(x.shape)?;
        Ok(self.make(shape, |out| resample::avg_pool2(out, &x.data, x.shape)))
    }

    fn global_avg_pool(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = ops::global_avg_pool::output_shape(x.shape)?;
        Ok(self.make(shape, |out| norm::global_avg_pool(out, &x.data, x.shape)))
    }

    fn upsample_nearest2(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = ops::upsample_nearest2::output_shape(x.shape)?;
        Ok(self.make(shape, |out| resample::upsample_nearest2(out, &x.data, x.shape)))
    }

    fn fir_down2(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = ops::fir_down2::output_shape(x.shape)?;
        Ok(self.make(shape, |out| resample::fir_down2(out, &x.data, x.shape)))
    }

    fn fir_up2(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = ops::fir_up2::output_shape(x.shape)?;
        Ok(self.make(shape, |out| resample::fir_up2(out, &x.data, x.shape)))
    }

    fn pixel_unshuffle(&mut self, x: &Tensor, r: usize) -> Result<Tensor> {
        let shape = ops::pixel_unshuffle::output_shape(x.shape, r)?;
        Ok(self.make(shape, |out| resample::pixel_unshuffle(out, &x.data, x.shape, r)))
    }

    fn pixel_shuffle(&mut self, x: &Tensor, r: usize) -> Result<Tensor> {
        let shape = ops::pixel_shuffle::output_shape(x.shape, r)?;
        Ok(self.make(shape, |out| resample::pixel_shuffle(out, &x.data, x.shape, r)))
    }

    fn spatial_attention(&mut self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let shape = ops::spatial_attention::output_shape(q.shape, k.shape, v.shape)?;
        let inputs: [&[f32]; 3] = [&q.data, &k.data, &v.data];
        Ok(self.make(shape, |out| attention::spatial(out, inputs, shape, &self.pool)))
    }

    fn channel_attention(&mut self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let shape = ops::channel_attention::output_shape(q.shape, k.shape, v.shape)?;
        let inputs: [&[f32]; 3] = [&q.data, &k.data, &v.data];
        Ok(self.make(shape, |out| attention::channel(out, inputs, shape, &self.pool)))
    }

    fn crop(&mut self, x: &Tensor, window: Window) -> Result<Tensor> {
        let shape = ops::crop::output_shape(x.shape, window)?;
        Ok(self.make(shape, |out| resample::crop(out, &x.data, x.shape, window)))
    }
}
