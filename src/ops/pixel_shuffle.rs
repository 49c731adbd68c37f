//! Depth to space, the inverse of [`super::pixel_unshuffle`].

use super::{Shape, need};
use crate::error::{Error, Result};

/// Shape rule: x [n, h, w, c] -> [n, h r, w r, c / r^2].
///
/// # Errors
/// When `r` is 0 or its square does not divide the channels.
pub fn output_shape(x: Shape, r: usize) -> Result<Shape> {
    need(r > 0 && r <= x.c && x.c.is_multiple_of(r * r), || {
        Error::invalid("pixel_shuffle channels", x.c, format!("a multiple of {r} squared"))
    })?;
    Ok(Shape { n: x.n, h: x.h * r, w: x.w * r, c: x.c / (r * r) })
}

/// Naive reference; `x` is [n, h, w, c] = `s`, the result [n, h r, w r, c / r^2].
pub fn reference(x: &[f32], s: Shape, r: usize) -> Vec<f32> {
    let channels = s.c / (r * r);
    let mut out = Vec::with_capacity(x.len());
    for n in 0..s.n {
        for y in 0..s.h * r {
            for col in 0..s.w * r {
                for c in 0..channels {
                    let depth = (c * r + y % r) * r + col % r;
                    out.push(x[((n * s.h + y / r) * s.w + col / r) * s.c + depth]);
                }
            }
        }
    }
    out
}
