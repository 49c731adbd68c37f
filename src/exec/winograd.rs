//! Winograd's F(4x4, 3x3) (Lavin and Gray 2015, arXiv 1509.09308): a 3x3 convolution computes squares of 4x4 results from
//! patches of 6x6 inputs, with 36 products of a pair of channels in place of 144.
//!
//! What a result is rounded to depends on its place in its square and on all 36 inputs, so that a window of a grid would not
//! give the bits of the whole grid: it is for layers that see whole grids ([`Conv2d::whole`]).

use std::array::from_fn;

pub(super) use crate::ops::conv2d::{PATCH, SQUARE};
use crate::ops::{Conv2d, Shape, conv2d};

/// Products of a pair of channels for a square.
pub(super) const POSITIONS: usize = PATCH * PATCH;

/// Least channels, in and out, for which transforming costs less than it saves.
const MIN_CHANNELS: usize = 32;

/// Least pixels of a picture's grid: with fewer squares the weights, four times those of a direct sum, cost more than they
/// save.
const MIN_PIXELS: usize = 8 * SQUARE * SQUARE;

/// Transforms 3 weights of a row or column: G of the paper's F(4x4, 3x3).
const WEIGHTS: [[f64; 3]; PATCH] = [
    [1.0 / 4.0, 0.0, 0.0],
    [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
    [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
    [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
    [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
    [0.0, 0.0, 1.0],
];

/// Whether `p` may be computed so where channels come in groups of `group`.
pub(super) fn fits(p: &Conv2d, group: usize) -> bool {
    let grouped = p.in_channels.is_multiple_of(group) && p.out_channels.is_multiple_of(group);
    conv2d::transforms(p) && grouped
}

/// Whether it is worth while for a result of `shape`, of which the number of pictures does not count: in a batch a picture has
/// the bits that it has alone.
pub(super) fn pays(p: &Conv2d, shape: Shape) -> bool {
    p.in_channels.min(p.out_channels) >= MIN_CHANNELS && shape.pixels() >= MIN_PIXELS
}

/// G g G^T of the 3x3 weights `g` of a pair of channels, row by row.
pub(super) fn transformed(g: &[f32; 9]) -> [f32; POSITIONS] {
    let g = g.map(f64::from);
    let times = |row: [f64; 3], [a, b, c]: [f64; 3]| row[0] * a + row[1] * b + row[2] * c;
    let columns = WEIGHTS.map(|row| from_fn(|j| times(row, [g[j], g[3 + j], g[6 + j]])));
    from_fn(|at| times(WEIGHTS[at % PATCH], columns[at / PATCH]) as f32)
}
