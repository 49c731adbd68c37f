//! The arena: working space of one picture, as large as the disk, mapped into memory.
#![allow(unsafe_code, reason = "mapping a file is unsafe; the file here is private to the process")]

use std::{fs::File, io, path::Path};

use bytemuck::NoUninit;
use memmap2::MmapMut;

use crate::error::{Error, Result};

/// A nameless, preallocated, memory-mapped file.
///
/// Every block of the file is allocated when the arena is made, so that a full disk is an error
/// there and never a signal later. The file has no name from the start: it goes away with the
/// arena, even when the process is killed, and no other process can open it.
///
/// It begins as zeros and lies page-aligned in memory.
#[derive(Debug)]
pub struct Arena {
    map: MmapMut,
}

/// A rectangle of an arena that holds rows of samples: where it starts and how its rows follow.
/// All lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    /// Offset of the first row's first byte.
    pub offset: usize,
    /// Distance between the starts of two rows.
    pub stride: usize,
    /// Length of a row.
    pub row_len: usize,
    /// Number of rows.
    pub rows: usize,
}

impl Arena {
    /// Makes an arena of `len` bytes in `directory`.
    ///
    /// The directory should be on a disk: where it is memory (tmpfs), so is the arena.
    ///
    /// # Errors
    ///
    /// [`Kind::Io`](crate::error::Kind::Io) if the directory is missing or not writable, or the
    /// disk has no room for `len` bytes; [`Kind::InvalidArgument`](crate::error::Kind) if `len` is
    /// 0 or more than can be mapped.
    pub fn create(directory: &Path, len: u64) -> Result<Self> {
        let mappable = usize::try_from(len).is_ok_and(|n| n <= isize::MAX as usize);
        if len == 0 || !mappable {
            return Err(Error::invalid(format!(
                "arena length is {len} bytes; the limits are 1 and {}",
                isize::MAX
            )));
        }
        let failed = |action: String| move |source| Error::io(&action, directory, source);
        let file = tempfile::tempfile_in(directory)
            .map_err(failed("can't make a working file in".to_owned()))?;
        allocate(&file, len)
            .map_err(failed(format!("can't allocate {len} bytes of working space in")))?;
        // SAFETY: the file has no name and its only descriptor dies at the end of this function,
        // so nothing can shorten or change it while it is mapped; its blocks are allocated, so
        // that a write can't fail for want of space.
        let map = unsafe { MmapMut::map_mut(&file) }
            .map_err(failed(format!("can't map {len} bytes of working space in")))?;
        Ok(Self { map })
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// All bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }

    /// Writes `samples`, rows without gaps, into the rectangle `rect`: bytes for 8 bits per
    /// sample, `u16` in the machine's byte order for 16.
    ///
    /// # Errors
    ///
    /// [`Kind::Internal`](crate::error::Kind::Internal) if the samples don't fill the rectangle
    /// exactly or the rectangle leaves the arena.
    pub fn write_rect<T: NoUninit>(&mut self, rect: Rect, samples: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(samples);
        let Rect { offset, stride, row_len, rows } = rect;
        let end = rows
            .checked_sub(1)
            .and_then(|before| before.checked_mul(stride))
            .and_then(|n| n.checked_add(offset)?.checked_add(row_len));
        let fits = end.is_some_and(|end| end <= self.map.len());
        if !fits
            || row_len == 0
            || row_len > stride
            || rows.checked_mul(row_len) != Some(bytes.len())
        {
            return Err(Error::new(
                crate::error::Kind::Internal,
                format!(
                    "{} bytes don't fit {rect:?} of an arena of {} bytes",
                    bytes.len(),
                    self.map.len()
                ),
            ));
        }
        let target = self.map[offset..].chunks_mut(stride);
        for (to, from) in target.zip(bytes.chunks_exact(row_len)) {
            to[..row_len].copy_from_slice(from);
        }
        Ok(())
    }
}

/// Gives `file` a length of `len` zeros with every block allocated.
fn allocate(file: &File, len: u64) -> io::Result<()> {
    if reserve(file, len)? {
        return Ok(());
    }
    match io::copy(&mut io::Read::take(io::repeat(0), len), &mut &*file)? {
        written if written == len => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Asks the file system for the blocks of `file`. False if it has no such request: then writing
/// the zeros does the same, slowly.
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
    fn writes_a_rectangle_and_nothing_else() -> Result<()> {
        let mut arena = Arena::create(&std::env::temp_dir(), 40)?;
        arena.write_rect(Rect { offset: 12, stride: 10, row_len: 4, rows: 3 }, &[7_u16; 6])?;
        for (i, &byte) in arena.bytes().iter().enumerate() {
            let inside = i >= 10 && (2..6).contains(&(i % 10));
            let expected = u16::to_ne_bytes(7)[i % 2];
            assert_eq!(byte, if inside { expected } else { 0 }, "byte {i}");
        }
        Ok(())
    }

    #[test]
    fn refuses_rectangles_that_leave_the_arena_or_lack_samples() -> Result<()> {
        let mut arena = Arena::create(&std::env::temp_dir(), 40)?;
        let rect = Rect { offset: 12, stride: 10, row_len: 8, rows: 3 };
        arena.write_rect(rect, &[1_u8; 24])?;
        for (rect, len) in [
            (Rect { offset: 13, ..rect }, 24),
            (Rect { offset: usize::MAX, ..rect }, 24),
            (Rect { stride: usize::MAX, ..rect }, 24),
            (Rect { stride: 7, ..rect }, 24),
            (Rect { rows: 0, ..rect }, 0),
            (rect, 23),
        ] {
            let error = arena.write_rect(rect, &vec![1_u8; len]).err().map(|e| e.kind());
            assert_eq!(error, Some(Kind::Internal), "{rect:?}");
        }
        Ok(())
    }

    #[test]
    fn refuses_empty_and_unmappable_lengths_and_missing_directories() {
        let kind = |path: &Path, len| Arena::create(path, len).err().map(|e| e.kind());
        assert_eq!(kind(&std::env::temp_dir(), 0), Some(Kind::InvalidArgument));
        assert_eq!(kind(&std::env::temp_dir(), u64::MAX), Some(Kind::InvalidArgument));
        assert_eq!(kind(Path::new("/nonexistent/directory"), 1), Some(Kind::Io));
    }

    #[test]
    fn leaves_nothing_in_its_directory_even_while_it_lives() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let arena = Arena::create(directory.path(), 1 << 16).map_err(io::Error::other)?;
        if cfg!(unix) {
            assert_eq!(std::fs::read_dir(directory.path())?.count(), 0);
        }
        drop(arena);
        assert_eq!(std::fs::read_dir(directory.path())?.count(), 0);
        Ok(())
    }
}
