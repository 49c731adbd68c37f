//! Author, rights, date and resolution of a photograph, read from its file and kept in edited copies.

use serde::{Deserialize, Serialize};

/// Author, rights, date and resolution of a photograph.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attribution {
    /// Name of the author (Exif and TIFF: Artist; PNG: Author).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artist: Option<String>,
    /// Copyright notice (Exif, TIFF and PNG: Copyright).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copyright: Option<String>,
    /// Date of the exposure, local time, as Exif 2.32 writes it: `YYYY:MM:DD HH:MM:SS` (Exif: DateTimeOriginal; TIFF:
    /// DateTime).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken: Option<String>,
    /// Pixels per inch, horizontally and vertically, after the orientation was applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolution: Option<[f64; 2]>,
}

/// Longest text that is kept, in bytes.
const MAX_TEXT: usize = 4096;

/// Highest resolution that is kept, in pixels per inch.
const MAX_RESOLUTION: f64 = 1e6;

impl Attribution {
    /// A text field without its padding; nothing if it is empty, too long or holds control characters.
    pub fn text(value: &str) -> Option<String> {
        let value = value.trim_matches(|c: char| c == '\0' || c.is_whitespace());
        let plain = !value.is_empty() && value.len() <= MAX_TEXT && !value.contains(is_control);
        plain.then(|| value.to_owned())
    }

    /// A date as Exif writes it; nothing if `value` is none.
    pub fn date(value: &str) -> Option<String> {
        let value = Self::text(value)?;
        let fits = value.len() == 19
            && value.bytes().enumerate().all(|(i, byte)| match i {
                4 | 7 | 13 | 16 => byte == b':',
                10 => byte == b' ',
                _ => byte.is_ascii_digit(),
            });
        (fits && !value.starts_with("0000")).then_some(value)
    }

    /// Pixels per inch from two numbers and the length of their unit in inches.
    pub fn pixels_per_inch([x, y]: [f64; 2], unit: f64) -> Option<[f64; 2]> {
        let resolution = [x / unit, y / unit];
        resolution.iter().all(|v| (1.0..=MAX_RESOLUTION).contains(v)).then_some(resolution)
    }

    /// True if no field is known.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// These fields, and those of `other` for what they lack.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            artist: self.artist.or(other.artist),
            copyright: self.copyright.or(other.copyright),
            taken: self.taken.or(other.taken),
            resolution: self.resolution.or(other.resolution),
        }
    }
}

/// Line breaks separate the names of several authors; other control characters have no place in a text.
fn is_control(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\r' | '\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_texts_dates_and_resolutions_are_kept() {
        assert_eq!(Attribution::text(" Ada \0\0").as_deref(), Some("Ada"));
        assert_eq!(Attribution::text("\x1b[31mAda"), None);
        assert_eq!(Attribution::text(&"a".repeat(MAX_TEXT + 1)), None);
        assert!(Attribution::date("2024:02:29 12:00:01").is_some());
        for not_a_date in ["2024-02-29 12:00:01", "0000:00:00 00:00:00", "    :  :     :  :  ", ""]
        {
            assert_eq!(Attribution::date(not_a_date), None, "{not_a_date}");
        }
        assert_eq!(Attribution::pixels_per_inch([254.0, 508.0], 0.5), Some([508.0, 1016.0]));
        // Per centimetre, to the rounding of two divisions.
        let [x, y] = Attribution::pixels_per_inch([100.0, 200.0], 1.0 / 2.54).unwrap();
        assert!((x - 254.0).abs() < 1e-9 && (y - 508.0).abs() < 1e-9, "{x} {y}");
        for bad in [[0.0, 72.0], [f64::NAN, 72.0], [72.0, f64::INFINITY]] {
            assert_eq!(Attribution::pixels_per_inch(bad, 1.0), None);
        }
    }
}
