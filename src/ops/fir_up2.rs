//! FIR `[1,3,3,1]`/4 per axis after zero insertion: twice the resolution (NCSN++, Song et al. 2021), edges repeated.
//!
//! NCSN++ pads with zeros. Here the operator also carries the stream of latents, which would lose a quarter of its
//! value at the edges and leave a visible rim in the picture.

use super::{Shape, elements};
use crate::error::Result;

/// Shape rule: x [n, h, w, c] -> [n, 2h, 2w, c].
///
/// # Errors
/// Never; it has the signature of all shape rules.
pub fn output_shape(x: Shape) -> Result<Shape> {
    Ok(Shape { h: 2 * x.h, w: 2 * x.w, ..x })
}

/// Cost rule: 4 taps, 2 each, at four times the elements.
pub fn flops(x: Shape) -> u64 {
    elements(x).saturating_mul(32)
}

/// Naive reference: sums in f64, rounds once. `x` is [n, h, w, c] = `s`, the result [n, 2h, 2w, c].
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
                            let (row, at) = (py.clamp(1, s.h) - 1, px.clamp(1, s.w) - 1);
                            sum += ty * tx * f64::from(x[((n * s.h + row) * s.w + at) * s.c + c]);
                        }
                    }
                    out.push(sum as f32);
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fir_up2_keeps_a_constant_up_to_the_edges() {
        for (h, w) in [(1, 1), (1, 4), (3, 2)] {
            let shape = Shape::new(2, h, w, 3);
            assert!(reference(&vec![0.7; shape.len()], shape).iter().all(|&v| v == 0.7), "{h}x{w}");
        }
    }
}
