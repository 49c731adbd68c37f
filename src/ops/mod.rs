//! The operator set: every operator that the networks are written in.
//!
//! The networks in [`crate::model`] are [graphs](crate::graph) of operators. The implementations of [`Ops`] in
//! [`crate::exec`] (naive reference, CPU, GPU) are called *backends* and run the same graphs. One file per operator
//! holds its parameters, shape rule, cost rule and naive reference; `shaders/<operator>.wgsl` is its GPU kernel.
//!
//! Layout: every tensor is f32, NHWC, dense, written `[n, h, w, c]`. Parameters are found by name: an operator with the
//! name `name` reads the checkpoint's `name.weight` and, where it has one, `name.bias`, in PyTorch's layouts.
//!
//! Every backend takes its shape checks from the operators' `output_shape`, so all of them refuse the same calls. The
//! cost rules (`flops`) count multiplications and additions; a division, root or exponential counts as one. They
//! saturate instead of wrapping. The references sum in f64 and round once.
//!
//! # Examples
//!
//! ```
//! use std::sync::Arc;
//! use tessera::{exec::cpu::Cpu, ops::{Ops, Shape, weights::Weights}};
//!
//! let mut ops = Cpu::new(Arc::new(Weights::default()));
//! let x = ops.upload(Shape::new(1, 1, 2, 1), &[1.0, 3.0])?;
//! let y = ops.upsample_nearest2(&x)?;
//! assert_eq!(ops.shape(&y), Shape::new(1, 2, 4, 1));
//! assert_eq!(ops.download(&y)?, [1.0, 1.0, 3.0, 3.0, 1.0, 1.0, 3.0, 3.0]);
//! # Ok::<(), tessera::error::Error>(())
//! ```

pub mod avg_pool2;
pub mod channel_attention;
pub mod concat;
pub mod conv2d;
pub mod crop;
pub mod fir_down2;
pub mod fir_up2;
pub mod global_avg_pool;
pub mod group_norm;
mod op;
pub mod pixel_norm;
pub mod pixel_shuffle;
pub mod pixel_unshuffle;
pub mod scale_shift;
pub mod silu;
pub mod spatial_attention;
#[doc(hidden)]
pub mod testing;
pub mod upsample_nearest2;
pub mod weighted_add;
pub mod weights;

pub use op::{Factors, Op};

pub use crate::geometry::Rect;

use self::weights::Weights;
use crate::error::{Error, Result};

/// Extents of a tensor `[n, h, w, c]`: `n` pictures of `h` rows, `w` columns and `c` channels.
///
/// Element (i, y, x, j) is at index ((i h + y) w + x) c + j.
///
/// ```
/// use tessera::ops::Shape;
///
/// let shape = Shape::new(2, 4, 8, 3);
/// assert_eq!((shape.len(), shape.pixels()), (192, 32));
/// assert_eq!(shape.with_channels(5), Shape::new(2, 4, 8, 5));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Pictures in the batch.
    pub n: usize,
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

impl Shape {
    /// A shape from its extents.
    pub const fn new(n: usize, h: usize, w: usize, c: usize) -> Self {
        Self { n, h, w, c }
    }

    /// Number of elements.
    pub const fn len(&self) -> usize {
        self.n * self.h * self.w * self.c
    }

    /// True if the tensor has no elements.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of pixels of one picture, `h w`.
    pub const fn pixels(&self) -> usize {
        self.h * self.w
    }

    /// The shape `[n, h, w, c]` with another number of channels.
    #[must_use]
    pub const fn with_channels(self, c: usize) -> Self {
        Self { c, ..self }
    }
}

/// The part of a picture's grid that a layer runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// Always the whole grid: algorithms whose rounding depends on a pixel's position (Winograd) are allowed.
    Whole,
    /// Any window of the grid, such as a tile: a pixel's bits must not depend on its position.
    Window,
}

/// A convolution with stride 1 and zero padding of `kernel / 2`, so that the grid keeps its size.
///
/// Parameters: `name.weight` `[out, in, kernel, kernel]`, `name.bias` `[out]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Name of the layer.
    pub name: String,
    /// Input channels.
    pub in_channels: usize,
    /// Output channels.
    pub out_channels: usize,
    /// 1 or 3.
    pub kernel: usize,
    /// The part of the grid that the layer runs on.
    pub domain: Domain,
}

/// GroupNorm (Wu and He 2018): mean and population variance over (h, w, channels of a group), eps 1e-6 under the root.
///
/// Parameters: `name.weight` and `name.bias`, `[channels]` each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupNorm {
    /// Name of the layer.
    pub name: String,
    /// Channels.
    pub channels: usize,
    /// Groups; divides `channels`.
    pub groups: usize,
    /// True if SiLU is applied to the result.
    pub silu: bool,
}

/// RMS norm over the channels of each pixel (Zhang and Sennrich 2019): x / sqrt(mean(x^2) + 1e-6) * gain.
///
/// Parameter: the gain, `name.weight` `[channels]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PixelNorm {
    /// Name of the layer.
    pub name: String,
    /// Channels.
    pub channels: usize,
    /// True if SiLU is applied to the result.
    pub silu: bool,
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

/// A backend: the operators over its own kind of tensor.
///
/// Shapes are `[n, h, w, c]`, N = `h w` is the number of pixels of a picture and C its number of channels. Methods
/// never panic on wrong shapes or parameters. Results depend on the inputs alone: within the operator's receptive field
/// a pixel's value does not depend on the tensor's extents, so that decoding tile by tile gives the bits of decoding at
/// once.
///
/// # Errors
/// All operators return [`crate::error::Kind::InvalidArgument`] for shapes that don't fit,
/// [`crate::error::Kind::InvalidModel`] for a parameter that is missing or has another shape, and
/// [`crate::error::Kind::Device`] when the device fails or has no memory left. The sections of single methods say which
/// shapes fit.
pub trait Ops: Send {
    /// A tensor on the backend's device; cloning shares the memory.
    type Tensor: Clone + Send + Sync;

    /// The tensor's shape.
    fn shape(&self, x: &Self::Tensor) -> Shape;

    /// Copies `data` from the host: values of a tensor of `shape`, f32, NHWC.
    ///
    /// # Errors
    /// `data` does not have `shape.len()` values, or none.
    fn upload(&mut self, shape: Shape, data: &[f32]) -> Result<Self::Tensor>;

    /// Copies a tensor to the host, f32, NHWC; blocks until it is computed.
    ///
    /// # Errors
    /// A failure of the device in this call or since the last one that reported errors.
    fn download(&mut self, x: &Self::Tensor) -> Result<Vec<f32>>;

    /// Begins to copy a tensor to the host without blocking, so that the device can go on with the next operators.
    ///
    /// # Errors
    /// As [`Ops::download`]; those of the copy itself come from [`Download::wait`].
    fn download_later(&mut self, x: &Self::Tensor) -> Result<Download> {
        let values = self.download(x)?;
        Ok(values.into())
    }

    /// Runs `work`, a sequence of operators, on the backend's own threads if it has any: entering a thread pool once
    /// costs less than once per operator.
    fn install<R: Send>(&mut self, work: impl FnOnce(&mut Self) -> R + Send) -> R
    where
        Self: Sized,
    {
        work(self)
    }

    /// The parameters of its layers.
    fn weights(&self) -> &Weights;

    /// Convolution, x `[n, h, w, in]` -> `[n, h, w, out]`; kernel 1 is a linear layer over channels.
    ///
    /// # Errors
    /// x does not have `p.in_channels` channels, or `p.kernel` is not 1 or 3.
    fn conv2d(&mut self, x: &Self::Tensor, p: &Conv2d) -> Result<Self::Tensor>;

    /// GroupNorm, then SiLU if `p.silu`, x `[n, h, w, c]` -> `[n, h, w, c]`.
    ///
    /// # Errors
    /// x does not have `p.channels` channels, or `p.groups` does not divide them.
    fn group_norm(&mut self, x: &Self::Tensor, p: &GroupNorm) -> Result<Self::Tensor>;

    /// RMS norm of every pixel, then SiLU if `p.silu`, x `[n, h, w, c]` -> `[n, h, w, c]`.
    ///
    /// # Errors
    /// x does not have `p.channels` channels.
    fn pixel_norm(&mut self, x: &Self::Tensor, p: &PixelNorm) -> Result<Self::Tensor>;

    /// x sigmoid(x) (Elfwing et al. 2018), elementwise, x `[n, h, w, c]` -> `[n, h, w, c]`.
    ///
    /// # Errors
    /// Those of all operators.
    fn silu(&mut self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// x (1 + scale) + shift per channel, then SiLU if `silu`, x `[n, h, w, c]` -> `[n, h, w, c]`.
    ///
    /// `pair` is `[n or 1, 1, 1, 2 c]`: c scales, then c shifts, for each picture or for all.
    ///
    /// # Errors
    /// `pair` has another shape.
    fn scale_shift(
        &mut self,
        x: &Self::Tensor,
        pair: &Self::Tensor,
        silu: bool,
    ) -> Result<Self::Tensor>;

    /// wa a + wb b, elementwise, a, b `[n, h, w, c]` -> `[n, h, w, c]`.
    ///
    /// # Errors
    /// a and b differ in shape.
    fn weighted_add(
        &mut self,
        a: &Self::Tensor,
        b: &Self::Tensor,
        wa: f32,
        wb: f32,
    ) -> Result<Self::Tensor>;

    /// The channels of a, then those of b, a `[n, h, w, ca]`, b `[n, h, w, cb]` -> `[n, h, w, ca + cb]`.
    ///
    /// # Errors
    /// a and b differ in n, h or w.
    fn concat(&mut self, a: &Self::Tensor, b: &Self::Tensor) -> Result<Self::Tensor>;

    /// Mean of every 2x2 pixels, x `[n, h, w, c]` -> `[n, h/2, w/2, c]`.
    ///
    /// # Errors
    /// h or w is odd.
    fn avg_pool2(&mut self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// Mean over all pixels of a picture, x `[n, h, w, c]` -> `[n, 1, 1, c]`.
    ///
    /// # Errors
    /// Those of all operators.
    fn global_avg_pool(&mut self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// Nearest-neighbour upsampling, each pixel to 2x2, x `[n, h, w, c]` -> `[n, 2h, 2w, c]`.
    ///
    /// # Errors
    /// Those of all operators.
    fn upsample_nearest2(&mut self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// FIR `[1,3,3,1]`/8 per axis with stride 2 and zero padding (NCSN++, Song et al. 2021), x `[n, h, w, c]` ->
    /// `[n, h/2, w/2, c]`: `y[i] = (x[2i-1] + 3x[2i] + 3x[2i+1] + x[2i+2]) / 8`.
    ///
    /// # Errors
    /// h or w is odd.
    fn fir_down2(&mut self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// FIR `[1,3,3,1]`/4 per axis after zero insertion (NCSN++), edges repeated, x `[n, h, w, c]` -> `[n, 2h, 2w, c]`:
    /// `y[2i] = (x[i-1] + 3x[i]) / 4`, `y[2i+1] = (3x[i] + x[i+1]) / 4`.
    ///
    /// # Errors
    /// Those of all operators.
    fn fir_up2(&mut self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// Space to depth, x `[n, h, w, c]` -> `[n, h/r, w/r, c r^2]`: channel (c r + dy) r + dx of the result is channel c
    /// at offset (dy, dx) of the r x r cell, as in PyTorch's `PixelUnshuffle`.
    ///
    /// # Errors
    /// `r` is 0 or does not divide h and w.
    fn pixel_unshuffle(&mut self, x: &Self::Tensor, r: usize) -> Result<Self::Tensor>;

    /// Depth to space, the inverse of [`Ops::pixel_unshuffle`], x `[n, h, w, c]` -> `[n, h r, w r, c / r^2]`.
    ///
    /// # Errors
    /// `r` is 0 or its square does not divide c.
    fn pixel_shuffle(&mut self, x: &Self::Tensor, r: usize) -> Result<Self::Tensor>;

    /// Attention over the pixels of each picture with one head, q, k, v `[n, h, w, c]` -> `[n, h, w, c]`:
    /// softmax(q k^T / sqrt C) v with q, k, v as N x C matrices and the softmax over k's pixels.
    ///
    /// # Errors
    /// q, k and v differ in shape.
    fn spatial_attention(
        &mut self,
        q: &Self::Tensor,
        k: &Self::Tensor,
        v: &Self::Tensor,
    ) -> Result<Self::Tensor>;

    /// Attention over the channels of each picture, q, k, v `[n, h, w, c]` -> `[n, h, w, c]`:
    /// out_i = sum over j of A_ij v_j with A = softmax over j of (sum over pixels of q_i k_j / sqrt N).
    ///
    /// # Errors
    /// q, k and v differ in shape.
    fn channel_attention(
        &mut self,
        q: &Self::Tensor,
        k: &Self::Tensor,
        v: &Self::Tensor,
    ) -> Result<Self::Tensor>;

    /// A rectangle of the grid, x `[n, h, w, c]` -> `[n, window.height, window.width, c]`.
    ///
    /// # Errors
    /// The window is empty or reaches past the grid.
    fn crop(&mut self, x: &Self::Tensor, window: Rect) -> Result<Self::Tensor>;
}

/// Checks the arguments of [`Ops::upload`]: `len` values fill `shape`, and there is at least one, as no tensor is
/// empty.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] when they don't.
pub fn check_upload(shape: Shape, len: usize) -> Result<()> {
    let wanted = [shape.h, shape.w, shape.c].iter().try_fold(shape.n, |a, &b| a.checked_mul(b));
    need(wanted == Some(len) && len > 0, || {
        Error::invalid("uploaded values", len, format!("the size of {shape:?}, at least 1"))
    })
}

/// `Ok` if `ok`, else `error`.
pub(crate) fn need(ok: bool, error: impl FnOnce() -> Error) -> Result<()> {
    if ok { Ok(()) } else { Err(error()) }
}

/// Product of `extents`, saturating, for cost rules.
pub(crate) fn product(extents: &[usize]) -> u64 {
    extents.iter().fold(1u64, |a, &b| a.saturating_mul(b as u64))
}

/// Number of elements of `x`, saturating.
pub(crate) fn elements(x: Shape) -> u64 {
    product(&[x.n, x.h, x.w, x.c])
}
