//! The bytes of a file that is only read: mapped where that is safe, read elsewhere.
#![allow(unsafe_code, reason = "mapping a file is unsafe; only files that others can't shorten")]

use std::{fs::File, io::Read, ops::Deref, path::Path};

use memmap2::Mmap;

use crate::error::{Error, Result};

/// The bytes of a file.
///
/// A file that is shortened while it is mapped ends the process with SIGBUS at the next access
/// past its new end. So a file is mapped only if it is on a local file system and belongs to this
/// user or to root, writable by its owner alone; any other is read into memory.
/// Shortening one's own checkpoint while it is in use remains a way to end the process.
#[derive(Debug)]
pub struct FileBytes(Source);

#[derive(Debug)]
enum Source {
    Mapped(Mmap),
    Read(Vec<u8>),
}

impl FileBytes {
    /// Opens `path`, which may hold at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// [`Kind::Io`](crate::error::Kind::Io) if the file can't be opened, read or mapped;
    /// [`Kind::InvalidArgument`](crate::error::Kind) if it is not a regular file or is longer than
    /// `limit`.
    pub fn open(path: &Path, limit: u64) -> Result<Self> {
        let failed = |action| move |source| Error::io(action, path, source);
        // The kind is asked of the name first, since opening a pipe would wait for its writer.
        let metadata = std::fs::metadata(path).map_err(failed("can't open"))?;
        if !metadata.is_file() {
            return Err(Error::invalid(format!("{} is not a regular file", path.display())));
        }
        let mut file = File::open(path).map_err(failed("can't open"))?;
        let len = file.metadata().map_err(failed("can't read"))?.len();
        let too_long = |len| {
            Error::invalid(format!("{} has {len} bytes; the limit is {limit}", path.display()))
        };
        if len > limit {
            return Err(too_long(len));
        }
        if len > 0 && is_safe_to_map(&file) {
            // SAFETY: the file is local and only its owner, this user or root, can write to it;
            // that they shorten it while it is in use is the documented remaining case.
            let map = unsafe { Mmap::map(&file) }.map_err(failed("can't map"))?;
            return Ok(Self(Source::Mapped(map)));
        }
        // The file may grow while it is read: the limit holds for what is read as well.
        let mut bytes = Vec::new();
        Read::by_ref(&mut file)
            .take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(failed("can't read"))?;
        match bytes.len() as u64 {
            len if len > limit => Err(too_long(len)),
            _ => Ok(Self(Source::Read(bytes))),
        }
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Source::Mapped(map) => map,
            Source::Read(bytes) => bytes,
        }
    }
}

/// Whether nobody but this user or root could shorten `file`.
#[cfg(target_os = "linux")]
fn is_safe_to_map(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;

    /// File systems that keep their files on this machine, by the numbers of statfs(2): ext2 to
    /// ext4, XFS, Btrfs, F2FS, ZFS, tmpfs, overlayfs.
    const LOCAL: [u32; 7] =
        [0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010, 0x2FC1_2FC1, 0x0102_1994, 0x794C_7630];
    let is_local =
        rustix::fs::fstatfs(file).is_ok_and(|status| LOCAL.contains(&(status.f_type as u32)));
    let user = rustix::process::geteuid().as_raw();
    is_local
        && file.metadata().is_ok_and(|m| (m.uid() == user || m.uid() == 0) && m.mode() & 0o022 == 0)
}

/// Elsewhere the question is not asked: files are read.
#[cfg(not(target_os = "linux"))]
fn is_safe_to_map(_: &File) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::{fs, io};

    use super::*;
    use crate::error::Kind;

    #[test]
    fn gives_the_bytes_mapped_or_read() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("bytes");
        let content: Vec<u8> = (0..10_000_u32).map(|i| (i % 251) as u8).collect();
        fs::write(&path, &content)?;
        let own = FileBytes::open(&path, 10_000).map_err(io::Error::other)?;
        assert_eq!(*own, *content);
        #[cfg(target_os = "linux")]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
            let shared = FileBytes::open(&path, 10_000).map_err(io::Error::other)?;
            assert!(matches!(shared.0, Source::Read(_)), "others may write to it");
            assert_eq!(*shared, *content);
        }
        fs::write(&path, [])?;
        assert_eq!(FileBytes::open(&path, 0).map_err(io::Error::other)?.len(), 0);
        Ok(())
    }

    #[test]
    fn refuses_missing_files_directories_and_files_past_the_limit() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("bytes");
        fs::write(&path, [0; 11])?;
        let error = |path: &Path| {
            FileBytes::open(path, 10)
                .err()
                .map(|e| (e.kind(), e.to_string()))
                .unwrap_or_else(|| (Kind::Internal, "no error".to_owned()))
        };
        assert_eq!(error(&directory.path().join("missing")).0, Kind::Io);
        assert_eq!(error(directory.path()).0, Kind::InvalidArgument);
        let (kind, message) = error(&path);
        assert_eq!(kind, Kind::InvalidArgument);
        assert!(message.contains("11") && message.contains("10"), "{message}");
        Ok(())
    }
}
