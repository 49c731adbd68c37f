//! Composes a job's picture from decoded tiles and, elsewhere, the newest preview.
//!
//! Guarantee: a block that is called complete has final pixels only. Smaller levels are rounded means of 2 x 2 pixels of the
//! next larger level, as in the overviews of the picture's file. 16-bit samples are rounded to 8 bits.

use std::{io::Cursor, sync::Arc};

use image::{
    ExtendedColorType, ImageEncoder, ImageFormat,
    codecs::{
        jpeg::JpegEncoder,
        png::{CompressionType, FilterType, PngEncoder},
    },
};

use super::tile_cache::TileCache;
use crate::{
    engine::plan::Rect,
    error::{Error, Result},
    geometry::{Pyramid, TILE, TilePosition},
    image_out::Bits,
    jobs::Job,
    service::stream::damaged_preview,
};

/// Bytes of a pixel: RGBA, with alpha 0 for a missing pixel and 255 otherwise.
const PIXEL: usize = 4;

/// Number of the largest levels whose blocks are not cached: they are many and cheap to read.
const KEPT_BELOW: usize = 2;

/// JPEG quality, 1 to 100.
const QUALITY: u8 = 90;

/// Encoding of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// Lossless; missing pixels are transparent.
    Png,
    /// Lossy; missing pixels are black.
    Jpeg,
}

impl Encoding {
    /// Its media type.
    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
        }
    }
}

/// A rectangle of pixels.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Block {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Block {
    /// A block of missing pixels.
    fn empty(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![0; width * height * PIXEL] }
    }

    /// Size in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.pixels.len()
    }

    fn row(&self, y: usize) -> &[u8] {
        let len = self.width * PIXEL;
        &self.pixels[y * len..(y + 1) * len]
    }

    /// Copies `from` to the position `x`, `y`.
    fn paste(&mut self, from: &Self, x: usize, y: usize) {
        for row in 0..from.height {
            let start = ((y + row) * self.width + x) * PIXEL;
            self.pixels[start..start + from.width * PIXEL].copy_from_slice(from.row(row));
        }
    }

    /// Reduces both sides to the half, rounded up; at odd edges the last column and row count twice.
    fn halved(&self) -> Self {
        let (width, height) = (self.width.div_ceil(2), self.height.div_ceil(2));
        let mut out = Self::empty(width, height);
        for y in 0..height {
            let (upper, lower) = (self.row(2 * y), self.row((2 * y + 1).min(self.height - 1)));
            let row = &mut out.pixels[y * width * PIXEL..(y + 1) * width * PIXEL];
            for (x, to) in row.chunks_exact_mut(PIXEL).enumerate() {
                let (a, b) = (2 * x * PIXEL, (2 * x + 1).min(self.width - 1) * PIXEL);
                for (c, to) in to.iter_mut().enumerate() {
                    let four = [upper[a + c], upper[b + c], lower[a + c], lower[b + c]];
                    *to = ((four.into_iter().map(u32::from).sum::<u32>() + 2) / 4) as u8;
                }
            }
        }
        out
    }

    /// Encodes the block as a file.
    ///
    /// # Errors
    /// [`Kind::Internal`](crate::error::Kind) if the encoder fails.
    pub(super) fn encode(&self, encoding: Encoding) -> Result<Vec<u8>> {
        let solid = self.pixels.chunks_exact(PIXEL).all(|pixel| pixel[3] == 255);
        let rgb = || -> Vec<u8> {
            self.pixels.chunks_exact(PIXEL).flat_map(|p| [p[0], p[1], p[2]]).collect()
        };
        let mut out = Vec::new();
        let (width, height) = (self.width as u32, self.height as u32);
        let written = match encoding {
            Encoding::Jpeg => JpegEncoder::new_with_quality(&mut out, QUALITY).write_image(
                &rgb(),
                width,
                height,
                ExtendedColorType::Rgb8,
            ),
            Encoding::Png => {
                let (compression, filter) = (CompressionType::Fast, FilterType::Adaptive);
                let encoder = PngEncoder::new_with_quality(&mut out, compression, filter);
                match solid {
                    true => encoder.write_image(&rgb(), width, height, ExtendedColorType::Rgb8),
                    false => {
                        encoder.write_image(&self.pixels, width, height, ExtendedColorType::Rgba8)
                    }
                }
            }
        };
        written.map_err(|e| Error::internal("encoding a tile").with_source(e))?;
        Ok(out)
    }
}

/// A preview and its reductions, used where no tile is decoded.
#[derive(Debug)]
pub(super) struct Preview(Vec<Block>);

impl Preview {
    /// Decodes a PNG.
    ///
    /// # Errors
    /// [`Kind::Io`](crate::error::Kind) if it is damaged.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let read = image::ImageReader::with_format(Cursor::new(bytes), ImageFormat::Png).decode();
        let picture = read.map_err(|e| damaged_preview().with_source(e))?.into_rgba8();
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        Ok(Self::reduced(Block { width, height, pixels: picture.into_raw() }))
    }

    /// A preview of `samples`, rows of RGB.
    pub(super) fn new(width: usize, height: usize, samples: &[u8]) -> Self {
        let pixels = samples.chunks_exact(3).flat_map(|rgb| [rgb[0], rgb[1], rgb[2], 255]);
        Self::reduced(Block { width, height, pixels: pixels.collect() })
    }

    fn reduced(block: Block) -> Self {
        let mut chain = vec![block];
        while let Some(last) = chain.last().filter(|last| last.width.max(last.height) > 1) {
            chain.push(last.halved());
        }
        Self(chain)
    }

    /// The pixels of `area` of a picture of `size`, scaled from this preview.
    fn scaled(&self, size: (usize, usize), area: Rect) -> Block {
        let mut out = Block::empty(area.width, area.height);
        // The smallest reduction with at least as many pixels.
        let enough = |from: &&Block| from.width >= size.0 && from.height >= size.1;
        let Some(from) = self.0.iter().rev().find(enough).or(self.0.first()) else { return out };
        let columns: Vec<_> =
            (area.x..area.x + area.width).map(|x| taps(x, size.0, from.width)).collect();
        let row_len = area.width * 3;
        // Rows of the source, scaled horizontally on demand.
        let mut rows: Vec<Option<Vec<f32>>> = vec![None; from.height];
        for y in 0..area.height {
            let tap = taps(area.y + y, size.1, from.height);
            let mut sum = vec![0.0f32; row_len];
            for (at, weight) in tap {
                let row = rows[at].get_or_insert_with(|| {
                    let source = from.row(at);
                    let mut row = Vec::with_capacity(row_len);
                    for tap in &columns {
                        for c in 0..3 {
                            let part =
                                |&(at, w): &(usize, f32)| w * f32::from(source[at * PIXEL + c]);
                            row.push(tap.iter().map(part).sum());
                        }
                    }
                    row
                });
                sum.iter_mut().zip(row.iter()).for_each(|(sum, value)| *sum += weight * value);
            }
            let to = &mut out.pixels[y * area.width * PIXEL..(y + 1) * area.width * PIXEL];
            for (to, from) in to.chunks_exact_mut(PIXEL).zip(sum.chunks_exact(3)) {
                for (to, from) in to.iter_mut().zip(from) {
                    *to = from.round().clamp(0.0, 255.0) as u8;
                }
                to[3] = 255;
            }
        }
        out
    }
}

/// Source range and weights of the pixel `at` of `len` scaled from `from` pixels: the cubic filter of Mitchell and Netravali
/// (1988), B = C = 1/3.
fn taps(at: usize, len: usize, from: usize) -> [(usize, f32); 4] {
    let center = (at as f64 + 0.5) * from as f64 / len as f64 - 0.5;
    let first = center.floor();
    let t = (center - first) as f32;
    let near = |x: f32| ((7.0 * x - 12.0) * x * x + 16.0 / 3.0) / 6.0;
    let far = |x: f32| (((-7.0 / 3.0 * x + 12.0) * x - 20.0) * x + 32.0 / 3.0) / 6.0;
    let weights = [far(1.0 + t), near(t), near(1.0 - t), far(2.0 - t)];
    std::array::from_fn(|i| {
        let place = first as isize + i as isize - 1;
        (place.clamp(0, from as isize - 1) as usize, weights[i])
    })
}

/// Decoded part of a rectangle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decoded {
    All,
    Some,
    None,
}

/// A job's picture at one time.
pub(super) struct CompositeImage {
    job: Arc<Job>,
    pyramid: Pyramid,
    done: Vec<bool>,
    preview: Option<Arc<Preview>>,
    /// The tile that was read last: adjacent blocks often need the same one.
    last: Option<(usize, Vec<u8>)>,
}

impl CompositeImage {
    /// The job's picture; `done` is true for each decoded tile.
    pub(super) fn new(job: Arc<Job>, done: Vec<bool>, preview: Option<Arc<Preview>>) -> Self {
        Self { pyramid: Self::pyramid(&job), job, done, preview, last: None }
    }

    /// The levels of the job's picture.
    pub(super) fn pyramid(job: &Job) -> Pyramid {
        Pyramid { width: job.plan.spec.width, height: job.plan.spec.height }
    }

    /// The pixels of a tile; true if they are final.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::error::Kind) if it does not exist; [`Kind::Io`](crate::error::Kind).
    pub(super) fn tile(
        &mut self,
        cache: &TileCache,
        place: TilePosition,
    ) -> Result<(Arc<Block>, bool)> {
        let area = self.pyramid.area(place)?;
        let decoded = self.decoded(self.pyramid.under(place.level, area));
        Ok((self.compose(cache, place, area, decoded)?, decoded == Decoded::All))
    }

    /// The pixels of a whole level; true if they are final.
    ///
    /// # Errors
    /// Those of [`Self::tile`].
    pub(super) fn level(&mut self, cache: &TileCache, level: usize) -> Result<(Arc<Block>, bool)> {
        let (width, height) = self.pyramid.size(level);
        let (columns, rows) = self.pyramid.tiles(level);
        let (mut out, mut complete) = (Block::empty(width, height), true);
        for row in 0..rows {
            for column in 0..columns {
                let (tile, final_) = self.tile(cache, TilePosition { level, column, row })?;
                out.paste(&tile, column * TILE, row * TILE);
                complete &= final_;
            }
        }
        Ok((Arc::new(out), complete))
    }

    fn compose(
        &mut self,
        cache: &TileCache,
        place: TilePosition,
        area: Rect,
        decoded: Decoded,
    ) -> Result<Arc<Block>> {
        let below = self.pyramid.last() - place.level;
        if decoded == Decoded::All && below >= KEPT_BELOW {
            let id = self.job.id.clone();
            return cache
                .final_block(&id, place, || Ok(Arc::new(self.reduced(cache, place, area)?)));
        }
        Ok(Arc::new(match decoded {
            Decoded::None => self.blank(place.level, area),
            _ if below == 0 => self.pixels(area, decoded)?,
            _ => self.reduced(cache, place, area)?,
        }))
    }

    /// The block at `place`, reduced from four blocks of the next larger level.
    fn reduced(&mut self, cache: &TileCache, place: TilePosition, area: Rect) -> Result<Block> {
        let size = self.pyramid.size(place.level + 1);
        let (x, y) = (2 * area.x, 2 * area.y);
        let (width, height) = ((2 * area.width).min(size.0 - x), (2 * area.height).min(size.1 - y));
        let mut four = Block::empty(width, height);
        for (right, low) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            if right * TILE < width && low * TILE < height {
                let (column, row) = (2 * place.column + right, 2 * place.row + low);
                let part = TilePosition { level: place.level + 1, column, row };
                four.paste(&self.tile(cache, part)?.0, right * TILE, low * TILE);
            }
        }
        Ok(four.halved())
    }

    /// Pixels where no tile is decoded.
    fn blank(&self, level: usize, area: Rect) -> Block {
        match &self.preview {
            Some(preview) => preview.scaled(self.pyramid.size(level), area),
            None => Block::empty(area.width, area.height),
        }
    }

    /// Pixels of the largest level.
    fn pixels(&mut self, area: Rect, decoded: Decoded) -> Result<Block> {
        let bits = self.job.plan.spec.bits;
        let mut block = match decoded {
            Decoded::All => Block::empty(area.width, area.height),
            _ => self.blank(self.pyramid.last(), area),
        };
        for index in self.job.tiles_in(area) {
            if self.done[index] {
                let rect = self.job.plan.tiling.tiles[index].rect;
                let samples = match self.last.take() {
                    Some((last, samples)) if last == index => samples,
                    _ => self.job.read_tile(index)?.0,
                };
                put(&mut block, area, &samples, rect, bits);
                self.last = Some((index, samples));
            }
        }
        Ok(block)
    }

    fn decoded(&self, area: Rect) -> Decoded {
        let tiles = self.job.tiles_in(area);
        match tiles.iter().filter(|&&index| self.done[index]).count() {
            0 => Decoded::None,
            done if done == tiles.len() => Decoded::All,
            _ => Decoded::Some,
        }
    }
}

/// Copies the intersection of `area` and `rect` from the samples of `rect` to the block of `area`.
fn put(block: &mut Block, area: Rect, samples: &[u8], rect: Rect, bits: Bits) {
    let (left, top) = (area.x.max(rect.x), area.y.max(rect.y));
    let right = (area.x + area.width).min(rect.x + rect.width);
    let bottom = (area.y + area.height).min(rect.y + rect.height);
    for y in top..bottom {
        let from = ((y - rect.y) * rect.width + left - rect.x) * bits.pixel_len();
        let from = &samples[from..from + (right - left) * bits.pixel_len()];
        let to = ((y - area.y) * area.width + left - area.x) * PIXEL;
        let to = &mut block.pixels[to..to + (right - left) * PIXEL];
        for (to, from) in to.chunks_exact_mut(PIXEL).zip(from.chunks_exact(bits.pixel_len())) {
            match bits {
                Bits::Eight => to[..3].copy_from_slice(from),
                Bits::Sixteen => {
                    for (to, from) in to.iter_mut().zip(from.chunks_exact(2)) {
                        let sample = u32::from(u16::from_ne_bytes([from[0], from[1]]));
                        *to = ((sample + 128) / 257) as u8;
                    }
                }
            }
            to[3] = 255;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(width: usize, height: usize, value: impl Fn(usize, usize) -> u8) -> Block {
        let pixels = (0..width * height).flat_map(|i| {
            let value = value(i % width, i / width);
            [value, value, value, 255]
        });
        Block { width, height, pixels: pixels.collect() }
    }

    #[test]
    fn halving_repeats_the_last_column_and_row() {
        let half = block(3, 3, |x, y| (10 * y + x) as u8).halved();
        let means: Vec<_> = half.pixels.chunks_exact(PIXEL).map(|p| (p[0], p[3])).collect();
        assert_eq!(means, [(6, 255), (7, 255), (21, 255), (22, 255)]);
    }

    #[test]
    fn filter_weights_sum_to_one_and_keep_ramps() {
        for at in 0..40 {
            let taps = taps(at, 40, 5);
            let sum: f32 = taps.iter().map(|t| t.1).sum();
            assert!((sum - 1.0).abs() < 1e-5);
            let center = (at as f32 + 0.5) / 8.0 - 0.5;
            if (1.0..3.0).contains(&center) {
                let mean: f32 = taps.iter().map(|t| t.0 as f32 * t.1).sum();
                assert!((mean - center).abs() < 1e-4, "{at}: {mean} {center}");
            }
        }
    }

    #[test]
    fn preview_scaling_has_no_seams_between_tiles() {
        let preview = Preview(vec![block(16, 8, |x, y| (16 * x + 5 * y) as u8)]);
        let whole = preview.scaled((128, 64), Rect { x: 0, y: 0, width: 128, height: 64 });
        let part = preview.scaled((128, 64), Rect { x: 50, y: 20, width: 30, height: 10 });
        for y in 0..10 {
            assert_eq!(part.row(y), &whole.row(20 + y)[50 * PIXEL..80 * PIXEL]);
        }
    }

    #[test]
    fn sixteen_bit_samples_are_rounded_to_eight() {
        let samples: Vec<u8> =
            [0u16, 128, 129, 65535, 257, 386].iter().flat_map(|v| v.to_ne_bytes()).collect();
        let rect = Rect { x: 4, y: 4, width: 2, height: 1 };
        let area = Rect { x: 0, y: 0, width: 8, height: 8 };
        let mut to = Block::empty(8, 8);
        put(&mut to, area, &samples, rect, Bits::Sixteen);
        assert_eq!(to.row(4)[4 * PIXEL..6 * PIXEL], [0, 0, 1, 255, 255, 1, 2, 255]);
        assert_eq!(to.pixels.iter().filter(|&&v| v == 255).count(), 3);
    }
}
