//! A directory that one process at a time may use.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
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
        Self::lock(directory, file.map_err(|e| Error::io("create", &path, e))?)
    }

    /// Locks a directory that was locked before; nothing is created.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`](crate::error::Kind) when it was never locked, or another process holds the lock;
    /// [`Kind::Io`](crate::error::Kind) when it can't be written to.
    pub fn acquire_existing(directory: &Path) -> Result<Self> {
        let path = directory.join(NAME);
        let file = OpenOptions::new().write(true).open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                let expected = "a directory that a server has used";
                Error::invalid("directory", directory.display(), expected)
            }
            _ => Error::io("open", &path, e),
        })?;
        Self::lock(directory, file)
    }

    fn lock(directory: &Path, file: File) -> Result<Self> {
        match file.try_lock() {
            Ok(()) => Ok(Self { directory: directory.to_owned(), _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::invalid(
                "directory",
                directory.display(),
                "a directory that no other server is using",
            )),
            Err(TryLockError::Error(e)) => Err(Error::io("lock", directory.join(NAME), e)),
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
        let refused = |lock: Result<DirectoryLock>| {
            assert_eq!(lock.err().as_ref().and_then(Error::field), Some("directory"));
        };
        refused(DirectoryLock::acquire_existing(&inner));
        assert!(!inner.exists());
        let held = DirectoryLock::acquire(&inner)?;
        refused(DirectoryLock::acquire(&inner));
        refused(DirectoryLock::acquire_existing(&inner));
        drop(held);
        DirectoryLock::acquire_existing(&inner).map(drop)
    }
}
