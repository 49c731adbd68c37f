//! GroupNorm over (h, w, channels of a group), then SiLU if `silu`.

use super::{GroupNorm, Shape, elements, need, silu, weights::Weights};
use crate::error::{Error, Result};

/// Added to the variance under the root.
pub const EPS: f32 = 1e-6;

impl GroupNorm {
    /// Names and shapes of the layer's parameters: weight, bias.
    pub fn params(&self) -> [(String, Vec<usize>); 2] {
        let c = vec![self.channels];
        [(format!("{}.weight", self.name), c.clone()), (format!("{}.bias", self.name), c)]
    }

    /// The layer's weight and bias, `[channels]` each.
    ///
    /// # Errors
    /// When one is missing or has another shape.
    pub fn load<'a>(&self, weights: &'a Weights) -> Result<(&'a [f32], &'a [f32])> {
        let [(weight, wshape), (bias, bshape)] = self.params();
        Ok((&weights.get(&weight, &wshape)?.data, &weights.get(&bias, &bshape)?.data))
    }
}

/// Shape rule: x [n, h, w, c] -> [n, h, w, c].
///
/// # Errors
/// When x does not have `p.channels` channels, or `p.groups` does not divide them.
pub fn output_shape(x: Shape, p: &GroupNorm) -> Result<Shape> {
    let name = &p.name;
    need(x.c == p.channels, || {
        Error::invalid(format!("group_norm {name} input channels"), x.c, p.channels.to_string())
    })?;
    need(p.groups > 0 && p.channels.is_multiple_of(p.groups), || {
        let divisor = format!("a divisor of {} channels", p.channels);
        Error::invalid(format!("group_norm {name} groups"), p.groups, divisor)
    })?;
    Ok(x)
}

/// Cost rule: 7 per element (two for the mean and variance each, three to normalise, scale and shift), 3 for SiLU.
pub fn flops(x: Shape, p: &GroupNorm) -> u64 {
    elements(x).saturating_mul(if p.silu { 10 } else { 7 })
}

/// Naive reference: sums in f64, rounds once. `x` is [n, h, w, c] = `s`, the result too; `weight` and `bias` are `[c]`.
pub fn reference(x: &[f32], s: Shape, p: &GroupNorm, weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let width = s.c / p.groups;
    let mut out = vec![0.0; x.len()];
    for n in 0..s.n {
        for g in 0..p.groups {
            let indices = || {
                let rows = n * s.pixels()..(n + 1) * s.pixels();
                rows.flat_map(move |pixel| {
                    (g * width..(g + 1) * width).map(move |c| (pixel * s.c + c, c))
                })
            };
            let count = (s.pixels() * width) as f64;
            let mean = indices().map(|(i, _)| f64::from(x[i])).sum::<f64>() / count;
            let variance =
                indices().map(|(i, _)| (f64::from(x[i]) - mean).powi(2)).sum::<f64>() / count;
            let scale = 1.0 / (variance + f64::from(EPS)).sqrt();
            for (i, c) in indices() {
                let y =
                    (f64::from(x[i]) - mean) * scale * f64::from(weight[c]) + f64::from(bias[c]);
                out[i] = if p.silu { silu::value(y) } else { y } as f32;
            }
        }
    }
    out
}
