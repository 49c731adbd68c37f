//! The operator set: every operator that the networks are written in.
//!
//! The networks in [`crate::model`] are [graphs](crate::graph) of operators, which the *backends* in [`crate::exec`]
//! (naive reference, CPU, GPU) run. One file per operator holds its parameters, shape rule, cost rule and naive
//! reference; `shaders/<operator>.wgsl` is its GPU kernel.
//!
//! Layout: every tensor is f32, NHWC, dense, written `[n, h, w, c]`. Parameters are found by name: an operator with the
//! name `name` reads the checkpoint's `name.weight` and, where it has one, `name.bias`, in PyTorch's layouts.
//!
//! All backends refuse the same operators, by [`Op::output_shape`]. The cost rules ([`Op::flops`]) count multiplications
//! and additions; a division, root or exponential counts as one. They saturate instead of wrapping. The references sum
//! in f64 and round once.

pub mod add_noise;
pub mod avg_pool2;
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
#[doc(hidden)]
pub mod testing;
pub mod upsample_nearest2;
pub mod weighted_add;
pub mod weights;

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

/// Noise with a gain per channel.
///
/// Parameter: the gain, `name` `[channels]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddNoise {
    /// Name of the parameter.
    pub name: String,
    /// Channels.
    pub channels: usize,
}

/// An operator with its arguments, without its inputs.
///
/// ```
/// use tessera::ops::{Factors, Op, Shape};
///
/// let sum = Op::WeightedAdd(Factors::Fixed(1.0, 10.0));
/// let shape = Shape::new(1, 1, 1, 2);
/// assert_eq!(sum.output_shape(&[shape, shape])?, shape);
/// let inputs = [(shape, &[1.0, 2.0][..]), (shape, &[1.0, 2.0])];
/// assert_eq!(sum.reference(&inputs, &Default::default())?, [11.0, 22.0]);
/// # Ok::<(), tessera::error::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Op {
    /// Convolution, x `[n, h, w, in]` -> `[n, h, w, out]`; kernel 1 is a linear layer over channels.
    Conv2d(Conv2d),
    /// GroupNorm, then SiLU if `p.silu`, x `[n, h, w, c]` -> `[n, h, w, c]`.
    GroupNorm(GroupNorm),
    /// RMS norm of every pixel, then SiLU if `p.silu`, x `[n, h, w, c]` -> `[n, h, w, c]`.
    PixelNorm(PixelNorm),
    /// x sigmoid(x) (Elfwing et al. 2018), elementwise, x `[n, h, w, c]` -> `[n, h, w, c]`.
    Silu,
    /// x (1 + scale) + shift per channel, then SiLU if true, x `[n, h, w, c]` -> `[n, h, w, c]`.
    ///
    /// `pair` is `[n or 1, 1, 1, 2 c]`: c scales, then c shifts, for each picture or for all.
    ScaleShift(bool),
    /// wa a + wb b, elementwise, a, b `[n, h, w, c]` -> `[n, h, w, c]`.
    WeightedAdd(Factors),
    /// The channels of a, then those of b, a `[n, h, w, ca]`, b `[n, h, w, cb]` -> `[n, h, w, ca + cb]`.
    Concat,
    /// Mean of every 2x2 pixels, x `[n, h, w, c]` -> `[n, h/2, w/2, c]`.
    AvgPool2,
    /// Mean over all pixels of a picture, x `[n, h, w, c]` -> `[n, 1, 1, c]`.
    GlobalAvgPool,
    /// Nearest-neighbour upsampling, each pixel to 2x2, x `[n, h, w, c]` -> `[n, 2h, 2w, c]`.
    UpsampleNearest2,
    /// FIR `[1,3,3,1]`/8 per axis with stride 2 and zero padding (NCSN++, Song et al. 2021), x `[n, h, w, c]` ->
    /// `[n, h/2, w/2, c]`: `y[i] = (x[2i-1] + 3x[2i] + 3x[2i+1] + x[2i+2]) / 8`.
    FirDown2,
    /// FIR `[1,3,3,1]`/4 per axis after zero insertion (NCSN++), edges repeated, x `[n, h, w, c]` -> `[n, 2h, 2w, c]`:
    /// `y[2i] = (x[i-1] + 3x[i]) / 4`, `y[2i+1] = (3x[i] + x[i+1]) / 4`.
    FirUp2,
    /// Space to depth, x `[n, h, w, c]` -> `[n, h/r, w/r, c r^2]`: channel (c r + dy) r + dx of the result is channel c
    /// at offset (dy, dx) of the r x r cell, as in PyTorch's `PixelUnshuffle`.
    PixelUnshuffle(usize),
    /// Depth to space, the inverse of [`Op::PixelUnshuffle`], x `[n, h, w, c]` -> `[n, h r, w r, c / r^2]`.
    PixelShuffle(usize),
    /// Attention over the pixels of each picture with one head, q, k, v `[n, h, w, c]` -> `[n, h, w, c]`:
    /// softmax(q k^T / sqrt C) v with q, k, v as N x C matrices and the softmax over k's pixels.
    SpatialAttention,
    /// Attention over the channels of each picture, q, k, v `[n, h, w, c]` -> `[n, h, w, c]`:
    /// out_i = sum over j of A_ij v_j with A = softmax over j of (sum over pixels of q_i k_j / sqrt N).
    ChannelAttention,
    /// x + gain * noise, x `[n, h, w, c]`, noise `[n, h, w, 1]` -> `[n, h, w, c]`, with a gain per channel.
    AddNoise(AddNoise),
    /// A rectangle of the grid, x `[n, h, w, c]` -> `[n, window.height, window.width, c]`.
    Crop(Rect),
}

/// The factors wa and wb of a weighted sum wa a + wb b.
#[derive(Clone, Debug, PartialEq)]
pub enum Factors {
    /// wa and wb.
    Fixed(f32, f32),
    /// s and 1 - s with s = 1 / (1 + exp(-v)) of the parameter of this name, a single value v.
    Learned(String),
}

impl Factors {
    /// wa and wb.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidModel`] if the parameter is missing or has another shape than `[1]`.
    pub fn resolve(&self, weights: &Weights) -> Result<(f32, f32)> {
        Ok(match self {
            Self::Fixed(wa, wb) => (*wa, *wb),
            Self::Learned(name) => {
                let value = f64::from(weights.get(name, &[1])?.data[0]);
                let share = 1.0 / (1.0 + libm::exp(-value));
                (share as f32, (1.0 - share) as f32)
            }
        })
    }
}

impl Op {
    /// Its name, `conv2d` for [`Op::Conv2d`].
    pub fn name(&self) -> &'static str {
        self.into()
    }

    /// Name of the layer whose parameters it has, if it has any.
    pub fn layer(&self) -> Option<&str> {
        match self {
            Self::Conv2d(p) => Some(&p.name),
            Self::GroupNorm(p) => Some(&p.name),
            Self::PixelNorm(p) => Some(&p.name),
            Self::AddNoise(p) => Some(&p.name),
            Self::WeightedAdd(Factors::Learned(name)) => Some(name),
            _ => None,
        }
    }

    /// Names and shapes of its parameters.
    pub fn params(&self) -> Vec<(String, Vec<usize>)> {
        match self {
            Self::Conv2d(p) => p.params().into(),
            Self::GroupNorm(p) => p.params().into(),
            Self::PixelNorm(p) => p.params().into(),
            Self::AddNoise(p) => p.params().into(),
            Self::WeightedAdd(Factors::Learned(name)) => vec![(name.clone(), vec![1])],
            _ => Vec::new(),
        }
    }

    /// Shape rule: the shape of the result for inputs of the shapes `inputs`.
    ///
    /// # Errors
    /// The operator's; [`crate::error::Kind::InvalidArgument`] for another number of inputs.
    pub fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        match (self, inputs) {
            (Self::Conv2d(p), &[x]) => conv2d::output_shape(x, p),
            (Self::GroupNorm(p), &[x]) => group_norm::output_shape(x, p),
            (Self::PixelNorm(p), &[x]) => pixel_norm::output_shape(x, p),
            (Self::Silu, &[x]) => silu::output_shape(x),
            (Self::ScaleShift(_), &[x, pair]) => scale_shift::output_shape(x, pair),
            (Self::WeightedAdd(_), &[a, b]) => weighted_add::output_shape(a, b),
            (Self::Concat, &[a, b]) => concat::output_shape(a, b),
            (Self::AvgPool2, &[x]) => avg_pool2::output_shape(x),
            (Self::GlobalAvgPool, &[x]) => global_avg_pool::output_shape(x),
            (Self::UpsampleNearest2, &[x]) => upsample_nearest2::output_shape(x),
            (Self::FirDown2, &[x]) => fir_down2::output_shape(x),
            (Self::FirUp2, &[x]) => fir_up2::output_shape(x),
            (Self::PixelUnshuffle(r), &[x]) => pixel_unshuffle::output_shape(x, *r),
            (Self::PixelShuffle(r), &[x]) => pixel_shuffle::output_shape(x, *r),
            (Self::SpatialAttention, &[q, k, v]) => spatial_attention::output_shape(q, k, v),
            (Self::ChannelAttention, &[q, k, v]) => channel_attention::output_shape(q, k, v),
            (Self::AddNoise(p), &[x, noise]) => add_noise::output_shape(x, noise, p),
            (Self::Crop(window), &[x]) => crop::output_shape(x, *window),
            _ => Err(self.wrong_inputs(inputs.len())),
        }
    }

    /// Cost rule: floating-point operations for a first input of shape `x`. Saturates.
    pub fn flops(&self, x: Shape) -> u64 {
        match self {
            Self::Conv2d(p) => conv2d::flops(x, p),
            Self::GroupNorm(p) => group_norm::flops(x, p),
            Self::PixelNorm(p) => pixel_norm::flops(x, p),
            Self::Silu => silu::flops(x),
            Self::ScaleShift(silu) => scale_shift::flops(x, *silu),
            Self::WeightedAdd(_) => weighted_add::flops(x),
            Self::AvgPool2 => avg_pool2::flops(x),
            Self::GlobalAvgPool => global_avg_pool::flops(x),
            Self::FirDown2 => fir_down2::flops(x),
            Self::FirUp2 => fir_up2::flops(x),
            Self::SpatialAttention => spatial_attention::flops(x),
            Self::ChannelAttention => channel_attention::flops(x),
            Self::AddNoise(_) => add_noise::flops(x),
            Self::Concat
            | Self::UpsampleNearest2
            | Self::PixelUnshuffle(_)
            | Self::PixelShuffle(_)
            | Self::Crop(_) => 0,
        }
    }

    /// Radius of the receptive field of its result, in the result's pixels, for inputs with a radius of `radius` in
    /// theirs. `None`: unbounded.
    pub fn radius(&self, radius: usize) -> Option<usize> {
        match self {
            Self::Conv2d(p) => Some(radius + p.kernel / 2),
            Self::GroupNorm(_)
            | Self::GlobalAvgPool
            | Self::SpatialAttention
            | Self::ChannelAttention => None,
            Self::AvgPool2 => Some(radius.div_ceil(2)),
            Self::UpsampleNearest2 => Some(2 * radius),
            Self::FirDown2 => Some((radius + 1).div_ceil(2)),
            Self::FirUp2 => Some(2 * radius + 1),
            Self::PixelUnshuffle(r) => Some(radius.div_ceil(*r)),
            Self::PixelShuffle(r) => Some(radius * r),
            Self::PixelNorm(_)
            | Self::Silu
            | Self::ScaleShift(_)
            | Self::WeightedAdd(_)
            | Self::Concat
            | Self::AddNoise(_)
            | Self::Crop(_) => Some(radius),
        }
    }

    /// Naive reference: sums in f64, rounds once. `inputs` are shapes with their values, NHWC; the result has the shape of
    /// [`Op::output_shape`].
    ///
    /// # Errors
    /// As [`Op::output_shape`]; [`crate::error::Kind::InvalidModel`] for a parameter that is missing or has another
    /// shape.
    pub fn reference(&self, inputs: &[(Shape, &[f32])], weights: &Weights) -> Result<Vec<f32>> {
        let shapes: Vec<_> = inputs.iter().map(|(shape, _)| *shape).collect();
        self.output_shape(&shapes)?;
        Ok(match (self, inputs) {
            (Self::Conv2d(p), &[(s, x)]) => {
                let (weight, bias) = p.load(weights)?;
                conv2d::reference(x, s, p, weight, bias)
            }
            (Self::GroupNorm(p), &[(s, x)]) => {
                let (weight, bias) = p.load(weights)?;
                group_norm::reference(x, s, p, weight, bias)
            }
            (Self::PixelNorm(p), &[(s, x)]) => pixel_norm::reference(x, s, p, p.load(weights)?),
            (Self::Silu, &[(_, x)]) => silu::reference(x),
            (Self::ScaleShift(silu), &[(s, x), (ps, pair)]) => {
                scale_shift::reference(x, s, pair, ps, *silu)
            }
            (Self::WeightedAdd(factors), &[(_, a), (_, b)]) => {
                let (wa, wb) = factors.resolve(weights)?;
                weighted_add::reference(a, b, wa, wb)
            }
            (Self::Concat, &[(sa, a), (sb, b)]) => concat::reference(a, sa, b, sb),
            (Self::AvgPool2, &[(s, x)]) => avg_pool2::reference(x, s),
            (Self::GlobalAvgPool, &[(s, x)]) => global_avg_pool::reference(x, s),
            (Self::UpsampleNearest2, &[(s, x)]) => upsample_nearest2::reference(x, s),
            (Self::FirDown2, &[(s, x)]) => fir_down2::reference(x, s),
            (Self::FirUp2, &[(s, x)]) => fir_up2::reference(x, s),
            (Self::PixelUnshuffle(r), &[(s, x)]) => pixel_unshuffle::reference(x, s, *r),
            (Self::PixelShuffle(r), &[(s, x)]) => pixel_shuffle::reference(x, s, *r),
            (Self::SpatialAttention, &[(s, q), (_, k), (_, v)]) => {
                spatial_attention::reference(q, k, v, s)
            }
            (Self::ChannelAttention, &[(s, q), (_, k), (_, v)]) => {
                channel_attention::reference(q, k, v, s)
            }
            (Self::AddNoise(p), &[(s, x), (_, noise)]) => {
                add_noise::reference(x, s, noise, p.load(weights)?)
            }
            (Self::Crop(window), &[(s, x)]) => crop::reference(x, s, *window),
            _ => return Err(self.wrong_inputs(inputs.len())),
        })
    }

    fn wrong_inputs(&self, found: usize) -> Error {
        let expected = "the number that the operator takes";
        Error::invalid(format!("inputs of {}", self.name()), found, expected)
    }
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
