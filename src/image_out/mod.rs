//! Pictures out: tiled multi-resolution TIFF, PNG, metadata.
//!
//! The guarantee: the file under its final name is complete and on the disk, or it is not there.
//! [`write()`] builds it under a temporary name beside it, reads the picture window by window from a
//! [`PixelSource`], and needs memory for a few dozen tiles (TIFF) or rows (PNG), whatever the
//! picture's size.

mod atomic;
mod icc;
mod metadata;
mod png;
mod pyramid;
mod tiff;

use std::path::Path;

pub use atomic::{AtomicFile, preflight, sync_directory};
pub use icc::srgb_profile;
pub use metadata::Metadata;
pub use tiff::{CLASSIC_LIMIT, TILE, write_tiff, write_tiff_with};

pub use self::png::write_png;
use crate::error::{Error, Kind, Result};

/// Bits per sample of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// 8 bits, one byte per sample.
    Eight,
    /// 16 bits, two bytes per sample in the machine's byte order.
    Sixteen,
}

impl Bits {
    /// Bytes of one sample.
    pub const fn sample_len(self) -> usize {
        match self {
            Self::Eight => 1,
            Self::Sixteen => 2,
        }
    }

    /// Bytes of one RGB pixel.
    pub const fn pixel_len(self) -> usize {
        3 * self.sample_len()
    }
}

/// A rectangle of a picture, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Left column.
    pub x: u32,
    /// Top row.
    pub y: u32,
    /// Number of columns.
    pub width: u32,
    /// Number of rows.
    pub height: u32,
}

/// A picture of interleaved sRGB samples that can be read in any order, from several threads.
pub trait PixelSource: Sync {
    /// Width in pixels.
    fn width(&self) -> u32;

    /// Height in pixels.
    fn height(&self) -> u32;

    /// Bits per sample.
    fn bits(&self) -> Bits;

    /// Reads `area`, which lies in the picture, into `buffer`: rows without gaps, R G B, samples in
    /// the machine's byte order; `buffer` has exactly the area's length.
    ///
    /// # Errors
    ///
    /// An error ends the writing and is passed on; a cancelled job is one.
    fn read(&self, area: Area, buffer: &mut [u8]) -> Result<()>;
}

/// A picture in a slice of bytes, such as an arena's: rows without gaps, R G B, samples in the
/// machine's byte order.
#[derive(Clone, Copy, Debug)]
pub struct RawPixels<'a> {
    bytes: &'a [u8],
    width: u32,
    height: u32,
    bits: Bits,
}

impl<'a> RawPixels<'a> {
    /// The picture of `width` x `height` pixels in `bytes`.
    ///
    /// # Errors
    ///
    /// [`Kind::Internal`] if `bytes` doesn't have exactly the picture's length.
    pub fn new(bytes: &'a [u8], width: u32, height: u32, bits: Bits) -> Result<Self> {
        let expected = (width as usize)
            .checked_mul(height as usize)
            .and_then(|pixels| pixels.checked_mul(bits.pixel_len()));
        if expected != Some(bytes.len()) {
            return Err(Error::wrong(
                Kind::Internal,
                "picture bytes",
                bytes.len(),
                format!("the size of {width}x{height} {bits:?}"),
            ));
        }
        Ok(Self { bytes, width, height, bits })
    }
}

impl PixelSource for RawPixels<'_> {
    fn width(&self) -> u32 {
        self.width
    }

    fn height(&self) -> u32 {
        self.height
    }

    fn bits(&self) -> Bits {
        self.bits
    }

    fn read(&self, area: Area, buffer: &mut [u8]) -> Result<()> {
        let pixel = self.bits.pixel_len();
        let stride = self.width as usize * pixel;
        let row_len = area.width as usize * pixel;
        let left = area.x as usize * pixel;
        let rows = self.bytes.chunks_exact(stride).skip(area.y as usize);
        for (to, from) in buffer.chunks_exact_mut(row_len).zip(rows) {
            to.copy_from_slice(&from[left..left + row_len]);
        }
        Ok(())
    }
}

/// A file format for pictures, chosen by the ending of the file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `.tif`, `.tiff`: tiled, with overviews.
    Tiff,
    /// `.png`.
    Png,
}

impl Format {
    /// The format that `path` asks for.
    ///
    /// # Errors
    ///
    /// [`Kind::InvalidArgument`] if its ending is none of `.tif`, `.tiff`, `.png` (in any case).
    pub fn of(path: &Path) -> Result<Self> {
        let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
        match ending.to_str() {
            Some("tif" | "tiff") => Ok(Self::Tiff),
            Some("png") => Ok(Self::Png),
            _ => Err(Error::invalid("out", path.display(), "a name ending in .tiff, .tif or .png")),
        }
    }
}

/// Writes `source` to `path` in the format that the name asks for, replacing what is there.
///
/// # Errors
///
/// [`Kind::InvalidArgument`] if the name's ending is unknown or the format can't hold the picture;
/// [`Kind::Io`] if the file can't be written (then nothing is left, and a file that was there
/// before still is); what `source` returns.
pub fn write(path: &Path, source: &dyn PixelSource, metadata: &Metadata) -> Result<()> {
    match Format::of(path)? {
        Format::Tiff => write_tiff(path, source, metadata, CLASSIC_LIMIT),
        Format::Png => write_png(path, source, metadata),
    }
}

/// Refuses pictures without pixels and those with a side longer than `limit`.
fn check_size(source: &dyn PixelSource, limit: u32) -> Result<()> {
    for (name, value) in [("width", source.width()), ("height", source.height())] {
        if !(1..=limit).contains(&value) {
            let expected = format!("from 1 to {limit}, the limit of the file format");
            return Err(Error::invalid(name, value, expected));
        }
    }
    Ok(())
}
