//! Winograd's F(4x4, 3x3) (Lavin and Gray 2015, arXiv 1509.09308): a 3x3 convolution computes output tiles of 4x4 from
//! input tiles of 6x6, with 36 products of a pair of channels instead of 144.
//!
//! The rounding of a result depends on its position in its tile and on all 36 inputs, so a window of a grid does not
//! have the bits of the whole grid. It is for layers that never run on a window ([`Conv2d::domain`]).

use std::array::from_fn;

use crate::ops::{Conv2d, Domain, Shape, product};

/// Rows and columns of an output tile.
pub(super) const OUTPUT_TILE: usize = 4;

/// Rows and columns of an input tile.
pub(super) const INPUT_TILE: usize = OUTPUT_TILE + 2;

/// Most bytes of transformed tiles that a backend has at a time.
pub(super) const SCRATCH_BYTES: usize = 128 << 20;

/// Elements of an input tile: products of a pair of channels per output tile.
pub(super) const TILE_ELEMENTS: usize = INPUT_TILE * INPUT_TILE;

/// Fewest input and output channels for which the transforms cost less than they save.
const MIN_CHANNELS: usize = 32;

/// Fewest pixels of a picture: with fewer tiles reading the weights, four times those of a direct sum, costs more than
/// the products saved.
const MIN_PIXELS: usize = 8 * OUTPUT_TILE * OUTPUT_TILE;

/// G of the paper's F(4x4, 3x3): transforms 3 weights of a row or column.
const WEIGHTS: [[f64; 3]; INPUT_TILE] = [
    [1.0 / 4.0, 0.0, 0.0],
    [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
    [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
    [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
    [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
    [0.0, 0.0, 1.0],
];

/// True if `p` may be computed by this algorithm with any number of channels.
fn is_eligible(p: &Conv2d) -> bool {
    p.domain == Domain::Whole && p.kernel == 3
}

/// Upper bound in bytes of the packed weights of `p`, transformed or not.
pub(super) fn packed_bytes(p: &Conv2d) -> u64 {
    let side = if is_eligible(p) { INPUT_TILE } else { p.kernel };
    product(&[4, side, side, p.in_channels, p.out_channels])
}

/// Upper bound in bytes of the transformed tiles for a result of `p` with an input of shape `x`.
pub(super) fn scratch_bytes(x: Shape, p: &Conv2d) -> u64 {
    if !is_eligible(p) {
        return 0;
    }
    let tiles = product(&[x.n, x.h.div_ceil(OUTPUT_TILE), x.w.div_ceil(OUTPUT_TILE)]);
    let tile = product(&[4, INPUT_TILE, INPUT_TILE, p.in_channels + p.out_channels]);
    tiles.saturating_mul(tile).min(SCRATCH_BYTES as u64)
}

/// True if `p` may be computed by this algorithm with channels in multiples of `group`.
pub(super) fn is_supported(p: &Conv2d, group: usize) -> bool {
    let grouped = p.in_channels.is_multiple_of(group) && p.out_channels.is_multiple_of(group);
    is_eligible(p) && grouped
}

/// True if it is faster for a result of `shape`. The number of pictures must not count, so that a picture has the same
/// bits in a batch as alone.
pub(super) fn is_profitable(p: &Conv2d, shape: Shape) -> bool {
    p.in_channels.min(p.out_channels) >= MIN_CHANNELS && shape.pixels() >= MIN_PIXELS
}

/// G g G^T of the 3x3 weights `g` of a pair of channels, row by row.
pub(super) fn transformed(g: &[f32; 9]) -> [f32; TILE_ELEMENTS] {
    let g = g.map(f64::from);
    let times = |row: [f64; 3], [a, b, c]: [f64; 3]| row[0] * a + row[1] * b + row[2] * c;
    let columns = WEIGHTS.map(|row| from_fn(|j| times(row, [g[j], g[3 + j], g[6 + j]])));
    from_fn(|at| times(WEIGHTS[at % INPUT_TILE], columns[at / INPUT_TILE]) as f32)
}
