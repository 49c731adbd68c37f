//! Operators that change or copy the grid: pooling, FIR filters, shuffles, concatenation, crop. `shape` is that of `x`.

use pulp::Arch;

use super::math::for_units;
use crate::ops::{Rect, Shape};

/// Runs `body(n, y, row)` for every row [w, c] of `out`, whose extent is `shape`.
#[inline(always)]
fn for_rows(
    arch: Arch,
    out: &mut [f32],
    shape: Shape,
    body: impl Fn(usize, usize, &mut [f32]) + Sync + Send,
) {
    let row = shape.w * shape.c;
    for_units(
        arch,
        out,
        row,
        #[inline(always)]
        |first, out| {
            for (i, out) in out.chunks_exact_mut(row).enumerate() {
                body((first + i) / shape.h, (first + i) % shape.h, out);
            }
        },
    );
}

/// Rows of a picture batch.
#[derive(Clone, Copy)]
struct Rows<'a> {
    x: &'a [f32],
    shape: Shape,
}

impl<'a> Rows<'a> {
    /// Row `y` of picture `n`.
    #[inline(always)]
    fn row(self, n: usize, y: usize) -> &'a [f32] {
        let len = self.shape.w * self.shape.c;
        &self.x[(n * self.shape.h + y) * len..][..len]
    }

    /// As [`Rows::row`], or zeros outside of the picture.
    #[inline(always)]
    fn row_or(self, n: usize, y: Option<usize>, zeros: &'a [f32]) -> &'a [f32] {
        match y {
            Some(y) if y < self.shape.h => self.row(n, y),
            _ => zeros,
        }
    }
}

/// Pixel `x` of a row, or zeros outside of it.
#[inline(always)]
fn pixel_or<'a>(row: &'a [f32], x: Option<usize>, zeros: &'a [f32], c: usize) -> &'a [f32] {
    match x {
        Some(x) if (x + 1) * c <= row.len() => &row[x * c..][..c],
        _ => &zeros[..c],
    }
}

/// Mean of every 2x2 pixels, x [n, h, w, c] -> out [n, h/2, w/2, c].
pub(super) fn avg_pool2(arch: Arch, out: &mut [f32], x: &[f32], shape: Shape) {
    let (c, rows) = (shape.c, Rows { x, shape });
    let half = Shape { h: shape.h / 2, w: shape.w / 2, ..shape };
    for_rows(
        arch,
        out,
        half,
        #[inline(always)]
        |n, y, out| {
            let (above, below) = (rows.row(n, 2 * y), rows.row(n, 2 * y + 1));
            let pairs = above.chunks_exact(2 * c).zip(below.chunks_exact(2 * c));
            for (out, (above, below)) in out.chunks_exact_mut(c).zip(pairs) {
                let (a, b) = above.split_at(c);
                let (d, e) = below.split_at(c);
                for ((((out, a), b), d), e) in out.iter_mut().zip(a).zip(b).zip(d).zip(e) {
                    *out = ((a + b) + (d + e)) * 0.25;
                }
            }
        },
    );
}

/// Nearest-neighbour upsampling, x [n, h, w, c] -> out [n, 2h, 2w, c].
pub(super) fn upsample_nearest2(arch: Arch, out: &mut [f32], x: &[f32], shape: Shape) {
    let (c, rows) = (shape.c, Rows { x, shape });
    let double = Shape { h: shape.h * 2, w: shape.w * 2, ..shape };
    for_rows(
        arch,
        out,
        double,
        #[inline(always)]
        |n, y, out| {
            let row = rows.row(n, y / 2);
            for (out, x) in out.chunks_exact_mut(2 * c).zip(row.chunks_exact(c)) {
                let (left, right) = out.split_at_mut(c);
                left.copy_from_slice(x);
                right.copy_from_slice(x);
            }
        },
    );
}

/// FIR [1,3,3,1]/8 per axis with stride 2, x [n, h, w, c] -> out [n, h/2, w/2, c].
pub(super) fn fir_down2(arch: Arch, out: &mut [f32], x: &[f32], shape: Shape) {
    let (c, rows) = (shape.c, Rows { x, shape });
    let half = Shape { h: shape.h / 2, w: shape.w / 2, ..shape };
    let zeros = vec![0.0; shape.w * c];
    for_rows(
        arch,
        out,
        half,
        #[inline(always)]
        |n, y, out| {
            let taps = [(2 * y).checked_sub(1), Some(2 * y), Some(2 * y + 1), Some(2 * y + 2)];
            let taps = taps.map(|y| rows.row_or(n, y, &zeros));
            for (j, out) in out.chunks_exact_mut(c).enumerate() {
                let x = [(2 * j).checked_sub(1), Some(2 * j), Some(2 * j + 1), Some(2 * j + 2)];
                let [first, second, third, fourth] =
                    taps.map(|row| x.map(|x| pixel_or(row, x, &zeros, c)));
                for (i, out) in out.iter_mut().enumerate() {
                    let across = |p: [&[f32]; 4]| (p[0][i] + p[3][i]) + 3.0 * (p[1][i] + p[2][i]);
                    let sum =
                        (across(first) + across(fourth)) + 3.0 * (across(second) + across(third));
                    *out = sum * (1.0 / 64.0);
                }
            }
        },
    );
}

/// FIR [1,3,3,1]/4 per axis, x [n, h, w, c] -> out [n, 2h, 2w, c].
pub(super) fn fir_up2(arch: Arch, out: &mut [f32], x: &[f32], shape: Shape) {
    let (c, rows) = (shape.c, Rows { x, shape });
    let double = Shape { h: shape.h * 2, w: shape.w * 2, ..shape };
    // The neighbour of weight 1; the pixel itself has weight 3. Edges are repeated.
    let far = |i: usize, extent: usize| match i % 2 {
        0 => (i / 2).saturating_sub(1),
        _ => (i / 2 + 1).min(extent - 1),
    };
    for_rows(
        arch,
        out,
        double,
        #[inline(always)]
        |n, y, out| {
            let (near_row, far_row) = (rows.row(n, y / 2), rows.row(n, far(y, shape.h)));
            for (j, out) in out.chunks_exact_mut(c).enumerate() {
                let x = [j / 2, far(j, shape.w)];
                let [a, b] = x.map(|x| &near_row[x * c..(x + 1) * c]);
                let [d, e] = x.map(|x| &far_row[x * c..(x + 1) * c]);
                for ((((out, a), b), d), e) in out.iter_mut().zip(a).zip(b).zip(d).zip(e) {
                    *out = (3.0 * (3.0 * a + b) + (3.0 * d + e)) * (1.0 / 16.0);
                }
            }
        },
    );
}

/// Space to depth, x [n, h, w, c] -> out [n, h/r, w/r, c r^2].
pub(super) fn pixel_unshuffle(arch: Arch, out: &mut [f32], x: &[f32], shape: Shape, r: usize) {
    let (c, rows) = (shape.c, Rows { x, shape });
    let deep = Shape { n: shape.n, h: shape.h / r, w: shape.w / r, c: c * r * r };
    for_rows(
        arch,
        out,
        deep,
        #[inline(always)]
        |n, y, out| {
            for dy in 0..r {
                let row = rows.row(n, y * r + dy);
                for (out, x) in out.chunks_exact_mut(deep.c).zip(row.chunks_exact(r * c)) {
                    for (dx, x) in x.chunks_exact(c).enumerate() {
                        for (i, x) in x.iter().enumerate() {
                            out[(i * r + dy) * r + dx] = *x;
                        }
                    }
                }
            }
        },
    );
}

/// Depth to space, x [n, h, w, c] -> out [n, h r, w r, c / r^2].
pub(super) fn pixel_shuffle(arch: Arch, out: &mut [f32], x: &[f32], shape: Shape, r: usize) {
    let rows = Rows { x, shape };
    let c = shape.c / (r * r);
    let wide = Shape { n: shape.n, h: shape.h * r, w: shape.w * r, c };
    for_rows(
        arch,
        out,
        wide,
        #[inline(always)]
        |n, y, out| {
            let (row, dy) = (rows.row(n, y / r), y % r);
            for (out, x) in out.chunks_exact_mut(r * c).zip(row.chunks_exact(shape.c)) {
                for (dx, out) in out.chunks_exact_mut(c).enumerate() {
                    for (i, out) in out.iter_mut().enumerate() {
                        *out = x[(i * r + dy) * r + dx];
                    }
                }
            }
        },
    );
}

/// a [n, h, w, ca], b [n, h, w, cb] -> out [n, h, w, ca + cb].
pub(super) fn concat(
    arch: Arch,
    out: &mut [f32],
    (a, ca): (&[f32], usize),
    (b, cb): (&[f32], usize),
) {
    for_units(
        arch,
        out,
        ca + cb,
        #[inline(always)]
        |first, out| {
            let pixels = a[first * ca..].chunks_exact(ca).zip(b[first * cb..].chunks_exact(cb));
            for (out, (a, b)) in out.chunks_exact_mut(ca + cb).zip(pixels) {
                let (left, right) = out.split_at_mut(ca);
                left.copy_from_slice(a);
                right.copy_from_slice(b);
            }
        },
    );
}

/// x + gain noise, x [n, h, w, c], noise [n, h, w, 1], gain [c] -> out [n, h, w, c].
pub(super) fn add_noise(arch: Arch, out: &mut [f32], x: &[f32], noise: &[f32], gain: &[f32]) {
    let c = gain.len();
    for_units(
        arch,
        out,
        c,
        #[inline(always)]
        |first, out| {
            let pixels = x[first * c..].chunks_exact(c).zip(&noise[first..]);
            for (out, (x, noise)) in out.chunks_exact_mut(c).zip(pixels) {
                for ((out, x), gain) in out.iter_mut().zip(x).zip(gain) {
                    *out = x + gain * noise;
                }
            }
        },
    );
}

/// A rectangle of the grid, x [n, h, w, c] -> out [n, window.height, window.width, c].
pub(super) fn crop(arch: Arch, out: &mut [f32], x: &[f32], shape: Shape, window: Rect) {
    let rows = Rows { x, shape };
    let small = Shape { h: window.height, w: window.width, ..shape };
    for_rows(
        arch,
        out,
        small,
        #[inline(always)]
        |n, y, out| {
            let row = rows.row(n, window.y + y);
            out.copy_from_slice(&row[window.x * shape.c..][..out.len()]);
        },
    );
}
