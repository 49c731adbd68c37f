//! FIR `[1,3,3,1]`/8 per axis at every second pixel, zero-padded (NCSN++, Song et al. 2021).

use super::{Shape, elements, need};
use crate::error::{Error, Result};

/// Taps per axis; output i reads inputs 2i-1 .. 2i+2.
pub const TAPS: [f32; 4] = [0.125, 0.375, 0.375, 0.125];

/// Shape rule: x [n, h, w, c] -> [n, h/2, w/2, c].
///
/// # Errors
/// When height or width is odd.
pub fn output_shape(x: Shape) -> Result<Shape> {
    need(x.h.is_multiple_of(2) && x.w.is_multiple_of(2), || {
        Error::invalid("fir_down2 grid", format!("{}x{}", x.w, x.h), "even sides")
    })?;
    Ok(Shape { h: x.h / 2, w: x.w / 2, ..x })
}

/// Cost rule: 16 taps, 2 each, at a quarter of the elements.
pub fn flops(x: Shape) -> u64 {
    elements(x).saturating_mul(8)
}

/// Naive reference: sums in f64, rounds once. `x` is [n, h, w, c] = `s`, the result [n, h/2, w/2, c].
pub fn reference(x: &[f32], s: Shape) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len() / 4);
    for n in 0..s.n {
        for y in 0..s.h / 2 {
            for col in 0..s.w / 2 {
                for c in 0..s.c {
                    let mut sum = 0.0;
                    for (i, &ty) in TAPS.iter().enumerate() {
                        for (j, &tx) in TAPS.iter().enumerate() {
                            let (py, px) = (2 * y + i, 2 * col + j); // one more than the input's row and column
                            if py >= 1 && py <= s.h && px >= 1 && px <= s.w {
                                let v = x[((n * s.h + py - 1) * s.w + px - 1) * s.c + c];
                                sum += f64::from(ty) * f64::from(tx) * f64::from(v);
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
