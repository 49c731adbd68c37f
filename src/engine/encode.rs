//! Encoding of pictures: padding, the encoder, and the PSNR of a reconstruction.

use crate::{
    engine::{plan::MAX_EXTENT, tiles::PixelBuffer},
    error::{Error, Result},
    graph::Backend,
    image_in::{Limits, Picture},
    image_out::Bits,
    model::{arch::Arch, encoder, sampler::Latent},
    ops::Shape,
};

/// Limits of a picture to be encoded: sides up to [`MAX_EXTENT`], 2^27 pixels.
pub const LIMITS: Limits = Limits { side: MAX_EXTENT as u32, pixels: 1 << 27 };

/// `picture` [1, h, w, 3] padded by repeating the last column and row until both sides are multiples of `multiple`.
fn padded(picture: Picture, multiple: usize) -> (Shape, Vec<f32>) {
    let (own_width, own_height) = (picture.width as usize, picture.height as usize);
    let width = own_width.next_multiple_of(multiple);
    let height = own_height.next_multiple_of(multiple);
    let shape = Shape::new(1, height, width, 3);
    if (width, height) == (own_width, own_height) {
        return (shape, picture.samples);
    }
    let mut samples = Vec::with_capacity(shape.len());
    for y in 0..height {
        let start = y.min(own_height - 1) * own_width * 3;
        let row = &picture.samples[start..start + own_width * 3];
        samples.extend_from_slice(row);
        for _ in own_width..width {
            samples.extend_from_slice(&row[row.len() - 3..]);
        }
    }
    (shape, samples)
}

/// The latents of `picture`, finest first, [1, H/f, W/f, C] each with the level's factor f and channels C: the
/// encoder's means, not normalised. H and W are the picture's sides padded to multiples of the coarsest factor.
///
/// # Errors
/// [`crate::error::Kind::InvalidModel`] when the weights overflow; the backend's.
pub fn encode<O: Backend>(ops: &mut O, arch: &Arch, picture: Picture) -> Result<Vec<Latent>> {
    let (shape, samples) = padded(picture, arch.coarsest_factor());
    let input = ops.upload(shape, &samples)?;
    drop(samples);
    let moments = ops.run(&encoder::graph(arch, shape)?, vec![input])?;
    let mut latents = Vec::with_capacity(moments.len());
    for (l, (moment, level)) in moments.iter().zip(&arch.levels).enumerate() {
        let shape = ops.shape(moment).with_channels(level.channels);
        let moment = ops.download(moment)?;
        // The head gives the means, then as many log-variances.
        let means = moment.chunks_exact(2 * level.channels).flat_map(|m| &m[..level.channels]);
        let latent = Latent { shape, data: means.copied().collect() };
        check_finite(&latent, l, "encoding")?;
        latents.push(latent);
    }
    Ok(latents)
}

/// Checks that all values are finite; `doing` names the operation in the error.
pub(super) fn check_finite(latent: &Latent, level: usize, doing: &str) -> Result<()> {
    match latent.data.iter().find(|v| !v.is_finite()) {
        None => Ok(()),
        Some(value) => Err(Error::model(
            format!("a value of latent {level} after {doing}"),
            value,
            "a finite number: the model's weights overflow",
        )),
    }
}

/// Peak signal-to-noise ratio of `canvas` against the picture of the same size, in dB; infinite when they are equal.
pub fn psnr(picture: &Picture, canvas: &PixelBuffer) -> f64 {
    let samples = canvas.bytes();
    let error: f64 = match canvas.bits() {
        Bits::Eight => squares(picture, samples.iter().map(|&v| f64::from(v) / 255.0)),
        Bits::Sixteen => squares(
            picture,
            samples.chunks_exact(2).map(|v| f64::from(u16::from_ne_bytes([v[0], v[1]])) / 65535.0),
        ),
    };
    -10.0 * (error / picture.samples.len() as f64).log10()
}

/// Sum of squared differences to `picture`, with both sides scaled to 0 .. 1.
fn squares(picture: &Picture, samples: impl Iterator<Item = f64>) -> f64 {
    let values = picture.samples.iter().map(|&v| f64::from(v) * 0.5 + 0.5);
    values.zip(samples).map(|(a, b)| (a - b) * (a - b)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_repeats_the_last_column_and_row() {
        let samples: Vec<f32> = (0..6).flat_map(|v| [v as f32, 0.5, -0.5]).collect();
        let (shape, samples) = padded(Picture { width: 3, height: 2, bits: 8, samples }, 4);
        assert_eq!(shape, Shape::new(1, 4, 4, 3));
        let red: Vec<_> = samples.chunks(3).map(|pixel| pixel[0] as u8).collect();
        assert_eq!(red, [0, 1, 2, 2, 3, 4, 5, 5, 3, 4, 5, 5, 3, 4, 5, 5]);
        assert!(samples.chunks(3).all(|pixel| pixel[1..] == [0.5, -0.5]));
    }
}
