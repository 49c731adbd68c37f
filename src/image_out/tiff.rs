//! Tiled multi-resolution TIFF: compressed without loss, the overviews as further directories.
//!
//! One pass over the tiles of the picture in Z-order (Morton 1966): each tile is compressed, and every four are
//! combined to one of the level above at once. So the pixels are read once, memory holds only the tiles of one path up
//! the pyramid, and the file's bytes do not depend on the number of threads.

use std::{
    io::{BufWriter, Seek, Write},
    path::Path,
};

use flate2::write::ZlibEncoder;
use rayon::prelude::*;
use tiff::{
    Directory, TiffError, TiffResult,
    encoder::{
        DirectoryEncoder, Rational, TiffEncoder, TiffKind, TiffKindBig, TiffKindStandard, TiffValue,
    },
    tags::{
        CompressionMethod, PhotometricInterpretation, PlanarConfiguration, Predictor,
        ResolutionUnit, SampleFormat, Tag, Type,
    },
};

use super::{
    Bits, Compression, Metadata, PixelSource, check_size, cog,
    metadata::ascii,
    pyramid::{self, ROW, Sample, Tile},
    srgb_profile,
};
use crate::{
    error::{Error, Result},
    geometry::{Pyramid, TILE, TilePosition},
    store::AtomicFile,
};

/// Largest file in bytes that a classic TIFF can address.
pub const CLASSIC_LIMIT: u64 = u32::MAX as u64;

/// XMP packet (XMP specification part 3, 1.1.2.2); the `tiff` crate has no name for it.
const XMP: Tag = Tag::Unknown(700);

/// NewSubfileType of an overview: a reduced-resolution version of another image (TIFF 6.0, p. 36).
const REDUCED: u32 = 1;

/// Halvings of the highest level whose whole subtree is compressed at once, in parallel: 64 tiles of the picture, at
/// most 25 MB raw. Bounds the memory and occupies 64 cores.
const PARALLEL_LEVEL: usize = 3;

/// zlib's own default: beyond it the files hardly shrink.
const DEFLATE_LEVEL: flate2::Compression = flate2::Compression::new(6);

/// The library's own default.
#[cfg(feature = "zstd")]
const ZSTD_LEVEL: i32 = zstd::DEFAULT_COMPRESSION_LEVEL;

/// Form of a TIFF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TiffOptions {
    /// Compression of the tiles.
    pub compression: Compression,
    /// The file is a classic TIFF if it could not exceed so many bytes even uncompressed, and BigTIFF otherwise. It should
    /// be [`CLASSIC_LIMIT`].
    pub classic_limit: u64,
    /// Lays the file out as a Cloud Optimized GeoTIFF: all directories first, then the tiles from the smallest overview to
    /// the picture. It needs as much free space again while it is written.
    pub cloud_optimized: bool,
}

impl Default for TiffOptions {
    fn default() -> Self {
        Self {
            compression: Compression::default(),
            classic_limit: CLASSIC_LIMIT,
            cloud_optimized: false,
        }
    }
}

/// Writes `source` as a tiled multi-resolution TIFF to `path`, replacing an existing file.
///
/// # Errors
///
/// See [`write`](super::write()).
pub fn write_tiff(
    path: &Path,
    source: &dyn PixelSource,
    metadata: &Metadata,
    options: TiffOptions,
) -> Result<()> {
    write_tiff_with(path, source, || Ok(metadata.clone()), options)
}

/// As [`write_tiff`]; `metadata` is called when all pixels are in the file.
///
/// # Errors
///
/// See [`write`](super::write()); those of `metadata`.
pub fn write_tiff_with(
    path: &Path,
    source: &dyn PixelSource,
    metadata: impl FnOnce() -> Result<Metadata>,
    options: TiffOptions,
) -> Result<()> {
    check_size(source, i32::MAX as u32)?;
    let mut file = AtomicFile::create(path)?;
    let (width, height) = (source.width() as usize, source.height() as usize);
    let TiffOptions { compression, classic_limit, cloud_optimized } = options;
    let writer = Writer { source, pyramid: Pyramid { width, height }, compression };
    let big = writer.longest_file() > classic_limit.min(CLASSIC_LIMIT);
    let written = if cloud_optimized {
        let mut plain = BufWriter::new(file.scratch()?);
        writer.write(&mut plain, big, metadata).and_then(|()| {
            let mut plain =
                plain.into_inner().map_err(|error| TiffError::from(error.into_error()))?;
            Ok(cog::rearrange(&mut plain, &mut file).map_err(TiffError::from)?)
        })
    } else {
        writer.write(&mut file, big, metadata)
    };
    written.map_err(|failure| failure.about(path))?;
    file.commit()
}

/// A failure of the source or of the file.
enum Failure {
    Source(Error),
    File(TiffError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Source(error)
    }
}

impl From<TiffError> for Failure {
    fn from(error: TiffError) -> Self {
        Self::File(error)
    }
}

impl Failure {
    fn about(self, path: &Path) -> Error {
        match self {
            Self::Source(error) => error,
            Self::File(TiffError::IoError(source)) => Error::io("write", path, source),
            Self::File(other) => {
                Error::internal(format!("encoding {}", path.display())).with_source(other)
            }
        }
    }
}

/// A compressed tile.
struct Packed {
    position: TilePosition,
    bytes: Vec<u8>,
}

/// Positions of the tiles of one level in the file, row by row: the values of TileOffsets and TileByteCounts.
struct Index {
    offsets: Vec<u64>,
    lengths: Vec<u64>,
}

/// Writes the levels of a picture that are larger than a tile, and the first that is not.
struct Writer<'a> {
    source: &'a dyn PixelSource,
    pyramid: Pyramid,
    compression: Compression,
}

impl Writer<'_> {
    /// The levels in the file, largest first: the picture and its overviews.
    fn levels(&self) -> impl Iterator<Item = usize> {
        (self.pyramid.within(TILE)..=self.pyramid.last()).rev()
    }

    /// Number of tiles of a level.
    fn tiles(&self, level: usize) -> usize {
        let (columns, rows) = self.pyramid.tiles(level);
        columns * rows
    }

    /// Upper bound of the file's length: all tiles, each a little longer than raw (stored blocks of
    /// Deflate and Zstandard), its offset and length, and the directories.
    fn longest_file(&self) -> u64 {
        let raw = (TILE * ROW * self.source.bits().sample_len()) as u64;
        let tiles: u64 = self.levels().map(|level| self.tiles(level) as u64).sum();
        tiles.saturating_mul(raw + raw / 1000 + 64 + 16) + (1 << 20)
    }

    /// Writes the file, a BigTIFF if `big`.
    fn write(
        &self,
        file: &mut (impl Write + Seek),
        big: bool,
        metadata: impl FnOnce() -> Result<Metadata>,
    ) -> Result<(), Failure> {
        match (self.source.bits(), big) {
            (Bits::Eight, false) => self.write_as::<u8, TiffKindStandard>(file, metadata),
            (Bits::Eight, true) => self.write_as::<u8, TiffKindBig>(file, metadata),
            (Bits::Sixteen, false) => self.write_as::<u16, TiffKindStandard>(file, metadata),
            (Bits::Sixteen, true) => self.write_as::<u16, TiffKindBig>(file, metadata),
        }
    }

    fn write_as<T: Sample, K: TiffKind>(
        &self,
        file: &mut (impl Write + Seek),
        metadata: impl FnOnce() -> Result<Metadata>,
    ) -> Result<(), Failure> {
        let mut encoder = TiffEncoder::<_, K>::new_generic(file)?;
        let empty = |tiles| Index { offsets: vec![0; tiles], lengths: vec![0; tiles] };
        // By number of halvings.
        let mut index: Vec<Index> = self.levels().map(|level| empty(self.tiles(level))).collect();
        let last = self.pyramid.last();

        // All pixels come first in the file, written through the encoder of the first directory.
        let mut directory = encoder.image_directory()?;
        let top = TilePosition { level: self.pyramid.within(TILE), column: 0, row: 0 };
        self.branch::<T>(top, &mut |packed| {
            let TilePosition { level, column, row } = packed.position;
            let at = row * self.pyramid.tiles(level).0 + column;
            let index = &mut index[last - level];
            index.offsets[at] = directory.write_data(packed.bytes.as_slice())?;
            index.lengths[at] = packed.bytes.len() as u64;
            align(&mut directory, packed.bytes.len())
        })?;

        describe(&mut directory, &metadata()?, &srgb_profile()?)?;
        self.layout(&mut directory, last, &index[0])?;
        directory.finish()?;
        for (level, index) in self.levels().zip(&index).skip(1) {
            let mut directory = encoder.image_directory()?;
            directory.write_tag(Tag::NewSubfileType, REDUCED)?;
            self.layout(&mut directory, level, index)?;
            directory.finish()?;
        }
        Ok(())
    }

    /// Passes all tiles of the subtree under `position` to `sink` and returns its topmost one.
    fn branch<T: Sample>(
        &self,
        position: TilePosition,
        sink: &mut dyn FnMut(Packed) -> TiffResult<()>,
    ) -> Result<Tile<T>, Failure> {
        if self.pyramid.last() - position.level <= PARALLEL_LEVEL {
            let (tile, packed) = self.leafy_branch(position)?;
            for packed in packed {
                sink(packed)?;
            }
            return Ok(tile);
        }
        let mut children = Vec::with_capacity(4);
        for child in self.children(position) {
            children.push((child, self.branch(child, sink)?));
        }
        let tile = pyramid::combine(&children, self.pyramid, position)?;
        drop(children);
        sink(self.pack(position, &tile)?)?;
        Ok(tile)
    }

    /// The topmost tile of the subtree under `position`, and all of its tiles compressed. Parallel.
    fn leafy_branch<T: Sample>(&self, position: TilePosition) -> Result<(Tile<T>, Vec<Packed>)> {
        let (tile, mut packed) = if position.level == self.pyramid.last() {
            (pyramid::read(self.source, self.pyramid, position)?, Vec::new())
        } else {
            let below = self.children(position).into_par_iter().map(|child| {
                self.leafy_branch(child).map(|(tile, packed)| ((child, tile), packed))
            });
            let (children, packed): (Vec<_>, Vec<_>) =
                below.collect::<Result<Vec<_>>>()?.into_iter().unzip();
            let tile = pyramid::combine(&children, self.pyramid, position)?;
            (tile, packed.into_iter().flatten().collect())
        };
        packed.push(self.pack(position, &tile)?);
        Ok((tile, packed))
    }

    /// Compresses a tile.
    fn pack<T: Sample>(&self, position: TilePosition, tile: &Tile<T>) -> Result<Packed> {
        let raw: &[u8] = bytemuck::cast_slice(tile);
        let packed = match self.compression {
            Compression::None => Ok(raw.to_vec()),
            Compression::Deflate => {
                let differences = differences(tile);
                let raw: &[u8] = bytemuck::cast_slice(&differences);
                let mut encoder =
                    ZlibEncoder::new(Vec::with_capacity(raw.len() / 2), DEFLATE_LEVEL);
                encoder.write_all(raw).and_then(|()| encoder.finish())
            }
            #[cfg(feature = "zstd")]
            Compression::Zstd => {
                zstd::bulk::compress(bytemuck::cast_slice(&differences(tile)), ZSTD_LEVEL)
            }
        };
        packed
            .map(|bytes| Packed { position, bytes })
            .map_err(|error| Error::internal("compressing a tile").with_source(error))
    }

    /// The tiles below `position` that exist: one, two or four.
    fn children(&self, position: TilePosition) -> Vec<TilePosition> {
        let level = position.level + 1;
        let (columns, rows) = self.pyramid.tiles(level);
        let corners = [(0, 0), (1, 0), (0, 1), (1, 1)];
        corners
            .into_iter()
            .map(|(x, y)| (2 * position.column + x, 2 * position.row + y))
            .filter(|&(column, row)| column < columns && row < rows)
            .map(|(column, row)| TilePosition { level, column, row })
            .collect()
    }

    /// Writes the tags of a level's pixel layout.
    fn layout<W: Write + Seek, K: TiffKind>(
        &self,
        directory: &mut DirectoryEncoder<'_, W, K>,
        level: usize,
        index: &Index,
    ) -> TiffResult<()> {
        let (width, height) = self.pyramid.size(level);
        let bits = self.source.bits().per_sample() as u16;
        // Sides are those of the source, which are u32.
        directory.write_tag(Tag::ImageWidth, width as u32)?;
        directory.write_tag(Tag::ImageLength, height as u32)?;
        directory.write_tag(Tag::BitsPerSample, [bits; 3])?;
        let (method, predictor) = match self.compression {
            Compression::Deflate => (CompressionMethod::Deflate, Predictor::Horizontal),
            #[cfg(feature = "zstd")]
            Compression::Zstd => (CompressionMethod::ZSTD, Predictor::Horizontal),
            Compression::None => (CompressionMethod::None, Predictor::None),
        };
        directory.write_tag(Tag::Compression, method)?;
        directory.write_tag(Tag::PhotometricInterpretation, PhotometricInterpretation::RGB)?;
        directory.write_tag(Tag::SamplesPerPixel, 3_u16)?;
        directory.write_tag(Tag::PlanarConfiguration, PlanarConfiguration::Chunky)?;
        directory.write_tag(Tag::SampleFormat, &[SampleFormat::Uint; 3][..])?;
        directory.write_tag(Tag::Predictor, predictor)?;
        directory.write_tag(Tag::TileWidth, TILE as u16)?;
        directory.write_tag(Tag::TileLength, TILE as u16)?;
        for (tag, values) in
            [(Tag::TileOffsets, &index.offsets), (Tag::TileByteCounts, &index.lengths)]
        {
            let values = values.iter().map(|&value| K::convert_offset(value));
            let values = values.collect::<TiffResult<Vec<_>>>()?;
            directory.write_tag(tag, K::convert_slice(&values))?;
        }
        Ok(())
    }
}

/// Writes the tags of the whole picture, in the first directory only.
fn describe<W: Write + Seek, K: TiffKind>(
    directory: &mut DirectoryEncoder<'_, W, K>,
    metadata: &Metadata,
    profile: &[u8],
) -> TiffResult<()> {
    let xmp = metadata.xmp();
    write_aligned(directory, Tag::ImageDescription, metadata.ascii_description().as_str())?;
    write_aligned(directory, Tag::Software, Metadata::software())?;
    if let Some(time) = metadata.tiff_time() {
        write_aligned(directory, Tag::DateTime, time.as_str())?;
    }
    write_aligned(directory, XMP, xmp.as_bytes())?;
    // Not BYTE but UNDEFINED (ICC.1:2001-04, B.4).
    let entry = directory.write_entry_bytes(Type::UNDEFINED, profile)?;
    directory.extend_from(&Directory::from_iter([(Tag::IccProfile, entry)]));
    align(directory, profile.len())?;
    let attribution = metadata.attribution();
    for (tag, text) in [(Tag::Artist, attribution.artist), (Tag::Copyright, attribution.copyright)]
    {
        if let Some(text) = text {
            write_aligned(directory, tag, ascii(&text).as_str())?;
        }
    }
    let [x, y] = attribution.resolution.unwrap_or([72.0; 2]);
    let rational = |v: f64| match v.fract() {
        0.0 => Rational { n: v as u32, d: 1 },
        _ => Rational { n: (v * 1000.0).round() as u32, d: 1000 },
    };
    directory.write_tag(Tag::XResolution, rational(x))?;
    directory.write_tag(Tag::YResolution, rational(y))?;
    directory.write_tag(Tag::ResolutionUnit, ResolutionUnit::Inch)
}

/// Writes a tag of single bytes. Values and directories begin at even offsets (TIFF 6.0, p. 15).
fn write_aligned<W: Write + Seek, K: TiffKind, V: TiffValue + ?Sized>(
    directory: &mut DirectoryEncoder<'_, W, K>,
    tag: Tag,
    value: &V,
) -> TiffResult<()> {
    directory.write_tag(tag, value)?;
    let inline = size_of::<K::OffsetType>();
    if value.bytes() > inline { align(directory, value.bytes()) } else { Ok(()) }
}

/// Pads to an even offset after `len` bytes.
fn align<W: Write + Seek, K: TiffKind>(
    directory: &mut DirectoryEncoder<'_, W, K>,
    len: usize,
) -> TiffResult<()> {
    if len % 2 == 1 { directory.write_data(0_u8).map(drop) } else { Ok(()) }
}

/// The samples of a tile as horizontal differences (TIFF 6.0, section 14).
fn differences<T: Sample>(tile: &Tile<T>) -> Tile<T> {
    let mut differences = tile.clone();
    for row in differences.chunks_exact_mut(ROW) {
        for i in (3..ROW).rev() {
            row[i] = row[i].difference(row[i - 3]);
        }
    }
    differences
}
