//! The vocabulary: every operator that the networks are written in.
//!
//! The networks in [`crate::model`] are generic over [`Ops`]; its implementations in [`crate::exec`] (naive reference,
//! native CPU, GPU, tracer) interpret the same lines. One file per operator holds its parameters, shape rule, cost rule
//! and naive reference; `shaders/<operator>.wgsl` is its GPU twin.
//!
//! Layout: every tensor is f32, NHWC, dense. Parameters are found by name: an operator that is given `name` uses the
//! checkpoint's `name.weight` and, where it has one, `name.bias`, in PyTorch's layouts.
//!
//! Every interpreter takes its shape checks from the operators' `output_shape`, so that a call that one of them refuses
//! is refused by all. The cost rules (`flops`) count multiplications and additions, a division, root or exponential as
//! one of them; they saturate instead of wrapping. The references sum in f64 and round once.

pub mod avg_pool2;
pub mod cases;
pub mod channel_attention;
pub mod concat;
pub mod conv2d;
pub mod crop;
pub mod fir_down2;
pub mod fir_up2;
pub mod global_avg_pool;
pub mod group_norm;
pub mod pixel_norm;
pub mod pixel_shuffle;
pub mod pixel_unshuffle;
pub mod scale_shift;
pub mod silu;
pub mod spatial_attention;
pub mod trace;
pub mod upsample_nearest2;
pub mod weighted_add;
pub mod weights;

use crate::error::{Error, Result};

/// Extent of a tensor: `n` pictures of `h` rows, `w` columns, `c` channels; element (n, y, x, c) is at ((n h + y) w + x) C + c.
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

    /// Whether there are no elements.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pixels of one picture.
    pub const fn pixels(&self) -> usize {
        self.h * self.w
    }

    /// The same grid with `c` channels.
    #[must_use]
    pub const fn with_channels(self, c: usize) -> Self {
        Self { c, ..self }
    }
}

/// A rectangle of a tensor's grid, in its pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First row.
    pub y: usize,
    /// First column.
    pub x: usize,
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
}

/// A convolution with stride 1 and "same" zero padding: parameters `name.weight` `[out, in, kernel, kernel]` and `name.bias` `[out]`.
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
    /// Whether it only ever sees whole grids, never a window of one: then how a pixel is rounded may depend on where it lies.
    pub whole: bool,
}

/// GroupNorm (Wu and He 2018) over (h, w, channels of a group), population variance, eps 1e-6 under the root;
/// parameters `name.weight` and `name.bias` `[channels]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupNorm {
    /// Name of the layer.
    pub name: String,
    /// Channels.
    pub channels: usize,
    /// Groups; divides `channels`.
    pub groups: usize,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// Per-pixel RMS norm over channels, x / sqrt(mean(x^2) + 1e-6) * gain; parameter `name.weight` `[channels]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PixelNorm {
    /// Name of the layer.
    pub name: String,
    /// Channels.
    pub channels: usize,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// A tensor on its way back from a device, NHWC.
pub struct Download(Arrival);

enum Arrival {
    Here(Vec<f32>),
    Later(Box<dyn FnOnce() -> Result<Vec<f32>> + Send>),
}

impl Download {
    /// One that ends with what `wait` gives; if nobody waits for it, `wait` is dropped.
    pub fn later(wait: impl FnOnce() -> Result<Vec<f32>> + Send + 'static) -> Self {
        Self(Arrival::Later(Box::new(wait)))
    }

    /// Whether the values are there already, as those of an interpreter that computes at once.
    pub fn is_here(&self) -> bool {
        matches!(self.0, Arrival::Here(_))
    }

    /// The values, once they are there.
    ///
    /// # Errors
    /// What has gone wrong on the device since the download was begun.
    pub fn wait(self) -> Result<Vec<f32>> {
        match self.0 {
            Arrival::Here(values) => Ok(values),
            Arrival::Later(wait) => wait(),
        }
    }
}

impl From<Vec<f32>> for Download {
    fn from(values: Vec<f32>) -> Self {
        Self(Arrival::Here(values))
    }
}

/// An interpreter of the operators.
///
/// Operators return an error when shapes or parameters don't fit; they never panic on them. Results depend only on the
/// inputs: a pixel's value does not depend on the tensor's extent beyond the operator's reach (tiles equal the whole).
pub trait Ops: Send {
    /// A tensor on the interpreter's device; cloning shares the memory.
    type Tensor: Clone + Send + Sync;

    /// The tensor's shape.
    fn shape(&self, x: &Self::Tensor) -> Shape;

    /// Copies `data` (NHWC) to the device.
    fn upload(&mut self, shape: Shape, data: &[f32]) -> Result<Self::Tensor>;

    /// Copies a tensor back, NHWC.
    fn download(&mut self, x: &Self::Tensor) -> Result<Vec<f32>>;

    /// Begins to copy a tensor back, so that the device may go on to later work before somebody waits for the values. An
    /// interpreter that computes at once has them at once.
    ///
    /// # Errors
    /// As [`Ops::download`]; those of the copy itself come from [`Download::wait`].
    fn download_later(&mut self, x: &Self::Tensor) -> Result<Download> {
        let values = self.download(x)?;
        Ok(values.into())
    }

    /// Runs `work`, which is many operators. An interpreter whose threads are not the caller's hands all of it over at once, in
    /// place of one operator after the other.
    fn together<R: Send>(&mut self, work: impl FnOnce(&mut Self) -> R + Send) -> R
    where
        Self: Sized,
    {
        work(self)
    }

    /// The single value of the parameter `name` of shape `[1]`.
    fn scalar(&mut self, name: &str) -> Result<f32>;

    /// Convolution; `kernel` 1 also serves as a linear layer.
    fn conv2d(&mut self, x: &Self::Tensor, p: &Conv2d) -> Result<Self::Tensor>;

    /// GroupNorm, then SiLU if asked for.
    fn group_norm(&mut self, x: &Self::Tensor, p: &GroupNorm) -> Result<Self::Tensor>;

    /// Per-pixel RMS norm, then SiLU if asked for.
    fn pixel_norm(&mut self, x: &Self::Tensor, p: &PixelNorm) -> Result<Self::Tensor>;

    /// x * sigmoid(x).
    fn silu(&mut self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// x * (1 + scale) + shift, then SiLU if asked for; `pair` is [n or 1, 1, 1, 2C]: scale, then shift.
    fn scale_shift(
        &mut self,
        x: &Self::Tensor,
        pair: &Self::Tensor,
        silu: bool,
    ) -> Result<Self::Tensor>;

    /// wa * a + wb * b, elementwise.
    fn weighted_add(
        &mut self,
        a: &Self::Tensor,
        b: &Self::Tensor,
        wa: f32,
        wb: f32,
    ) -> Result<Self::Tensor>;

    /// Channels of `a`, then channels of `b`.
    fn concat(&mut self, a: &Self::Tensor, b: &Self::Tensor) -> Result<Self::Tensor>;

    /// Mean of every 2x2; height and width must be even.
    fn avg_pool2(&mut self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// Mean over the grid: [n, 1, 1, c].
    fn global_avg_pool(&mut self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// Every pixel becomes 2x2.
    fn upsample_nearest2(&mut self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// FIR `[1,3,3,1]`/8 per axis at every second pixel, zero-padded: `y[i] = (x[2i-1] + 3x[2i] + 3x[2i+1] + x[2i+2]) / 8`.
    /// Height and width must be even.
    fn fir_down2(&mut self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// FIR `[1,3,3,1]`/4 per axis, edges repeated: `y[2i] = (x[i-1] + 3x[i]) / 4`, `y[2i+1] = (3x[i] + x[i+1]) / 4`.
    fn fir_up2(&mut self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// Space to depth: [n, h, w, c] to [n, h/r, w/r, c r^2], channel c r^2 + dy r + dx as in PyTorch.
    fn pixel_unshuffle(&mut self, x: &Self::Tensor, r: usize) -> Result<Self::Tensor>;

    /// Depth to space, the inverse of [`Ops::pixel_unshuffle`].
    fn pixel_shuffle(&mut self, x: &Self::Tensor, r: usize) -> Result<Self::Tensor>;

    /// softmax over pixels of (q k^T / sqrt C), applied to v; per picture, one head.
    fn spatial_attention(
        &mut self,
        q: &Self::Tensor,
        k: &Self::Tensor,
        v: &Self::Tensor,
    ) -> Result<Self::Tensor>;

    /// A = softmax over j of (sum over pixels q_i k_j / sqrt N), out_i = sum over j of A_ij v_j; per picture.
    fn channel_attention(
        &mut self,
        q: &Self::Tensor,
        k: &Self::Tensor,
        v: &Self::Tensor,
    ) -> Result<Self::Tensor>;

    /// A rectangle of the grid.
    fn crop(&mut self, x: &Self::Tensor, window: Window) -> Result<Self::Tensor>;
}

/// Checks what is handed to [`Ops::upload`]: `len` values fill `shape`, and there is at least one. No tensor is empty.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`].
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

/// Product of extents, saturating: what cost rules multiply with.
pub(crate) fn product(extents: &[usize]) -> u64 {
    extents.iter().fold(1u64, |a, &b| a.saturating_mul(b as u64))
}

/// Number of elements, saturating.
pub(crate) fn elements(x: Shape) -> u64 {
    product(&[x.n, x.h, x.w, x.c])
}
