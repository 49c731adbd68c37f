//! The naive backend: every operator by the reference in its own file. Tests compare the other backends with it.

use std::sync::Arc;

use crate::{
    error::Result,
    ops::{self, Conv2d, GroupNorm, Ops, PixelNorm, Rect, Shape, weights::Weights},
};

/// The reference backend.
///
/// ```
/// use tessera::{exec::reference::Reference, ops::{Ops, Shape}};
///
/// let mut ops = Reference::new(Default::default());
/// let x = ops.upload(Shape::new(1, 2, 2, 1), &[1.0, 2.0, 3.0, 4.0])?;
/// let mean = ops.avg_pool2(&x)?;
/// assert_eq!(ops.download(&mean)?, [2.5]);
/// # Ok::<(), tessera::error::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Reference {
    weights: Arc<Weights>,
}

/// A tensor of [`Reference`].
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: Shape,
    data: Arc<[f32]>,
}

impl Reference {
    /// A backend with the parameters `weights`.
    pub fn new(weights: Arc<Weights>) -> Self {
        Self { weights }
    }
}

impl Tensor {
    fn new(shape: Shape, data: Vec<f32>) -> Self {
        debug_assert_eq!(shape.len(), data.len());
        Self { shape, data: data.into() }
    }
}

impl Ops for Reference {
    type Tensor = Tensor;

    fn shape(&self, x: &Tensor) -> Shape {
        x.shape
    }

    fn upload(&mut self, shape: Shape, data: &[f32]) -> Result<Tensor> {
        ops::check_upload(shape, data.len())?;
        Ok(Tensor::new(shape, data.to_vec()))
    }

    fn download(&mut self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.data.to_vec())
    }

    fn weights(&self) -> &Weights {
        &self.weights
    }

    fn conv2d(&mut self, x: &Tensor, p: &Conv2d) -> Result<Tensor> {
        let shape = ops::conv2d::output_shape(x.shape, p)?;
        let (weight, bias) = p.load(&self.weights)?;
        Ok(Tensor::new(shape, ops::conv2d::reference(&x.data, x.shape, p, weight, bias)))
    }

    fn group_norm(&mut self, x: &Tensor, p: &GroupNorm) -> Result<Tensor> {
        let shape = ops::group_norm::output_shape(x.shape, p)?;
        let (weight, bias) = p.load(&self.weights)?;
        Ok(Tensor::new(shape, ops::group_norm::reference(&x.data, x.shape, p, weight, bias)))
    }

    fn pixel_norm(&mut self, x: &Tensor, p: &PixelNorm) -> Result<Tensor> {
        let shape = ops::pixel_norm::output_shape(x.shape, p)?;
        let weight = p.load(&self.weights)?;
        Ok(Tensor::new(shape, ops::pixel_norm::reference(&x.data, x.shape, p, weight)))
    }

    fn silu(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(Tensor::new(ops::silu::output_shape(x.shape)?, ops::silu::reference(&x.data)))
    }

    fn scale_shift(&mut self, x: &Tensor, pair: &Tensor, silu: bool) -> Result<Tensor> {
        let shape = ops::scale_shift::output_shape(x.shape, pair.shape)?;
        let out = ops::scale_shift::reference(&x.data, x.shape, &pair.data, pair.shape, silu);
        Ok(Tensor::new(shape, out))
    }

    fn weighted_add(&mut self, a: &Tensor, b: &Tensor, wa: f32, wb: f32) -> Result<Tensor> {
        let shape = ops::weighted_add::output_shape(a.shape, b.shape)?;
        Ok(Tensor::new(shape, ops::weighted_add::reference(&a.data, &b.data, wa, wb)))
    }

    fn concat(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let shape = ops::concat::output_shape(a.shape, b.shape)?;
        Ok(Tensor::new(shape, ops::concat::reference(&a.data, a.shape, &b.data, b.shape)))
    }

    fn avg_pool2(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = ops::avg_pool2::output_shape(x.shape)?;
        Ok(Tensor::new(shape, ops::avg_pool2::reference(&x.data, x.shape)))
    }

    fn global_avg_pool(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = ops::global_avg_pool::output_shape(x.shape)?;
        Ok(Tensor::new(shape, ops::global_avg_pool::reference(&x.data, x.shape)))
    }

    fn upsample_nearest2(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = ops::upsample_nearest2::output_shape(x.shape)?;
        Ok(Tensor::new(shape, ops::upsample_nearest2::reference(&x.data, x.shape)))
    }

    fn fir_down2(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = ops::fir_down2::output_shape(x.shape)?;
        Ok(Tensor::new(shape, ops::fir_down2::reference(&x.data, x.shape)))
    }

    fn fir_up2(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = ops::fir_up2::output_shape(x.shape)?;
        Ok(Tensor::new(shape, ops::fir_up2::reference(&x.data, x.shape)))
    }

    fn pixel_unshuffle(&mut self, x: &Tensor, r: usize) -> Result<Tensor> {
        let shape = ops::pixel_unshuffle::output_shape(x.shape, r)?;
        Ok(Tensor::new(shape, ops::pixel_unshuffle::reference(&x.data, x.shape, r)))
    }

    fn pixel_shuffle(&mut self, x: &Tensor, r: usize) -> Result<Tensor> {
        let shape = ops::pixel_shuffle::output_shape(x.shape, r)?;
        Ok(Tensor::new(shape, ops::pixel_shuffle::reference(&x.data, x.shape, r)))
    }

    fn spatial_attention(&mut self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let shape = ops::spatial_attention::output_shape(q.shape, k.shape, v.shape)?;
        let out = ops::spatial_attention::reference(&q.data, &k.data, &v.data, shape);
        Ok(Tensor::new(shape, out))
    }

    fn channel_attention(&mut self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let shape = ops::channel_attention::output_shape(q.shape, k.shape, v.shape)?;
        let out = ops::channel_attention::reference(&q.data, &k.data, &v.data, shape);
        Ok(Tensor::new(shape, out))
    }

    fn crop(&mut self, x: &Tensor, window: Rect) -> Result<Tensor> {
        let shape = ops::crop::output_shape(x.shape, window)?;
        Ok(Tensor::new(shape, ops::crop::reference(&x.data, x.shape, window)))
    }
}
