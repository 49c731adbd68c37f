//! A directory that one process at a time may use.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// Name of the file that is locked.
const NAME: &str = "lock";

/// Holds a directory: as long as the value lives, nobody else gets it. The operating system releases it when the process
/// ends, however it ends.
#[derive(Debug)]
pub struct DirectoryLock {
    directory: PathBuf,
    _file: File,
}

impl DirectoryLock {
    /// Makes the directory if it is missing, and takes hold of it.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`](crate::error::Kind) when another process has it; [`Kind::Io`](crate::error::Kind) when it can't be made or written to.
    pub fn acquire(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).map_err(|e| Error::io("create", directory, e))?;
        let path = directory.join(NAME);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|e| Error::io("create", &path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { directory: directory.to_owned(), _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::invalid(
                "directory",
                directory.display(),
                "a directory that no other process uses",
            )),
            Err(TryLockError::Error(e)) => Err(Error::io("lock", path, e)),
        }
    }

    /// The directory that is held.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_held_by_one_at_a_time() -> Result<()> {
        let dir = tempfile::tempdir().map_err(|e| Error::io("temp", "", e))?;
        let inner = dir.path().join("a/b");
        let held = DirectoryLock::acquire(&inner)?;
        let second = DirectoryLock::acquire(&inner).err();
        assert_eq!(second.as_ref().and_then(Error::field), Some("directory"));
        drop(held);
        DirectoryLock::acquire(&inner).map(drop)
    }
}
