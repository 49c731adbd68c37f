//! Convolutions wait until they are read, so that a sum which they become part of is done in their store.

use std::sync::{Arc, Mutex, PoisonError};

use super::{
    Gpu, Tensor,
    conv2d::{self, Product},
    pointwise,
};
use crate::{
    error::Result,
    ops::{Conv2d, Shape, weighted_add},
};

/// A tensor of [`Gpu`], or a convolution that will be one when it is read; cloning shares it.
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
            State::Product { product, .. } => conv2d::compute(self, product, None)?,
        };
        *state = State::Ready(tensor.clone());
        Ok(tensor)
    }
}

/// A convolution that waits. What can be wrong with it but for memory and device is an error now.
pub(super) fn conv2d(gpu: &mut Gpu, x: &Lazy, p: &Conv2d) -> Result<Lazy> {
    let x = gpu.force(x)?;
    let product = conv2d::product(gpu, x, p)?;
    // Of the device nothing may be asked until somebody reads the result, perhaps nobody.
    gpu.device.check()?;
    Ok(Lazy::new(product.shape, State::Product { product, summed: false }))
}

/// `wa` times `a` plus `wb` times `b`, in the store of a convolution where one of them waits.
pub(super) fn weighted_add(gpu: &mut Gpu, a: &Lazy, b: &Lazy, wa: f32, wb: f32) -> Result<Lazy> {
    weighted_add::output_shape(a.shape, b.shape)?;
    // Of two that wait the second one goes on waiting for the sum: a block's last and largest.
    let (own, other) = if b.product().is_some() { (b, a) } else { (a, b) };
    let (addend, first) = (gpu.force(other)?, std::ptr::eq(own, a));
    // Both may be the same, which does not wait any more then.
    let Some(product) = own.product() else {
        let own = gpu.force(own)?;
        let (a, b) = if first { (own, addend) } else { (addend, own) };
        return Ok(pointwise::weighted_add(gpu, &a, &b, wa, wb)?.into());
    };
    let sum = conv2d::Sum { addend: &addend, wa, wb, first };
    let y = conv2d::compute(gpu, &product, Some(&sum))?;
    own.note_sum();
    Ok(y.into())
}
