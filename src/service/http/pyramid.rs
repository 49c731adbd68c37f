//! The arithmetic of Deep Zoom: levels and tiles of a picture.
//!
//! The guarantee: every pixel of every level is in exactly one tile. Level 0 is one pixel; each further level doubles both
//! sides, rounded up so that the last one is the picture. Tiles have [`SIDE`] pixels a side, those at the far edges less,
//! and do not overlap: a tile covers the four of the next level that have twice its column and row.

use crate::{
    engine::plan::Rect,
    error::{Error, Resource, Result},
};

/// Side of a tile in pixels.
pub(super) const SIDE: usize = 256;

/// Place of a tile in the pyramid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// Level, 0 the smallest.
    pub(super) level: usize,
    /// Column of tiles.
    pub(super) column: usize,
    /// Row of tiles.
    pub(super) row: usize,
}

/// The levels of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pyramid {
    /// Width in pixels, at least 1.
    pub(super) width: usize,
    /// Height in pixels, at least 1.
    pub(super) height: usize,
}

impl Pyramid {
    /// The last level: the picture itself.
    pub(super) fn last(self) -> usize {
        (usize::BITS - (self.width.max(self.height).max(1) - 1).leading_zeros()) as usize
    }

    /// Width and height of a level up to the last one.
    pub(super) fn size(self, level: usize) -> (usize, usize) {
        let scale = 1 << (self.last() - level);
        (self.width.div_ceil(scale), self.height.div_ceil(scale))
    }

    /// Columns and rows of a level's tiles.
    pub(super) fn tiles(self, level: usize) -> (usize, usize) {
        let (width, height) = self.size(level);
        (width.div_ceil(SIDE), height.div_ceil(SIDE))
    }

    /// The pixels of its level that a tile covers.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::error::Kind) when there is no such tile.
    pub(super) fn area(self, place: Place) -> Result<Rect> {
        let Place { level, column, row } = place;
        let exists = level <= self.last() && {
            let (columns, rows) = self.tiles(level);
            column < columns && row < rows
        };
        if !exists {
            let name = format!("level {level}, column {column}, row {row}");
            return Err(Error::not_found(Resource::Tile, name));
        }
        let (width, height) = self.size(level);
        let (x, y) = (column * SIDE, row * SIDE);
        Ok(Rect { x, y, width: (width - x).min(SIDE), height: (height - y).min(SIDE) })
    }

    /// The pixels of the picture that lie under `area` of `level`.
    pub(super) fn under(self, level: usize, area: Rect) -> Rect {
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
    pub(super) fn within(self, limit: usize) -> usize {
        let fits = |&level: &usize| {
            let (width, height) = self.size(level);
            width.max(height) <= limit
        };
        (0..=self.last()).rev().find(fits).unwrap_or(0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn levels_are_those_of_deep_zoom() {
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
    fn tiles_cover_every_level_and_their_pixels_the_picture_once() {
        for (width, height) in [(1000, 513), (769, 1), (256, 512), (1, 300)] {
            let pyramid = Pyramid { width, height };
            for level in 0..=pyramid.last() {
                let (columns, rows) = pyramid.tiles(level);
                let (mut seen, mut below) = (0, 0);
                for column in 0..columns {
                    for row in 0..rows {
                        let area = pyramid.area(Place { level, column, row }).unwrap();
                        let under = pyramid.under(level, area);
                        seen += area.width * area.height;
                        below += under.width * under.height;
                    }
                }
                let (level_width, level_height) = pyramid.size(level);
                assert_eq!((seen, below), (level_width * level_height, width * height));
                let past = Place { level, column: columns, row: 0 };
                assert_eq!(pyramid.area(past).unwrap_err().kind(), Kind::NotFound);
            }
            let past = Place { level: pyramid.last() + 1, column: 0, row: 0 };
            assert_eq!(pyramid.area(past).unwrap_err().kind(), Kind::NotFound);
        }
    }
}
