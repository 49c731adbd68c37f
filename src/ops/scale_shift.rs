//! x * (1 + scale) + shift with a scale and a shift per channel, then SiLU if `silu`.

use super::{Shape, elements, need, silu};
use crate::error::{Error, Result};

/// Shape rule: x [n, h, w, c], pair [n or 1, 1, 1, 2 c] -> [n, h, w, c].
///
/// # Errors
/// When `pair` has another shape.
pub fn output_shape(x: Shape, pair: Shape) -> Result<Shape> {
    let fits = (pair.n == 1 || pair.n == x.n) && (pair.h, pair.w, pair.c) == (1, 1, 2 * x.c);
    need(fits, || {
        let expected = format!("[n, 1, 1, 2c] for input {x:?}");
        Error::invalid("scale_shift pair", format!("{pair:?}"), expected)
    })?;
    Ok(x)
}

/// Cost rule: 2 per element, 3 for SiLU.
pub fn flops(x: Shape, silu: bool) -> u64 {
    elements(x).saturating_mul(if silu { 5 } else { 2 })
}

/// Naive reference: computes in f64, rounds once. `x` and the result are [n, h, w, c] = `s`, `pair` is [n or 1, 1, 1, 2
/// c] = `ps`: scales, then shifts.
pub fn reference(x: &[f32], s: Shape, pair: &[f32], ps: Shape, silu: bool) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for (i, &v) in x.iter().enumerate() {
        let (n, c) = (i / (s.pixels() * s.c), i % s.c);
        let row = if ps.n == 1 { 0 } else { n * 2 * s.c };
        let y = f64::from(v) * (1.0 + f64::from(pair[row + c])) + f64::from(pair[row + s.c + c]);
        out.push(if silu { silu::value(y) } else { y } as f32);
    }
    out
}
