//! SHA-256 of files, and hexadecimal text.

use std::{fmt::Write as _, fs::File, io::Read as _, path::Path};

use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// `bytes` in lower-case hexadecimal.
///
/// ```
/// assert_eq!(tessera::store::hash::hex(&[0, 0xab]), "00ab");
/// ```
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The N bytes of a hexadecimal text in either case; None if it is anything else.
///
/// ```
/// use tessera::store::hash::from_hex;
///
/// assert_eq!(from_hex("00aB"), Some([0, 0xab]));
/// assert_eq!(from_hex::<2>("00a"), None);
/// assert_eq!(from_hex::<2>("+0ab"), None);
/// ```
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        // Two digits are less than 256.
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Some(bytes)
}

/// SHA-256 of the file at `path`, in hexadecimal.
///
/// # Errors
/// [`Kind::Io`](crate::error::Kind::Io) if it can't be read.
pub fn sha256_file(path: &Path) -> Result<String> {
    let failed = |source| Error::io("can't read", path, source);
    let (mut file, mut hash) = (File::open(path).map_err(failed)?, Sha256::new());
    let mut bytes = vec![0; 1 << 16];
    loop {
        match file.read(&mut bytes).map_err(failed)? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&bytes[..count]),
        }
    }
}
