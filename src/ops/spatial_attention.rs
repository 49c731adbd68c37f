//! Attention over pixels: softmax(q k^T / sqrt C) v, per picture, one head.

use super::{Shape, need, product};
use crate::error::{Error, Result};

/// Shape rule: q, k, v [n, h, w, c] -> [n, h, w, c].
///
/// # Errors
/// When the shapes differ.
pub fn output_shape(q: Shape, k: Shape, v: Shape) -> Result<Shape> {
    need(q == k && q == v, || {
        Error::invalid("spatial_attention q, k, v", format!("{q:?}, {k:?}, {v:?}"), "equal shapes")
    })?;
    Ok(q)
}

/// Cost rule: 2 N^2 C for each of the two products and 5 N^2 for the softmax, N pixels and C channels.
pub fn flops(q: Shape) -> u64 {
    product(&[q.n, q.h, q.w, q.h, q.w, 4 * q.c + 5])
}

/// Replaces `scores` by exp(x - max x) / sum of exp(x - max x).
pub(crate) fn softmax(scores: &mut [f64]) {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = (*score - most).exp();
        sum += *score;
    }
    for score in scores {
        *score /= sum;
    }
}

/// Naive reference: sums in f64, rounds once. `q`, `k`, `v` and the result are [n, h, w, c] = `s`.
pub fn reference(q: &[f32], k: &[f32], v: &[f32], s: Shape) -> Vec<f32> {
    let (pixels, channels) = (s.pixels(), s.c);
    let scale = 1.0 / (channels as f64).sqrt();
    let mut out = Vec::with_capacity(q.len());
    let mut scores = vec![0.0; pixels];
    let mut sums = vec![0.0; channels];
    for n in 0..s.n {
        let pixel = |i: usize| (n * pixels + i) * channels..(n * pixels + i + 1) * channels;
        for i in 0..pixels {
            for (j, score) in scores.iter_mut().enumerate() {
                let products = q[pixel(i)].iter().zip(&k[pixel(j)]);
                *score = products.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() * scale;
            }
            softmax(&mut scores);
            sums.fill(0.0);
            for (j, &weight) in scores.iter().enumerate() {
                for (sum, &value) in sums.iter_mut().zip(&v[pixel(j)]) {
                    *sum += weight * f64::from(value);
                }
            }
            out.extend(sums.iter().map(|&sum| sum as f32));
        }
    }
    out
}
