//! Pictures in: JPEG, PNG, TIFF and WebP files as sRGB samples.
//!
//! The guarantee: a picture is read right and whole, or refused with an error that says why. What
//! is damaged, cut short, too large or of a kind that is not read is an error before memory for
//! its pixels is taken.
//!
//! Each format has a file of its own that gives a `Raster`: the stored samples and what they mean.
//! `convert` turns any raster into sRGB over white, `colour` knows profiles.

mod colour;
mod convert;
mod exif;
mod jpeg;
mod jpeg_scan;
mod overlay;
mod png;
mod raster;
mod signature;
mod tiff;
mod webp;

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use crate::{
    attribution::Attribution,
    error::{Error, Kind, Result},
};
use signature::Format;

/// How large a picture may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest side in pixels.
    pub side: u32,
    /// Most pixels. Reading takes up to 24 bytes of memory for each.
    pub pixels: u64,
}

impl Default for Limits {
    /// Sides up to 32,768 and 2^27 (134 million) pixels, 3 GiB of memory at the most.
    fn default() -> Self {
        Self { side: 1 << 15, pixels: 1 << 27 }
    }
}

impl Limits {
    /// Refuses a picture that is too large.
    fn check(self, width: u32, height: u32) -> Result<()> {
        if width == 0 || height == 0 {
            return Err(refused(format!("{width}x{height} pixels"), "one pixel or more"));
        }
        if width.max(height) > self.side {
            let side = self.side;
            let found = format!("{width}x{height} pixels");
            return Err(refused(found, format!("at most {side} pixels a side")));
        }
        let pixels = u64::from(width) * u64::from(height);
        if pixels > self.pixels {
            let limit = self.pixels;
            let found = format!("{width}x{height}, {pixels} pixels");
            return Err(refused(found, format!("at most {limit} pixels")));
        }
        Ok(())
    }

    /// Most bytes of a file, and of memory for a decoder.
    fn bytes(self) -> u64 {
        self.pixels.saturating_mul(WIDEST_PIXEL).saturating_add(WORKING_SPACE)
    }
}

/// A picture as the networks take it.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// Width in pixels, after the orientation was applied.
    pub width: u32,
    /// Height in pixels, after the orientation was applied.
    pub height: u32,
    /// Bits per sample in the file: 8 or 16. Fewer are read as 8.
    pub bits: u8,
    /// R G B in [-1, 1], sRGB-encoded, \[1, height, width, 3\], rows without gaps.
    pub samples: Vec<f32>,
}

/// A picture, and what its file says besides.
#[derive(Clone, Debug, PartialEq)]
pub struct Photo {
    /// The pixels.
    pub picture: Picture,
    /// Author, rights, date and resolution.
    pub attribution: Attribution,
    /// What a person should know about the reading, such as that a colour profile is damaged.
    pub notices: Vec<String>,
}

/// The notice for a picture of `bits` bits a sample of which `written` are written; `None` if all are.
pub fn depth_notice(bits: u8, written: usize) -> Option<String> {
    let text = "the picture has 16 bits a sample, 8 are written; bits 16 keeps them";
    (bits == 16 && written == 8).then(|| text.to_owned())
}

/// Memory beyond the pixels that decoders may take: tables, one strip or tile, text.
const WORKING_SPACE: u64 = 64 << 20;

/// Most bytes per pixel of a decoded picture: five samples (CMYK and alpha) of 16 bits.
const WIDEST_PIXEL: u64 = 10;

/// Reads the picture in `path`, which is recognised by its content.
///
/// # Errors
///
/// [`Kind::Io`] if the file can't be opened or read; those of [`decode`]; [`Kind::InvalidImage`]
/// if it is no regular file. No message but that of [`Kind::Io`] names the path.
pub fn read(path: &Path, limits: Limits) -> Result<Photo> {
    let failed = |source| Error::io("read", path, source);
    // The kind is asked of the name first, since opening a pipe would wait for its writer.
    let status = std::fs::metadata(path).map_err(failed)?;
    if !status.is_file() {
        return Err(refused("not a regular file", "a regular file"));
    }
    decode(BufReader::new(File::open(path).map_err(failed)?), limits)
}

/// Reads the picture in `source`, which is recognised by its content.
///
/// Values are converted to sRGB: by an embedded colour profile (PNG: cICP, iCCP, sRGB, gAMA and
/// cHRM, in this order), from CMYK without a profile by plain ink, from CIELab by definition. Grey
/// becomes three equal samples. What is transparent shows white behind it (mixed in sRGB values, as
/// browsers do), premultiplied or not. The EXIF or TIFF orientation is applied. Of several images
/// in a file the first one is read, of TIFF the first one of full size.
///
/// # Errors
///
/// [`Kind::Io`] if `source` can't be read; [`Kind::InvalidImage`] if it is no JPEG, PNG, TIFF or
/// WebP picture, damaged, cut short, larger than `limits`, has samples of more than 16 bits or of
/// floating point, or a transfer function of high dynamic range.
pub fn decode(mut source: impl BufRead + Seek, limits: Limits) -> Result<Photo> {
    let len = source.seek(SeekFrom::End(0)).map_err(unreadable)?;
    source.rewind().map_err(unreadable)?;
    if len == 0 {
        return Err(refused("empty", EXPECTED));
    }
    let longest = limits.bytes();
    if len > longest {
        return Err(refused(format!("{len} bytes long"), format!("at most {longest} bytes")));
    }
    let mut start = Vec::new();
    source.by_ref().take(signature::LEN).read_to_end(&mut start).map_err(unreadable)?;
    source.rewind().map_err(unreadable)?;
    let raster = match Format::of(&start)? {
        Format::Jpeg => {
            let mut bytes = Vec::with_capacity(len as usize);
            source.read_to_end(&mut bytes).map_err(unreadable)?;
            jpeg::decode(&bytes, limits)
        }
        Format::Png => png::decode(source, limits),
        Format::Tiff => tiff::decode(source, limits),
        Format::WebP => webp::decode(source, limits),
    }?;
    convert::photo(raster)
}

/// What is read.
const EXPECTED: &str = "a JPEG, PNG, TIFF or WebP picture";

/// The error of a picture that is not read: it is `found`, and should be `expected`.
fn refused(found: impl Into<String>, expected: impl Into<String>) -> Error {
    Error::wrong(Kind::InvalidImage, "picture", found.into(), expected.into())
}

/// The error of a picture that a decoder gave up.
fn damaged(format: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    refused("damaged", format!("a {format} that can be decoded")).with_source(source)
}

/// The error of a decoder that needs more memory than `limits` allow.
fn too_much_memory(limits: Limits) -> Error {
    let expected =
        format!("a picture that is decoded in at most {} bytes of memory", limits.bytes());
    refused("too large", expected)
}

/// The error of a read that failed. Decoders report damage in this way, too: an end that comes early,
/// a stream that can't be unpacked, or (by the system) an offset beyond all files.
fn unreadable(source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::UnexpectedEof => refused("cut short", "a whole file"),
        kind if source.raw_os_error().is_some() && kind != io::ErrorKind::InvalidInput => {
            Error::io("read", "the picture", source)
        }
        _ => refused("damaged", "a whole file").with_source(source),
    }
}
