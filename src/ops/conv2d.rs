//! Convolution with kernel 1 or 3, stride 1 and zero padding that keeps the size of the grid.

use super::{Conv2d, Shape, need, product, weights::Weights};
use crate::error::{Error, Result};

impl Conv2d {
    /// Names and shapes of the layer's parameters: weight, bias.
    pub fn params(&self) -> [(String, Vec<usize>); 2] {
        let (i, o, k) = (self.in_channels, self.out_channels, self.kernel);
        [
            (format!("{}.weight", self.name), vec![o, i, k, k]),
            (format!("{}.bias", self.name), vec![o]),
        ]
    }

    /// The layer's weight `[out, in, kernel, kernel]` and bias `[out]`.
    ///
    /// # Errors
    /// When one is missing or has another shape.
    pub fn load<'a>(&self, weights: &'a Weights) -> Result<(&'a [f32], &'a [f32])> {
        let [(weight, wshape), (bias, bshape)] = self.params();
        Ok((&weights.get(&weight, &wshape)?.data, &weights.get(&bias, &bshape)?.data))
    }
}

/// Shape rule: x [n, h, w, in] -> [n, h, w, out].
///
/// # Errors
/// When x does not have `p.in_channels` channels, or `p.kernel` is not 1 or 3.
pub fn output_shape(x: Shape, p: &Conv2d) -> Result<Shape> {
    let name = &p.name;
    need(matches!(p.kernel, 1 | 3), || {
        Error::invalid(format!("conv2d {name} kernel"), p.kernel, "1 or 3")
    })?;
    need(x.c == p.in_channels, || {
        Error::invalid(format!("conv2d {name} input channels"), x.c, p.in_channels.to_string())
    })?;
    Ok(x.with_channels(p.out_channels))
}

/// Cost rule: 2 k^2 C_in C_out per pixel.
pub fn flops(x: Shape, p: &Conv2d) -> u64 {
    product(&[2, p.kernel, p.kernel, p.in_channels, p.out_channels, x.n, x.h, x.w])
}

/// Naive reference: sums in f64, rounds once. `x` is [n, h, w, in] = `s`, `weight` [out, in, k, k], `bias` `[out]`, the
/// result [n, h, w, out].
pub fn reference(x: &[f32], s: Shape, p: &Conv2d, weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let (cin, k, pad) = (p.in_channels, p.kernel, p.kernel / 2);
    let mut out = Vec::with_capacity(s.n * s.pixels() * p.out_channels);
    for n in 0..s.n {
        for y in 0..s.h {
            for x0 in 0..s.w {
                for o in 0..p.out_channels {
                    let mut sum = f64::from(bias[o]);
                    for ky in 0..k {
                        for kx in 0..k {
                            // Padded coordinates, so that unsigned indices do: pixel (py - pad, px - pad).
                            let (py, px) = (y + ky, x0 + kx);
                            if py < pad || py - pad >= s.h || px < pad || px - pad >= s.w {
                                continue;
                            }
                            let at = ((n * s.h + py - pad) * s.w + px - pad) * cin;
                            for (i, &value) in x[at..at + cin].iter().enumerate() {
                                let w = weight[((o * cin + i) * k + ky) * k + kx];
                                sum += f64::from(value) * f64::from(w);
                            }
                        }
                    }
                    out.push(sum as f32);
                }
            }
        }
    }
    out
}
