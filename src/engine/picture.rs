//! Pictures on their way in: padding, encoding, and how close a reconstruction comes.

use crate::{
    engine::{plan::MAX_EXTENT, tiles::Canvas},
    error::{Error, Kind, Result},
    image_out::Bits,
    model::{arch::Arch, encoder, sampler::Latent},
    ops::{Ops, Shape},
};

/// A picture in memory: rows of RGB, black at -1 and white at 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// `height` rows of `width` pixels of three values.
    pub values: Vec<f32>,
}

impl Picture {
    /// Refuses a picture without pixels or with a side longer than [`MAX_EXTENT`].
    ///
    /// # Errors
    /// [`Kind::InvalidImage`] naming the side and the limit.
    pub fn check_size(width: usize, height: usize) -> Result<()> {
        for (field, value) in [("width", width), ("height", height)] {
            if !(1..=MAX_EXTENT).contains(&value) {
                return Err(Error::new(
                    Kind::InvalidImage,
                    format!("the picture's {field} is {value}, which is not from 1 to {MAX_EXTENT} pixels"),
                ));
            }
        }
        Ok(())
    }

    /// The picture with its last column and row repeated until both sides are multiples of `multiple`.
    #[must_use]
    pub fn padded(self, multiple: usize) -> Self {
        let width = self.width.next_multiple_of(multiple);
        let height = self.height.next_multiple_of(multiple);
        if (width, height) == (self.width, self.height) {
            return self;
        }
        let mut values = Vec::with_capacity(width * height * 3);
        for y in 0..height {
            let start = y.min(self.height - 1) * self.width * 3;
            let row = &self.values[start..start + self.width * 3];
            values.extend_from_slice(row);
            for _ in self.width..width {
                values.extend_from_slice(&row[row.len() - 3..]);
            }
        }
        Self { width, height, values }
    }
}

/// The latents of `picture`, finest first: the encoder's means, not normalised, for the picture padded to a multiple of
/// the coarsest factor.
///
/// # Errors
/// [`Kind::InvalidImage`] when the picture's size is out of range; [`Kind::InvalidModel`] when the weights overflow;
/// what the device reports.
pub fn encode<O: Ops>(ops: &mut O, arch: &Arch, picture: Picture) -> Result<Vec<Latent>> {
    Picture::check_size(picture.width, picture.height)?;
    let picture = picture.padded(arch.coarsest_factor());
    let shape = Shape::new(1, picture.height, picture.width, 3);
    let input = ops.upload(shape, &picture.values)?;
    drop(picture);
    let moments = encoder::encode(ops, arch, &input)?;
    drop(input);
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

/// Refuses values that are not numbers.
pub(super) fn check_finite(latent: &Latent, level: usize, doing: &str) -> Result<()> {
    match latent.data.iter().find(|v| !v.is_finite()) {
        None => Ok(()),
        Some(value) => Err(Error::model(format!(
            "{doing} gave {value} in latent {level}: the model's weights overflow"
        ))),
    }
}

/// Peak signal-to-noise ratio of `canvas` against the picture of the same size, in dB; infinite when they are equal.
pub fn psnr(picture: &Picture, canvas: &Canvas) -> f64 {
    let samples = canvas.bytes();
    let error: f64 = match canvas.bits() {
        Bits::Eight => squares(picture, samples.iter().map(|&v| f64::from(v) / 255.0)),
        Bits::Sixteen => squares(
            picture,
            samples
                .chunks_exact(2)
                .map(|v| f64::from(u16::from_ne_bytes([v[0], v[1]])) / 65535.0),
        ),
    };
    -10.0 * (error / picture.values.len() as f64).log10()
}

/// Sum of squared differences, both sides from 0 to 1.
fn squares(picture: &Picture, samples: impl Iterator<Item = f64>) -> f64 {
    let values = picture.values.iter().map(|&v| f64::from(v) * 0.5 + 0.5);
    values.zip(samples).map(|(a, b)| (a - b) * (a - b)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_repeats_the_last_column_and_row() {
        let values = [[0.0; 3], [0.1; 3], [0.2; 3], [0.3; 3], [0.4; 3], [0.5; 3]].concat();
        let picture = Picture { width: 3, height: 2, values }.padded(4);
        let column = |y: usize| {
            (0..4).map(|x| (10.0 * picture.values[(y * 4 + x) * 3]).round() as i32).collect::<Vec<_>>()
        };
        assert_eq!((picture.width, picture.height), (4, 4));
        assert_eq!([column(0), column(1), column(2), column(3)], [
            vec![0, 1, 2, 2],
            vec![3, 4, 5, 5],
            vec![3, 4, 5, 5],
            vec![3, 4, 5, 5],
        ]);
    }
}
