//! The overview pyramid: level sizes, and tiles computed from the four below.
//!
//! Level 0 is the picture; each further level has half the width and height, rounded up, until both
//! fit one tile. A pixel is the rounded mean of the 2x2 pixels below it; at odd edges the last row
//! and column count twice. Means are of the stored (sRGB-encoded) values, in integers: equal on
//! every machine, and what other writers of pyramids do.

use bytemuck::Pod;

use super::{Area, PixelSource};
use crate::error::Result;

/// Width and height of a tile in pixels.
pub const TILE: u32 = 256;
const SIDE: usize = TILE as usize;

/// Samples of a row of a tile.
pub(super) const ROW: usize = 3 * SIDE;

/// A sample type of pictures.
pub(super) trait Sample: Pod + Send + Sync {
    /// The rounded mean of four samples.
    fn mean(four: [Self; 4]) -> Self;

    /// `self - other`, wrapping around.
    fn difference(self, other: Self) -> Self;
}

impl Sample for u8 {
    fn mean(four: [Self; 4]) -> Self {
        ((four.iter().map(|&v| u32::from(v)).sum::<u32>() + 2) / 4) as Self
    }

    fn difference(self, other: Self) -> Self {
        self.wrapping_sub(other)
    }
}

impl Sample for u16 {
    fn mean(four: [Self; 4]) -> Self {
        ((four.iter().map(|&v| u32::from(v)).sum::<u32>() + 2) / 4) as Self
    }

    fn difference(self, other: Self) -> Self {
        self.wrapping_sub(other)
    }
}

/// Size of one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) width: u32,
    pub(super) height: u32,
}

/// Place of a tile in the pyramid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) level: usize,
    pub(super) column: u32,
    pub(super) row: u32,
}

impl Level {
    /// All levels of a picture, largest first.
    pub(super) fn all(width: u32, height: u32) -> Vec<Self> {
        let half = |level: &Self| {
            (level.width.max(level.height) > TILE)
                .then(|| Self { width: level.width.div_ceil(2), height: level.height.div_ceil(2) })
        };
        std::iter::successors(Some(Self { width, height }), half).collect()
    }

    /// Tiles in a row.
    pub(super) fn columns(self) -> u32 {
        self.width.div_ceil(TILE)
    }

    /// Rows of tiles.
    pub(super) fn rows(self) -> u32 {
        self.height.div_ceil(TILE)
    }

    /// Number of tiles.
    pub(super) fn tiles(self) -> usize {
        self.columns() as usize * self.rows() as usize
    }

    /// The part of the level that the tile in `column` and `row` covers.
    fn area(self, column: u32, row: u32) -> Area {
        let (x, y) = (column * TILE, row * TILE);
        Area { x, y, width: (self.width - x).min(TILE), height: (self.height - y).min(TILE) }
    }
}

/// A tile's samples, 256 x 256 x RGB; past the picture's edges the last pixels are repeated, which
/// compresses well and makes [`combine`] right at odd sizes.
pub(super) type Tile<T> = Vec<T>;

/// Reads a tile of level 0.
pub(super) fn read<T: Sample>(
    source: &dyn PixelSource,
    level: Level,
    place: Place,
) -> Result<Tile<T>> {
    let area = level.area(place.column, place.row);
    let mut tile = vec![T::zeroed(); SIDE * ROW];
    let row_len = 3 * area.width as usize;
    let used = row_len * area.height as usize;
    source.read(area, bytemuck::cast_slice_mut(&mut tile[..used]))?;
    if row_len < ROW {
        // Spread the rows, last first, so that none is overwritten before it has moved.
        for y in (1..area.height as usize).rev() {
            tile.copy_within(y * row_len..(y + 1) * row_len, y * ROW);
        }
    }
    repeat_edges(&mut tile, area);
    Ok(tile)
}

/// Computes a tile from those of the level below it, given with their places.
pub(super) fn combine<T: Sample>(
    children: &[(Place, Tile<T>)],
    level: Level,
    place: Place,
) -> Tile<T> {
    let mut tile = vec![T::zeroed(); SIDE * ROW];
    for (child, from) in children {
        let left = (child.column % 2) as usize * ROW / 2;
        let top = (child.row % 2) as usize * SIDE / 2;
        for (y, two_rows) in from.chunks_exact(2 * ROW).enumerate() {
            let start = (top + y) * ROW + left;
            let (upper, lower) = two_rows.split_at(ROW);
            let pairs = upper.chunks_exact(6).zip(lower.chunks_exact(6));
            for (to, (u, l)) in tile[start..start + ROW / 2].chunks_exact_mut(3).zip(pairs) {
                for (c, to) in to.iter_mut().enumerate() {
                    *to = T::mean([u[c], u[c + 3], l[c], l[c + 3]]);
                }
            }
        }
    }
    repeat_edges(&mut tile, level.area(place.column, place.row));
    tile
}

/// Repeats the last column and row of the covered area to the tile's edges.
fn repeat_edges<T: Sample>(tile: &mut [T], area: Area) {
    let (width, height) = (area.width as usize, area.height as usize);
    for row in tile.chunks_exact_mut(ROW).take(height) {
        let (inside, outside) = row.split_at_mut(3 * width);
        let last = &inside[3 * width - 3..];
        outside.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(last));
    }
    for y in height..SIDE {
        tile.copy_within((height - 1) * ROW..height * ROW, y * ROW);
    }
}
