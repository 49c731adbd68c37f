//! Elementwise arithmetic and the loop over chunks that runs it on all cores.
//!
//! The functions are plain f32 arithmetic without contraction, inlined into loops that the compiler vectorises for the
//! instruction set `arch`, so an element's bits depend neither on the instructions nor on its position in a vector.

use std::f32::consts::{LN_2, LOG2_E};

use pulp::Arch;
use rayon::prelude::*;

/// Floats of a task: enough to amortise its scheduling, few enough for the second-level cache.
const TASK: usize = 16 * 1024;

/// e^x with a relative error of about 1e-7; x is limited to [-87, 88], where the result is a normal number.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts (Cody and Waite 1980): the first is ln 2 rounded to 12 bits of mantissa, so that its multiples
    /// by the integers here are exact; the second is the rest.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = (std::f64::consts::LN_2 - LN_2_HIGH as f64) as f32;
    const { assert!(LN_2_HIGH - LN_2 < 3e-4 && LN_2_HIGH.to_bits() & 0xfff == 0) }
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let rounded = x * LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    // Taylor's series: at |r| <= ln(2) / 2 the first term left out is 5e-9.
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + coefficient;
    }
    p * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23)
}

/// x * sigmoid(x).
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// SiLU if SILU, else the identity.
#[inline(always)]
pub(super) fn activate<const SILU: bool>(x: f32) -> f32 {
    if SILU { silu(x) } else { x }
}

/// Splits `out` at multiples of `unit` floats over all cores and calls `body(index of the first unit, part)`.
#[inline(always)]
pub(super) fn for_units(
    arch: Arch,
    out: &mut [f32],
    unit: usize,
    body: impl Fn(usize, &mut [f32]) + Sync + Send,
) {
    let units = (TASK / unit.max(1)).max(1);
    out.par_chunks_mut(units * unit.max(1)).enumerate().for_each(|(i, part)| {
        arch.dispatch(
            #[inline(always)]
            || body(i * units, part),
        )
    });
}

/// out = f(a, b) for every element.
#[inline(always)]
pub(super) fn zip(
    arch: Arch,
    out: &mut [f32],
    a: &[f32],
    b: &[f32],
    f: impl Fn(f32, f32) -> f32 + Sync + Send,
) {
    for_units(
        arch,
        out,
        1,
        #[inline(always)]
        |first, out| {
            let inputs = a[first..first + out.len()].iter().zip(&b[first..first + out.len()]);
            for (out, (&a, &b)) in out.iter_mut().zip(inputs) {
                *out = f(a, b);
            }
        },
    );
}

/// Sum in a fixed order: 16 strided partial sums, then pairs of them.
#[inline(always)]
pub(super) fn sum_by(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; 16];
    let (body, tail) = x.as_chunks::<16>();
    for chunk in body {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(tail) {
        *lane += f(x);
    }
    sum_of(lanes)
}

/// Sum of pairs of pairs.
#[inline(always)]
fn sum_of(mut lanes: [f32; 16]) -> f32 {
    let mut width = 8;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Online softmax of scale times values that arrive in parts (Milakov and Gimelshein 2018).
#[derive(Clone, Copy, Debug)]
pub(super) struct Softmax {
    scale: f32,
    /// Largest value so far.
    largest: f32,
    /// Sum of e^(scale (value - largest)) over the values so far.
    sum: f32,
}

impl Softmax {
    /// The softmax of no values.
    pub(super) fn new(scale: f32) -> Self {
        Self { scale, largest: f32::NEG_INFINITY, sum: 0.0 }
    }

    /// Replaces `x`, the next part, by its numerators; returns the factor for the numerators of earlier parts.
    #[inline(always)]
    pub(super) fn part(&mut self, x: &mut [f32]) -> f32 {
        let Self { scale, largest: before, .. } = *self;
        let mut lanes = [before; 16];
        let (body, tail) = x.as_chunks::<16>();
        for chunk in body.iter().map(|c| c.as_slice()).chain([tail]) {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane = if x > *lane { x } else { *lane };
            }
        }
        let largest = lanes.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        let mut lanes = [0.0; 16];
        let (body, tail) = x.as_chunks_mut::<16>();
        for chunk in body {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *x = exp((*x - largest) * scale);
                *lane += *x;
            }
        }
        for (lane, x) in lanes.iter_mut().zip(tail) {
            *x = exp((*x - largest) * scale);
            *lane += *x;
        }
        let factor = exp((before - largest) * scale);
        self.largest = largest;
        self.sum = self.sum * factor + sum_of(lanes);
        factor
    }

    /// The factor for all numerators after the last part.
    pub(super) fn inverse(&self) -> f32 {
        1.0 / self.sum
    }
}

/// Replaces `x` by softmax(scale * x).
#[inline(always)]
pub(super) fn softmax(x: &mut [f32], scale: f32) {
    let mut softmax = Softmax::new(scale);
    softmax.part(x);
    let inverse = softmax.inverse();
    x.iter_mut().for_each(|x| *x *= inverse);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_has_a_relative_error_below_2e_7() {
        for i in -87_000..=88_000 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2e-7, "exp({x}) is off by {error:e}");
        }
    }

    #[test]
    fn silu_holds_at_the_ends_of_the_range() {
        assert_eq!(silu(0.0), 0.0);
        assert_eq!(silu(1e4), 1e4);
        assert!(silu(-1e4).abs() < 1e-30);
        assert!(silu(f32::NAN).is_nan());
    }
}
