//! Concatenation of the channels of two tensors.

use super::{Shape, need};
use crate::error::{Error, Result};

/// Shape rule: a [n, h, w, ca], b [n, h, w, cb] -> [n, h, w, ca + cb].
///
/// # Errors
/// When n, h or w differ.
pub fn output_shape(a: Shape, b: Shape) -> Result<Shape> {
    need((a.n, a.h, a.w) == (b.n, b.h, b.w), || {
        Error::invalid("concat inputs", format!("{a:?}, {b:?}"), "equal grids")
    })?;
    Ok(a.with_channels(a.c + b.c))
}

/// Naive reference: the channels of each pixel of `a`, of shape `sa`, then those of `b`, of shape `sb`.
pub fn reference(a: &[f32], sa: Shape, b: &[f32], sb: Shape) -> Vec<f32> {
    let pixels = a.chunks_exact(sa.c).zip(b.chunks_exact(sb.c));
    pixels.flat_map(|(a, b)| a.iter().chain(b).copied()).collect()
}
