//! Mean of every 2x2 pixels.

use super::{Shape, elements, need};
use crate::error::{Error, Result};

/// Shape rule: x [n, h, w, c] -> [n, h/2, w/2, c].
///
/// # Errors
/// When height or width is odd.
pub fn output_shape(x: Shape) -> Result<Shape> {
    need(x.h.is_multiple_of(2) && x.w.is_multiple_of(2), || {
        Error::invalid("avg_pool2 grid", format!("{}x{}", x.w, x.h), "even sides")
    })?;
    Ok(Shape { h: x.h / 2, w: x.w / 2, ..x })
}

/// Cost rule: 1 per input element.
pub fn flops(x: Shape) -> u64 {
    elements(x)
}

/// Naive reference: sums in f64, rounds once. `x` is [n, h, w, c] = `s`, the result [n, h/2, w/2, c].
pub fn reference(x: &[f32], s: Shape) -> Vec<f32> {
    let at = |n, y, col, c| f64::from(x[((n * s.h + y) * s.w + col) * s.c + c]);
    let mut out = Vec::with_capacity(x.len() / 4);
    for n in 0..s.n {
        for y in (0..s.h).step_by(2) {
            for col in (0..s.w).step_by(2) {
                for c in 0..s.c {
                    let top = at(n, y, col, c) + at(n, y, col + 1, c);
                    let bottom = at(n, y + 1, col, c) + at(n, y + 1, col + 1, c);
                    out.push(((top + bottom) / 4.0) as f32);
                }
            }
        }
    }
    out
}
