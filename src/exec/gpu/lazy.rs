//! Deferred operators: a convolution, so that a weighted sum of it can be fused into its stores, and nearest-neighbour
//! upsampling, which a convolution fuses into its loads.

use std::sync::{Arc, Mutex, PoisonError};

use super::{
    Gpu, Tensor, buffers,
    conv2d::{self, Product},
    pointwise, resample,
};
use crate::{
    error::Result,
    ops::{Conv2d, Shape, upsample_nearest2, weighted_add},
};

/// A tensor of [`Gpu`]: in memory, or a deferred convolution or upsampling; clones share it.
///
/// A convolution that is fused into a weighted sum is not stored by itself. If it is read afterwards, it is recomputed
/// once and then cached.
#[derive(Clone, Debug)]
pub struct Lazy {
    shape: Shape,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
enum State {
    Ready(Tensor),
    /// The tensor nearest-upsampled to twice its sides.
    Upsampled(Tensor),
    Product {
        product: Product,
        /// True once it is fused into a sum.
        summed: bool,
    },
}

impl Lazy {
    fn new(shape: Shape, state: State) -> Self {
        Self { shape, state: Arc::new(Mutex::new(state)) }
    }

    /// Its shape.
    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// The deferred convolution, unless it is fused into a sum already.
    fn product(&self) -> Option<Product> {
        match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Product { product, summed: false } => Some(product.clone()),
            _ => None,
        }
    }

    /// Marks the convolution as fused into a sum.
    fn note_sum(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Product { summed, .. } = &mut *state {
            *summed = true;
        }
    }
}

/// An input or addend of a convolution.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) tensor: Tensor,
    /// True if it is nearest-upsampled as it is read.
    pub(super) upsampled: bool,
}

impl Source {
    /// The shape after upsampling.
    pub(super) fn shape(&self) -> Shape {
        let Shape { n, h, w, c } = self.tensor.shape;
        if self.upsampled { Shape { n, h: 2 * h, w: 2 * w, c } } else { self.tensor.shape }
    }
}

impl From<Tensor> for Lazy {
    fn from(x: Tensor) -> Self {
        Self::new(x.shape, State::Ready(x))
    }
}

impl Gpu {
    /// The tensor in memory; computes it if it is deferred.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`]; the next call tries again.
    pub(super) fn force(&mut self, x: &Lazy) -> Result<Tensor> {
        let mut state = x.state.lock().unwrap_or_else(PoisonError::into_inner);
        let tensor = match &*state {
            State::Ready(tensor) => return Ok(tensor.clone()),
            State::Upsampled(tensor) => resample::upsample_nearest2(self, tensor)?,
            State::Product { product, .. } => conv2d::compute(self, product, None)?,
        };
        *state = State::Ready(tensor.clone());
        Ok(tensor)
    }

    /// As [`Gpu::force`] for a convolution, which can read an upsampled tensor without computing it.
    fn source(&mut self, x: &Lazy) -> Result<Source> {
        if let State::Upsampled(tensor) = &*x.state.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(Source { tensor: tensor.clone(), upsampled: true });
        }
        Ok(Source { tensor: self.force(x)?, upsampled: false })
    }

    /// A deferred tensor of `shape`; `what` names it in errors. Checks device health and size only: memory is allocated
    /// when the tensor is first read.
    fn deferred(&mut self, shape: Shape, state: State, what: &str) -> Result<Lazy> {
        self.device.check()?;
        buffers::check_size(&self.device, buffers::bytes(shape), &format!("{what}: {shape:?}"))?;
        let lazy = Lazy::new(shape, state);
        if !self.fusion {
            self.force(&lazy)?;
        }
        Ok(lazy)
    }
}

/// A deferred convolution, x [n, h, w, in] -> [n, h, w, out].
pub(super) fn conv2d(gpu: &mut Gpu, x: &Lazy, p: &Conv2d) -> Result<Lazy> {
    let x = gpu.source(x)?;
    let product = conv2d::product(gpu, x, p)?;
    gpu.deferred(product.shape, State::Product { product, summed: false }, &p.name)
}

/// Deferred nearest-neighbour upsampling, x [n, h, w, c] -> [n, 2h, 2w, c].
pub(super) fn upsample_nearest2(gpu: &mut Gpu, x: &Lazy) -> Result<Lazy> {
    let shape = upsample_nearest2::output_shape(x.shape)?;
    let x = gpu.force(x)?;
    gpu.deferred(shape, State::Upsampled(x), "upsample_nearest2")
}

/// wa a + wb b, a, b [n, h, w, c] -> [n, h, w, c], fused into the stores of a deferred convolution if one of them is
/// one.
pub(super) fn weighted_add(gpu: &mut Gpu, a: &Lazy, b: &Lazy, wa: f32, wb: f32) -> Result<Lazy> {
    weighted_add::output_shape(a.shape, b.shape)?;
    // Of two deferred convolutions the second one is fused: it is a block's last and largest.
    let (own, other) = if b.product().is_some() { (b, a) } else { (a, b) };
    let addend = gpu.source(other)?;
    // If both are the same tensor, it is not deferred any more.
    let Some(product) = own.product() else {
        let (a, b) = (gpu.force(a)?, gpu.force(b)?);
        return Ok(pointwise::weighted_add(gpu, &a, &b, wa, wb)?.into());
    };
    let first = std::ptr::eq(own, a);
    let sum = conv2d::Sum { addend: &addend, wa, wb, first };
    let y = conv2d::compute(gpu, &product, Some(&sum))?;
    own.note_sum();
    Ok(y.into())
}
