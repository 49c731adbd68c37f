//! A directory that one process at a time may use.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// Name of the file that is locked.
const NAME: &str = "lock";

/// An exclusive lock of a directory while the value lives. The operating system releases it when the process ends, also
/// in a crash.
#[derive(Debug)]
pub struct DirectoryLock {
    directory: PathBuf,
    _file: File,
}

impl DirectoryLock {
    /// Creates the directory if it is missing, and locks it.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`](crate::error::Kind) when another process holds the lock;
    /// [`Kind::Io`](crate::error::Kind) when the directory can't be created or written to.
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
                "a directory that no other server is using",
            )),
            Err(TryLockError::Error(e)) => Err(Error::io("lock", path, e)),
        }
    }

    /// The locked directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_lock_is_exclusive() -> Result<()> {
        let dir = tempfile::tempdir().map_err(|e| Error::io("temp", "", e))?;
        let inner = dir.path().join("a/b");
        let held = DirectoryLock::acquire(&inner)?;
        let second = DirectoryLock::acquire(&inner).err();
        assert_eq!(second.as_ref().and_then(Error::field), Some("directory"));
        drop(held);
        DirectoryLock::acquire(&inner).map(drop)
    }
}
