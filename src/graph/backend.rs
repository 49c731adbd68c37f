//! The trait of the backends.

use super::{Graph, GraphBuilder};
use crate::{
    error::{Error, Result},
    ops::{Rect, Shape, need},
};

/// A device with the weights of a model, which runs graphs.
///
/// Results depend on the inputs alone: within the receptive field of its operators a pixel's value does not depend on
/// the tensor's extents, so that decoding tile by tile gives the bits of decoding at once.
///
/// # Errors
/// All methods return [`crate::error::Kind::Device`] when the device fails or has no memory left.
pub trait Backend: Send {
    /// A tensor on the device, f32, NHWC; cloning shares the memory.
    type Tensor: Clone + Send + Sync;

    /// The tensor's shape.
    fn shape(&self, x: &Self::Tensor) -> Shape;

    /// Copies `data` from the host: values of a tensor of `shape`, f32, NHWC.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] if `data` does not have `shape.len()` values, or none.
    fn upload(&mut self, shape: Shape, data: &[f32]) -> Result<Self::Tensor>;

    /// Copies a tensor to the host, f32, NHWC; blocks until it is computed.
    ///
    /// # Errors
    /// A failure of the device in this call or since the last one that reported errors.
    fn download(&mut self, x: &Self::Tensor) -> Result<Vec<f32>> {
        self.download_later(x)?.wait()
    }

    /// Begins to copy a tensor to the host without blocking, so that the device can go on with the next graph.
    ///
    /// # Errors
    /// As [`Backend::download`]; those of the copy itself come from [`Download::wait`].
    fn download_later(&mut self, x: &Self::Tensor) -> Result<Download>;

    /// Runs `graph` on `inputs`; returns its results in their order. A tensor is dropped after the last operator that
    /// reads it.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] if number or shapes of the inputs are not the graph's;
    /// [`crate::error::Kind::InvalidModel`] for a parameter that is missing or has another shape.
    fn run(&mut self, graph: &Graph, inputs: Vec<Self::Tensor>) -> Result<Vec<Self::Tensor>>;

    /// Runs `graph` on `inputs` and begins to copy its results to the host, for graphs that are run again and again: a
    /// backend may keep what it has prepared for a graph, within a bound of memory.
    ///
    /// # Errors
    /// Those of [`Backend::run`] and [`Backend::download_later`].
    fn evaluate(
        &mut self,
        graph: &Graph,
        inputs: &[Input<'_, Self::Tensor>],
    ) -> Result<Vec<Download>> {
        check_inputs(graph, inputs.iter().map(|input| input.shape(self)))?;
        let tensors = inputs.iter().map(|input| match *input {
            Input::Host(shape, data) => self.upload(shape, data),
            Input::Window(x, window) => {
                let mut g = GraphBuilder::new();
                let whole = g.input(self.shape(x))?;
                let cropped = g.crop(whole, window)?;
                let mut results = self.run(&g.finish([cropped]), vec![x.clone()])?;
                results.pop().ok_or_else(|| Error::internal("a graph has no result"))
            }
        });
        let tensors = tensors.collect::<Result<_>>()?;
        let results = self.run(graph, tensors)?;
        results.iter().map(|result| self.download_later(result)).collect()
    }
}

/// An input of [`Backend::evaluate`].
#[derive(Debug)]
pub enum Input<'a, T> {
    /// Values on the host of a tensor of this shape, f32, NHWC.
    Host(Shape, &'a [f32]),
    /// A window of a tensor on the device, in pixels of all its pictures.
    Window(&'a T, Rect),
}

impl<T> Input<'_, T> {
    /// Shape of the tensor or window.
    pub fn shape<B: Backend<Tensor = T> + ?Sized>(&self, backend: &B) -> Shape {
        match *self {
            Self::Host(shape, _) => shape,
            Self::Window(x, Rect { width, height, .. }) => {
                Shape { h: height, w: width, ..backend.shape(x) }
            }
        }
    }
}

/// Checks that tensors of the shapes `found` are inputs of `graph`.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if number or shapes differ.
pub(crate) fn check_inputs(
    graph: &Graph,
    found: impl Iterator<Item = Shape> + Clone,
) -> Result<()> {
    let wanted = graph.inputs().iter().map(|&input| graph.shape(input));
    need(wanted.clone().eq(found.clone()), || {
        let list = |shapes: Vec<Shape>| format!("{shapes:?}");
        let [found, wanted] = [list(found.collect()), list(wanted.collect())];
        Error::invalid("inputs of the graph", found, wanted)
    })
}

/// Checks the arguments of [`Backend::upload`]: `len` values fill `shape`, and there is at least one, as no tensor is
/// empty.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] when they don't.
pub(crate) fn check_upload(shape: Shape, len: usize) -> Result<()> {
    let wanted = [shape.h, shape.w, shape.c].iter().try_fold(shape.n, |a, &b| a.checked_mul(b));
    need(wanted == Some(len) && len > 0, || {
        Error::invalid("uploaded values", len, format!("the size of {shape:?}, at least 1"))
    })
}

/// A copy of a tensor to the host that may still be in progress; its values are f32, NHWC.
pub struct Download(Transfer);

enum Transfer {
    Ready(Vec<f32>),
    Pending(Box<dyn FnOnce() -> Result<Vec<f32>> + Send>),
}

impl Download {
    /// A pending copy; `wait` blocks until it is done. If the value is dropped instead, `wait` is never called.
    pub fn later(wait: impl FnOnce() -> Result<Vec<f32>> + Send + 'static) -> Self {
        Self(Transfer::Pending(Box::new(wait)))
    }

    /// True if the values are on the host already, as those of a backend that computes at once.
    pub fn is_ready(&self) -> bool {
        matches!(self.0, Transfer::Ready(_))
    }

    /// Blocks until the copy is done; returns the values.
    ///
    /// # Errors
    /// A failure of the device since the copy began, of kind [`crate::error::Kind::Device`].
    pub fn wait(self) -> Result<Vec<f32>> {
        match self.0 {
            Transfer::Ready(values) => Ok(values),
            Transfer::Pending(wait) => wait(),
        }
    }
}

impl From<Vec<f32>> for Download {
    fn from(values: Vec<f32>) -> Self {
        Self(Transfer::Ready(values))
    }
}
