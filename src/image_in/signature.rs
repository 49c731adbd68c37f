//! The format of a file by its first bytes.

use super::{EXPECTED, refused};
use crate::error::Result;

/// First bytes of a file that are looked at.
pub(super) const LEN: u64 = 32;

/// A format that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Jpeg,
    Png,
    /// Classic TIFF and BigTIFF.
    Tiff,
    WebP,
}

/// Formats that are known and not read: first bytes, from which byte on, name.
const FOREIGN: [(&[u8], usize, &str); 17] = [
    (b"GIF8", 0, "a GIF"),
    (b"BM", 0, "a BMP"),
    (b"ftypavif", 4, "an AVIF"),
    (b"ftypavis", 4, "an AVIF"),
    (b"ftypheic", 4, "a HEIC"),
    (b"ftypheix", 4, "a HEIC"),
    (b"ftypmif1", 4, "a HEIF"),
    (b"ftypcrx ", 4, "a raw camera file"),
    (b"FUJIFILMCCD-RAW", 0, "a raw camera file"),
    (b"\xFF\x0A", 0, "a JPEG XL"),
    (b"\0\0\0\x0CJXL ", 0, "a JPEG XL"),
    (b"\0\0\0\x0CjP  ", 0, "a JPEG 2000"),
    (b"\xFF\x4F\xFF\x51", 0, "a JPEG 2000"),
    (b"8BPS", 0, "a Photoshop"),
    (b"%PDF", 0, "a PDF"),
    (b"<svg", 0, "an SVG"),
    (b"gimp xcf", 0, "a GIMP"),
];

impl Format {
    /// The format of a file that begins with `start`.
    pub(super) fn of(start: &[u8]) -> Result<Self> {
        let has = |bytes: &[u8], at: usize| start.get(at..).is_some_and(|s| s.starts_with(bytes));
        if has(b"\xFF\xD8\xFF", 0) {
            return Ok(Self::Jpeg);
        }
        if has(b"\x89PNG\r\n\x1A\n", 0) {
            return Ok(Self::Png);
        }
        if [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"].iter().any(|tiff| has(&tiff[..], 0)) {
            return Ok(Self::Tiff);
        }
        if has(b"RIFF", 0) && has(b"WEBP", 8) {
            return Ok(Self::WebP);
        }
        let foreign = FOREIGN.iter().find(|(bytes, at, _)| has(bytes, *at));
        Err(refused(foreign.map_or("of another format", |(_, _, name)| name), EXPECTED))
    }
}
