//! x * sigmoid(x), elementwise.

use super::{Shape, elements};
use crate::error::Result;

/// The function itself.
pub fn value(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// Shape rule: the input's shape.
///
/// # Errors
/// None; the signature is that of all shape rules.
pub fn output_shape(x: Shape) -> Result<Shape> {
    Ok(x)
}

/// Cost rule: 3 per element.
pub fn flops(x: Shape) -> u64 {
    elements(x).saturating_mul(3)
}

/// Naive reference.
pub fn reference(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&v| value(f64::from(v)) as f32).collect()
}
