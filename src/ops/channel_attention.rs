//! Attention over channels: A = softmax over j of (sum over pixels q_i k_j / sqrt N), out_i = sum over j of A_ij v_j;
//! per picture of N pixels.

use super::{Shape, need, product, spatial_attention::softmax};
use crate::error::{Error, Result};

/// Shape rule: q, k, v [n, h, w, c] -> [n, h, w, c].
///
/// # Errors
/// When the shapes differ.
pub fn output_shape(q: Shape, k: Shape, v: Shape) -> Result<Shape> {
    need(q == k && q == v, || {
        Error::invalid("channel_attention q, k, v", format!("{q:?}, {k:?}, {v:?}"), "equal shapes")
    })?;
    Ok(q)
}

/// Cost rule: 2 C^2 N for each of the two products and 5 C^2 for the softmax, N pixels and C channels.
pub fn flops(q: Shape) -> u64 {
    let products = product(&[q.n, 4, q.h, q.w, q.c, q.c]);
    products.saturating_add(product(&[q.n, 5, q.c, q.c]))
}

/// Naive reference: sums in f64, rounds once. `q`, `k`, `v` and the result are [n, h, w, c] = `s`.
pub fn reference(q: &[f32], k: &[f32], v: &[f32], s: Shape) -> Vec<f32> {
    let (pixels, channels) = (s.pixels(), s.c);
    let scale = 1.0 / (pixels as f64).sqrt();
    let mut out = vec![0.0; q.len()];
    let mut scores = vec![0.0; channels];
    for n in 0..s.n {
        let at = |pixel: usize, c: usize| (n * pixels + pixel) * channels + c;
        for i in 0..channels {
            scores.fill(0.0);
            for pixel in 0..pixels {
                for (j, score) in scores.iter_mut().enumerate() {
                    *score += f64::from(q[at(pixel, i)]) * f64::from(k[at(pixel, j)]);
                }
            }
            scores.iter_mut().for_each(|score| *score *= scale);
            softmax(&mut scores);
            for pixel in 0..pixels {
                let values = scores.iter().enumerate().map(|(j, a)| a * f64::from(v[at(pixel, j)]));
                out[at(pixel, i)] = values.sum::<f64>() as f32;
            }
        }
    }
    out
}
