//! FIR `[1,3,3,1]`/4 per axis after zero insertion: twice the resolution, zero-padded (NCSN++, Song et al. 2021).

use super::{Shape, elements};
use crate::error::Result;

/// Shape rule: twice the rows and columns.
///
/// # Errors
/// None; the signature is that of all shape rules.
pub fn output_shape(x: Shape) -> Result<Shape> {
    Ok(Shape { h: 2 * x.h, w: 2 * x.w, ..x })
}

/// Cost rule: 4 taps, 2 each, at four times the elements.
pub fn flops(x: Shape) -> u64 {
    elements(x).saturating_mul(32)
}

/// Naive reference; `x` has shape `s`.
pub fn reference(x: &[f32], s: Shape) -> Vec<f32> {
    // (input index + 1, weight) of the two taps of output i.
    let taps = |i: usize| match i % 2 {
        0 => [(i / 2, 0.25), (i / 2 + 1, 0.75)],
        _ => [(i / 2 + 1, 0.75), (i / 2 + 2, 0.25)],
    };
    let mut out = Vec::with_capacity(4 * x.len());
    for n in 0..s.n {
        for y in 0..2 * s.h {
            for col in 0..2 * s.w {
                for c in 0..s.c {
                    let mut sum = 0.0;
                    for (py, ty) in taps(y) {
                        for (px, tx) in taps(col) {
                            if py >= 1 && py <= s.h && px >= 1 && px <= s.w {
                                let v = x[((n * s.h + py - 1) * s.w + px - 1) * s.c + c];
                                sum += ty * tx * f64::from(v);
                            }
                        }
                    }
                    out.push(sum as f32);
                }
            }
        }
    }
    out
}
