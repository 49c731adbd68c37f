//! Normalisation, modulation and pooling over the whole grid.

use rayon::prelude::*;

use super::math::{activate, for_units, sum_by, vectorised};
use crate::ops::Shape;

/// Added under the root, as the operators' definition says.
const EPS: f64 = 1e-6;
/// Pixels whose mean is taken first; deviations from it are summed while they are in the first-level cache.
const SPAN: usize = 32;
/// Spans of a task; fixed, so that the order of summation does not depend on the number of threads.
const SPANS: usize = 16;

/// Number, mean and sum of squared deviations of a set of values.
#[derive(Clone, Copy, Default)]
struct Moments {
    count: f64,
    mean: f64,
    deviation: f64,
}

impl Moments {
    /// The moments of the union (Chan et al. 1979).
    #[inline(always)]
    fn join(self, other: Self) -> Self {
        let count = self.count + other.count;
        let delta = other.mean - self.mean;
        let share = if count > 0.0 { other.count / count } else { 0.0 };
        Self {
            count,
            mean: self.mean + delta * share,
            deviation: self.deviation + other.deviation + delta * delta * self.count * share,
        }
    }
}

/// Adds every pixel of `x` to `sums`.
#[inline(always)]
fn add_pixels(sums: &mut [f32], x: &[f32], f: impl Fn(usize, f32) -> f32) {
    for pixel in x.chunks_exact(sums.len()) {
        for (c, (sum, &x)) in sums.iter_mut().zip(pixel).enumerate() {
            *sum += f(c, x);
        }
    }
}

/// Moments of every group of channels over `x`, a run of pixels.
#[inline(always)]
fn group_moments(x: &[f32], channels: usize, groups: usize) -> Vec<Moments> {
    let width = channels / groups;
    let mut moments = vec![Moments::default(); groups];
    let (mut sums, mut means) = (vec![0.0_f32; channels], vec![0.0_f32; channels]);
    for span in x.chunks(SPAN * channels) {
        let count = (span.len() / groups) as f64;
        sums.fill(0.0);
        add_pixels(
            &mut sums,
            span,
            #[inline(always)]
            |_, x| x,
        );
        for (means, sums) in means.chunks_exact_mut(width).zip(sums.chunks_exact(width)) {
            let sum: f64 = sums.iter().map(|&x| f64::from(x)).sum();
            means.fill((sum / count) as f32);
        }
        sums.fill(0.0);
        let centres = &means[..channels];
        add_pixels(
            &mut sums,
            span,
            #[inline(always)]
            |c, x| (x - centres[c]) * (x - centres[c]),
        );
        for (g, sums) in sums.chunks_exact(width).enumerate() {
            let deviation = sums.iter().map(|&x| f64::from(x)).sum();
            let mean = f64::from(means[g * width]);
            moments[g] = moments[g].join(Moments { count, mean, deviation });
        }
    }
    moments
}

/// GroupNorm with `groups` groups, then SiLU if asked for.
pub(super) fn group_norm<const SILU: bool>(
    out: &mut [f32],
    x: &[f32],
    shape: Shape,
    groups: usize,
    (weight, bias): (&[f32], &[f32]),
) {
    let (channels, picture) = (shape.c, shape.pixels() * shape.c);
    let width = channels / groups;
    for (x, out) in x.chunks_exact(picture).zip(out.chunks_exact_mut(picture)) {
        let parts: Vec<Vec<Moments>> = x
            .par_chunks(SPANS * SPAN * channels)
            .map(|x| {
                vectorised(
                    #[inline(always)]
                    || group_moments(x, channels, groups),
                )
            })
            .collect();
        let mut affine = Affine::new(channels);
        for c in 0..channels {
            let g = c / width;
            let all = parts.iter().fold(Moments::default(), |sum, part| sum.join(part[g]));
            let inverse = 1.0 / (all.deviation / all.count + EPS).sqrt();
            let factor = f64::from(weight[c]) * inverse;
            let centre = all.mean as f32;
            affine.centre[c] = centre;
            affine.scale[c] = factor as f32;
            affine.shift[c] = (f64::from(bias[c]) + (f64::from(centre) - all.mean) * factor) as f32;
        }
        affine.run::<SILU>(out, x);
    }
}

/// (x - centre) * scale + shift per channel. Subtracting first keeps what a small deviation has of digits.
struct Affine {
    centre: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl Affine {
    fn new(channels: usize) -> Self {
        let zeros = vec![0.0; channels];
        Self { centre: zeros.clone(), scale: zeros.clone(), shift: zeros }
    }

    /// Applies it, then SiLU if asked for.
    fn run<const SILU: bool>(&self, out: &mut [f32], x: &[f32]) {
        let channels = self.scale.len();
        for_units(
            out,
            channels,
            #[inline(always)]
            |first, out| {
                let x = &x[first * channels..][..out.len()];
                for (out, x) in out.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
                    let factors = self.centre.iter().zip(&self.scale).zip(&self.shift);
                    for ((out, &x), ((&centre, &scale), &shift)) in
                        out.iter_mut().zip(x).zip(factors)
                    {
                        *out = activate::<SILU>((x - centre) * scale + shift);
                    }
                }
            },
        );
    }
}

/// x * (1 + scale) + shift with one pair for all pictures or one each, then SiLU if asked for.
pub(super) fn scale_shift<const SILU: bool>(
    out: &mut [f32],
    x: &[f32],
    shape: Shape,
    pair: &[f32],
) {
    let picture = shape.pixels() * shape.c;
    let pairs = pair.chunks_exact(2 * shape.c).cycle();
    for ((x, out), pair) in x.chunks_exact(picture).zip(out.chunks_exact_mut(picture)).zip(pairs) {
        let (scale, shift) = pair.split_at(shape.c);
        let mut affine = Affine::new(shape.c);
        affine.scale.iter_mut().zip(scale).for_each(|(to, scale)| *to = 1.0 + scale);
        affine.shift.copy_from_slice(shift);
        affine.run::<SILU>(out, x);
    }
}

/// Per-pixel RMS norm, then SiLU if asked for.
pub(super) fn pixel_norm<const SILU: bool>(out: &mut [f32], x: &[f32], weight: &[f32]) {
    let channels = weight.len();
    for_units(
        out,
        channels,
        #[inline(always)]
        |first, out| {
            let x = &x[first * channels..][..out.len()];
            for (out, x) in out.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
                let power = sum_by(
                    x,
                    #[inline(always)]
                    |x| x * x,
                ) / channels as f32;
                let inverse = 1.0 / (power + EPS as f32).sqrt();
                for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
                    *out = activate::<SILU>(x * inverse * weight);
                }
            }
        },
    );
}

/// Mean over the grid of every picture: `out` is [n, c].
pub(super) fn global_avg_pool(out: &mut [f32], x: &[f32], shape: Shape) {
    let (channels, picture) = (shape.c, shape.pixels() * shape.c);
    for (x, out) in x.chunks_exact(picture).zip(out.chunks_exact_mut(channels)) {
        let parts: Vec<Vec<f64>> = x
            .par_chunks(SPANS * SPAN * channels)
            .map(|x| {
                vectorised(
                    #[inline(always)]
                    || channel_sums(x, channels),
                )
            })
            .collect();
        for (c, out) in out.iter_mut().enumerate() {
            let sum: f64 = parts.iter().map(|part| part[c]).sum();
            *out = (sum / shape.pixels() as f64) as f32;
        }
    }
}

#[inline(always)]
fn channel_sums(x: &[f32], channels: usize) -> Vec<f64> {
    let mut all = vec![0.0; channels];
    let mut sums = vec![0.0; channels];
    for span in x.chunks(SPAN * channels) {
        sums.fill(0.0);
        add_pixels(
            &mut sums,
            span,
            #[inline(always)]
            |_, x| x,
        );
        for (all, &sum) in all.iter_mut().zip(&sums) {
            *all += f64::from(sum);
        }
    }
    all
}
