//! From any raster to sRGB over white.

use image::{DynamicImage, Rgb32FImage, metadata::Orientation};

use super::{
    Photo, Picture,
    colour::ToSrgb,
    raster::{Alpha, Raster, Samples},
    refused,
};
use crate::error::Result;

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

/// The picture of `raster`: sRGB over white, upright.
///
/// # Errors
/// When the transfer function is of high dynamic range.
pub(super) fn photo(raster: Raster) -> Result<Photo> {
    let bits = match raster.samples {
        Samples::U8(_) => 8,
        Samples::U16(_) => 16,
    };
    let (conversion, notice) = ToSrgb::new(raster.model, &raster.colour)?;
    let samples = match &raster.samples {
        Samples::U8(stored) => over_white(&raster, &conversion, bits, stored),
        Samples::U16(stored) => over_white(&raster, &conversion, bits, stored),
    }?;
    let Raster { width, height, orientation, mut attribution, .. } = raster;
    let (width, height, samples) = upright(width, height, samples, orientation)?;
    if turns(orientation) {
        attribution.resolution = attribution.resolution.map(|[x, y]| [y, x]);
    }
    let picture = Picture { width, height, bits, samples };
    Ok(Photo { picture, attribution, notices: notice.into_iter().collect() })
}

/// RGB in [-1, 1] of `stored`, the samples of `raster`.
fn over_white<T: Sample>(
    raster: &Raster,
    conversion: &ToSrgb,
    bits: u8,
    stored: &[T],
) -> Result<Vec<f32>> {
    let width = raster.width as usize;
    let channels = raster.model.channels();
    let stride = channels + usize::from(raster.alpha.is_some());
    let expected = width.checked_mul(raster.height as usize).and_then(|n| n.checked_mul(stride));
    if expected != Some(stored.len()) {
        return Err(refused(format!("of {} samples", stored.len()), "width x height pixels"));
    }
    let mut samples = vec![0.0; width * raster.height as usize * 3];
    let (mut pixels, mut scratch) = (Vec::new(), Vec::new());
    let rows = samples.chunks_exact_mut(3 * width).zip(stored.chunks_exact(stride * width));
    // On one thread: the number of threads is not set before the picture is read.
    for (rgb, row) in rows {
        pixels.clear();
        for pixel in row.chunks_exact(stride) {
            let (colours, alpha) = pixel.split_at(channels);
            match (raster.alpha, alpha) {
                (Some(Alpha::Premultiplied), [alpha]) => {
                    let alpha = alpha.unit();
                    let opaque = |v: f32| if alpha > 0.0 { (v / alpha).min(1.0) } else { 0.0 };
                    pixels.extend(colours.iter().map(|v| opaque(v.unit())));
                }
                _ => pixels.extend(colours.iter().map(|v| v.unit())),
            }
        }
        conversion.convert(raster.model, bits, &pixels, &mut scratch, rgb)?;
        for (rgb, pixel) in rgb.chunks_exact_mut(3).zip(row.chunks_exact(stride)) {
            let alpha = pixel.get(channels).map_or(1.0, |alpha| alpha.unit());
            rgb.iter_mut().for_each(|v| *v = 2.0 * (*v * alpha + (1.0 - alpha)) - 1.0);
        }
    }
    Ok(samples)
}

/// Whether width and height change places.
fn turns(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate90FlipH | Rotate270 | Rotate270FlipH)
}

fn upright(
    width: u32,
    height: u32,
    samples: Vec<f32>,
    orientation: Orientation,
) -> Result<(u32, u32, Vec<f32>)> {
    if orientation == Orientation::NoTransforms {
        return Ok((width, height, samples));
    }
    let image = Rgb32FImage::from_raw(width, height, samples)
        .ok_or_else(|| refused("short of samples", "width x height pixels"))?;
    let mut image = DynamicImage::ImageRgb32F(image);
    image.apply_orientation(orientation);
    let (width, height) = (image.width(), image.height());
    Ok((width, height, image.into_rgb32f().into_raw()))
}
