//! Tiled multi-resolution TIFF: Deflate with horizontal predictor, the overviews as further
//! directories.
//!
//! One pass over the tiles of level 0 in Z-order: each tile is compressed, and every four make one
//! of the level above at once. So the pixels are read once, nothing is kept but the tiles on the
//! way up, and the file's bytes don't depend on the number of threads.

use std::{
    io::{Seek, Write},
    path::Path,
};

use flate2::{Compression, write::ZlibEncoder};
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

pub use super::pyramid::TILE;
use super::{
    AtomicFile, Bits, Metadata, PixelSource, check_size,
    pyramid::{self, Level, Place, ROW, Sample, Tile},
    srgb_profile,
};
use crate::error::{Error, Result};

/// Bytes that a classic TIFF can address.
pub const CLASSIC_LIMIT: u64 = u32::MAX as u64;

/// XMP packet (XMP specification part 3, 1.1.2.2); the `tiff` crate has no name for it.
const XMP: Tag = Tag::Unknown(700);

/// NewSubfileType of an overview: a reduced-resolution version of another image (TIFF 6.0, p. 36).
const REDUCED: u32 = 1;

/// The highest level whose whole subtree is compressed at once, in parallel: 64 tiles of level 0,
/// at most 25 MB raw. Bounds the memory, and keeps 64 cores busy.
const PARALLEL_LEVEL: usize = 3;

/// zlib's own default: beyond it the files hardly shrink.
const DEFLATE_LEVEL: Compression = Compression::new(6);

/// Writes `source` as a tiled multi-resolution TIFF to `path`, replacing what is there.
///
/// The file is classic TIFF if even uncompressed it could not exceed `classic_limit` bytes, which
/// should be [`CLASSIC_LIMIT`], and BigTIFF otherwise. (How well it will compress is not known
/// before it is written.)
///
/// # Errors
///
/// See [`write`](super::write()).
pub fn write_tiff(
    path: &Path,
    source: &dyn PixelSource,
    metadata: &Metadata,
    classic_limit: u64,
) -> Result<()> {
    write_tiff_with(path, source, || Ok(metadata.clone()), classic_limit)
}

/// [`write_tiff`] with metadata that is asked for when all pixels are in the file, and need not be known before.
///
/// # Errors
///
/// See [`write`](super::write()); that of `metadata` ends the writing, too.
pub fn write_tiff_with(
    path: &Path,
    source: &dyn PixelSource,
    metadata: impl FnOnce() -> Result<Metadata>,
    classic_limit: u64,
) -> Result<()> {
    check_size(source, i32::MAX as u32)?;
    let mut file = AtomicFile::create(path)?;
    let pyramid = Pyramid { source, levels: Level::all(source.width(), source.height()) };
    let big = pyramid.longest_file() > classic_limit.min(CLASSIC_LIMIT);
    let written = match (source.bits(), big) {
        (Bits::Eight, false) => pyramid.write::<u8, TiffKindStandard>(&mut file, metadata),
        (Bits::Eight, true) => pyramid.write::<u8, TiffKindBig>(&mut file, metadata),
        (Bits::Sixteen, false) => pyramid.write::<u16, TiffKindStandard>(&mut file, metadata),
        (Bits::Sixteen, true) => pyramid.write::<u16, TiffKindBig>(&mut file, metadata),
    };
    written.map_err(|failure| failure.about(path))?;
    file.commit()
}

/// What can go wrong between source and file.
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
    place: Place,
    bytes: Vec<u8>,
}

/// Where the tiles of one level lie in the file, row by row: the values of TileOffsets and
/// TileByteCounts.
struct Index {
    offsets: Vec<u64>,
    lengths: Vec<u64>,
}

struct Pyramid<'a> {
    source: &'a dyn PixelSource,
    levels: Vec<Level>,
}

impl Pyramid<'_> {
    /// Upper bound of the file's length: all tiles, each a little longer than raw (Deflate's stored
    /// blocks), its offset and length, and the directories.
    fn longest_file(&self) -> u64 {
        let raw = (TILE as usize * ROW * self.source.bits().sample_len()) as u64;
        let tiles: u64 = self.levels.iter().map(|level| level.tiles() as u64).sum();
        tiles.saturating_mul(raw + raw / 1000 + 64 + 16) + (1 << 20)
    }

    fn write<T: Sample, K: TiffKind>(
        &self,
        file: &mut AtomicFile,
        metadata: impl FnOnce() -> Result<Metadata>,
    ) -> Result<(), Failure> {
        let mut encoder = TiffEncoder::<_, K>::new_generic(file)?;
        let mut index: Vec<Index> = self
            .levels
            .iter()
            .map(|level| Index { offsets: vec![0; level.tiles()], lengths: vec![0; level.tiles()] })
            .collect();

        // All pixels come first in the file, through the first directory's encoder.
        let mut directory = encoder.image_directory()?;
        let top = Place { level: self.levels.len() - 1, column: 0, row: 0 };
        self.branch::<T>(top, &mut |packed| {
            let Place { level, column, row } = packed.place;
            let at = row as usize * self.levels[level].columns() as usize + column as usize;
            index[level].offsets[at] = directory.write_data(packed.bytes.as_slice())?;
            index[level].lengths[at] = packed.bytes.len() as u64;
            align(&mut directory, packed.bytes.len())
        })?;

        describe(&mut directory, &metadata()?)?;
        self.layout(&mut directory, self.levels[0], &index[0])?;
        directory.finish()?;
        for (level, index) in self.levels.iter().zip(&index).skip(1) {
            let mut directory = encoder.image_directory()?;
            directory.write_tag(Tag::NewSubfileType, REDUCED)?;
            self.layout(&mut directory, *level, index)?;
            directory.finish()?;
        }
        Ok(())
    }

    /// Hands all tiles of the subtree under `place` to `sink` and returns its topmost one.
    fn branch<T: Sample>(
        &self,
        place: Place,
        sink: &mut dyn FnMut(Packed) -> TiffResult<()>,
    ) -> Result<Tile<T>, Failure> {
        if place.level <= PARALLEL_LEVEL {
            let (tile, packed) = self.leafy_branch(place)?;
            for packed in packed {
                sink(packed)?;
            }
            return Ok(tile);
        }
        let mut children = Vec::with_capacity(4);
        for child in self.children(place) {
            children.push((child, self.branch(child, sink)?));
        }
        let tile = pyramid::combine(&children, self.levels[place.level], place);
        drop(children);
        sink(pack(place, &tile)?)?;
        Ok(tile)
    }

    /// The topmost tile of the subtree under `place`, and all of its tiles compressed. Parallel.
    fn leafy_branch<T: Sample>(&self, place: Place) -> Result<(Tile<T>, Vec<Packed>)> {
        let level = self.levels[place.level];
        let (tile, mut packed) = if place.level == 0 {
            (pyramid::read(self.source, level, place)?, Vec::new())
        } else {
            let below = self.children(place).into_par_iter().map(|child| {
                self.leafy_branch(child).map(|(tile, packed)| ((child, tile), packed))
            });
            let (children, packed): (Vec<_>, Vec<_>) =
                below.collect::<Result<Vec<_>>>()?.into_iter().unzip();
            let tile = pyramid::combine(&children, level, place);
            (tile, packed.into_iter().flatten().collect())
        };
        packed.push(pack(place, &tile)?);
        Ok((tile, packed))
    }

    /// The tiles below `place` that exist: one, two or four.
    fn children(&self, place: Place) -> Vec<Place> {
        let below = self.levels[place.level - 1];
        let corners = [(0, 0), (1, 0), (0, 1), (1, 1)];
        corners
            .into_iter()
            .map(|(x, y)| Place {
                level: place.level - 1,
                column: 2 * place.column + x,
                row: 2 * place.row + y,
            })
            .filter(|child| child.column < below.columns() && child.row < below.rows())
            .collect()
    }

    /// Tags that say how a level's pixels lie in the file.
    fn layout<W: Write + Seek, K: TiffKind>(
        &self,
        directory: &mut DirectoryEncoder<'_, W, K>,
        level: Level,
        index: &Index,
    ) -> TiffResult<()> {
        let bits = 8 * self.source.bits().sample_len() as u16;
        directory.write_tag(Tag::ImageWidth, level.width)?;
        directory.write_tag(Tag::ImageLength, level.height)?;
        directory.write_tag(Tag::BitsPerSample, [bits; 3])?;
        directory.write_tag(Tag::Compression, CompressionMethod::Deflate)?;
        directory.write_tag(Tag::PhotometricInterpretation, PhotometricInterpretation::RGB)?;
        directory.write_tag(Tag::SamplesPerPixel, 3_u16)?;
        directory.write_tag(Tag::PlanarConfiguration, PlanarConfiguration::Chunky)?;
        directory.write_tag(Tag::SampleFormat, &[SampleFormat::Uint; 3][..])?;
        directory.write_tag(Tag::Predictor, Predictor::Horizontal)?;
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

/// Tags of the whole picture, written for level 0 alone.
fn describe<W: Write + Seek, K: TiffKind>(
    directory: &mut DirectoryEncoder<'_, W, K>,
    metadata: &Metadata,
) -> TiffResult<()> {
    let (xmp, profile) = (metadata.xmp(), srgb_profile());
    write_aligned(directory, Tag::ImageDescription, metadata.ascii_description().as_str())?;
    write_aligned(directory, Tag::Software, Metadata::software())?;
    if let Some(time) = metadata.tiff_time() {
        write_aligned(directory, Tag::DateTime, time.as_str())?;
    }
    write_aligned(directory, XMP, xmp.as_bytes())?;
    // Not BYTE but UNDEFINED (ICC.1:2001-04, B.4).
    let entry = directory.write_entry_bytes(Type::UNDEFINED, &profile)?;
    directory.extend_from(&Directory::from_iter([(Tag::IccProfile, entry)]));
    align(directory, profile.len())?;
    directory.write_tag(Tag::XResolution, Rational { n: 72, d: 1 })?;
    directory.write_tag(Tag::YResolution, Rational { n: 72, d: 1 })?;
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

/// Fills up to an even offset after `len` bytes.
fn align<W: Write + Seek, K: TiffKind>(
    directory: &mut DirectoryEncoder<'_, W, K>,
    len: usize,
) -> TiffResult<()> {
    if len % 2 == 1 { directory.write_data(0_u8).map(drop) } else { Ok(()) }
}

/// Compresses a tile: horizontal differences (TIFF 6.0, section 14), then Deflate.
fn pack<T: Sample>(place: Place, tile: &Tile<T>) -> Result<Packed> {
    let mut differences = tile.clone();
    for row in differences.chunks_exact_mut(ROW) {
        for i in (3..ROW).rev() {
            row[i] = row[i].difference(row[i - 3]);
        }
    }
    let raw: &[u8] = bytemuck::cast_slice(&differences);
    let mut encoder = ZlibEncoder::new(Vec::with_capacity(raw.len() / 2), DEFLATE_LEVEL);
    encoder
        .write_all(raw)
        .and_then(|()| encoder.finish())
        .map(|bytes| Packed { place, bytes })
        .map_err(|error| Error::internal("compressing a tile").with_source(error))
}
