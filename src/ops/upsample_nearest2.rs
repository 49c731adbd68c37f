//! Nearest-neighbour upsampling: every pixel becomes 2x2.

use super::Shape;
use crate::error::Result;

/// Shape rule: x [n, h, w, c] -> [n, 2h, 2w, c].
///
/// # Errors
/// Never; it has the signature of all shape rules.
pub fn output_shape(x: Shape) -> Result<Shape> {
    Ok(Shape { h: 2 * x.h, w: 2 * x.w, ..x })
}

/// Naive reference; `x` is [n, h, w, c] = `s`, the result [n, 2h, 2w, c].
pub fn reference(x: &[f32], s: Shape) -> Vec<f32> {
    let mut out = Vec::with_capacity(4 * x.len());
    for n in 0..s.n {
        for y in 0..2 * s.h {
            for col in 0..2 * s.w {
                let at = ((n * s.h + y / 2) * s.w + col / 2) * s.c;
                out.extend_from_slice(&x[at..at + s.c]);
            }
        }
    }
    out
}
