//! Attention over pixels and over channels, as matrix products.

use rayon::prelude::*;

use super::{
    conv::{Mode, Packed},
    input::Input,
    math::softmax,
    pool::Pool,
};
use crate::ops::Shape;
use std::sync::Arc;

/// Queries whose scores against all keys are held at a time; bounds the memory, whatever the number of pixels.
const QUERIES: usize = 28;

/// Per picture, softmax over pixels of (q k^T / sqrt C), applied to v.
pub(super) fn spatial(
    mode: Mode,
    out: &mut [f32],
    [q, k, v]: [&[f32]; 3],
    shape: Shape,
    pool: &Arc<Pool>,
) {
    let (pixels, c) = (shape.pixels(), shape.c);
    let scale = 1.0 / (c as f32).sqrt();
    let pictures = q.chunks_exact(pixels * c).zip(k.chunks_exact(pixels * c));
    let values = v.chunks_exact(pixels * c).zip(out.chunks_exact_mut(pixels * c));
    for ((q, k), (v, out)) in pictures.zip(values) {
        let keys = Packed::matrix(mode, (c, pixels), |i, p| k[p * c + i]);
        let values = Packed::matrix(mode, (pixels, c), |p, o| v[p * c + o]);
        let blocks = out.par_chunks_mut(QUERIES * c).zip(q.par_chunks(QUERIES * c));
        blocks.for_each(|(out, q)| {
            let mut scores = pool.take(q.len() / c * pixels);
            keys.run_rows(q, &mut scores);
            mode.arch.dispatch(
                #[inline(always)]
                || {
                    for row in scores.chunks_exact_mut(pixels) {
                        softmax(row, scale);
                    }
                },
            );
            values.run_rows(&scores, out);
        });
    }
}

/// Per picture, A = softmax over j of (sum over pixels q_i k_j / sqrt N), out_i = sum over j of A_ij v_j.
pub(super) fn channel(
    mode: Mode,
    out: &mut [f32],
    [q, k, v]: [&[f32]; 3],
    shape: Shape,
    pool: &Arc<Pool>,
) {
    let (pixels, c) = (shape.pixels(), shape.c);
    let scale = 1.0 / (pixels as f32).sqrt();
    // These scores grow with the number of pixels, and bf16's error of them with it.
    let exact = Mode { wide: None, ..mode };
    let pictures = q.chunks_exact(pixels * c).zip(k.chunks_exact(pixels * c));
    let values = v.chunks_exact(pixels * c).zip(out.chunks_exact_mut(pixels * c));
    for ((q, k), (v, out)) in pictures.zip(values) {
        let mut turned = pool.take(pixels * c);
        turned.par_chunks_mut(pixels).enumerate().for_each(|(i, row)| {
            for (p, x) in row.iter_mut().enumerate() {
                *x = q[p * c + i];
            }
        });
        let keys = Packed::matrix(exact, (pixels, c), |p, j| k[p * c + j]);
        let mut mix = pool.take(c * c);
        keys.run(&Input::plain(Shape::new(1, 1, c, pixels), &turned), None, &mut mix);
        mix.par_chunks_mut(c).for_each(|row| {
            mode.arch.dispatch(
                #[inline(always)]
                || softmax(row, scale),
            )
        });
        let mixer = Packed::matrix(mode, (c, c), |j, i| mix[i * c + j]);
        mixer.run(&Input::plain(Shape::new(1, 1, pixels, c), v), None, out);
    }
}
