//! Pictures in: JPEG, PNG and TIFF, as the networks take them.
//!
//! The guarantee: a picture that is damaged, cut short, too large or of a kind not known is an
//! error that says so, before memory for its pixels is taken; it is never read in part.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek},
    path::Path,
};

use image::{
    DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, error::LimitErrorKind,
};

use crate::error::{Error, Expected, Kind, Result};

/// How large a picture may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest side in pixels.
    pub side: u32,
    /// Most pixels. Reading takes up to 20 bytes of memory for each.
    pub pixels: u64,
}

impl Default for Limits {
    /// Sides up to 32,768 and 2^27 (134 million) pixels, 2.5 GiB of memory at the most.
    fn default() -> Self {
        Self { side: 1 << 15, pixels: 1 << 27 }
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
    /// R G B in [-1, 1] as they are stored (sRGB-encoded), \[1, height, width, 3\], rows without
    /// gaps.
    pub samples: Vec<f32>,
}

/// Memory beyond the pixels that decoders may take: tables, one strip or tile, text.
const WORKING_SPACE: u64 = 64 << 20;

/// Most bytes per pixel of a decoded picture: four samples of 16 bits.
const WIDEST_PIXEL: u64 = 8;

/// Reads the picture in `path`, which is recognised by its content.
///
/// Grey becomes three equal samples. What is transparent shows white behind it (mixed in stored
/// values, as browsers do). The EXIF or TIFF orientation is applied. Values are taken for sRGB: an
/// embedded colour profile is not applied. Of several images in a file the first is read.
///
/// # Errors
///
/// [`Kind::Io`] if the file can't be opened or read; [`Kind::InvalidImage`] if it is no regular
/// file, no JPEG, PNG or TIFF, damaged, cut short, larger than `limits`, or has samples of more
/// than 16 bits.
pub fn read(path: &Path, limits: Limits) -> Result<Picture> {
    let failed = |source| Error::io("read", path, source);
    let bad = |value: String, expected: Expected| {
        Error::wrong(Kind::InvalidImage, path.display().to_string(), value, expected)
    };

    // The kind is asked of the name first, since opening a pipe would wait for its writer.
    let status = std::fs::metadata(path).map_err(failed)?;
    if !status.is_file() {
        return Err(bad("not a regular file".into(), "a regular file".into()));
    }
    if status.len() == 0 {
        return Err(bad("empty".into(), "a picture".into()));
    }
    let longest = limits.pixels.saturating_mul(WIDEST_PIXEL).saturating_add(WORKING_SPACE);
    if status.len() > longest {
        let limit = Expected::at_most(format!("{longest} bytes"));
        return Err(bad(format!("{} bytes long", status.len()), limit));
    }
    let mut reader = ImageReader::new(BufReader::new(File::open(path).map_err(failed)?))
        .with_guessed_format()
        .map_err(failed)?;
    let format = match reader.format() {
        Some(ImageFormat::Jpeg) => "JPEG",
        Some(ImageFormat::Png) => "PNG",
        Some(ImageFormat::Tiff) => "TIFF",
        _ => return Err(bad("of another format".into(), "a JPEG, PNG or TIFF picture".into())),
    };
    if format == "JPEG" {
        let mut file = reader.into_inner();
        if !is_complete_jpeg(&mut file).map_err(failed)? {
            return Err(bad("cut short".into(), "a JPEG with its end marker".into()));
        }
        file.rewind().map_err(failed)?;
        reader = ImageReader::with_format(file, ImageFormat::Jpeg);
    }

    let damaged = |error: ImageError| match error {
        ImageError::IoError(source) if source.kind() != io::ErrorKind::UnexpectedEof => {
            failed(source)
        }
        ImageError::Limits(limit) if limit.kind() == LimitErrorKind::InsufficientMemory => {
            let limit = format!("a picture that is decoded in at most {longest} bytes of memory");
            bad("too large".into(), limit.into())
        }
        other => bad("damaged".into(), format!("a readable {format}").into()).with_source(other),
    };
    let mut memory = image::Limits::no_limits();
    memory.max_alloc = Some(longest);
    reader.limits(memory.clone());
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    if width.max(height) > limits.side {
        let limit = Expected::at_most(format!("{} pixels a side", limits.side));
        return Err(bad(format!("{width}x{height} pixels"), limit));
    }
    let pixels = u64::from(width) * u64::from(height);
    if pixels > limits.pixels {
        let limit = Expected::at_most(format!("{} pixels", limits.pixels));
        return Err(bad(format!("{width}x{height}, {pixels} pixels"), limit));
    }
    let orientation = decoder.orientation().map_err(damaged)?;
    let mut decoded = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    decoded.apply_orientation(orientation);

    let (width, height) = (decoded.width(), decoded.height());
    let bits = 8 * (decoded.color().bytes_per_pixel() / decoded.color().channel_count());
    let samples = match decoded {
        DynamicImage::ImageLuma8(p) => to_rgb::<_, 1>(p.as_raw()),
        DynamicImage::ImageLumaA8(p) => to_rgb::<_, 2>(p.as_raw()),
        DynamicImage::ImageRgb8(p) => to_rgb::<_, 3>(p.as_raw()),
        DynamicImage::ImageRgba8(p) => to_rgb::<_, 4>(p.as_raw()),
        DynamicImage::ImageLuma16(p) => to_rgb::<_, 1>(p.as_raw()),
        DynamicImage::ImageLumaA16(p) => to_rgb::<_, 2>(p.as_raw()),
        DynamicImage::ImageRgb16(p) => to_rgb::<_, 3>(p.as_raw()),
        DynamicImage::ImageRgba16(p) => to_rgb::<_, 4>(p.as_raw()),
        other => {
            let found = format!("of samples {:?}", other.color());
            return Err(bad(found, "samples of 8 and 16 bits".into()));
        }
    };
    Ok(Picture { width, height, bits, samples })
}

/// A stored sample: 8 or 16 bits.
trait Sample: Copy {
    /// The sample in [0, 1].
    fn unit(self) -> f32;
}

impl Sample for u8 {
    fn unit(self) -> f32 {
        f32::from(self) / 255.0
    }
}

impl Sample for u16 {
    fn unit(self) -> f32 {
        f32::from(self) / 65_535.0
    }
}

/// RGB in [-1, 1] from pixels of `N` samples: grey, grey and alpha, RGB, RGB and alpha.
fn to_rgb<T: Sample, const N: usize>(stored: &[T]) -> Vec<f32> {
    let mut samples = Vec::with_capacity(stored.len() / N * 3);
    for pixel in stored.chunks_exact(N) {
        let alpha = if N.is_multiple_of(2) { pixel[N - 1].unit() } else { 1.0 };
        for channel in 0..3 {
            let value = pixel[if N < 3 { 0 } else { channel }].unit();
            samples.push(2.0 * (value * alpha + (1.0 - alpha)) - 1.0);
        }
    }
    samples
}

/// Whether a JPEG's markers lead to its end marker (ITU-T T.81, B.1.1). Decoders fill what is
/// missing with grey, so that a file cut short has to be found here.
fn is_complete_jpeg(file: &mut impl BufRead) -> io::Result<bool> {
    match skip_to_end_marker(file) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        skipped => skipped.map(|()| true),
    }
}

fn skip_to_end_marker(file: &mut impl BufRead) -> io::Result<()> {
    loop {
        // Between segments a marker follows at once; after a scan's header come its coded data.
        file.skip_until(0xFF)?;
        let mut marker = [0xFF];
        while marker == [0xFF] {
            file.read_exact(&mut marker)?;
        }
        match marker[0] {
            0xD9 => return Ok(()),
            // A coded byte FF, and the markers without a segment: TEM, restart, start of image.
            0x00 | 0x01 | 0xD0..=0xD8 => {}
            _ => {
                let mut len = [0; 2];
                file.read_exact(&mut len)?;
                let len = u64::from(u16::from_be_bytes(len)).saturating_sub(2);
                io::copy(&mut file.take(len), &mut io::sink())?;
            }
        }
    }
}
