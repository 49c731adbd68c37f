//! What waits until it is read: a convolution, so that a sum which it becomes part of is done in its store, and nearest
//! enlarging, which a convolution does by where it reads.

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

/// A tensor of [`Gpu`], or a convolution or an enlarging that will be one when it is read; cloning shares it.
///
/// A convolution that is part of a weighted sum is computed with the sum, and nothing writes it by itself; who reads it
/// all the same has it computed once more, then it is there for all.
#[derive(Clone, Debug)]
pub struct Lazy {
    shape: Shape,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
enum State {
    Ready(Tensor),
    /// Each pixel as 2x2.
    Enlarged(Tensor),
    Product {
        product: Product,
        /// Whether a sum has it already.
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

    /// The convolution that it waits for, unless a sum has it already.
    fn product(&self) -> Option<Product> {
        match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Product { product, summed: false } => Some(product.clone()),
            _ => None,
        }
    }

    /// Notes that a sum has it.
    fn note_sum(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Product { summed, .. } = &mut *state {
            *summed = true;
        }
    }
}

/// What a convolution reads or adds.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) tensor: Tensor,
    /// Whether each pixel stands for 2x2.
    pub(super) enlarged: bool,
}

impl Source {
    /// The shape that it is read in.
    pub(super) fn shape(&self) -> Shape {
        let Shape { n, h, w, c } = self.tensor.shape;
        if self.enlarged { Shape { n, h: 2 * h, w: 2 * w, c } } else { self.tensor.shape }
    }
}

impl From<Tensor> for Lazy {
    fn from(x: Tensor) -> Self {
        Self::new(x.shape, State::Ready(x))
    }
}

impl Gpu {
    /// The tensor in memory.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`]; the next to read it tries again.
    pub(super) fn force(&mut self, x: &Lazy) -> Result<Tensor> {
        let mut state = x.state.lock().unwrap_or_else(PoisonError::into_inner);
        let tensor = match &*state {
            State::Ready(tensor) => return Ok(tensor.clone()),
            State::Enlarged(tensor) => resample::upsample_nearest2(self, tensor)?,
            State::Product { product, .. } => conv2d::compute(self, product, None)?,
        };
        *state = State::Ready(tensor.clone());
        Ok(tensor)
    }

    /// The same for who can read it as it lies in memory.
    fn source(&mut self, x: &Lazy) -> Result<Source> {
        if let State::Enlarged(tensor) = &*x.state.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(Source { tensor: tensor.clone(), enlarged: true });
        }
        Ok(Source { tensor: self.force(x)?, enlarged: false })
    }

    /// A tensor of `shape` that waits in `state`; `what` names it in errors. Of memory and device nothing else may be asked
    /// until somebody reads it, perhaps nobody.
    fn waiting(&self, shape: Shape, state: State, what: &str) -> Result<Lazy> {
        self.device.check()?;
        buffers::check_size(&self.device, buffers::bytes(shape), &format!("{what}: {shape:?}"))?;
        Ok(Lazy::new(shape, state))
    }
}

/// A convolution that waits.
pub(super) fn conv2d(gpu: &mut Gpu, x: &Lazy, p: &Conv2d) -> Result<Lazy> {
    let x = gpu.source(x)?;
    let product = conv2d::product(gpu, x, p)?;
    gpu.waiting(product.shape, State::Product { product, summed: false }, &p.name)
}

/// Nearest enlarging that waits.
pub(super) fn upsample_nearest2(gpu: &mut Gpu, x: &Lazy) -> Result<Lazy> {
    let shape = upsample_nearest2::output_shape(x.shape)?;
    let x = gpu.force(x)?;
    gpu.waiting(shape, State::Enlarged(x), "upsample_nearest2")
}

/// `wa` times `a` plus `wb` times `b`, in the store of a convolution where one of them waits.
pub(super) fn weighted_add(gpu: &mut Gpu, a: &Lazy, b: &Lazy, wa: f32, wb: f32) -> Result<Lazy> {
    weighted_add::output_shape(a.shape, b.shape)?;
    // Of two that wait the second one goes on waiting for the sum: a block's last and largest.
    let (own, other) = if b.product().is_some() { (b, a) } else { (a, b) };
    let addend = gpu.source(other)?;
    // Both may be the same, which does not wait any more then.
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
