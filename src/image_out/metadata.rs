//! Metadata of a picture file: program, time, description, generation metadata.

use std::{
    fmt::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Map, Value};

use crate::attribution::Attribution;

/// Namespace of the receipt's properties in XMP.
const NAMESPACE: &str = "urn:tessera:receipt:1#";

/// Metadata that is written with the pixels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    /// One sentence, shown by viewers.
    pub description: String,
    /// Time of making, if the file is to have one. Files with equal pixels and equal metadata have equal bytes.
    pub created: Option<SystemTime>,
    /// Generation metadata, from which the picture can be made again: seed, hash of the model, sampler, steps, device,
    /// sizes. XMP has all of it as JSON in the property `receipt`, and every simple entry as a property.
    pub receipt: Map<String, Value>,
}

/// Entry of the receipt that holds the concept of IPTC's digital source types, such as `trainedAlgorithmicMedia`.
pub const DIGITAL_SOURCE: &str = "digital_source_type";

/// Address that the concepts of IPTC's digital source types begin with
/// (IPTC Photo Metadata Standard 2025.1, `Iptc4xmpExt:DigitalSourceType`).
const DIGITAL_SOURCES: &str = "http://cv.iptc.org/newscodes/digitalsourcetype/";

/// Entry of the receipt that holds the [`Attribution`] of an edited photograph.
const ATTRIBUTION: &str = "attribution";

impl Metadata {
    /// Adds author, rights, date and resolution of the photograph that the picture was made from.
    pub fn attribute(&mut self, attribution: &Attribution) {
        if let (false, Ok(value)) = (attribution.is_empty(), serde_json::to_value(attribution)) {
            self.receipt.insert(ATTRIBUTION.to_owned(), value);
        }
    }

    /// Author, rights, date and resolution of the photograph that the picture was made from. A receipt may come from a
    /// server, so fields that are no plain text, date or resolution are left out.
    pub fn attribution(&self) -> Attribution {
        let value = self.receipt.get(ATTRIBUTION).cloned().unwrap_or_default();
        let found: Attribution = serde_json::from_value(value).unwrap_or_default();
        Attribution {
            artist: found.artist.and_then(|text| Attribution::text(&text)),
            copyright: found.copyright.and_then(|text| Attribution::text(&text)),
            taken: found.taken.and_then(|text| Attribution::date(&text)),
            resolution: found.resolution.and_then(|r| Attribution::pixels_per_inch(r, 1.0)),
        }
    }

    /// Name and version of this program.
    pub fn software() -> &'static str {
        concat!("Tessera ", env!("CARGO_PKG_VERSION"))
    }

    /// The description in ASCII for the text fields of TIFF and PNG: other characters become question marks. XMP has it
    /// unchanged.
    pub(super) fn ascii_description(&self) -> String {
        ascii(&self.description)
    }

    /// The time in UTC as TIFF writes it: `YYYY:MM:DD HH:MM:SS`.
    pub(super) fn tiff_time(&self) -> Option<String> {
        let (year, month, day, [hour, minute, second]) = self.utc()?;
        Some(format!("{year:04}:{month:02}:{day:02} {hour:02}:{minute:02}:{second:02}"))
    }

    /// The time in UTC by RFC 3339.
    pub(super) fn rfc3339_time(&self) -> Option<String> {
        let (year, month, day, [hour, minute, second]) = self.utc()?;
        Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"))
    }

    /// The XMP packet (ISO 16684-1), UTF-8.
    pub(super) fn xmp(&self) -> String {
        let mut properties = String::new();
        for (key, value) in &self.receipt {
            let simple = match value {
                Value::String(text) => text.clone(),
                Value::Number(_) | Value::Bool(_) => value.to_string(),
                Value::Null | Value::Array(_) | Value::Object(_) => continue,
            };
            let is_name = key.starts_with(|c: char| c.is_ascii_alphabetic())
                && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if is_name && key != "receipt" {
                property(&mut properties, &format!("t:{key}"), &simple);
            }
        }
        let mut created = String::new();
        if let Some(time) = self.rfc3339_time() {
            property(&mut created, "xmp:CreateDate", &time);
        }
        let concept = self.receipt.get(DIGITAL_SOURCE).and_then(Value::as_str);
        if let Some(concept) = concept.filter(|name| name.chars().all(|c| c.is_ascii_alphabetic()))
        {
            let address = format!("{DIGITAL_SOURCES}{concept}");
            property(&mut properties, "Iptc4xmpExt:DigitalSourceType", &address);
        }
        let Attribution { artist, copyright, taken, .. } = self.attribution();
        if let Some(artist) = artist {
            let item = format!("<rdf:Seq><rdf:li>{}</rdf:li></rdf:Seq>", escaped(&artist));
            let _ = writeln!(properties, "<dc:creator>{item}</dc:creator>");
        }
        if let Some(rights) = copyright {
            let item = format!("<rdf:li xml:lang=\"x-default\">{}</rdf:li>", escaped(&rights));
            let _ = writeln!(properties, "<dc:rights><rdf:Alt>{item}</rdf:Alt></dc:rights>");
        }
        if let Some(taken) = taken {
            let iso = format!("{}T{}", taken[..10].replace(':', "-"), &taken[11..]);
            property(&mut properties, "exif:DateTimeOriginal", &iso);
        }
        property(&mut properties, "t:receipt", &Value::Object(self.receipt.clone()).to_string());
        format!(
            "<?xpacket begin=\"\u{FEFF}\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>\n\
             <x:xmpmeta xmlns:x=\"adobe:ns:meta/\">\n\
             <rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">\n\
             <rdf:Description rdf:about=\"\" xmlns:xmp=\"http://ns.adobe.com/xap/1.0/\" \
             xmlns:dc=\"http://purl.org/dc/elements/1.1/\" \
             xmlns:Iptc4xmpExt=\"http://iptc.org/std/Iptc4xmpExt/2008-02-29/\" \
             xmlns:exif=\"http://ns.adobe.com/exif/1.0/\" xmlns:t=\"{NAMESPACE}\">\n\
             <xmp:CreatorTool>{}</xmp:CreatorTool>\n\
             {created}\
             <dc:description><rdf:Alt><rdf:li xml:lang=\"x-default\">{}</rdf:li></rdf:Alt>\
             </dc:description>\n\
             {properties}\
             </rdf:Description>\n</rdf:RDF>\n</x:xmpmeta>\n<?xpacket end=\"r\"?>",
            escaped(Self::software()),
            escaped(&self.description),
        )
    }

    /// Year, month, day and [hour, minute, second] in UTC. A time before 1970 becomes 1970.
    fn utc(&self) -> Option<(u64, u64, u64, [u64; 3])> {
        let seconds = self.created?.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (days, of_day) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = civil_date(days);
        Some((year, month, day, [of_day / 3600, of_day / 60 % 60, of_day % 60]))
    }
}

/// `text` in ASCII: each other character becomes a question mark.
pub(super) fn ascii(text: &str) -> String {
    let plain = |c: char| if matches!(c, ' '..='~' | '\n') { c } else { '?' };
    text.chars().map(plain).collect()
}

/// Adds one XMP property of simple text.
fn property(to: &mut String, name: &str, text: &str) {
    // Writing to a String can't fail.
    let _ = writeln!(to, "<{name}>{}</{name}>", escaped(text));
}

/// `text` escaped as XML character data; characters that XML 1.0 does not allow become U+FFFD.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\r' => out.push_str("&#13;"),
            '\t' | '\n' => out.push(c),
            '\0'..='\u{1F}' | '\u{FFFE}' | '\u{FFFF}' => out.push('\u{FFFD}'),
            _ => out.push(c),
        }
    }
    out
}

/// Year, month and day of the Gregorian calendar, `days` after 1970-01-01. Years are counted from
/// March, so that the leap day is a year's last.
fn civil_date(days: u64) -> (u64, u64, u64) {
    const DAYS_IN_400_YEARS: u64 = 146_097;
    let days = days + 719_468; // since 0000-03-01
    let (era, day) = (days / DAYS_IN_400_YEARS, days % DAYS_IN_400_YEARS);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153; // 0 is March
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = (400 * era + year + month / 10, (month + 2) % 12 + 1);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn metadata(seconds: u64) -> Metadata {
        Metadata {
            description: "a <b> & c\u{0} Å".to_owned(),
            created: Some(UNIX_EPOCH + Duration::from_secs(seconds)),
            receipt: Map::from_iter([("seed".to_owned(), 7.into())]),
        }
    }

    #[test]
    fn metadata_times_follow_the_gregorian_calendar() {
        for (seconds, expected) in [
            (0, "1970:01:01 00:00:00"),
            (951_782_399, "2000:02:28 23:59:59"),
            (951_782_400, "2000:02:29 00:00:00"),
            (951_868_800, "2000:03:01 00:00:00"),
            (1_735_689_599, "2024:12:31 23:59:59"),
            (4_107_542_400, "2100:03:01 00:00:00"),
        ] {
            assert_eq!(metadata(seconds).tiff_time().as_deref(), Some(expected));
        }
        assert_eq!(metadata(86_399).rfc3339_time().as_deref(), Some("1970-01-01T23:59:59Z"));
    }

    #[test]
    fn metadata_text_is_escaped() {
        let metadata = metadata(0);
        assert_eq!(metadata.ascii_description(), "a <b> & c? ?");
        let xmp = metadata.xmp();
        assert!(xmp.contains("a &lt;b&gt; &amp; c\u{FFFD} Å"), "{xmp}");
        assert!(xmp.contains("<t:seed>7</t:seed>"), "{xmp}");
        assert!(xmp.contains("<t:receipt>{\"seed\":7}</t:receipt>"), "{xmp}");
    }

    /// Programs that look for generated pictures find IPTC's term; a receipt of a server can't put another text there.
    #[test]
    fn digital_source_is_an_address_of_iptc() {
        let mut metadata = metadata(0);
        assert!(!metadata.xmp().contains("DigitalSourceType"));
        metadata.receipt.insert(DIGITAL_SOURCE.to_owned(), "trainedAlgorithmicMedia".into());
        let wanted = "<Iptc4xmpExt:DigitalSourceType>\
            http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia</";
        assert!(metadata.xmp().contains(wanted), "{}", metadata.xmp());
        metadata.receipt.insert(DIGITAL_SOURCE.to_owned(), "../x<y>".into());
        assert!(!metadata.xmp().contains("DigitalSourceType"));
    }

    #[test]
    fn an_attribution_is_kept_in_the_receipt_and_checked_when_it_is_read() {
        let mut metadata = metadata(0);
        assert!(metadata.attribution().is_empty());
        let attribution = Attribution {
            artist: Some("A & B".to_owned()),
            copyright: Some("(c) B".to_owned()),
            taken: Some("2024:02:29 12:34:56".to_owned()),
            resolution: Some([300.0, 150.0]),
        };
        metadata.attribute(&attribution);
        assert_eq!(metadata.attribution(), attribution);
        let xmp = metadata.xmp();
        for part in [
            "<dc:creator><rdf:Seq><rdf:li>A &amp; B</rdf:li></rdf:Seq></dc:creator>",
            "<rdf:li xml:lang=\"x-default\">(c) B</rdf:li></rdf:Alt></dc:rights>",
            "<exif:DateTimeOriginal>2024-02-29T12:34:56</exif:DateTimeOriginal>",
        ] {
            assert!(xmp.contains(part), "{xmp}");
        }
        let hostile =
            serde_json::json!({ "artist": "\u{1b}[31m", "taken": "now", "resolution": [1e9, 0] });
        metadata.receipt.insert(ATTRIBUTION.to_owned(), hostile);
        assert!(metadata.attribution().is_empty());
    }
}
