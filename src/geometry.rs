//! Rectangles and tile pyramids of pictures.

use crate::error::{Error, Resource, Result};

/// A rectangle of a picture or of a tensor's grid, in its pixels.
///
/// ```
/// use tessera::geometry::Rect;
///
/// let rect = Rect { x: 2, y: 0, width: 3, height: 4 };
/// assert!(rect.intersects(Rect { x: 4, y: 3, ..rect }));
/// assert!(!rect.intersects(Rect { x: 5, ..rect }));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Rect {
    /// First column.
    pub x: usize,
    /// First row.
    pub y: usize,
    /// Number of columns.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
}

impl Rect {
    /// True if the two share a pixel.
    pub fn intersects(self, other: Self) -> bool {
        let meet = |a: usize, a_len: usize, b: usize, b_len: usize| {
            a < b.saturating_add(b_len) && b < a.saturating_add(a_len)
        };
        meet(self.x, self.width, other.x, other.width)
            && meet(self.y, self.height, other.y, other.height)
    }
}

/// Side of a tile of a pyramid, in pixels.
pub const TILE: usize = 256;

/// Position of a tile in a [`Pyramid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TilePosition {
    /// Level, 0 the smallest.
    pub level: usize,
    /// Column of tiles.
    pub column: usize,
    /// Row of tiles.
    pub row: usize,
}

/// The Deep Zoom pyramid of a picture: level 0 is one pixel, each further level doubles both sides, rounded up so that
/// the last one is the picture. Tiles have [`TILE`] pixels a side, those at the right and bottom edges may be smaller,
/// and they do not overlap, so that every pixel of a level is in exactly one tile. A tile covers the four tiles of the
/// next level with twice its column and row.
///
/// ```
/// use tessera::geometry::{Pyramid, TilePosition};
///
/// let pyramid = Pyramid { width: 1000, height: 513 };
/// assert_eq!((pyramid.last(), pyramid.size(9)), (10, (500, 257)));
/// let tile = pyramid.area(TilePosition { level: 9, column: 1, row: 0 })?;
/// assert_eq!((tile.x, tile.width), (256, 244));
/// # Ok::<(), tessera::error::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pyramid {
    /// Width in pixels, at least 1.
    pub width: usize,
    /// Height in pixels, at least 1.
    pub height: usize,
}

impl Pyramid {
    /// The last level: the picture itself.
    pub fn last(self) -> usize {
        (usize::BITS - (self.width.max(self.height).max(1) - 1).leading_zeros()) as usize
    }

    /// Width and height of a level up to the last one.
    pub fn size(self, level: usize) -> (usize, usize) {
        let scale = 1 << (self.last() - level);
        (self.width.div_ceil(scale), self.height.div_ceil(scale))
    }

    /// Columns and rows of a level's tiles.
    pub fn tiles(self, level: usize) -> (usize, usize) {
        let (width, height) = self.size(level);
        (width.div_ceil(TILE), height.div_ceil(TILE))
    }

    /// The pixels of its level that the tile at `position` covers.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::error::Kind) when there is no such tile.
    pub fn area(self, position: TilePosition) -> Result<Rect> {
        let TilePosition { level, column, row } = position;
        let exists = level <= self.last() && {
            let (columns, rows) = self.tiles(level);
            column < columns && row < rows
        };
        if !exists {
            let name = format!("level {level}, column {column}, row {row}");
            return Err(Error::not_found(Resource::Tile, name));
        }
        let (width, height) = self.size(level);
        let (x, y) = (column * TILE, row * TILE);
        Ok(Rect { x, y, width: (width - x).min(TILE), height: (height - y).min(TILE) })
    }

    /// The pixels of the picture that lie under `area` of `level`.
    pub fn under(self, level: usize, area: Rect) -> Rect {
        let shift = self.last() - level;
        let (x, y) = (area.x << shift, area.y << shift);
        Rect {
            x,
            y,
            width: (area.width << shift).min(self.width - x),
            height: (area.height << shift).min(self.height - y),
        }
    }

    /// The largest level with no side longer than `limit`.
    pub fn within(self, limit: usize) -> usize {
        let fits = |&level: &usize| {
            let (width, height) = self.size(level);
            width.max(height) <= limit
        };
        (0..=self.last()).rev().find(fits).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn pyramid_levels_are_those_of_deep_zoom() {
        for (width, height, last) in
            [(1, 1, 0), (2, 1, 1), (256, 256, 8), (257, 3, 9), (1000, 513, 10), (16384, 8192, 14)]
        {
            let pyramid = Pyramid { width, height };
            assert_eq!(pyramid.last(), last);
            assert_eq!(pyramid.size(last), (width, height));
            assert_eq!(pyramid.size(0), (1, 1));
        }
        let pyramid = Pyramid { width: 1000, height: 513 };
        assert_eq!(pyramid.size(9), (500, 257));
        assert_eq!(pyramid.size(8), (250, 129));
        assert_eq!(pyramid.tiles(9), (2, 2));
        assert_eq!(pyramid.within(512), 9);
    }

    #[test]
    fn pyramid_tiles_cover_every_level_and_the_picture_once() {
        for (width, height) in [(1000, 513), (769, 1), (256, 512), (1, 300)] {
            let pyramid = Pyramid { width, height };
            for level in 0..=pyramid.last() {
                let (columns, rows) = pyramid.tiles(level);
                let (mut seen, mut below) = (0, 0);
                for column in 0..columns {
                    for row in 0..rows {
                        let area = pyramid.area(TilePosition { level, column, row }).unwrap();
                        let under = pyramid.under(level, area);
                        seen += area.width * area.height;
                        below += under.width * under.height;
                    }
                }
                let (level_width, level_height) = pyramid.size(level);
                assert_eq!((seen, below), (level_width * level_height, width * height));
                let past = TilePosition { level, column: columns, row: 0 };
                assert_eq!(pyramid.area(past).unwrap_err().kind(), Kind::NotFound);
            }
            let past = TilePosition { level: pyramid.last() + 1, column: 0, row: 0 };
            assert_eq!(pyramid.area(past).unwrap_err().kind(), Kind::NotFound);
        }
    }
}
