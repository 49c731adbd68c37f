//! Output files: tiled multi-resolution TIFF, PNG, metadata.
//!
//! Guarantee: a file under its final name is complete and on the disk, or it is not there. [`write()`] writes to a
//! temporary name in the same directory, reads the picture window by window from a [`PixelSource`], and needs memory
//! for a few dozen tiles (TIFF) or rows (PNG), independent of the picture's size.
//!
//! ```
//! use tessera::image_out::{self, Bits, Metadata, RawPixels};
//!
//! let grey = [128; 3 * 4 * 2];
//! let source = RawPixels::new(&grey, 4, 2, Bits::Eight)?;
//! let metadata = Metadata { description: "grey".into(), ..Metadata::default() };
//! image_out::write(&std::env::temp_dir().join("grey.png"), &source, &metadata)?;
//! # Ok::<(), tessera::error::Error>(())
//! ```

mod cog;
mod icc;
mod metadata;
mod png;
mod pyramid;
mod tiff;

use std::path::Path;

use strum::{EnumString, IntoStaticStr, VariantNames};

pub use icc::srgb_profile;
pub use metadata::{DIGITAL_SOURCE, Metadata};
pub use tiff::{CLASSIC_LIMIT, TiffOptions, write_tiff, write_tiff_with};

pub use self::png::write_png;
use crate::{
    error::{Error, Kind, Result},
    geometry::Rect,
};

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

    /// Bits of one sample.
    pub const fn per_sample(self) -> usize {
        8 * self.sample_len()
    }

    /// Bytes of one RGB pixel.
    pub const fn pixel_len(self) -> usize {
        3 * self.sample_len()
    }
}

/// A picture of interleaved sRGB samples that can be read in any order and from several threads.
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
    /// Any error, such as [`Kind::Cancelled`]; the writer stops and returns it.
    fn read(&self, area: Rect, buffer: &mut [u8]) -> Result<()>;
}

/// A picture in a slice of bytes: rows without gaps, R G B, samples in the machine's byte order.
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

    fn read(&self, area: Rect, buffer: &mut [u8]) -> Result<()> {
        let pixel = self.bits.pixel_len();
        let stride = self.width as usize * pixel;
        let row_len = area.width * pixel;
        let left = area.x * pixel;
        let rows = self.bytes.chunks_exact(stride).skip(area.y);
        for (to, from) in buffer.chunks_exact_mut(row_len).zip(rows) {
            to.copy_from_slice(&from[left..left + row_len]);
        }
        Ok(())
    }
}

/// A file format, selected by the file's extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum Format {
    /// `.tif`, `.tiff`: tiled, with overviews.
    Tiff,
    /// `.png`.
    Png,
}

/// Compression of the tiles of a TIFF, without loss. A PNG has its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum Compression {
    /// Deflate: every reader has it.
    #[default]
    Deflate,
    /// Zstandard: many times faster to write, and files of about the same length; readers since 2018 have it.
    #[cfg(feature = "zstd")]
    Zstd,
    /// None: the fastest, and a multiple of the length.
    None,
}

impl Compression {
    /// Its machine-readable name.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

impl Format {
    /// Its machine-readable name, which is an extension of its files too.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The format of `path` by its extension.
    ///
    /// # Errors
    ///
    /// [`Kind::InvalidArgument`] if the extension is none of `.tif`, `.tiff`, `.png` (in any case).
    pub fn of(path: &Path) -> Result<Self> {
        let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
        match ending.to_str() {
            Some("tif" | "tiff") => Ok(Self::Tiff),
            Some("png") => Ok(Self::Png),
            _ => Err(Error::invalid("out", path.display(), "a name ending in .tiff, .tif or .png")),
        }
    }
}

/// Writes `source` to `path` in the format of its extension, replacing an existing file.
///
/// # Errors
///
/// [`Kind::InvalidArgument`] if the extension is unknown or the format can't hold the picture; [`Kind::Io`] if the file
/// can't be written (no partial file is left, and an existing file is unchanged); those of `source`.
pub fn write(path: &Path, source: &dyn PixelSource, metadata: &Metadata) -> Result<()> {
    write_with(path, source, metadata, TiffOptions::default())
}

/// As [`write()`], with a TIFF in the form of `tiff`.
///
/// # Errors
///
/// Those of [`write()`].
pub fn write_with(
    path: &Path,
    source: &dyn PixelSource,
    metadata: &Metadata,
    tiff: TiffOptions,
) -> Result<()> {
    match Format::of(path)? {
        Format::Tiff => write_tiff(path, source, metadata, tiff),
        Format::Png => write_png(path, source, metadata),
    }
}

/// Checks that both sides are from 1 to `limit`.
fn check_size(source: &dyn PixelSource, limit: u32) -> Result<()> {
    for (name, value) in [("width", source.width()), ("height", source.height())] {
        if !(1..=limit).contains(&value) {
            let expected = format!("from 1 to {limit}, the limit of the file format");
            return Err(Error::invalid(name, value, expected));
        }
    }
    Ok(())
}
