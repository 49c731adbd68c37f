//! Normal noise from a counter-based generator: Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy
//! as 1, 2, 3") and Box-Muller in f64.
//!
//! A value depends only on seed, level, step, pixel and channel: it is the same on every device and platform, in any
//! order and for any part of a tensor.

use crate::ops::Shape;

const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];

/// Philox 4x32-10: ten rounds on `counter` under `key`; four uniform 32-bit words.
///
/// ```
/// // The first known answer of the authors' test vectors.
/// let words = tessera::model::noise::philox4x32([0; 4], [0; 2]);
/// assert_eq!(words, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
/// ```
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let (p0, p1) =
            (u64::from(MULTIPLIERS[0]) * u64::from(c0), u64::from(MULTIPLIERS[1]) * u64::from(c2));
        (c0, c1, c2, c3) =
            ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        (k0, k1) = (k0.wrapping_add(WEYL[0]), k1.wrapping_add(WEYL[1]));
    }
    [c0, c1, c2, c3]
}

/// Four standard normal values: channels 4 `block` to 4 `block` + 3 of pixel `pixel` (y w + x) of `level` at `step`.
pub fn normal4(seed: u64, level: u32, step: u32, pixel: u32, block: u32) -> [f32; 4] {
    let key = [seed as u32, (seed >> 32) as u32];
    let [a, b, c, d] = philox4x32([level, step, pixel, block], key);
    let pair = |u: u32, v: u32| {
        const UNIT: f64 = 1.0 / (1u64 << 32) as f64;
        // (0, 1]: the logarithm is finite.
        let radius = (-2.0 * libm::log((f64::from(u) + 1.0) * UNIT)).sqrt();
        let angle = std::f64::consts::TAU * f64::from(v) * UNIT;
        [(radius * libm::cos(angle)) as f32, (radius * libm::sin(angle)) as f32]
    };
    let ([n0, n1], [n2, n3]) = (pair(a, b), pair(c, d));
    [n0, n1, n2, n3]
}

/// Standard normal values for the latent of `level`, a tensor of `shape`, NHWC. Sampling starts from `step` 0.
pub fn normal(seed: u64, level: usize, step: usize, shape: Shape) -> Vec<f32> {
    let mut out = Vec::with_capacity(shape.len());
    for pixel in 0..shape.n * shape.pixels() {
        for block in 0..shape.c.div_ceil(4) {
            let values = normal4(seed, level as u32, step as u32, pixel as u32, block as u32);
            out.extend_from_slice(&values[..(shape.c - 4 * block).min(4)]);
        }
    }
    out
}
