//! JPEG, baseline and progressive.

use image::metadata::Orientation;
use zune_core::{bytestream::ZCursor, options::DecoderOptions};
use zune_jpeg::JpegDecoder;

use super::{
    Limits,
    colour::{Colour, ycbcr_to_rgb},
    damaged, exif, jpeg_scan,
    jpeg_scan::Walk,
    raster::{Model, Raster, Samples},
    refused,
};
use crate::{attribution::Attribution, error::Result};

/// Reads a JPEG. Of several in a file (MPO, a gain map) the first is read.
pub(super) fn decode(bytes: &[u8], limits: Limits) -> Result<Raster> {
    let walk = jpeg_scan::walk(&[], bytes, |width, height| limits.check(width, height))?;
    let (width, height) = (u32::from(walk.frame.width), u32::from(walk.frame.height));
    // Whether every block is there is known; so what the decoder doesn't like is damage.
    let side = limits.side as usize;
    let options =
        DecoderOptions::default().set_strict_mode(true).set_max_width(side).set_max_height(side);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|error| damaged("JPEG", error))?;
    // Components are taken as they are stored.
    let stored = decoder
        .input_colorspace()
        .ok_or_else(|| refused("without components", "a JPEG of 1, 3 or 4"))?;
    decoder.set_options(options.jpeg_set_out_colorspace(stored));
    let mut samples = decoder.decode().map_err(|error| damaged("JPEG", error))?;
    let model = to_model(&walk, &mut samples);
    let (orientation, attribution) = decoder
        .exif()
        .map_or((Orientation::NoTransforms, Attribution::default()), |b| exif::parse(b));
    Ok(Raster {
        width,
        height,
        model,
        alpha: None,
        samples: Samples::U8(samples),
        colour: decoder.icc_profile().map_or(Colour::Srgb, Colour::Icc),
        orientation,
        attribution,
    })
}

/// Turns stored components into grey, RGB or inks. Which they are is told as libjpeg does: a JFIF
/// marker says YCbCr, an Adobe marker says which, otherwise the components named R, G, B are those.
fn to_model(walk: &Walk, samples: &mut [u8]) -> Model {
    let names: Vec<u8> = walk.frame.components.iter().map(|component| component.id).collect();
    match names.len() {
        1 => Model::Gray,
        3 => {
            let is_rgb = match walk.adobe {
                _ if walk.jfif => false,
                Some(transform) => transform == 0,
                None => names == *b"RGB",
            };
            if !is_rgb {
                ycbcr_to_rgb(samples, 3);
            }
            Model::Rgb
        }
        _ => {
            // Adobe stores what is left white by each ink; a YCCK file holds it as YCbCr, inverted.
            if walk.adobe == Some(2) {
                ycbcr_to_rgb(samples, 4);
                samples.chunks_exact_mut(4).for_each(|pixel| pixel[3] = 255 - pixel[3]);
            } else if walk.adobe.is_some() {
                samples.iter_mut().for_each(|sample| *sample = 255 - *sample);
            }
            Model::Cmyk
        }
    }
}
