//! The journal: records appended to a file, durable when [`Journal::append`] returns, and read back after any crash.
//!
//! Guarantee: [`Journal::open`] returns all records whose append succeeded, in order, and possibly some of the append
//! that a crash interrupted; never a part of a record. Records are never changed. A torn tail, the remains of an append
//! that a crash interrupted, is cut off by the next append. Damage, records that were durable and can't be read any more,
//! is an error: nothing is changed then.
//!
//! # Format
//!
//! Eight bytes [`MAGIC`], then records. A record is four little-endian numbers and its payload: `u32` length of the
//! payload, `u32` CRC32C (Castagnoli) of sequence and payload, `u64` sequence (1, 2, 3, ...), payload. The highest bit of
//! the sequence is set in each record of an append except the first one. A file may be longer than its records only by a
//! torn append.
//!
//! An append begins after the previous one is durable. So an unreadable place is damaged if a record that begins an append
//! follows it, and otherwise belongs to the last append, which a crash may tear in any order.

use std::path::{Path, PathBuf};

use crate::{
    error::{Error, Expected, Kind, Result},
    store::disk::{Disk, DiskFile},
};

/// First bytes of every journal: name and version of the format.
pub const MAGIC: [u8; 8] = *b"TSRJRNL1";

/// Longest payload of a record in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Bit of the sequence of a record that was appended together with the record before it.
const CONTINUES: u64 = 1 << 63;

/// An open journal. The owner of its directory must open it only once at a time.
#[derive(Debug)]
pub struct Journal {
    file: Box<dyn DiskFile>,
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
    /// Bytes of a torn append, which the next append cuts off.
    pub torn_bytes: u64,
}

impl Journal {
    /// Creates an empty journal; `path` must not exist.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub fn create(disk: &dyn Disk, path: &Path) -> Result<Self> {
        let failed = |e| Error::io("create", path, e);
        let mut file = disk.create(path).map_err(failed)?;
        file.write_at(0, &MAGIC).and_then(|()| file.sync()).map_err(failed)?;
        let len = MAGIC.len() as u64;
        Ok(Self { file, path: path.to_owned(), sequence: 0, len, torn: false })
    }

    /// Opens a journal. The file is not changed. Its records are durable when this returns: those of a process that was
    /// killed may have been in the system's memory only.
    ///
    /// # Errors
    /// [`Kind::Io`] if it can't be read; [`Kind::Damaged`] if durable
    /// records can't be read; [`Kind::InvalidArgument`] if it is no journal of this
    /// version.
    pub fn open(disk: &dyn Disk, path: &Path) -> Result<(Self, Recovered)> {
        let failed = |e| Error::io("read", path, e);
        let bytes = disk.read(path).map_err(failed)?;
        let (records, len) = scan(&bytes).ok_or_else(|| {
            let start = bytes[..bytes.len().min(MAGIC.len())].escape_ascii().to_string();
            Error::invalid("start of the journal", start, MAGIC.escape_ascii().to_string())
        })?;
        if let Some(sequence) = later_record(&bytes[len..], records.len() as u64) {
            return Err(Error::wrong(
                Kind::Damaged,
                "journal",
                format!("unreadable from byte {len}, record {}", records.len() + 1),
                format!("readable up to its record {sequence}"),
            ));
        }
        let torn_bytes = (bytes.len() - len) as u64;
        let mut file = disk.open(path).map_err(failed)?;
        file.sync().map_err(|e| Error::io("sync", path, e))?;
        let journal = Self {
            file,
            path: path.to_owned(),
            sequence: records.len() as u64,
            len: len as u64,
            torn: torn_bytes > 0,
        };
        Ok((journal, Recovered { records, torn_bytes }))
    }

    /// True after a failed append, whose bytes the next append cuts off. Opened again, the file may show its records.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// Sequence of the newest record; 0 if there is none.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Appends records, all or none of them, and syncs them to the disk; returns the sequence of the last one. A crash
    /// may leave the first of them, never a part of one.
    ///
    /// # Errors
    /// [`Kind::Io`], such as a full disk; the journal has not changed then.
    /// [`Kind::Internal`] for a payload over [`MAX_PAYLOAD`].
    pub fn append<P: AsRef<[u8]>>(&mut self, payloads: &[P]) -> Result<u64> {
        let (mut bytes, mut continues) = (Vec::new(), 0);
        for (sequence, payload) in (self.sequence + 1..).zip(payloads) {
            let payload = payload.as_ref();
            if payload.len() > MAX_PAYLOAD {
                return Err(Error::wrong(
                    Kind::Internal,
                    "record length",
                    payload.len(),
                    Expected::at_most(MAX_PAYLOAD),
                ));
            }
            encode(&mut bytes, sequence | continues, payload);
            continues = CONTINUES;
        }
        self.mend()?;
        // The tail is torn until it is synced.
        self.torn = true;
        self.file
            .write_at(self.len, &bytes)
            .and_then(|()| self.file.sync())
            .map_err(|e| Error::io("write", &self.path, e))?;
        self.torn = false;
        self.len += bytes.len() as u64;
        self.sequence += payloads.len() as u64;
        Ok(self.sequence)
    }

    /// Cuts off the bytes of a failed write.
    fn mend(&mut self) -> Result<()> {
        if self.torn {
            let cut = self.file.set_len(self.len).and_then(|()| self.file.sync());
            cut.map_err(|e| Error::io("repair", &self.path, e))?;
            self.torn = false;
        }
        Ok(())
    }
}

/// Appends a record in the format of the file; `sequence` with the bit [`CONTINUES`] if it is set.
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
        if sequence & !CONTINUES != records.len() as u64 + 1 {
            break;
        }
        records.push(payload.to_vec());
        rest = after;
    }
    Some((records, bytes.len() - rest.len()))
}

/// Sequence of a record in `rest`, the bytes of a journal after its first `count` records, that begins a later append.
fn later_record(rest: &[u8], count: u64) -> Option<u64> {
    /// Bytes of a record without its payload.
    const HEADER: usize = 16;
    // Bounds the sequences before their checksums are computed.
    let last = count + 1 + (rest.len() / HEADER) as u64;
    (1..rest.len().saturating_sub(HEADER - 1)).find_map(|at| {
        let sequence = rest[at + 8..at + HEADER].first_chunk().copied().map(u64::from_le_bytes)?;
        let later = (count + 2..=last).contains(&sequence);
        (later && first(&rest[at..]).is_some()).then_some(sequence)
    })
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
    use tempfile::TempDir;

    use super::*;
    use crate::store::DirectoryLock;

    /// A journal of two appends, the second of two records, in a directory of its own.
    fn filled() -> (TempDir, DirectoryLock, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let disk = DirectoryLock::acquire(dir.path()).unwrap();
        let path = dir.path().join("journal");
        let mut journal = Journal::create(&disk, &path).unwrap();
        journal.append(&[b"first"]).unwrap();
        journal.append(&[&b""[..], &[7; 300]]).unwrap();
        (dir, disk, path)
    }

    /// Ends of the records of [`filled`], after the start of the file.
    const ENDS: [usize; 4] = [8, 8 + 16 + 5, 8 + 16 + 5 + 16, 8 + 16 + 5 + 16 + 16 + 300];

    #[test]
    fn journal_cut_anywhere_keeps_the_complete_records_before() {
        let (_dir, disk, path) = filled();
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole.len(), ENDS[3]);
        for cut in 8..=whole.len() {
            let (records, len) = scan(&whole[..cut]).unwrap();
            let expected = ENDS.iter().rposition(|&end| end <= cut).unwrap();
            assert_eq!((records.len(), len), (expected, ENDS[expected]), "cut at {cut}");
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (_, recovered) = Journal::open(&disk, &path).unwrap();
            assert_eq!(recovered.torn_bytes as usize, cut - len);
        }
    }

    #[test]
    fn journal_with_a_flipped_bit_is_damaged_and_left_unchanged() {
        let (_dir, disk, path) = filled();
        Journal::open(&disk, &path).unwrap().0.append(&[b"last"]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for at in 8..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            let (records, _) = scan(&damaged).unwrap();
            let before = ENDS.iter().rposition(|&end| end <= at).unwrap();
            assert_eq!(records.len(), before, "bit at {at}");
            std::fs::write(&path, &damaged).unwrap();
            match Journal::open(&disk, &path) {
                Err(error) => assert_eq!(error.kind(), Kind::Damaged, "bit at {at}"),
                // The last append can't be told from a torn one.
                Ok(_) => assert!(at >= ENDS[3], "bit at {at}"),
            }
            assert_eq!(std::fs::read(&path).unwrap(), damaged, "bit at {at}");
        }
    }

    /// A crash may keep the second record of an append and lose the first one.
    #[test]
    fn append_torn_in_any_order_is_no_damage() {
        let (_dir, disk, path) = filled();
        let whole = std::fs::read(&path).unwrap();
        let mut torn = whole.clone();
        torn[ENDS[1]..ENDS[2]].fill(0);
        std::fs::write(&path, torn).unwrap();
        let (_, recovered) = Journal::open(&disk, &path).unwrap();
        assert_eq!(recovered.records, [b"first"]);
    }

    #[test]
    fn journal_cuts_off_a_torn_tail_and_appends_after_it() {
        let (_dir, disk, path) = filled();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..50]).unwrap();
        let (mut journal, recovered) = Journal::open(&disk, &path).unwrap();
        assert_eq!((recovered.records.len(), recovered.torn_bytes, journal.sequence()), (2, 5, 2));
        assert_eq!(std::fs::read(&path).unwrap().len(), 50);
        assert_eq!(journal.append(&[b"third again"]).unwrap(), 3);
        let (_, recovered) = Journal::open(&disk, &path).unwrap();
        assert_eq!(
            (recovered.records[2].as_slice(), recovered.torn_bytes),
            (&b"third again"[..], 0)
        );
    }

    #[test]
    fn journal_refuses_other_files_and_leaves_them_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let disk = DirectoryLock::acquire(dir.path()).unwrap();
        let path = dir.path().join("journal");
        std::fs::write(&path, b"something else").unwrap();
        let kind = Journal::open(&disk, &path).err().map(|e| e.kind());
        assert_eq!(kind, Some(Kind::InvalidArgument));
        assert_eq!(std::fs::read(&path).unwrap(), b"something else");
    }
}
