//! A decoded file before its colours are converted.

use image::metadata::Orientation;

use super::colour::Colour;
use crate::attribution::Attribution;

/// Stored samples, interleaved, rows without gaps.
#[derive(Debug)]
pub(super) enum Samples {
    U8(Vec<u8>),
    U16(Vec<u16>),
}

/// What the colour samples of a pixel are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Model {
    /// One sample, 0 is black.
    Gray,
    /// Three samples.
    Rgb,
    /// Four samples, 0 is no ink.
    Cmyk,
    /// Three samples of CIE L*a*b* under D50.
    Lab(Lab),
}

impl Model {
    /// Samples of a pixel, without alpha.
    pub(super) const fn channels(self) -> usize {
        match self {
            Self::Gray => 1,
            Self::Rgb | Self::Lab(_) => 3,
            Self::Cmyk => 4,
        }
    }
}

/// How L*, a* and b* are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lab {
    /// TIFF's photometric interpretation 8: a* and b* in two's complement.
    Cie,
    /// TIFF's photometric interpretation 9: a* and b* with an offset, L* of 16 bits to 0xFF00.
    Icc,
}

/// How alpha, the last sample of a pixel, relates to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alpha {
    /// The others are those of the opaque colour.
    Straight,
    /// The others are multiplied by alpha already.
    Premultiplied,
}

/// A decoded file.
#[derive(Debug)]
pub(super) struct Raster {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) model: Model,
    pub(super) alpha: Option<Alpha>,
    pub(super) samples: Samples,
    pub(super) colour: Colour,
    pub(super) orientation: Orientation,
    pub(super) attribution: Attribution,
}
