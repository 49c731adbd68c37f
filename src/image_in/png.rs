//! PNG (W3C, third edition), all colour types and depths; of an APNG the default image.

use std::io::{BufRead, Seek};

use image::metadata::Orientation;
use png::{ColorType, Decoder, DecodingError, Info, Transformations, Unit};

use super::{
    Limits,
    colour::Colour,
    damaged, exif,
    raster::{Alpha, Model, Raster, Samples},
    refused, too_much_memory, unreadable,
};
use crate::{
    attribution::Attribution,
    error::{Error, Result},
};

/// 1/2.2, the exponent that stands for sRGB's own transfer function.
const SRGB_GAMMA: f32 = 0.454_55;

/// Exponents that differ by less than this share are taken for equal, as libpng does.
const SAME_GAMMA: f32 = 0.05;

/// Chromaticities of sRGB: white, red, green, blue.
const SRGB_PRIMARIES: [[f32; 2]; 4] = [[0.3127, 0.3290], [0.64, 0.33], [0.30, 0.60], [0.15, 0.06]];

/// Chromaticities that differ by less than this are taken for equal.
const SAME_PLACE: f32 = 0.001;

/// Reads a PNG.
pub(super) fn decode(source: impl BufRead + Seek, limits: Limits) -> Result<Raster> {
    let failed = |error| failed(error, limits);
    let memory = usize::try_from(limits.bytes()).unwrap_or(usize::MAX);
    let mut decoder = Decoder::new_with_limits(source, png::Limits { bytes: memory });
    // Palettes become RGB, fewer than 8 bits become 8, a transparent colour becomes alpha.
    decoder.set_transformations(Transformations::EXPAND);
    let mut reader = decoder.read_info().map_err(failed)?;
    let (width, height) = reader.info().size();
    limits.check(width, height)?;
    let (color, depth) = reader.output_color_type();
    let (model, alpha) = match color {
        ColorType::Grayscale => (Model::Gray, None),
        ColorType::GrayscaleAlpha => (Model::Gray, Some(Alpha::Straight)),
        ColorType::Rgb => (Model::Rgb, None),
        ColorType::Rgba => (Model::Rgb, Some(Alpha::Straight)),
        ColorType::Indexed => return Err(refused("a PNG without its palette", "a whole PNG")),
    };
    let len = reader.output_buffer_size().ok_or_else(|| too_much_memory(limits))?;
    let mut bytes = vec![0; len];
    reader.next_frame(&mut bytes).map_err(failed)?;
    // What follows the pixels belongs to the file: its end, and metadata.
    reader.finish().map_err(failed)?;
    let info = reader.info();
    let (orientation, attribution) = described(info);
    let samples = match depth {
        png::BitDepth::Sixteen => {
            let pairs = bytes.chunks_exact(2).map(|b| u16::from_be_bytes([b[0], b[1]]));
            Samples::U16(pairs.collect())
        }
        _ => Samples::U8(bytes),
    };
    Ok(Raster {
        width,
        height,
        model,
        alpha,
        samples,
        colour: colour(info)?,
        orientation,
        attribution,
    })
}

/// The colour space, by the precedence of section 4.3: cICP, iCCP, sRGB, then gAMA and cHRM.
fn colour(info: &Info<'_>) -> Result<Colour> {
    if let Some(codes) = info.coding_independent_code_points {
        if !codes.is_video_full_range_image {
            return Err(refused("of samples of narrow range (cICP)", "samples of full range"));
        }
        if let Some(colour) =
            Colour::from_code_points(codes.color_primaries, codes.transfer_function)?
        {
            return Ok(colour);
        }
    }
    if let Some(profile) = &info.icc_profile {
        return Ok(Colour::Icc(profile.to_vec()));
    }
    if info.srgb.is_some() {
        return Ok(Colour::Srgb);
    }
    let gamma = info.gama_chunk.map(|gamma| gamma.into_value());
    let gamma =
        gamma.filter(|gamma| *gamma > 0.0 && (gamma / SRGB_GAMMA).ln().abs() > SAME_GAMMA.ln_1p());
    let places = info.chrm_chunk.map(|places| {
        [places.white, places.red, places.green, places.blue]
            .map(|(x, y)| [x.into_value(), y.into_value()])
    });
    let places = places.filter(|places| is_space(places) && !is_srgb(places));
    Ok(match (gamma, places) {
        (None, None) => Colour::Srgb,
        _ => Colour::from_gamma(gamma.map(f32::recip), places),
    })
}

fn is_srgb(places: &[[f32; 2]; 4]) -> bool {
    let pairs = places.iter().flatten().zip(SRGB_PRIMARIES.iter().flatten());
    pairs.into_iter().all(|(a, b)| (a - b).abs() < SAME_PLACE)
}

/// Whether the primaries span a triangle around white; otherwise no conversion exists.
fn is_space([white, red, green, blue]: &[[f32; 2]; 4]) -> bool {
    let area = |a: &[f32; 2], b: &[f32; 2], c: &[f32; 2]| {
        (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    };
    let parts = [area(white, red, green), area(white, green, blue), area(white, blue, red)];
    let same_side = parts.iter().all(|v| *v > 1e-4) || parts.iter().all(|v| *v < -1e-4);
    same_side && [white, red, green, blue].iter().all(|place| place[1] > 0.0)
}

/// Orientation and attribution: Exif, then the text chunks and pHYs.
fn described(info: &Info<'_>) -> (Orientation, Attribution) {
    let block = info.exif_metadata.as_deref().unwrap_or_default();
    let (orientation, attribution) = exif::parse(block);
    let text = |keyword: &str| {
        let utf8 = info.utf8_text.iter().filter(|chunk| chunk.keyword == keyword);
        let latin = info.uncompressed_latin1_text.iter().filter(|chunk| chunk.keyword == keyword);
        let mut texts =
            utf8.filter_map(|chunk| chunk.get_text().ok()).chain(latin.map(|c| c.text.clone()));
        texts.find_map(|text| Attribution::text(&text))
    };
    let resolution = info.pixel_dims.filter(|dims| matches!(dims.unit, Unit::Meter));
    let own = Attribution {
        artist: text("Author"),
        copyright: text("Copyright"),
        taken: None,
        resolution: resolution.and_then(|dims| {
            Attribution::pixels_per_inch([f64::from(dims.xppu), f64::from(dims.yppu)], 1.0 / 0.0254)
        }),
    };
    (orientation, attribution.or(own))
}

fn failed(error: DecodingError, limits: Limits) -> Error {
    match error {
        DecodingError::IoError(source) => unreadable(source),
        DecodingError::LimitsExceeded => too_much_memory(limits),
        other => damaged("PNG", other),
    }
}
