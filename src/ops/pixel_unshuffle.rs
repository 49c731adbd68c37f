//! Space to depth: channel c r^2 + dy r + dx of the output is channel c at offset (dy, dx) of the r x r cell.

use super::{Shape, need};
use crate::error::{Error, Result};

/// Shape rule: x [n, h, w, c] -> [n, h/r, w/r, c r^2].
///
/// # Errors
/// When `r` is 0 or does not divide height and width.
pub fn output_shape(x: Shape, r: usize) -> Result<Shape> {
    need(r > 0 && x.h.is_multiple_of(r) && x.w.is_multiple_of(r), || {
        let multiple = format!("sides that are multiples of {r}");
        Error::invalid("pixel_unshuffle grid", format!("{}x{}", x.w, x.h), multiple)
    })?;
    Ok(Shape { n: x.n, h: x.h / r, w: x.w / r, c: x.c * r * r })
}

/// Naive reference; `x` is [n, h, w, c] = `s`, the result [n, h/r, w/r, c r^2].
pub fn reference(x: &[f32], s: Shape, r: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for n in 0..s.n {
        for y in 0..s.h / r {
            for col in 0..s.w / r {
                for c in 0..s.c {
                    for dy in 0..r {
                        for dx in 0..r {
                            out.push(x[((n * s.h + y * r + dy) * s.w + col * r + dx) * s.c + c]);
                        }
                    }
                }
            }
        }
    }
    out
}
