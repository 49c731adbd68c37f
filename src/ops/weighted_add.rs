//! wa a + wb b, elementwise, for residual sums and mixtures.

use super::{Shape, elements, need};
use crate::error::{Error, Result};

/// Shape rule: a, b [n, h, w, c] -> [n, h, w, c].
///
/// # Errors
/// When the shapes differ.
pub fn output_shape(a: Shape, b: Shape) -> Result<Shape> {
    need(a == b, || {
        Error::invalid("weighted_add inputs", format!("{a:?}, {b:?}"), "equal shapes")
    })?;
    Ok(a)
}

/// Cost rule: 3 per element.
pub fn flops(a: Shape) -> u64 {
    elements(a).saturating_mul(3)
}

/// Naive reference: computes in f64, rounds once; any shape.
pub fn reference(a: &[f32], b: &[f32], wa: f32, wb: f32) -> Vec<f32> {
    let (wa, wb) = (f64::from(wa), f64::from(wb));
    a.iter().zip(b).map(|(&a, &b)| (wa * f64::from(a) + wb * f64::from(b)) as f32).collect()
}
