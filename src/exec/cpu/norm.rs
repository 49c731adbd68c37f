//! Norms and scale-shift as per-pixel maps that the next operator applies, and global pooling.

use std::array::from_fn;

use pulp::Arch;
use rayon::prelude::*;

use super::{kernels::BLOCK, math::sum_by};
use crate::ops::Shape;

/// Added under the root, see [`crate::ops::group_norm::EPS`].
const EPS: f64 = 1e-6;
/// Pixels whose mean is computed first, and whose deviations from it while they are in the first-level cache.
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

/// A value per channel, in blocks; zero past the last channel.
#[derive(Clone)]
pub(super) struct Channels(Vec<[f32; BLOCK]>);

impl Channels {
    /// From `value(channel)`.
    pub(super) fn new(channels: usize, value: impl Fn(usize) -> f32) -> Self {
        let of = |c: usize| if c < channels { value(c) } else { 0.0 };
        let block = |b: usize| from_fn(|i| of(b * BLOCK + i));
        Self((0..channels.div_ceil(BLOCK)).map(block).collect())
    }

    #[inline(always)]
    fn block(&self, b: usize) -> &[f32; BLOCK] {
        &self.0[b]
    }

    /// Block `b` of a pixel times `factor` and the values.
    #[inline(always)]
    pub(super) fn scale(&self, b: usize, factor: f32, x: [f32; BLOCK]) -> [f32; BLOCK] {
        let mut x = x;
        for (x, gain) in x.iter_mut().zip(self.block(b)) {
            *x = *x * factor * gain;
        }
        x
    }

    fn at(&self, c: usize) -> f64 {
        f64::from(self.0[c / BLOCK][c % BLOCK])
    }
}

/// (x - centre) scale + shift per channel. Subtracting first keeps the precision of small deviations.
#[derive(Clone)]
pub(super) struct Affine {
    centre: Channels,
    scale: Channels,
    shift: Channels,
}

impl Affine {
    /// Applies it to block `b` of a pixel.
    #[inline(always)]
    pub(super) fn apply(&self, b: usize, x: [f32; BLOCK]) -> [f32; BLOCK] {
        let (centre, scale) = (self.centre.block(b), self.scale.block(b));
        let (shift, mut x) = (self.shift.block(b), x);
        for (((x, centre), scale), shift) in x.iter_mut().zip(centre).zip(scale).zip(shift) {
            *x = (*x - centre) * scale + shift;
        }
        x
    }

    /// The composition with `next`, whose centre is zero.
    pub(super) fn then(&self, next: &Self, channels: usize) -> Self {
        let scale = |c| (self.scale.at(c) * next.scale.at(c)) as f32;
        let shift = |c| (self.shift.at(c) * next.scale.at(c) + next.shift.at(c)) as f32;
        Self {
            centre: self.centre.clone(),
            scale: Channels::new(channels, scale),
            shift: Channels::new(channels, shift),
        }
    }
}

/// GroupNorm as one affine map per picture, x [n, h, w, c].
pub(super) fn group_norm(
    arch: Arch,
    x: &[f32],
    shape: Shape,
    groups: usize,
    (weight, bias): (&[f32], &[f32]),
) -> Vec<Affine> {
    let (channels, picture) = (shape.c, shape.pixels() * shape.c);
    let width = channels / groups;
    let map = |x: &[f32]| {
        let parts: Vec<Vec<Moments>> = x
            .par_chunks(SPANS * SPAN * channels)
            .map(|x| {
                arch.dispatch(
                    #[inline(always)]
                    || group_moments(x, channels, groups),
                )
            })
            .collect();
        let join = |g: usize| parts.iter().fold(Moments::default(), |sum, part| sum.join(part[g]));
        let all: Vec<Moments> = (0..groups).map(join).collect();
        let factor = |c: usize| {
            let group = all[c / width];
            f64::from(weight[c]) / (group.deviation / group.count + EPS).sqrt()
        };
        let centre = |c: usize| all[c / width].mean as f32;
        let shift = |c: usize| {
            let rest = f64::from(centre(c)) - all[c / width].mean;
            (f64::from(bias[c]) + rest * factor(c)) as f32
        };
        Affine {
            centre: Channels::new(channels, centre),
            scale: Channels::new(channels, |c| factor(c) as f32),
            shift: Channels::new(channels, shift),
        }
    };
    x.chunks_exact(picture).map(map).collect()
}

/// x (1 + scale) + shift as one affine map per row of pair [n or 1, 1, 1, 2 c].
pub(super) fn scale_shift(pair: &[f32], channels: usize) -> Vec<Affine> {
    let map = |pair: &[f32]| Affine {
        centre: Channels::new(channels, |_| 0.0),
        scale: Channels::new(channels, |c| 1.0 + pair[c]),
        shift: Channels::new(channels, |c| pair[channels + c]),
    };
    pair.chunks_exact(2 * channels).map(map).collect()
}

/// 1 / sqrt(mean of squares + eps).
#[inline(always)]
pub(super) fn inverse_rms(pixel: &[f32]) -> f32 {
    let power = sum_by(
        pixel,
        #[inline(always)]
        |x| x * x,
    ) / pixel.len() as f32;
    1.0 / (power + EPS as f32).sqrt()
}

/// Mean over all pixels, x [n, h, w, c] -> out [n, 1, 1, c].
pub(super) fn global_avg_pool(arch: Arch, out: &mut [f32], x: &[f32], shape: Shape) {
    let (channels, picture) = (shape.c, shape.pixels() * shape.c);
    for (x, out) in x.chunks_exact(picture).zip(out.chunks_exact_mut(channels)) {
        let parts: Vec<Vec<f64>> = x
            .par_chunks(SPANS * SPAN * channels)
            .map(|x| {
                arch.dispatch(
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
