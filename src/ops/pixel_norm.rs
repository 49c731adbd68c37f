//! RMS norm over the channels of each pixel with a gain, then SiLU if `silu`. It reads no neighbours, so it can run on
//! tiles.

use super::{PixelNorm, Shape, elements, need, silu, weights::Weights};
use crate::error::{Error, Result};

/// Added to the mean square under the root.
pub const EPS: f32 = 1e-6;

impl PixelNorm {
    /// Name and shape of the layer's parameter.
    pub fn params(&self) -> [(String, Vec<usize>); 1] {
        [(format!("{}.weight", self.name), vec![self.channels])]
    }

    /// The layer's gain `[channels]`.
    ///
    /// # Errors
    /// When it is missing or has another shape.
    pub fn load<'a>(&self, weights: &'a Weights) -> Result<&'a [f32]> {
        let [(weight, shape)] = self.params();
        Ok(&weights.get(&weight, &shape)?.data)
    }
}

/// Shape rule: x [n, h, w, c] -> [n, h, w, c].
///
/// # Errors
/// When x does not have `p.channels` channels.
pub fn output_shape(x: Shape, p: &PixelNorm) -> Result<Shape> {
    need(x.c == p.channels, || {
        let field = format!("pixel_norm {} input channels", p.name);
        Error::invalid(field, x.c, p.channels.to_string())
    })?;
    Ok(x)
}

/// Cost rule: 4 per element, 3 for SiLU.
pub fn flops(x: Shape, p: &PixelNorm) -> u64 {
    elements(x).saturating_mul(if p.silu { 7 } else { 4 })
}

/// Naive reference: sums in f64, rounds once. `x` is [n, h, w, c] = `s`, the result too; `weight` is `[c]`.
pub fn reference(x: &[f32], s: Shape, p: &PixelNorm, weight: &[f32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for pixel in x.chunks_exact(s.c) {
        let power = pixel.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / s.c as f64;
        let scale = 1.0 / (power + f64::from(EPS)).sqrt();
        out.extend(pixel.iter().zip(weight).map(|(&v, &gain)| {
            let y = f64::from(v) * scale * f64::from(gain);
            if p.silu { silu::value(y) as f32 } else { y as f32 }
        }));
    }
    out
}
