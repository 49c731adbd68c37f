//! Orientation and attribution in an Exif block, as JPEG, PNG and WebP hold one.

use exif::{In, Rational, Tag, Value};
use image::metadata::Orientation;

use crate::attribution::Attribution;

/// Largest block that is looked at, in bytes.
const MAX_BLOCK: usize = 4 << 20;

/// Inches per unit of resolution, by Exif's ResolutionUnit.
pub(super) fn unit(code: u32) -> Option<f64> {
    match code {
        2 => Some(1.0),
        3 => Some(1.0 / 2.54),
        _ => None,
    }
}

/// Orientation and attribution in `block`, a TIFF structure. A damaged block says nothing.
pub(super) fn parse(block: &[u8]) -> (Orientation, Attribution) {
    let nothing = (Orientation::NoTransforms, Attribution::default());
    let block = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
    if block.len() > MAX_BLOCK {
        return nothing;
    }
    let mut reader = exif::Reader::new();
    let read = reader.continue_on_error(true).read_raw(block.to_vec());
    let read = read.or_else(|error| error.distill_partial_result(|_| {}));
    let Ok(fields) = read else { return nothing };
    let value = |tag| fields.get_field(tag, In::PRIMARY).map(|field| &field.value);
    let text = |tag| match value(tag)? {
        Value::Ascii(texts) => {
            let texts: Vec<_> = texts.iter().map(|text| String::from_utf8_lossy(text)).collect();
            Attribution::text(&texts.join("\n"))
        }
        _ => None,
    };
    let ratio = |tag| match value(tag)? {
        Value::Rational(ratios) => ratios.first().map(Rational::to_f64),
        _ => None,
    };
    let code = |tag| value(tag).and_then(|value| value.get_uint(0));
    let resolution = || {
        let unit = unit(code(Tag::ResolutionUnit).unwrap_or(2))?;
        Attribution::pixels_per_inch([ratio(Tag::XResolution)?, ratio(Tag::YResolution)?], unit)
    };
    let date = |tag| text(tag).and_then(|text| Attribution::date(&text));
    let orientation =
        code(Tag::Orientation).and_then(|code| Orientation::from_exif(u8::try_from(code).ok()?));
    let attribution = Attribution {
        artist: text(Tag::Artist),
        copyright: text(Tag::Copyright),
        taken: date(Tag::DateTimeOriginal).or_else(|| date(Tag::DateTime)),
        resolution: resolution(),
    };
    (orientation.unwrap_or(Orientation::NoTransforms), attribution)
}
