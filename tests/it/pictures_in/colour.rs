//! Colour profiles and other statements of a colour space, in all formats.

use image::{
    ExtendedColorType, ImageEncoder as _, codecs::jpeg::JpegEncoder, codecs::png::PngEncoder,
    codecs::tiff::TiffEncoder, codecs::webp::WebPEncoder,
};
use moxcms::{ColorProfile, Layout, TransformOptions};

use super::{Outcome, read, read_photo, refusal};

const SIDE: u32 = 48;

/// Colours that are not at the border of any gamut, in patches of 8x8 so that JPEG keeps them: sRGB from 0 to 1.
fn patches() -> Vec<f32> {
    let level = |i: u32| 0.2 + 0.12 * i as f32;
    let pixels = (0..SIDE * SIDE).map(|i| (i % SIDE / 8, i / SIDE / 8));
    pixels.flat_map(|(x, y)| [level(x), level(y), level((x + y) % 6)]).collect()
}

/// The patches as values of `profile`, of 8 bits.
fn stored(profile: &ColorProfile) -> Outcome<Vec<u8>> {
    let (srgb, options) = (ColorProfile::new_srgb(), TransformOptions::default());
    let to = srgb.create_transform_f32(Layout::Rgb, profile, Layout::Rgb, options)?;
    let mut values = vec![0.0; 3 * (SIDE * SIDE) as usize];
    to.transform(&patches(), &mut values)?;
    Ok(values.iter().map(|v| (v * 255.0).round() as u8).collect())
}

/// Largest difference between what is read and the patches, in levels of 8 bits.
fn difference(directory: &std::path::Path, file: &[u8]) -> Outcome<f32> {
    let picture = read(directory, file)?;
    assert_eq!((picture.width, picture.height), (SIDE, SIDE));
    let pairs = picture.samples.iter().zip(patches());
    Ok(pairs.map(|(a, b)| (127.5 * (a + 1.0) - 255.0 * b).abs()).fold(0.0, f32::max))
}

/// The patches in `format` with `profile` embedded.
fn with_profile(format: &str, profile: &ColorProfile) -> Outcome<Vec<u8>> {
    let (pixels, icc) = (stored(profile)?, profile.encode()?);
    let mut out = std::io::Cursor::new(Vec::new());
    fn write(mut encoder: impl image::ImageEncoder, icc: Vec<u8>, pixels: &[u8]) -> Outcome {
        encoder.set_icc_profile(icc)?;
        Ok(encoder.write_image(pixels, SIDE, SIDE, ExtendedColorType::Rgb8)?)
    }
    match format {
        "jpeg" => write(JpegEncoder::new_with_quality(&mut out, 100), icc, &pixels)?,
        "png" => write(PngEncoder::new(&mut out), icc, &pixels)?,
        "webp" => write(WebPEncoder::new_lossless(&mut out), icc, &pixels)?,
        _ => write(TiffEncoder::new(&mut out), icc, &pixels)?,
    }
    Ok(out.into_inner())
}

#[test]
fn embedded_profiles_are_converted_to_srgb_in_every_format() -> Outcome {
    let directory = tempfile::tempdir()?;
    for profile in [
        ColorProfile::new_display_p3(),
        ColorProfile::new_adobe_rgb(),
        ColorProfile::new_bt2020(),
        ColorProfile::new_srgb(),
    ] {
        for format in ["png", "jpeg", "webp", "tiff"] {
            let file = with_profile(format, &profile)?;
            let difference = difference(directory.path(), &file)?;
            // Eight bits of a wider space are coarser than those of sRGB.
            let tolerance = if format == "jpeg" { 7.0 } else { 3.0 };
            assert!(difference < tolerance, "{format}: {difference} {:?}", profile.description);
        }
    }
    Ok(())
}

/// A PNG of `pixels`, with these chunks before its pixels.
fn png_with(pixels: &[u8], chunks: &[(&[u8; 4], Vec<u8>)]) -> Outcome<Vec<u8>> {
    /// Signature and header.
    const START: usize = 8 + 25;
    let mut png = Vec::new();
    PngEncoder::new(&mut png).write_image(pixels, SIDE, SIDE, ExtendedColorType::Rgb8)?;
    let mut out = png[..START].to_vec();
    for (name, content) in chunks {
        let mut crc = flate2::Crc::new();
        crc.update(*name);
        crc.update(content);
        out.extend((content.len() as u32).to_be_bytes());
        out.extend(*name);
        out.extend(content);
        out.extend(crc.sum().to_be_bytes());
    }
    out.extend(&png[START..]);
    Ok(out)
}

fn gama(gamma: u32) -> (&'static [u8; 4], Vec<u8>) {
    (b"gAMA", gamma.to_be_bytes().to_vec())
}

fn chrm(places: [u32; 8]) -> (&'static [u8; 4], Vec<u8>) {
    (b"cHRM", places.into_iter().flat_map(u32::to_be_bytes).collect())
}

fn cicp(primaries: u8, transfer: u8) -> (&'static [u8; 4], Vec<u8>) {
    (b"cICP", vec![primaries, transfer, 0, 1])
}

fn iccp(profile: &ColorProfile) -> Outcome<(&'static [u8; 4], Vec<u8>)> {
    use std::io::Write as _;
    let mut content = b"p\0\0".to_vec();
    let mut encoder = flate2::write::ZlibEncoder::new(&mut content, flate2::Compression::fast());
    encoder.write_all(&profile.encode()?)?;
    encoder.finish()?;
    Ok((b"iCCP", content))
}

const P3_PRIMARIES: [u32; 8] = [31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000];

#[test]
fn png_states_its_colours_by_cicp_iccp_srgb_and_gamma_in_this_order() -> Outcome {
    let directory = tempfile::tempdir()?;
    let p3 = ColorProfile::new_display_p3();
    let adobe = ColorProfile::new_adobe_rgb();
    let srgb = (b"sRGB", vec![0]);
    let (in_p3, in_srgb) = (stored(&p3)?, stored(&ColorProfile::new_srgb())?);
    let linear: Vec<u8> = in_srgb
        .iter()
        .map(|&v| ((f32::from(v) / 255.0).powf(1.0 / 1.5) * 255.0).round() as u8)
        .collect();
    // Wrong statements, to be overruled by the one before.
    let (wrong_gamma, wrong_places) =
        (gama(100_000), chrm([31270, 32900, 70000, 30000, 20000, 75000, 14000, 5000]));
    for (name, pixels, chunks) in [
        (
            "cICP",
            &in_p3,
            vec![cicp(12, 13), iccp(&adobe)?, wrong_gamma.clone(), wrong_places.clone()],
        ),
        ("cICP of sRGB", &in_srgb, vec![cicp(1, 13), wrong_gamma.clone()]),
        ("an unknown cICP", &in_p3, vec![cicp(2, 2), iccp(&p3)?]),
        ("iCCP", &in_p3, vec![iccp(&p3)?, wrong_gamma.clone(), wrong_places.clone()]),
        ("sRGB", &in_srgb, vec![srgb, wrong_gamma, wrong_places]),
        ("gAMA of sRGB and cHRM", &in_p3, vec![gama(45_455), chrm(P3_PRIMARIES)]),
        ("gAMA of sRGB", &in_srgb, vec![gama(45_455)]),
        ("nothing", &in_srgb, vec![]),
    ] {
        let difference = difference(directory.path(), &png_with(pixels, &chunks)?)?;
        assert!(difference < 1.5, "{name}: {difference}");
    }
    // The exponent 1.5 more than that of sRGB, but for sRGB's straight start: 1/(2.2 * 1.5).
    let picture = read(directory.path(), &png_with(&linear, &[gama(30_303)])?)?;
    let pairs = picture.samples.iter().zip(patches());
    let worst = pairs.map(|(a, b)| (0.5 * (a + 1.0) - b).abs()).fold(0.0, f32::max);
    assert!(worst < 0.03, "gAMA: {worst}");
    Ok(())
}

#[test]
fn transfer_functions_of_high_dynamic_range_are_refused_with_their_name() -> Outcome {
    let directory = tempfile::tempdir()?;
    let pixels = vec![128; 3 * (SIDE * SIDE) as usize];
    for (chunks, name) in [
        (vec![cicp(9, 16)], "PQ"),
        (vec![cicp(9, 18)], "HLG"),
        (vec![iccp(&ColorProfile::new_bt2020_pq())?], "PQ"),
        (vec![iccp(&ColorProfile::new_bt2020_hlg())?], "HLG"),
    ] {
        let (kind, message) = refusal(directory.path(), &png_with(&pixels, &chunks)?);
        assert_eq!(kind, Some(tessera::error::Kind::InvalidImage), "{message}");
        assert!(message.contains("high dynamic range") && message.contains(name), "{message}");
    }
    Ok(())
}

#[test]
fn a_damaged_profile_or_one_for_other_colours_is_said_and_not_applied() -> Outcome {
    let directory = tempfile::tempdir()?;
    let pixels = stored(&ColorProfile::new_srgb())?;
    for icc in [b"not a profile".to_vec(), ColorProfile::new_gray_with_gamma(2.2).encode()?] {
        let mut out = Vec::new();
        let mut encoder = PngEncoder::new(&mut out);
        encoder.set_icc_profile(icc)?;
        encoder.write_image(&pixels, SIDE, SIDE, ExtendedColorType::Rgb8)?;
        let photo = read_photo(directory.path(), &out)?;
        assert!(photo.notices.len() == 1 && photo.notices[0].contains("profile"), "{photo:?}");
        assert!(difference(directory.path(), &out)? < 0.6);
    }
    Ok(())
}
