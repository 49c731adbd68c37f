//! The sRGB colour profile, built from its definition (IEC 61966-2-1).

/// Tristimulus values of D50, the white of profiles, in s15Fixed16 (ICC.1:2001-04, 6.1.4).
const D50: [u32; 3] = [0xF6D6, 0x1_0000, 0xD32D];

/// X, Y, Z of the red, green and blue primaries of sRGB, adapted from D65 to D50 by the linear
/// Bradford transform, in s15Fixed16 and rounded so that the three add up to D50.
const PRIMARIES: [[u32; 3]; 3] =
    [[0x6FA0, 0x38F5, 0x0390], [0x6297, 0xB787, 0x18D9], [0x249F, 0x0F84, 0xB6C4]];

/// Points of the tone curve.
const CURVE: u32 = 1024;

/// A display profile for sRGB, version 2.1 (ICC.1:2001-04), which every reader knows: three
/// primaries and one tone curve of 1024 points, about 2.5 KB.
pub fn srgb_profile() -> Vec<u8> {
    let white = xyz(D50);
    let [red, green, blue] = PRIMARIES.map(xyz);
    let (description, copyright, curve) = (description(), copyright(), curve());
    let tags: [(&[u8; 4], &[u8]); 9] = [
        (b"desc", &description),
        (b"cprt", &copyright),
        (b"wtpt", &white),
        (b"rXYZ", &red),
        (b"gXYZ", &green),
        (b"bXYZ", &blue),
        (b"rTRC", &curve),
        (b"gTRC", &curve),
        (b"bTRC", &curve),
    ];
    let mut table = be(tags.len() as u32).to_vec();
    let mut data: Vec<u8> = Vec::new();
    let start = 128 + 4 + 12 * tags.len();
    let mut previous: Option<(&[u8], u32)> = None;
    for (signature, content) in tags {
        // The three tone curves are one.
        let offset = match previous {
            Some((same, offset)) if same == content => offset,
            _ => {
                let offset = (start + data.len()) as u32;
                data.extend_from_slice(content);
                data.resize(data.len().next_multiple_of(4), 0);
                offset
            }
        };
        previous = Some((content, offset));
        table.extend_from_slice(signature);
        table.extend_from_slice(&be(offset));
        table.extend_from_slice(&be(content.len() as u32));
    }
    let mut profile = header((start + data.len()) as u32);
    profile.extend_from_slice(&table);
    profile.extend_from_slice(&data);
    profile
}

/// The header of a profile of `size` bytes (section 6.1).
fn header(size: u32) -> Vec<u8> {
    let mut header = be(size).to_vec();
    header.extend_from_slice(&[0; 4]); // no preferred colour management module
    header.extend_from_slice(&be(0x0210_0000)); // version 2.1
    header.extend_from_slice(b"mntrRGB XYZ ");
    for date in [2026_u16, 1, 1, 0, 0, 0] {
        header.extend_from_slice(&date.to_be_bytes());
    }
    header.extend_from_slice(b"acsp");
    header.resize(68, 0); // no platform, device or rendering intent (0: perceptual)
    for value in D50 {
        header.extend_from_slice(&be(value));
    }
    header.resize(128, 0);
    header
}

fn be(value: u32) -> [u8; 4] {
    value.to_be_bytes()
}

/// XYZType (section 6.5.26).
fn xyz(values: [u32; 3]) -> Vec<u8> {
    let mut tag = b"XYZ \0\0\0\0".to_vec();
    values.iter().for_each(|&value| tag.extend_from_slice(&be(value)));
    tag
}

/// textDescriptionType (section 6.5.17): the ASCII name, and neither Unicode nor Macintosh one.
fn description() -> Vec<u8> {
    let name = b"sRGB\0";
    let mut tag = b"desc\0\0\0\0".to_vec();
    tag.extend_from_slice(&be(name.len() as u32));
    tag.extend_from_slice(name);
    tag.resize(tag.len() + 4 + 4 + 2 + 1 + 67, 0);
    tag
}

/// textType (section 6.5.18).
fn copyright() -> Vec<u8> {
    b"text\0\0\0\0No copyright, use freely\0".to_vec()
}

/// curveType (section 6.5.3): sRGB's decoding function at equal distances.
fn curve() -> Vec<u8> {
    let mut tag = b"curv\0\0\0\0".to_vec();
    tag.extend_from_slice(&be(CURVE));
    for i in 0..CURVE {
        let encoded = f64::from(i) / f64::from(CURVE - 1);
        let linear = if encoded <= 0.040_45 {
            encoded / 12.92
        } else {
            libm::pow((encoded + 0.055) / 1.055, 2.4)
        };
        tag.extend_from_slice(&((linear * 65_535.0).round() as u16).to_be_bytes());
    }
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_lie_in_the_profile_and_the_primaries_make_white() {
        let profile = srgb_profile();
        let word = |at: usize| {
            u32::from_be_bytes([profile[at], profile[at + 1], profile[at + 2], profile[at + 3]])
        };
        assert_eq!(word(0) as usize, profile.len());
        assert_eq!(&profile[36..40], b"acsp");
        let mut white = [0; 3];
        for i in 0..word(128) as usize {
            let entry = 132 + 12 * i;
            let (offset, len) = (word(entry + 4) as usize, word(entry + 8) as usize);
            assert!(offset % 4 == 0 && offset + len <= profile.len());
            if profile[entry + 1..entry + 4] == *b"XYZ" {
                (0..3).for_each(|k| white[k] += word(offset + 8 + 4 * k));
            }
        }
        assert_eq!(white, D50);
    }
}
