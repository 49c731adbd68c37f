//! Numbers for people.

use std::time::Duration;

/// `value` with three significant digits and a decimal prefix: 1.23 G.
pub(super) fn scaled(value: f64) -> String {
    let prefixes = ["", " k", " M", " G", " T", " P"];
    let mut value = value;
    let mut at = 0;
    while value >= 999.5 && at + 1 < prefixes.len() {
        value /= 1000.0;
        at += 1;
    }
    let digits = match value {
        _ if at == 0 && value.fract() == 0.0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{}", prefixes[at])
}

/// Bytes: `4.19 MB`.
pub(super) fn bytes(count: u64) -> String {
    let number = scaled(count as f64);
    if number.contains(' ') { format!("{number}B") } else { format!("{number} B") }
}

/// Floating-point operations: `48.1 GFLOP`.
pub(super) fn flops(count: u64) -> String {
    let number = scaled(count as f64);
    if number.contains(' ') { format!("{number}FLOP") } else { format!("{number} FLOP") }
}

/// A time: `0.8 s`, `21.3 s`, `3 min 12 s`.
pub(super) fn seconds(time: Duration) -> String {
    let s = time.as_secs_f64();
    if s < 99.95 {
        format!("{s:.1} s")
    } else {
        format!("{} min {} s", time.as_secs() / 60, time.as_secs() % 60)
    }
}

/// An age: `12 s`, `3 min`, `5 h`, `2 d`.
#[cfg(feature = "service")]
pub(super) fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

/// "job" or "jobs", as `count` asks for.
#[cfg(feature = "service")]
pub(super) fn jobs(count: usize) -> &'static str {
    if count == 1 { "job" } else { "jobs" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_prefix() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1000), "1.00 kB");
        assert_eq!(bytes(4_194_304), "4.19 MB");
        assert_eq!(flops(999_900_000), "1.00 GFLOP");
        assert_eq!(flops(48_060_000_000), "48.1 GFLOP");
    }

    #[test]
    fn durations_of_minutes_show_minutes() {
        assert_eq!(seconds(Duration::from_millis(21_340)), "21.3 s");
        assert_eq!(seconds(Duration::from_secs(192)), "3 min 12 s");
    }
}
