//! A rectangle of the grid, copied.

use super::{Rect, Shape, need};
use crate::error::{Error, Result};

/// Shape rule: x [n, h, w, c] -> [n, window.height, window.width, c].
///
/// # Errors
/// When the window is empty or reaches past the grid.
pub fn output_shape(x: Shape, window: Rect) -> Result<Shape> {
    let Rect { x: left, y, width: w, height: h } = window;
    let inside = |from: usize, count: usize, extent: usize| {
        count > 0 && from.checked_add(count).is_some_and(|end| end <= extent)
    };
    need(inside(y, h, x.h) && inside(left, w, x.w), || {
        let inside = format!("not empty and inside {} rows and {} columns", x.h, x.w);
        Error::invalid("crop window", format!("{window:?}"), inside)
    })?;
    Ok(Shape { h, w, ..x })
}

/// Naive reference; `x` is [n, h, w, c] = `s`, the result [n, window.height, window.width, c].
pub fn reference(x: &[f32], s: Shape, window: Rect) -> Vec<f32> {
    let mut out = Vec::with_capacity(s.n * window.height * window.width * s.c);
    for n in 0..s.n {
        for y in window.y..window.y + window.height {
            let at = ((n * s.h + y) * s.w + window.x) * s.c;
            out.extend_from_slice(&x[at..at + window.width * s.c]);
        }
    }
    out
}
