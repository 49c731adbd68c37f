//! WebP, lossy and lossless; of an animation the first frame.

use std::io::{BufRead, Seek};

use image::{ColorType, ImageDecoder as _, ImageError, codecs::webp::WebPDecoder};

use super::{
    Limits,
    colour::Colour,
    damaged, exif,
    raster::{Alpha, Model, Raster, Samples},
    unreadable,
};
use crate::error::{Error, Result};

/// Reads a WebP.
pub(super) fn decode(source: impl BufRead + Seek, limits: Limits) -> Result<Raster> {
    let mut decoder = WebPDecoder::new(source).map_err(failed)?;
    let (width, height) = decoder.dimensions();
    limits.check(width, height)?;
    let profile = decoder.icc_profile().map_err(failed)?;
    let block = decoder.exif_metadata().map_err(failed)?.unwrap_or_default();
    let (orientation, attribution) = exif::parse(&block);
    let alpha = (decoder.color_type() == ColorType::Rgba8).then_some(Alpha::Straight);
    let mut samples = vec![0; decoder.total_bytes() as usize];
    decoder.read_image(&mut samples).map_err(failed)?;
    Ok(Raster {
        width,
        height,
        model: Model::Rgb,
        alpha,
        samples: Samples::U8(samples),
        colour: profile.map_or(Colour::Srgb, Colour::Icc),
        orientation,
        attribution,
    })
}

fn failed(error: ImageError) -> Error {
    match error {
        ImageError::IoError(source) => unreadable(source),
        other => damaged("WebP", other),
    }
}
