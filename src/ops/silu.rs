//! SiLU, x sigmoid(x) (Elfwing et al. 2018), elementwise.

use super::{Shape, elements};
use crate::error::Result;

/// x sigmoid(x).
pub fn value(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// Shape rule: x [n, h, w, c] -> [n, h, w, c].
///
/// # Errors
/// Never; it has the signature of all shape rules.
pub fn output_shape(x: Shape) -> Result<Shape> {
    Ok(x)
}

/// Cost rule: 3 per element.
pub fn flops(x: Shape) -> u64 {
    elements(x).saturating_mul(3)
}

/// Naive reference: computes in f64, rounds once; any shape.
pub fn reference(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&v| value(f64::from(v)) as f32).collect()
}
