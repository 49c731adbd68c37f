//! Attention over pixels and over channels, as matrix products.

use std::sync::Arc;

use rayon::prelude::*;

use super::{
    conv::{KernelConfig, Packed},
    input::Input,
    math::{Softmax, softmax},
    pool::Pool,
};
use crate::ops::Shape;

/// Most queries of a task.
const QUERIES: usize = 128;
/// Keys of a part: with their values and a task's scores they fit the second-level cache for any number of pixels.
const KEYS: usize = 256;

/// Attention over pixels, q, k, v [n, h, w, c] -> out [n, h, w, c].
///
/// A task iterates over the keys in parts with an online softmax per query (Milakov and Gimelshein 2018, arXiv
/// 1805.02867).
pub(super) fn spatial(
    config: KernelConfig,
    out: &mut [f32],
    [q, k, v]: [&[f32]; 3],
    shape: Shape,
    pool: &Arc<Pool>,
) {
    let (pixels, c) = (shape.pixels(), shape.c);
    let scale = 1.0 / (c as f32).sqrt();
    let tasks = pixels.div_ceil(QUERIES).next_multiple_of(rayon::current_num_threads());
    let queries = pixels.div_ceil(tasks) * c;
    let pictures = q.chunks_exact(pixels * c).zip(k.chunks_exact(pixels * c));
    let values = v.chunks_exact(pixels * c).zip(out.chunks_exact_mut(pixels * c));
    for ((q, k), (v, out)) in pictures.zip(values) {
        let parts = k.par_chunks(KEYS * c).zip(v.par_chunks(KEYS * c)).map(|(k, v)| {
            let keys = k.len() / c;
            let values = Packed::matrix(config, (keys, c), |p, o| v[p * c + o]);
            (Packed::matrix(config, (c, keys), |i, p| k[p * c + i]), values)
        });
        let parts: Vec<_> = parts.collect();
        out.par_chunks_mut(queries).zip(q.par_chunks(queries)).for_each(|(out, q)| {
            let rows = q.len() / c;
            let mut scores = pool.take(rows * KEYS.min(pixels));
            let mut sums = pool.take(out.len());
            let mut softmaxes = vec![Softmax::new(scale); rows];
            out.fill(0.0);
            for (keys, values) in &parts {
                let (_, _, count) = keys.extent();
                let scores = &mut scores[..rows * count];
                keys.run_rows(q, scores);
                let rows = scores.chunks_exact_mut(count).zip(&mut softmaxes);
                let rows = rows.zip(out.chunks_exact_mut(c));
                config.arch.dispatch(
                    #[inline(always)]
                    || {
                        for ((scores, softmax), out) in rows {
                            let factor = softmax.part(scores);
                            out.iter_mut().for_each(|out| *out *= factor);
                        }
                    },
                );
                values.run_rows(scores, &mut sums);
                config.arch.dispatch(
                    #[inline(always)]
                    || out.iter_mut().zip(&sums[..]).for_each(|(out, sum)| *out += sum),
                );
            }
            for (out, softmax) in out.chunks_exact_mut(c).zip(&softmaxes) {
                let inverse = softmax.inverse();
                out.iter_mut().for_each(|out| *out *= inverse);
            }
        });
    }
}

/// Attention over channels, q, k, v [n, h, w, c] -> out [n, h, w, c].
pub(super) fn channel(
    config: KernelConfig,
    out: &mut [f32],
    [q, k, v]: [&[f32]; 3],
    shape: Shape,
    pool: &Arc<Pool>,
) {
    let (pixels, c) = (shape.pixels(), shape.c);
    let scale = 1.0 / (pixels as f32).sqrt();
    // These scores, and the error of bf16 in them, grow with the number of pixels.
    let exact = KernelConfig { bf16: None, ..config };
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
            config.arch.dispatch(
                #[inline(always)]
                || softmax(row, scale),
            )
        });
        let mixer = Packed::matrix(config, (c, c), |j, i| mix[i * c + j]);
        mixer.run(&Input::plain(Shape::new(1, 1, pixels, c), v), None, out);
    }
}
