//! The operators as values: what the nodes of a [graph](crate::graph) are.

use super::{
    Conv2d, GroupNorm, Ops, PixelNorm, Rect, Shape, avg_pool2, channel_attention, concat, conv2d,
    crop, fir_down2, fir_up2, global_avg_pool, group_norm, pixel_norm, pixel_shuffle,
    pixel_unshuffle, scale_shift, silu, spatial_attention, upsample_nearest2, weighted_add,
};
use crate::error::{Error, Result};

/// An operator with its arguments, without its inputs: one call of [`Ops`] as a value.
///
/// ```
/// use tessera::{exec::reference::Reference, ops::{Factors, Op, Ops, Shape}};
///
/// let mut ops = Reference::new(Default::default());
/// let x = ops.upload(Shape::new(1, 1, 1, 2), &[1.0, 2.0])?;
/// let sum = Op::WeightedAdd(Factors::Fixed(1.0, 10.0)).apply(&mut ops, &[x.clone(), x])?;
/// assert_eq!(ops.download(&sum)?, [11.0, 22.0]);
/// # Ok::<(), tessera::error::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Op {
    /// [`Ops::conv2d`].
    Conv2d(Conv2d),
    /// [`Ops::group_norm`].
    GroupNorm(GroupNorm),
    /// [`Ops::pixel_norm`].
    PixelNorm(PixelNorm),
    /// [`Ops::silu`].
    Silu,
    /// [`Ops::scale_shift`]; true if SiLU follows.
    ScaleShift(bool),
    /// [`Ops::weighted_add`].
    WeightedAdd(Factors),
    /// [`Ops::concat`].
    Concat,
    /// [`Ops::avg_pool2`].
    AvgPool2,
    /// [`Ops::global_avg_pool`].
    GlobalAvgPool,
    /// [`Ops::upsample_nearest2`].
    UpsampleNearest2,
    /// [`Ops::fir_down2`].
    FirDown2,
    /// [`Ops::fir_up2`].
    FirUp2,
    /// [`Ops::pixel_unshuffle`] by r.
    PixelUnshuffle(usize),
    /// [`Ops::pixel_shuffle`] by r.
    PixelShuffle(usize),
    /// [`Ops::spatial_attention`].
    SpatialAttention,
    /// [`Ops::channel_attention`].
    ChannelAttention,
    /// [`Ops::crop`] to a window.
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
    /// wa and wb, with `value` as the value of a parameter.
    ///
    /// # Errors
    /// Those of `value`.
    pub fn resolve(&self, value: impl FnOnce(&str) -> Result<f32>) -> Result<(f32, f32)> {
        Ok(match self {
            Self::Fixed(wa, wb) => (*wa, *wb),
            Self::Learned(name) => {
                let share = 1.0 / (1.0 + libm::exp(-f64::from(value(name)?)));
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
            | Self::Crop(_) => Some(radius),
        }
    }

    /// Calls the operator of the backend `o` with `inputs`.
    ///
    /// # Errors
    /// The operator's; [`crate::error::Kind::InvalidArgument`] for another number of inputs.
    pub fn apply<O: Ops>(&self, o: &mut O, inputs: &[O::Tensor]) -> Result<O::Tensor> {
        match (self, inputs) {
            (Self::Conv2d(p), [x]) => o.conv2d(x, p),
            (Self::GroupNorm(p), [x]) => o.group_norm(x, p),
            (Self::PixelNorm(p), [x]) => o.pixel_norm(x, p),
            (Self::Silu, [x]) => o.silu(x),
            (Self::ScaleShift(silu), [x, pair]) => o.scale_shift(x, pair, *silu),
            (Self::WeightedAdd(factors), [a, b]) => {
                let value = |name: &str| Ok(o.weights().get(name, &[1])?.data[0]);
                let (wa, wb) = factors.resolve(value)?;
                o.weighted_add(a, b, wa, wb)
            }
            (Self::Concat, [a, b]) => o.concat(a, b),
            (Self::AvgPool2, [x]) => o.avg_pool2(x),
            (Self::GlobalAvgPool, [x]) => o.global_avg_pool(x),
            (Self::UpsampleNearest2, [x]) => o.upsample_nearest2(x),
            (Self::FirDown2, [x]) => o.fir_down2(x),
            (Self::FirUp2, [x]) => o.fir_up2(x),
            (Self::PixelUnshuffle(r), [x]) => o.pixel_unshuffle(x, *r),
            (Self::PixelShuffle(r), [x]) => o.pixel_shuffle(x, *r),
            (Self::SpatialAttention, [q, k, v]) => o.spatial_attention(q, k, v),
            (Self::ChannelAttention, [q, k, v]) => o.channel_attention(q, k, v),
            (Self::Crop(window), [x]) => o.crop(x, *window),
            _ => Err(self.wrong_inputs(inputs.len())),
        }
    }

    fn wrong_inputs(&self, found: usize) -> Error {
        let expected = "the number that the operator takes";
        Error::invalid(format!("inputs of {}", self.name()), found, expected)
    }
}
