//! The sRGB colour profile (IEC 61966-2-1).

use std::ops::Range;

use moxcms::ColorProfile;

use crate::error::{Error, Result};

/// Position of the time of making in a profile's header (ICC.1:2022, 7.2).
const TIME: Range<usize> = 24..36;

/// A display profile for sRGB, version 4 (ICC.1:2022), about 600 bytes.
///
/// # Errors
/// [`crate::error::Kind::Internal`] if the profile can't be encoded.
pub fn srgb_profile() -> Result<Vec<u8>> {
    let mut profile = ColorProfile::new_srgb()
        .encode()
        .map_err(|e| Error::internal("the sRGB profile can't be encoded").with_source(e))?;
    // The encoder writes the present time, but files with equal pixels and metadata must have equal bytes: 2026-01-01.
    let words = [2026_u16, 1, 1, 0, 0, 0].map(u16::to_be_bytes);
    profile[TIME].copy_from_slice(words.as_flattened());
    Ok(profile)
}

#[cfg(test)]
mod tests {
    use moxcms::{DataColorSpace, TransferCharacteristics};

    use super::*;

    #[test]
    fn srgb_profile_is_read_back() {
        let bytes = srgb_profile().unwrap();
        let profile = ColorProfile::new_from_slice(&bytes).unwrap();
        assert_eq!(profile.color_space, DataColorSpace::Rgb);
        let cicp = profile.cicp.unwrap();
        assert_eq!(cicp.transfer_characteristics, TransferCharacteristics::Srgb);
        assert_eq!(bytes[TIME], [7, 234, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
    }
}
