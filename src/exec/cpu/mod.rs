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
    error::{Error, Kind, Result},
    ops::{Conv2d, GroupNorm, Ops, PixelNorm, Shape, Window, weights::Weights},
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
        let (inputs, outputs, kernel) = (p.in_channels, p.out_channels, p.kernel);
        need(kernel == 1 || kernel == 3, || {
            format!("conv2d {}: kernel is {kernel}, not 1 or 3", p.name)
        })?;
        if let Some(packed) = self.packed.get(&p.name) {
            return Ok(Arc::clone(packed));
        }
        let shape = [outputs, inputs, kernel, kernel];
        let weight = &self.weights.get(&format!("{}.weight", p.name), &shape)?.data;
        let bias = &self.weights.get(&format!("{}.bias", p.name), &[outputs])?.data;
        let taps = kernel * kernel;
        let packed = Arc::new(Packed::new(
            (taps, inputs, outputs),
            |tap, i, o| weight[(o * inputs + i) * taps + tap],
            |o| bias[o],
        ));
        self.packed.insert(p.name.clone(), Arc::clone(&packed));
        Ok(packed)
    }
}

fn need(ok: bool, message: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::new(Kind::Internal, message())) }
}

fn need_channels(op: &str, name: &str, found: usize, wanted: usize) -> Result<()> {
    need(found == wanted, || format!("{op} {name}: input has {found} channels, not {wanted}"))
}

fn need_same(op: &str, shapes: &[Shape]) -> Result<()> {
    need(shapes.windows(2).all(|pair| pair[0] == pair[1]), || {
        format!("{op}: inputs of different extents {shapes:?}")
    })
}

fn need_multiple(op: &str, shape: Shape, factor: usize) -> Result<()> {
    need(factor > 0 && shape.h % factor == 0 && shape.w % factor == 0, || {
        format!("{op}: {} x {} is not a multiple of {factor}", shape.h, shape.w)
    })
}

impl Ops for Cpu {
    type Tensor = Tensor;

    fn shape(&self, x: &Tensor) -> Shape {
        x.shape
    }

    fn upload(&mut self, shape: Shape, data: &[f32]) -> Result<Tensor> {
        need(data.len() == shape.len(), || {
            format!("upload: {} values for {shape:?}", data.len())
        })?;
        Ok(self.make(shape, |out| out.copy_from_slice(data)))
    }

    fn download(&mut self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.data.to_vec())
    }

    fn scalar(&mut self, name: &str) -> Result<f32> {
        Ok(self.weights.get(name, &[1])?.data[0])
    }

    fn conv2d(&mut self, x: &Tensor, p: &Conv2d) -> Result<Tensor> {
        need_channels("conv2d", &p.name, x.shape.c, p.in_channels)?;
        let packed = self.packed(p)?;
        let grid = Grid { shape: x.shape, data: &x.data };
        Ok(self.make(x.shape.with_channels(p.out_channels), |out| packed.run(grid, out)))
    }

    fn group_norm(&mut self, x: &Tensor, p: &GroupNorm) -> Result<Tensor> {
        need_channels("group_norm", &p.name, x.shape.c, p.channels)?;
        need(p.groups > 0 && p.channels % p.groups == 0, || {
            format!("group_norm {}: {} groups of {} channels", p.name, p.groups, p.channels)
        })?;
        let weight = &self.weights.get(&format!("{}.weight", p.name), &[p.channels])?.data;
        let bias = &self.weights.get(&format!("{}.bias", p.name), &[p.channels])?.data;
        let run = if p.silu { norm::group_norm::<true> } else { norm::group_norm::<false> };
        Ok(self.make(x.shape, |out| run(out, &x.data, x.shape, p.groups, (weight, bias))))
    }

    fn pixel_norm(&mut self, x: &Tensor, p: &PixelNorm) -> Result<Tensor> {
        need_channels("pixel_norm", &p.name, x.shape.c, p.channels)?;
        let weight = &self.weights.get(&format!("{}.weight", p.name), &[p.channels])?.data;
        let run = if p.silu { norm::pixel_norm::<true> } else { norm::pixel_norm::<false> };
        Ok(self.make(x.shape, |out| run(out, &x.data, weight)))
    }

    fn silu(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(self.make(x.shape, |out| math::map(out, &x.data, math::silu)))
    }

    fn scale_shift(&mut self, x: &Tensor, pair: &Tensor, silu: bool) -> Result<Tensor> {
        let found = pair.shape;
        let fits = (found.n == 1 || found.n == x.shape.n) && found.h == 1 && found.w == 1;
        need(fits && found.c == 2 * x.shape.c, || {
            format!("scale_shift: pair of extent {found:?} for {:?}", x.shape)
        })?;
        let run = if silu { norm::scale_shift::<true> } else { norm::scale_shift::<false> };
        Ok(self.make(x.shape, |out| run(out, &x.data, x.shape, &pair.data)))
    }

    fn weighted_add(&mut self, a: &Tensor, b: &Tensor, wa: f32, wb: f32) -> Result<Tensor> {
        need_same("weighted_add", &[a.shape, b.shape])?;
        Ok(self.make(a.shape, |out| math::zip(out, &a.data, &b.data, |a, b| wa * a + wb * b)))
    }

    fn concat(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let (ca, cb) = (a.shape.c, b.shape.c);
        need_same("concat", &[a.shape.with_channels(0), b.shape.with_channels(0)])?;
        let shape = a.shape.with_channels(ca + cb);
        Ok(self.make(shape, |out| resample::concat(out, (&a.data, ca), (&b.data, cb))))
    }

    fn avg_pool2(&mut self, x: &Tensor) -> Result<Tensor> {
        need_multiple("avg_pool2", x.shape, 2)?;
        let shape = Shape { h: x.shape.h / 2, w: x.shape.w / 2, ..x.shape };
        Ok(self.make(shape, |out| resample::avg_pool2(out, &x.data, x.shape)))
    }

    fn global_avg_pool(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = Shape { h: 1, w: 1, ..x.shape };
        Ok(self.make(shape, |out| norm::global_avg_pool(out, &x.data, x.shape)))
    }

    fn upsample_nearest2(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = Shape { h: x.shape.h * 2, w: x.shape.w * 2, ..x.shape };
        Ok(self.make(shape, |out| resample::upsample_nearest2(out, &x.data, x.shape)))
    }

    fn fir_down2(&mut self, x: &Tensor) -> Result<Tensor> {
        need_multiple("fir_down2", x.shape, 2)?;
        let shape = Shape { h: x.shape.h / 2, w: x.shape.w / 2, ..x.shape };
        Ok(self.make(shape, |out| resample::fir_down2(out, &x.data, x.shape)))
    }

    fn fir_up2(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = Shape { h: x.shape.h * 2, w: x.shape.w * 2, ..x.shape };
        Ok(self.make(shape, |out| resample::fir_up2(out, &x.data, x.shape)))
    }

    fn pixel_unshuffle(&mut self, x: &Tensor, r: usize) -> Result<Tensor> {
        need_multiple("pixel_unshuffle", x.shape, r)?;
        let Shape { n, h, w, c } = x.shape;
        let shape = Shape::new(n, h / r, w / r, c * r * r);
        Ok(self.make(shape, |out| resample::pixel_unshuffle(out, &x.data, x.shape, r)))
    }

    fn pixel_shuffle(&mut self, x: &Tensor, r: usize) -> Result<Tensor> {
        let Shape { n, h, w, c } = x.shape;
        need(r > 0 && c % (r * r) == 0, || {
            format!("pixel_shuffle: {c} channels are not a multiple of {r} squared")
        })?;
        let shape = Shape::new(n, h * r, w * r, c / (r * r));
        Ok(self.make(shape, |out| resample::pixel_shuffle(out, &x.data, x.shape, r)))
    }

    fn spatial_attention(&mut self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        need_same("spatial_attention", &[q.shape, k.shape, v.shape])?;
        let inputs: [&[f32]; 3] = [&q.data, &k.data, &v.data];
        Ok(self.make(q.shape, |out| attention::spatial(out, inputs, q.shape, &self.pool)))
    }

    fn channel_attention(&mut self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        need_same("channel_attention", &[q.shape, k.shape, v.shape])?;
        let inputs: [&[f32]; 3] = [&q.data, &k.data, &v.data];
        Ok(self.make(q.shape, |out| attention::channel(out, inputs, q.shape, &self.pool)))
    }

    fn crop(&mut self, x: &Tensor, window: Window) -> Result<Tensor> {
        let fits = |first: usize, len: usize, all: usize| {
            first.checked_add(len).is_some_and(|end| end <= all)
        };
        need(fits(window.y, window.h, x.shape.h) && fits(window.x, window.w, x.shape.w), || {
            format!("crop: {window:?} is not within {} x {}", x.shape.h, x.shape.w)
        })?;
        let shape = Shape { h: window.h, w: window.w, ..x.shape };
        Ok(self.make(shape, |out| resample::crop(out, &x.data, x.shape, window)))
    }
}
