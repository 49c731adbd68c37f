//! Mean over all pixels of a picture.

use super::{Shape, elements};
use crate::error::Result;

/// Shape rule: x [n, h, w, c] -> [n, 1, 1, c].
///
/// # Errors
/// Never; it has the signature of all shape rules.
pub fn output_shape(x: Shape) -> Result<Shape> {
    Ok(Shape { h: 1, w: 1, ..x })
}

/// Cost rule: 1 per input element.
pub fn flops(x: Shape) -> u64 {
    elements(x)
}

/// Naive reference: sums in f64, rounds once. `x` is [n, h, w, c] = `s`, the result [n, 1, 1, c].
pub fn reference(x: &[f32], s: Shape) -> Vec<f32> {
    let mut out = Vec::with_capacity(s.n * s.c);
    for picture in x.chunks_exact(s.pixels() * s.c) {
        for c in 0..s.c {
            let sum: f64 = picture[c..].iter().step_by(s.c).map(|&v| f64::from(v)).sum();
            out.push((sum / s.pixels() as f64) as f32);
        }
    }
    out
}
