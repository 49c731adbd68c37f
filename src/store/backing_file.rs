//! The backing file of one picture, mapped into memory.
#![allow(unsafe_code, reason = "mapping a file is unsafe; the file here is private to the process")]

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    path::Path,
};

use bytemuck::NoUninit;
use memmap2::MmapMut;

use crate::{
    error::{Error, Kind, Result},
    store::DirectoryLock,
};

/// A preallocated, memory-mapped file.
///
/// Every block of the file is allocated when it is created, so that a full disk is an error then and never a signal
/// later. Its bytes are zeros and page-aligned in memory.
///
/// A nameless one ([`BackingFile::create`]) is deleted with the value, even when the process is killed, and no other
/// process can open it. A named one ([`BackingFile::create_named`]) persists and can be opened again; it must be in a
/// directory that this process holds by a [`DirectoryLock`](crate::store::DirectoryLock).
///
/// ```
/// use tessera::store::BackingFile;
///
/// let mut file = BackingFile::create(&std::env::temp_dir(), 16)?;
/// file.bytes_mut()[3] = 7;
/// assert_eq!(file.bytes()[..5], [0, 0, 0, 7, 0]);
/// # Ok::<(), tessera::error::Error>(())
/// ```
#[derive(Debug)]
pub struct BackingFile {
    map: MmapMut,
}

/// Rows of bytes at equal distances in a file: a rectangle of samples. All lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowSpan {
    /// Offset of the first row's first byte.
    pub offset: usize,
    /// Distance between the starts of two rows.
    pub stride: usize,
    /// Length of a row.
    pub row_len: usize,
    /// Number of rows.
    pub rows: usize,
}

impl BackingFile {
    /// Creates a nameless backing file of `len` bytes in `directory`, which should be on a disk: on a tmpfs it takes
    /// memory.
    ///
    /// # Errors
    ///
    /// [`Kind::Io`](crate::error::Kind::Io) if the directory is missing or not writable, or the
    /// disk has no room for `len` bytes; [`Kind::InvalidArgument`](crate::error::Kind) if `len` is
    /// 0 or more than can be mapped.
    pub fn create(directory: &Path, len: u64) -> Result<Self> {
        check_len(len)?;
        let failed = |action: String| move |source| Error::io(action, directory, source);
        let file = tempfile::tempfile_in(directory)
            .map_err(failed("create a working file in".to_owned()))?;
        allocate(&file, len)
            .map_err(failed(format!("allocate {len} bytes of working space in")))?;
        // SAFETY: the file has no name and its only descriptor dies at the end of this function,
        // so nothing can shorten or change it while it is mapped; its blocks are allocated, so
        // that a write can't fail for want of space.
        let map = unsafe { MmapMut::map_mut(&file) }
            .map_err(failed(format!("map {len} bytes of working space in")))?;
        Ok(Self { map })
    }

    /// Creates a persistent backing file of `len` bytes as the file `path`, which must not exist.
    ///
    /// # Errors
    ///
    /// Those of [`BackingFile::create`]; a file that could not be allocated is removed.
    pub fn create_named(path: &Path, len: u64, _lock: &DirectoryLock) -> Result<Self> {
        check_len(len)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(|e| Error::io("create", path, e))?;
        let made = allocate(&file, len).and_then(|()| file.sync_all());
        made.and_then(|()| map_owned(&file)).map(|map| Self { map }).map_err(|e| {
            // A partial file would block the next attempt.
            let _ = std::fs::remove_file(path);
            Error::io(format!("allocate {len} bytes for"), path, e)
        })
    }

    /// Opens a backing file of `len` bytes made by [`BackingFile::create_named`].
    ///
    /// # Errors
    ///
    /// [`Kind::Io`](crate::error::Kind::Io) if it can't be opened, or has another length: then it was
    /// damaged, and is not mapped.
    pub fn open_named(path: &Path, len: u64, _lock: &DirectoryLock) -> Result<Self> {
        check_len(len)?;
        let failed = |e| Error::io("open", path, e);
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?.len();
        if found != len {
            let field = format!("length of {}", path.display());
            return Err(Error::wrong(Kind::Io, field, found, format!("{len} bytes")));
        }
        // Writing to a hole on a full disk would be a signal; allocating again is free without holes.
        allocate_holes(&file, len).map_err(failed)?;
        map_owned(&file).map(|map| Self { map }).map_err(failed)
    }

    /// Syncs the bytes of `range` to the disk.
    ///
    /// # Errors
    ///
    /// [`Kind::Io`](crate::error::Kind::Io) when the disk fails.
    pub fn sync(&self, range: Range<usize>) -> Result<()> {
        self.map
            .flush_range(range.start, range.len())
            .map_err(|e| Error::io("sync", "the backing file", e))
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// All bytes, mutable.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }

    /// Writes samples by [`write_rows`].
    ///
    /// # Errors
    ///
    /// Those of [`write_rows`].
    pub fn write_rows<T: NoUninit>(&mut self, rect: RowSpan, samples: &[T]) -> Result<()> {
        write_rows(&mut self.map, rect, samples)
    }
}

/// Writes `samples`, rows without gaps, to `rect` of a backing file's bytes: bytes for 8 bits per sample, `u16` in the
/// machine's byte order for 16.
///
/// # Errors
///
/// [`Kind::Internal`](crate::error::Kind::Internal) if the samples don't fill the rectangle exactly or the rectangle
/// leaves the file.
pub fn write_rows<T: NoUninit>(file: &mut [u8], rect: RowSpan, samples: &[T]) -> Result<()> {
    let bytes: &[u8] = bytemuck::cast_slice(samples);
    let RowSpan { offset, stride, row_len, rows } = rect;
    let end = rows
        .checked_sub(1)
        .and_then(|before| before.checked_mul(stride))
        .and_then(|n| n.checked_add(offset)?.checked_add(row_len));
    let fits = end.is_some_and(|end| end <= file.len());
    if !fits || row_len == 0 || row_len > stride || rows.checked_mul(row_len) != Some(bytes.len()) {
        return Err(Error::wrong(
            Kind::Internal,
            "backing file write",
            format!("{} bytes to {rect:?}", bytes.len()),
            format!("a rectangle of as many bytes within {}", file.len()),
        ));
    }
    let target = file[offset..].chunks_mut(stride);
    for (to, from) in target.zip(bytes.chunks_exact(row_len)) {
        to[..row_len].copy_from_slice(from);
    }
    Ok(())
}

/// Reads `rect` of a named backing file, rows without gaps, while another thread may write other parts of it.
///
/// The file is read, not mapped, so that a shortened file is an error.
///
/// # Errors
///
/// [`Kind::Io`](crate::error::Kind::Io) if it can't be opened or ends before the rectangle.
pub fn read_rows(path: &Path, rect: RowSpan) -> Result<Vec<u8>> {
    let failed = |e| Error::io("read", path, e);
    let mut file = File::open(path).map_err(failed)?;
    let mut bytes = vec![0; rect.row_len * rect.rows];
    for (row, to) in bytes.chunks_exact_mut(rect.row_len.max(1)).enumerate() {
        file.seek(SeekFrom::Start((rect.offset + row * rect.stride) as u64)).map_err(failed)?;
        file.read_exact(to).map_err(failed)?;
    }
    Ok(bytes)
}

/// Checks that `len` can be mapped.
fn check_len(len: u64) -> Result<()> {
    let mappable = usize::try_from(len).is_ok_and(|n| n <= isize::MAX as usize);
    if len == 0 || !mappable {
        let expected = format!("from 1 to {} bytes", isize::MAX);
        return Err(Error::invalid("backing file length", len, expected));
    }
    Ok(())
}

/// Maps a named file that this process alone uses.
fn map_owned(file: &File) -> io::Result<MmapMut> {
    // SAFETY: the callers hold the lock of the file's directory, so no other process of this program touches the file
    // while it is mapped; within the process it is mapped once, by the one owner of its job. Its blocks are allocated.
    unsafe { MmapMut::map_mut(file) }
}

/// Allocates the holes of `file`, which has `len` bytes.
fn allocate_holes(file: &File, len: u64) -> io::Result<()> {
    // Without support for this the file was written in full when it was created.
    reserve(file, len).map(drop)
}

/// Extends the empty `file` to `len` zeros with every block allocated.
fn allocate(file: &File, len: u64) -> io::Result<()> {
    if reserve(file, len)? {
        return Ok(());
    }
    match io::copy(&mut io::Read::take(io::repeat(0), len), &mut &*file)? {
        written if written == len => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Allocates the blocks of `file` by `fallocate`; false if the file system does not support it.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn reserve(file: &File, len: u64) -> io::Result<bool> {
    use rustix::{fs, io::Errno};
    loop {
        match fs::fallocate(file, fs::FallocateFlags::empty(), 0, len) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn reserve(_: &File, _: u64) -> io::Result<bool> {
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn backing_file_writes_only_the_given_rows() -> Result<()> {
        let mut file = BackingFile::create(&std::env::temp_dir(), 40)?;
        file.write_rows(RowSpan { offset: 12, stride: 10, row_len: 4, rows: 3 }, &[7_u16; 6])?;
        for (i, &byte) in file.bytes().iter().enumerate() {
            let inside = i >= 10 && (2..6).contains(&(i % 10));
            let expected = u16::to_ne_bytes(7)[i % 2];
            assert_eq!(byte, if inside { expected } else { 0 }, "byte {i}");
        }
        Ok(())
    }

    #[test]
    fn backing_file_refuses_rows_outside_and_missing_samples() -> Result<()> {
        let mut file = BackingFile::create(&std::env::temp_dir(), 40)?;
        let rect = RowSpan { offset: 12, stride: 10, row_len: 8, rows: 3 };
        file.write_rows(rect, &[1_u8; 24])?;
        for (rect, len) in [
            (RowSpan { offset: 13, ..rect }, 24),
            (RowSpan { offset: usize::MAX, ..rect }, 24),
            (RowSpan { stride: usize::MAX, ..rect }, 24),
            (RowSpan { stride: 7, ..rect }, 24),
            (RowSpan { rows: 0, ..rect }, 0),
            (rect, 23),
        ] {
            let error = file.write_rows(rect, &vec![1_u8; len]).err().map(|e| e.kind());
            assert_eq!(error, Some(Kind::Internal), "{rect:?}");
        }
        Ok(())
    }

    #[test]
    fn backing_file_refuses_unmappable_lengths_and_missing_directories() {
        let kind = |path: &Path, len| BackingFile::create(path, len).err().map(|e| e.kind());
        assert_eq!(kind(&std::env::temp_dir(), 0), Some(Kind::InvalidArgument));
        assert_eq!(kind(&std::env::temp_dir(), u64::MAX), Some(Kind::InvalidArgument));
        assert_eq!(kind(Path::new("/nonexistent/directory"), 1), Some(Kind::Io));
    }

    #[test]
    fn nameless_backing_file_is_not_in_its_directory() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let file = BackingFile::create(directory.path(), 1 << 16).map_err(io::Error::other)?;
        if cfg!(unix) {
            assert_eq!(std::fs::read_dir(directory.path())?.count(), 0);
        }
        drop(file);
        assert_eq!(std::fs::read_dir(directory.path())?.count(), 0);
        Ok(())
    }
}
