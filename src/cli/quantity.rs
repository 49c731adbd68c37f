//! Durations and sizes with a unit, as in `30d` and `50G`.

use std::time::Duration;

/// Units of durations, in seconds.
const TIMES: [(&str, u64); 5] =
    [("s", 1), ("m", 60), ("h", 3600), ("d", 24 * 3600), ("w", 7 * 24 * 3600)];

/// Units of sizes, in bytes.
const SIZES: [(&str, u64); 9] = [
    ("", 1),
    ("K", 1000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
];

/// Parses a whole number and one of `units` after it, in any case, and returns the product; `None` if it is malformed or
/// exceeds 64 bits.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, scale) = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    number.parse::<u64>().ok()?.checked_mul(*scale)
}

/// Parses a duration.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    parse(text, &TIMES).map(Duration::from_secs).ok_or_else(|| {
        format!(
            "{text:?} is not a whole number with one of the units s, m, h, d and w, such as 30d"
        )
    })
}

/// Parses a number of bytes.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    // A final B says nothing more, as in GB and GiB.
    parse(text.strip_suffix(['B', 'b']).unwrap_or(text), &SIZES).ok_or_else(|| {
        format!(
            "{text:?} is not a whole number of bytes, alone or with one of the units K, M, G and T (powers of 1000) or \
             Ki, Mi, Gi and Ti (powers of 1024), such as 50G"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Random;

    #[test]
    fn durations_and_sizes_are_the_number_times_the_unit() {
        let mut random = Random::new(30);
        for _ in 0..1000 {
            let number = random.bits() >> (random.bits() % 64);
            for (unit, seconds) in [("s", 1), ("M", 60), ("h", 3600), ("d", 86_400), ("W", 604_800)]
            {
                let expected = number.checked_mul(seconds).map(Duration::from_secs);
                assert_eq!(duration(&format!("{number}{unit}")).ok(), expected);
            }
            let powers = ["", "k", "M", "g", "T"].into_iter().zip(0..);
            for (unit, power) in powers {
                for end in ["", "B"] {
                    let expected = number.checked_mul(1000u64.pow(power));
                    assert_eq!(bytes(&format!("{number}{unit}{end}")).ok(), expected);
                }
                if power > 0 {
                    let expected = number.checked_mul(1024u64.pow(power));
                    assert_eq!(bytes(&format!("{number}{unit}iB")).ok(), expected);
                }
            }
        }
    }

    #[test]
    fn other_texts_are_refused_with_the_units() {
        for text in ["", "d", "30", "-1d", "1.5d", "30 d", "30days", "1d12h", "+1d", "٣d", "1e3s"]
        {
            let refused = duration(text).unwrap_err();
            assert!(refused.starts_with(&format!("{text:?}")) && refused.contains("30d"));
        }
        for text in
            ["", "G", "B", "-1G", "1.5G", "50 G", "50P", "50GBB", "0x10", "1_000", "i", "5i"]
        {
            let refused = bytes(text).unwrap_err();
            assert!(refused.starts_with(&format!("{text:?}")) && refused.contains("50G"));
        }
    }
}
