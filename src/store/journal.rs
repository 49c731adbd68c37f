//! The journal: records appended to a file, durable when [`Journal::append`] returns, and read back after any crash.
//!
//! Guarantee: [`Journal::open`] returns all records whose append succeeded, in order, and possibly some of the append
//! that a crash interrupted; never a part of a record. Records are never changed, and a torn tail is cut off when the
//! file is opened.
//!
//! # Format
//!
//! Eight bytes [`MAGIC`], then records. A record is four little-endian numbers and its payload: `u32` length of the
//! payload, `u32` CRC32C (Castagnoli) of sequence and payload, `u64` sequence (1, 2, 3, ...), payload. A file may be
//! longer than its records only by a torn one.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use crate::error::{Error, Expected, Result};

/// First bytes of every journal: name and version of the format.
pub const MAGIC: [u8; 8] = *b"TSRJRNL1";

/// Longest payload of a record in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// An open journal, positioned at its end. The owner of its directory must open it only once at a time.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    /// Sequence of the newest record; 0 if there is none.
    sequence: u64,
    /// Length of the file up to the end of the newest record.
    len: u64,
    /// True after a failed write: the bytes past `len` must be cut off before the next one.
    torn: bool,
}

/// Contents of a journal when it was opened.
#[derive(Debug)]
pub struct Recovered {
    /// Payloads of the records, the oldest first; the first has sequence 1.
    pub records: Vec<Vec<u8>>,
    /// Bytes of a torn record that were cut off.
    pub torn_bytes: u64,
}

impl Journal {
    /// Creates an empty journal; `path` must not exist.
    ///
    /// # Errors
    /// [`Kind::Io`](crate::error::Kind::Io).
    pub fn create(path: &Path) -> Result<Self> {
        let failed = |e| Error::io("create", path, e);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(failed)?;
        file.write_all(&MAGIC).and_then(|()| file.sync_data()).map_err(failed)?;
        let len = MAGIC.len() as u64;
        Ok(Self { file, path: path.to_owned(), sequence: 0, len, torn: false })
    }

    /// Opens a journal and cuts off a torn tail.
    ///
    /// # Errors
    /// [`Kind::Io`](crate::error::Kind::Io) when it can't be read or mended;
    /// [`Kind::InvalidArgument`](crate::error::Kind::InvalidArgument) when it is no journal of this version.
    pub fn open(path: &Path) -> Result<(Self, Recovered)> {
        let failed = |e| Error::io("read", path, e);
        let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let (records, len) = scan(&bytes).ok_or_else(|| {
            Error::invalid("journal", path.display(), "a journal of this version")
        })?;
        let torn_bytes = (bytes.len() - len) as u64;
        let mut journal = Self {
            file,
            path: path.to_owned(),
            sequence: records.len() as u64,
            len: len as u64,
            torn: torn_bytes > 0,
        };
        journal.mend()?;
        Ok((journal, Recovered { records, torn_bytes }))
    }

    /// Sequence of the newest record; 0 if there is none.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Appends records, all or none of them, and syncs them to the disk; returns the sequence of the last one. A crash
    /// may leave the first of them, never a part of one.
    ///
    /// # Errors
    /// [`Kind::Io`](crate::error::Kind::Io), such as a full disk; the journal has not changed then.
    /// [`Kind::Internal`](crate::error::Kind::Internal) for a payload over [`MAX_PAYLOAD`].
    pub fn append<P: AsRef<[u8]>>(&mut self, payloads: &[P]) -> Result<u64> {
        let mut bytes = Vec::new();
        for (sequence, payload) in (self.sequence + 1..).zip(payloads) {
            let payload = payload.as_ref();
            if payload.len() > MAX_PAYLOAD {
                return Err(Error::wrong(
                    crate::error::Kind::Internal,
                    "record length",
                    payload.len(),
                    Expected::at_most(MAX_PAYLOAD),
                ));
            }
            encode(&mut bytes, sequence, payload);
        }
        self.mend()?;
        // The tail is torn until it is synced.
        self.torn = true;
        self.file
            .write_all(&bytes)
            .and_then(|()| self.file.sync_data())
            .map_err(|e| Error::io("write", &self.path, e))?;
        self.torn = false;
        self.len += bytes.len() as u64;
        self.sequence += payloads.len() as u64;
        Ok(self.sequence)
    }

    /// Cuts off the bytes of a failed write and seeks to the end.
    fn mend(&mut self) -> Result<()> {
        let failed = |e| Error::io("repair", &self.path, e);
        if self.torn {
            self.file.set_len(self.len).and_then(|()| self.file.sync_data()).map_err(failed)?;
            self.torn = false;
        }
        self.file.seek(SeekFrom::Start(self.len)).map(drop).map_err(failed)
    }
}

/// Appends a record in the format of the file.
fn encode(to: &mut Vec<u8>, sequence: u64, payload: &[u8]) {
    to.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    to.extend_from_slice(&crc(sequence, payload).to_le_bytes());
    to.extend_from_slice(&sequence.to_le_bytes());
    to.extend_from_slice(payload);
}

fn crc(sequence: u64, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&sequence.to_le_bytes()), payload)
}

/// Payloads of the complete records in a journal's bytes, and the length up to their end; `None` if it is no journal.
///
/// For any bytes it neither panics nor allocates more than their length.
pub fn scan(bytes: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
    let mut rest = bytes.strip_prefix(&MAGIC)?;
    let mut records = Vec::new();
    while let Some((sequence, payload, after)) = first(rest) {
        if sequence != records.len() as u64 + 1 {
            break;
        }
        records.push(payload.to_vec());
        rest = after;
    }
    Some((records, bytes.len() - rest.len()))
}

/// Sequence, payload and remaining bytes of the record at the start of `bytes`, if it is complete.
fn first(bytes: &[u8]) -> Option<(u64, &[u8], &[u8])> {
    let (&len, rest) = bytes.split_first_chunk::<4>()?;
    let (&sum, rest) = rest.split_first_chunk::<4>()?;
    let (&sequence, rest) = rest.split_first_chunk::<8>()?;
    let (len, sequence) = (u32::from_le_bytes(len) as usize, u64::from_le_bytes(sequence));
    if len > MAX_PAYLOAD {
        return None;
    }
    let (payload, rest) = rest.split_at_checked(len)?;
    (crc(sequence, payload) == u32::from_le_bytes(sum)).then_some((sequence, payload, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(dir: &Path) -> Result<PathBuf> {
        let path = dir.join("journal");
        let mut journal = Journal::create(&path)?;
        journal.append(&[b"first"])?;
        journal.append(&[&b""[..], &[7; 300]])?;
        Ok(path)
    }

    #[test]
    fn journal_cut_anywhere_keeps_the_complete_records_before() -> Result<()> {
        let dir = tempfile::tempdir().map_err(|e| Error::io("temp", "", e))?;
        let path = filled(dir.path())?;
        let whole = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let ends = [8, 8 + 16 + 5, 8 + 16 + 5 + 16, 8 + 16 + 5 + 16 + 16 + 300];
        assert_eq!(whole.len(), ends[3]);
        for cut in 8..=whole.len() {
            let (records, len) = scan(&whole[..cut]).unwrap_or_default();
            let expected = ends.iter().rposition(|&end| end <= cut).unwrap_or(0);
            assert_eq!((records.len(), len), (expected, ends[expected]), "cut at {cut}");
        }
        Ok(())
    }

    #[test]
    fn journal_ends_before_a_record_with_a_flipped_bit() -> Result<()> {
        let dir = tempfile::tempdir().map_err(|e| Error::io("temp", "", e))?;
        let path = filled(dir.path())?;
        let whole = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        for at in 8..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            let (records, _) = scan(&damaged).unwrap_or_default();
            let expected = if at < 29 { 0 } else { 1 + usize::from(at >= 45) };
            assert_eq!(records.len(), expected, "bit at {at}");
        }
        Ok(())
    }

    #[test]
    fn journal_cuts_off_a_torn_tail_and_appends_after_it() -> Result<()> {
        let dir = tempfile::tempdir().map_err(|e| Error::io("temp", "", e))?;
        let path = filled(dir.path())?;
        let file = OpenOptions::new().write(true).open(&path).map_err(|e| Error::io("", "", e))?;
        file.set_len(50).map_err(|e| Error::io("", "", e))?;
        let (mut journal, recovered) = Journal::open(&path)?;
        assert_eq!((recovered.records.len(), recovered.torn_bytes, journal.sequence()), (2, 5, 2));
        assert_eq!(journal.append(&[b"third again"])?, 3);
        let (_, recovered) = Journal::open(&path)?;
        assert_eq!(
            (recovered.records[2].as_slice(), recovered.torn_bytes),
            (&b"third again"[..], 0)
        );
        Ok(())
    }

    #[test]
    fn journal_refuses_other_files_and_leaves_them_unchanged() -> Result<()> {
        let dir = tempfile::tempdir().map_err(|e| Error::io("temp", "", e))?;
        let path = dir.path().join("journal");
        std::fs::write(&path, b"something else").map_err(|e| Error::io("", "", e))?;
        let kind = Journal::open(&path).err().map(|e| e.kind());
        assert_eq!(kind, Some(crate::error::Kind::InvalidArgument));
        let bytes = std::fs::read(&path).map_err(|e| Error::io("", "", e))?;
        assert_eq!(bytes, b"something else");
        Ok(())
    }
}
