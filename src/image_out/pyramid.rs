//! Tiles of the overview pyramid ([`Pyramid`]), computed from the four below.
//!
//! The last level is the picture; each one above has half the width and height, rounded up, until both fit one tile. A
//! pixel is the rounded mean of the 2x2 pixels below it; at odd edges the last row and column count twice. Means are of
//! the stored (sRGB-encoded) values, in integers: they are equal on every machine and common among writers of pyramids.

use bytemuck::Pod;

use super::PixelSource;
use crate::{
    error::Result,
    geometry::{Pyramid, Rect, TILE, TilePosition},
};

/// Samples of a row of a tile.
pub(super) const ROW: usize = 3 * TILE;

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

/// A tile's samples, 256 x 256 x RGB; past the picture's edges the last pixels are repeated, which
/// compresses well and makes [`combine`] right at odd sizes.
pub(super) type Tile<T> = Vec<T>;

/// Reads a tile of the last level, the picture.
pub(super) fn read<T: Sample>(
    source: &dyn PixelSource,
    pyramid: Pyramid,
    position: TilePosition,
) -> Result<Tile<T>> {
    let area = pyramid.area(position)?;
    let mut tile = vec![T::zeroed(); TILE * ROW];
    let row_len = 3 * area.width;
    let used = row_len * area.height;
    source.read(area, bytemuck::cast_slice_mut(&mut tile[..used]))?;
    if row_len < ROW {
        // Spread the rows, last first, so that none is overwritten before it has moved.
        for y in (1..area.height).rev() {
            tile.copy_within(y * row_len..(y + 1) * row_len, y * ROW);
        }
    }
    repeat_edges(&mut tile, area);
    Ok(tile)
}

/// Computes a tile from those of the level below it, given with their positions.
pub(super) fn combine<T: Sample>(
    children: &[(TilePosition, Tile<T>)],
    pyramid: Pyramid,
    position: TilePosition,
) -> Result<Tile<T>> {
    let mut tile = vec![T::zeroed(); TILE * ROW];
    for (child, from) in children {
        let left = (child.column % 2) * ROW / 2;
        let top = (child.row % 2) * TILE / 2;
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
    repeat_edges(&mut tile, pyramid.area(position)?);
    Ok(tile)
}

/// Repeats the last column and row of the covered area to the tile's edges.
fn repeat_edges<T: Sample>(tile: &mut [T], area: Rect) {
    let Rect { width, height, .. } = area;
    for row in tile.chunks_exact_mut(ROW).take(height) {
        let (inside, outside) = row.split_at_mut(3 * width);
        let last = &inside[3 * width - 3..];
        outside.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(last));
    }
    for y in height..TILE {
        tile.copy_within((height - 1) * ROW..height * ROW, y * ROW);
    }
}
