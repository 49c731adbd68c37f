//! x + gain * noise, a gain per channel and one value of noise per pixel (StyleGAN's noise inputs, Karras et al. 2019).

use super::{AddNoise, Shape, elements, need, weights::Weights};
use crate::error::{Error, Result};

impl AddNoise {
    /// Name and shape of the layer's parameter: the gain.
    pub fn params(&self) -> [(String, Vec<usize>); 1] {
        [(self.name.clone(), vec![self.channels])]
    }

    /// The layer's gain `[channels]`.
    ///
    /// # Errors
    /// When it is missing or has another shape.
    pub fn load<'a>(&self, weights: &'a Weights) -> Result<&'a [f32]> {
        let [(name, shape)] = self.params();
        Ok(&weights.get(&name, &shape)?.data)
    }
}

/// Shape rule: x [n, h, w, c], noise [n, h, w, 1] -> [n, h, w, c].
///
/// # Errors
/// When x does not have `p.channels` channels, or `noise` another shape.
pub fn output_shape(x: Shape, noise: Shape, p: &AddNoise) -> Result<Shape> {
    need(x.c == p.channels, || {
        Error::invalid(format!("add_noise {} channels", p.name), x.c, p.channels.to_string())
    })?;
    need(noise == x.with_channels(1), || {
        let expected = format!("[n, h, w, 1] for input {x:?}");
        Error::invalid(format!("add_noise {} noise", p.name), format!("{noise:?}"), expected)
    })?;
    Ok(x)
}

/// Cost rule: 2 per element.
pub fn flops(x: Shape) -> u64 {
    elements(x).saturating_mul(2)
}

/// Naive reference: computes in f64, rounds once. `x` and the result are [n, h, w, c] = `s`, `noise` [n, h, w, 1],
/// `gain` `[c]`.
pub fn reference(x: &[f32], s: Shape, noise: &[f32], gain: &[f32]) -> Vec<f32> {
    let value = |(i, &x): (usize, &f32)| {
        (f64::from(x) + f64::from(gain[i % s.c]) * f64::from(noise[i / s.c])) as f32
    };
    x.iter().enumerate().map(value).collect()
}
