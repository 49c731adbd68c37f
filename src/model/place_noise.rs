//! Noise of the decoder that is keyed by place: a number per pixel that depends on seed, stage and absolute position only.
//!
//! So a window of a picture gets the numbers that it has in the whole picture, in any order of tiles, and every device
//! gets the same ones.

/// A bijection of 32-bit integers with good avalanche: the multipliers and shifts of C. Wellons' lowbias32.
fn mix(x: u32) -> u32 {
    let mut x = x ^ (x >> 16);
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// The values of `rows` x `columns` pixels from row `top` and column `left` on, on the grid of decoder stage `stage`, of
/// the picture with `seed`: (number of set bits of a hash of seed, stage, row and column - 16) / sqrt 8, a binomial of
/// 32 fair bits with mean 0 and variance 1.
pub fn place_noise(
    seed: u64,
    stage: usize,
    (top, left): (usize, usize),
    (rows, columns): (usize, usize),
) -> Vec<f32> {
    let scale = (1.0 / 8.0f64.sqrt()) as f32;
    let key = mix(mix(mix(seed as u32) ^ (seed >> 32) as u32) ^ stage as u32);
    let mut values = Vec::with_capacity(rows * columns);
    for y in top..top + rows {
        let row = mix(key ^ y as u32);
        let value = |x: usize| (mix(row ^ x as u32).count_ones() as f32 - 16.0) * scale;
        values.extend((left..left + columns).map(value));
    }
    values
}

#[cfg(test)]
mod tests {
    use super::place_noise;

    /// A window has the values of the whole, seeds and stages differ, and mean and variance are 0 and 1.
    #[test]
    fn noise_depends_on_the_place() {
        let whole = place_noise(7, 1, (0, 0), (64, 96));
        let window = place_noise(7, 1, (5, 9), (4, 3));
        for (y, row) in window.chunks_exact(3).enumerate() {
            assert_eq!(row, &whole[(5 + y) * 96 + 9..][..3]);
        }
        assert_ne!(whole, place_noise(8, 1, (0, 0), (64, 96)));
        assert_ne!(whole, place_noise(7 + (1 << 32), 1, (0, 0), (64, 96)));
        assert_ne!(whole, place_noise(7, 2, (0, 0), (64, 96)));
        let count = whole.len() as f32;
        let mean = whole.iter().sum::<f32>() / count;
        let variance = whole.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / count;
        assert!(mean.abs() < 0.05 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }
}
