//! The operators as values, for tests, benches and tools.

use super::{Conv2d, GroupNorm, Ops, PixelNorm, Rect};
use crate::error::{Error, Result};

/// An operator with its arguments, without its inputs: one call of [`Ops`] as a value.
///
/// ```
/// use tessera::{exec::reference::Reference, ops::{Op, Ops, Shape}};
///
/// let mut ops = Reference::new(Default::default());
/// let x = ops.upload(Shape::new(1, 1, 1, 2), &[1.0, 2.0])?;
/// let sum = Op::WeightedAdd(1.0, 10.0).apply(&mut ops, &[x.clone(), x])?;
/// assert_eq!(ops.download(&sum)?, [11.0, 22.0]);
/// # Ok::<(), tessera::error::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// [`Ops::conv2d`].
    Conv2d(Conv2d),
    /// [`Ops::group_norm`].
    GroupNorm(GroupNorm),
    /// [`Ops::pixel_norm`].
    PixelNorm(PixelNorm),
    /// [`Ops::silu`].
    Silu,
    /// [`Ops::scale_shift`]; whether SiLU follows.
    ScaleShift(bool),
    /// [`Ops::weighted_add`]; wa and wb.
    WeightedAdd(f32, f32),
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

impl Op {
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
            (Self::WeightedAdd(wa, wb), [a, b]) => o.weighted_add(a, b, *wa, *wb),
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
            _ => Err(Error::invalid(
                format!("inputs of {self:?}"),
                inputs.len(),
                "the number that the operator takes",
            )),
        }
    }
}
