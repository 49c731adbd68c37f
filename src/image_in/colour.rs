//! What the numbers of a picture mean, and their conversion to sRGB (IEC 61966-2-1).

use std::sync::Arc;

use moxcms::{
    Chromaticity, CicpColorPrimaries, CicpProfile, ColorPrimaries, ColorProfile, DataColorSpace,
    Layout, MatrixCoefficients, RenderingIntent, ToneReprCurve, TransferCharacteristics,
    TransformF32Executor, TransformOptions,
};

use super::{
    raster::{Lab, Model},
    refused,
};
use crate::error::Result;

/// The colour space that a file states.
#[derive(Debug)]
pub(super) enum Colour {
    /// sRGB, or nothing stated.
    Srgb,
    /// An ICC profile.
    Icc(Vec<u8>),
    /// RGB primaries and a transfer function, stated by numbers.
    Rgb(Box<ColorProfile>),
}

/// Transfer functions of H.273 that are of high dynamic range.
const HIGH_RANGE: [(TransferCharacteristics, &str); 2] =
    [(TransferCharacteristics::Smpte2084, "PQ"), (TransferCharacteristics::Hlg, "HLG")];

impl Colour {
    /// The colour space of the code points of ITU-T H.273, as PNG's cICP states it: primaries and
    /// transfer function. Nothing if one is unknown.
    ///
    /// # Errors
    /// When the transfer function is of high dynamic range.
    pub(super) fn from_code_points(primaries: u8, transfer: u8) -> Result<Option<Self>> {
        let codes = CicpColorPrimaries::try_from(primaries)
            .and_then(|primaries| Ok((primaries, TransferCharacteristics::try_from(transfer)?)));
        let Ok((color_primaries, transfer_characteristics)) = codes else { return Ok(None) };
        check_range(transfer_characteristics)?;
        let profile = ColorProfile::new_from_cicp(CicpProfile {
            color_primaries,
            transfer_characteristics,
            matrix_coefficients: MatrixCoefficients::Identity,
            full_range: true,
        });
        Ok(profile.red_trc.is_some().then(|| Self::Rgb(Box::new(profile))))
    }

    /// The colour space of a power function, decoded value = stored value to the power of
    /// `exponent`, and chromaticities of white, red, green and blue; sRGB's for what is not given.
    pub(super) fn from_gamma(exponent: Option<f32>, chromaticities: Option<[[f32; 2]; 4]>) -> Self {
        let mut profile = ColorProfile::new_srgb();
        if let Some([white, red, green, blue]) = chromaticities {
            let place = |[x, y]: [f32; 2]| Chromaticity::new(x, y);
            let primaries =
                ColorPrimaries { red: place(red), green: place(green), blue: place(blue) };
            profile.update_rgb_colorimetry(place(white).to_xyyb(), primaries);
        }
        if let Some(exponent) = exponent {
            let curve = Some(ToneReprCurve::Parametric(vec![exponent]));
            (profile.red_trc, profile.green_trc) = (curve.clone(), curve.clone());
            profile.blue_trc = curve;
        }
        profile.cicp = None;
        Self::Rgb(Box::new(profile))
    }
}

/// Refuses a transfer function of high dynamic range.
fn check_range(transfer: TransferCharacteristics) -> Result<()> {
    let high = HIGH_RANGE.iter().find(|(function, _)| *function as u8 == transfer as u8);
    match high {
        None => Ok(()),
        Some((_, name)) => {
            let found = format!("of high dynamic range (transfer function {name})");
            Err(refused(found, "a picture of standard range: tone-map it to sRGB first"))
        }
    }
}

/// A conversion of colour samples to sRGB.
pub(super) enum ToSrgb {
    /// Grey and RGB as they are.
    Same,
    /// By plain ink: (1 - c)(1 - k).
    Ink,
    /// By the definition of CIE L*a*b*.
    Lab(Lab),
    /// By profile; it takes `channels` samples of a pixel. Inks are compensated for their black.
    Profile { executor: Arc<TransformF32Executor>, channels: usize, black: Option<Black> },
}

impl ToSrgb {
    /// The conversion for samples of `model` in the colour space `colour`, and what a person should
    /// know about it.
    ///
    /// # Errors
    /// When the transfer function is of high dynamic range.
    pub(super) fn new(model: Model, colour: &Colour) -> Result<(Self, Option<String>)> {
        let plain = match model {
            Model::Gray | Model::Rgb => Self::Same,
            Model::Cmyk => Self::Ink,
            // The profile of such a file is that of the space itself.
            Model::Lab(lab) => return Ok((Self::Lab(lab), None)),
        };
        let parsed;
        let profile = match colour {
            Colour::Srgb => return Ok((plain, None)),
            Colour::Rgb(profile) => profile.as_ref(),
            Colour::Icc(bytes) => match ColorProfile::new_from_slice(bytes) {
                Ok(profile) => {
                    parsed = profile;
                    &parsed
                }
                Err(_) => return Ok((plain, Some(ignored("is damaged")))),
            },
        };
        if let Some(cicp) = profile.cicp {
            check_range(cicp.transfer_characteristics)?;
        }
        let Some((layout, channels)) = layout(model, profile.color_space) else {
            return Ok((plain, Some(ignored("is for another kind of colours"))));
        };
        let executor = profile.create_transform_f32(
            layout,
            &ColorProfile::new_srgb(),
            Layout::Rgb,
            // As training converts pictures.
            TransformOptions {
                rendering_intent: RenderingIntent::Perceptual,
                ..TransformOptions::default()
            },
        );
        Ok(match executor {
            Err(_) => (plain, Some(ignored("can't be used"))),
            Ok(executor) if channels < 4 && is_identity(executor.as_ref(), channels) => {
                (plain, None)
            }
            Ok(executor) => {
                let black = (model == Model::Cmyk).then(|| Black::of(executor.as_ref())).flatten();
                (Self::Profile { executor, channels, black }, None)
            }
        })
    }

    /// Converts `pixels` of `model.channels()` samples from 0 to 1 each (CIELab: as stored, from 0
    /// to 1) to `rgb`, from 0 to 1. `scratch` is room for samples.
    ///
    /// # Errors
    /// When the conversion fails.
    pub(super) fn convert(
        &self,
        model: Model,
        bits: u8,
        pixels: &[f32],
        scratch: &mut Vec<f32>,
        rgb: &mut [f32],
    ) -> Result<()> {
        let stored = pixels.chunks_exact(model.channels());
        match self {
            Self::Same if model == Model::Gray => {
                for (pixel, rgb) in stored.zip(rgb.chunks_exact_mut(3)) {
                    rgb.fill(pixel[0]);
                }
            }
            Self::Same => rgb.copy_from_slice(pixels),
            Self::Ink => {
                for (pixel, rgb) in stored.zip(rgb.chunks_exact_mut(3)) {
                    for (value, ink) in rgb.iter_mut().zip(pixel) {
                        *value = (1.0 - ink) * (1.0 - pixel[3]);
                    }
                }
            }
            Self::Lab(lab) => {
                for (pixel, rgb) in stored.zip(rgb.chunks_exact_mut(3)) {
                    rgb.copy_from_slice(&lab_to_srgb(lab_values(*lab, bits, pixel)));
                }
            }
            Self::Profile { executor, channels, .. } => {
                let source = if *channels == model.channels() {
                    pixels
                } else {
                    // Grey with a profile for RGB.
                    scratch.clear();
                    scratch.extend(pixels.iter().flat_map(|&grey| [grey; 3]));
                    scratch
                };
                executor.transform(source, rgb).map_err(|error| {
                    refused("of colours that its profile can't convert", "a usable profile")
                        .with_source(error)
                })?;
            }
        }
        if let Self::Profile { black: Some(black), .. } = self {
            rgb.chunks_exact_mut(3).for_each(|rgb| black.compensate(rgb));
        }
        // Colours that sRGB can't show are clipped; a value that is no number becomes 0.
        let clipped = |value: f32| if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) };
        rgb.iter_mut().for_each(|value| *value = clipped(*value));
        Ok(())
    }
}

fn ignored(why: &str) -> String {
    format!("the colour profile {why} and is not applied: the values are taken for sRGB")
}

/// Layout and number of the samples that a profile for `space` takes from a picture of `model`.
fn layout(model: Model, space: DataColorSpace) -> Option<(Layout, usize)> {
    match (model, space) {
        (Model::Gray, DataColorSpace::Gray) => Some((Layout::Gray, 1)),
        (Model::Gray | Model::Rgb, DataColorSpace::Rgb) => Some((Layout::Rgb, 3)),
        (Model::Cmyk, DataColorSpace::Cmyk) => Some((Layout::Rgba, 4)),
        _ => None,
    }
}

/// Whether a conversion moves no value by a level of 8 bits, as the one from sRGB does: then it is
/// left out, and values stay exact.
fn is_identity(executor: &TransformF32Executor, channels: usize) -> bool {
    const STEPS: usize = 9;
    let count = STEPS.pow(channels as u32);
    let value = |i: usize| i as f32 / (STEPS - 1) as f32;
    let digit = |probe: usize, place: usize| value(probe / STEPS.pow(place as u32) % STEPS);
    let probes: Vec<f32> =
        (0..count).flat_map(|probe| (0..channels).map(move |place| digit(probe, place))).collect();
    let mut converted = vec![0.0; 3 * count];
    let expected =
        probes.chunks_exact(channels).flat_map(|p| [p[0], p[1 % channels], p[2 % channels]]);
    executor.transform(&probes, &mut converted).is_ok()
        && converted.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.9 / 255.0)
}

/// Black point compensation (ISO 18619): XYZ is scaled so that full ink becomes black.
#[derive(Clone, Copy, Debug)]
pub(super) struct Black {
    /// XYZ of full ink.
    point: [f32; 3],
}

impl Black {
    /// The black of four inks; nothing if full ink is no black.
    fn of(executor: &TransformF32Executor) -> Option<Self> {
        /// Luminance of L* = 50, above which nothing is taken for black.
        const BRIGHTEST: f32 = 0.184;
        let mut rgb = [0.0; 3];
        executor.transform(&[1.0; 4], &mut rgb).ok()?;
        let point = product(TO_XYZ, rgb.map(decoded));
        (point.iter().all(|v| v.is_finite()) && point[1] < BRIGHTEST).then_some(Self { point })
    }

    fn compensate(self, rgb: &mut [f32]) {
        let xyz = product(TO_XYZ, [rgb[0], rgb[1], rgb[2]].map(decoded));
        let scaled = |i: usize| (xyz[i] - self.point[i]) * D50[i] / (D50[i] - self.point[i]);
        let linear = product(TO_RGB, [scaled(0), scaled(1), scaled(2)]);
        rgb.copy_from_slice(&linear.map(encoded));
    }
}

/// XYZ of D50, the white of profiles.
const D50: [f32; 3] = [0.964_22, 1.0, 0.825_21];

/// XYZ under D50 to linear sRGB, by the Bradford transform (Lindbloom, "RGB/XYZ Matrices").
const TO_RGB: [[f32; 3]; 3] = [
    [3.133_856, -1.616_866_7, -0.490_614_6],
    [-0.978_768_4, 1.916_141_5, 0.033_454],
    [0.071_945_3, -0.228_991_4, 1.405_242_7],
];

/// Linear sRGB to XYZ under D50.
const TO_XYZ: [[f32; 3]; 3] = [
    [0.436_074_7, 0.385_064_9, 0.143_080_4],
    [0.222_504_5, 0.716_878_6, 0.060_616_9],
    [0.013_932_2, 0.097_104_5, 0.714_173_3],
];

fn product(matrix: [[f32; 3]; 3], vector: [f32; 3]) -> [f32; 3] {
    matrix.map(|row| row.iter().zip(vector).map(|(m, v)| m * v).sum())
}

/// A linear value from 0 to 1 of an sRGB one (IEC 61966-2-1).
fn decoded(value: f32) -> f32 {
    if value <= 0.040_45 { value / 12.92 } else { libm::powf((value + 0.055) / 1.055, 2.4) }
}

/// The sRGB value of a linear one.
fn encoded(linear: f32) -> f32 {
    if linear <= 0.003_130_8 {
        12.92 * linear
    } else {
        1.055 * libm::powf(linear, 1.0 / 2.4) - 0.055
    }
}

/// L* from 0 to 100, a* and b*, from samples that were divided by the largest of `bits` bits.
fn lab_values(lab: Lab, bits: u8, stored: &[f32]) -> [f32; 3] {
    let largest = if bits == 8 { 255.0 } else { 65_535.0 };
    // a* and b* are stored in units of 1 (8 bits) or 1/256 (16 bits).
    let unit = if bits == 8 { 1.0 } else { 256.0 };
    let half = (largest + 1.0) / 2.0;
    let [l, a, b] = [stored[0] * largest, stored[1] * largest, stored[2] * largest];
    match lab {
        Lab::Cie => {
            let signed = |v: f32| if v >= half { v - 2.0 * half } else { v };
            [100.0 * l / largest, signed(a) / unit, signed(b) / unit]
        }
        Lab::Icc => {
            let white = if bits == 8 { largest } else { 65_280.0 };
            [100.0 * l / white, (a - half) / unit, (b - half) / unit]
        }
    }
}

/// CIE L*a*b* under D50 (ISO 11664-4) to sRGB, by the linear Bradford transform.
fn lab_to_srgb([l, a, b]: [f32; 3]) -> [f32; 3] {
    let y = (l + 16.0) / 116.0;
    let inverse = |t: f32| {
        if t > 6.0 / 29.0 { t * t * t } else { (t - 4.0 / 29.0) * 3.0 * (6.0_f32 / 29.0).powi(2) }
    };
    let xyz =
        [inverse(y + a / 500.0) * D50[0], inverse(y) * D50[1], inverse(y - b / 200.0) * D50[2]];
    product(TO_RGB, xyz).map(|linear| encoded(linear.clamp(0.0, 1.0)))
}

/// Turns the first three of every `channels` samples from JPEG's YCbCr (ITU-T T.871) into RGB.
pub(super) fn ycbcr_to_rgb(samples: &mut [u8], channels: usize) {
    for pixel in samples.chunks_exact_mut(channels) {
        let (y, cb, cr) =
            (f32::from(pixel[0]), f32::from(pixel[1]) - 128.0, f32::from(pixel[2]) - 128.0);
        let rgb = [y + 1.402 * cr, y - 0.344_136_3 * cb - 0.714_136_3 * cr, y + 1.772 * cb];
        for (sample, value) in pixel.iter_mut().zip(rgb) {
            *sample = value.round().clamp(0.0, 255.0) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lab_is_converted_as_its_definition_says() {
        for (lab, rgb) in [
            ([100.0, 0.0, 0.0], [255.0, 255.0, 255.0]),
            ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
            ([53.585, 0.0, 0.0], [128.0, 128.0, 128.0]),
            // sRGB's primaries under D50, by Lindbloom's calculator.
            ([54.29, 80.81, 69.89], [255.0, 0.0, 0.0]),
            ([87.82, -79.29, 80.99], [0.0, 255.0, 0.0]),
            ([29.57, 68.30, -112.03], [0.0, 0.0, 255.0]),
        ] {
            for (value, expected) in lab_to_srgb(lab).iter().zip(rgb) {
                assert!((255.0 * value - expected).abs() < 1.0, "{lab:?}: {value} {expected}");
            }
        }
    }

    #[test]
    fn srgb_profiles_leave_values_as_they_are_and_others_do_not() -> Result<()> {
        for (profile, is_same) in [
            (ColorProfile::new_srgb(), true),
            (ColorProfile::new_display_p3(), false),
            (ColorProfile::new_adobe_rgb(), false),
        ] {
            let (conversion, notice) = ToSrgb::new(Model::Rgb, &Colour::Rgb(Box::new(profile)))?;
            assert_eq!(matches!(conversion, ToSrgb::Same), is_same);
            assert_eq!(notice, None);
        }
        Ok(())
    }
}
