//! The file operations that durability depends on, as a trait: of a locked directory, or of a simulated disk in tests.

use std::{
    fmt::Debug,
    fs::{self, File, OpenOptions},
    io::{self, Seek as _, SeekFrom, Write as _},
    ops::Range,
    path::Path,
};

use crate::{
    error::Result,
    store::{BackingFile, DirectoryLock, RowSpan, backing_file, sync_directory},
};

/// Files and directories that this process alone uses.
///
/// A change of a directory (a created, renamed or removed entry) is durable after [`Disk::sync_directory`] of it, content
/// after the `sync` of its file.
pub trait Disk: Debug + Send + Sync {
    /// Creates a directory, which must not exist.
    ///
    /// # Errors
    /// Those of the disk.
    fn create_directory(&self, path: &Path) -> io::Result<()>;

    /// The entries of a directory, in any order.
    ///
    /// # Errors
    /// Those of the disk.
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>>;

    /// Length of a file in bytes.
    ///
    /// # Errors
    /// Those of the disk.
    fn len(&self, path: &Path) -> io::Result<u64>;

    /// Renames a file or directory; an existing file is replaced.
    ///
    /// # Errors
    /// Those of the disk.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file, or a directory with everything in it.
    ///
    /// # Errors
    /// Those of the disk.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the changes of a directory's entries durable.
    ///
    /// # Errors
    /// Those of the disk.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;

    /// The content of a file.
    ///
    /// # Errors
    /// Those of the disk.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Creates an empty file, which must not exist.
    ///
    /// # Errors
    /// Those of the disk.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens an existing file.
    ///
    /// # Errors
    /// Those of the disk.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Creates a file of `len` zeros with every block allocated.
    ///
    /// # Errors
    /// Those of [`BackingFile::create_named`].
    fn create_arena(&self, path: &Path, len: u64) -> Result<()>;

    /// Maps a file made by [`Disk::create_arena`].
    ///
    /// # Errors
    /// Those of [`BackingFile::open_named`].
    fn open_arena(&self, path: &Path, len: u64) -> Result<Box<dyn Arena>>;

    /// Reads rows of an arena while another thread may write to it.
    ///
    /// # Errors
    /// Those of [`read_rows`](crate::store::read_rows).
    fn read_rows(&self, path: &Path, rect: RowSpan) -> Result<Vec<u8>>;
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// True for a directory.
    pub is_directory: bool,
}

/// An open file.
pub trait DiskFile: Debug + Send {
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// Those of the disk; some of the bytes may be written.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Sets the length.
    ///
    /// # Errors
    /// Those of the disk.
    fn set_len(&mut self, len: u64) -> io::Result<()>;

    /// Makes content and length durable.
    ///
    /// # Errors
    /// Those of the disk.
    fn sync(&mut self) -> io::Result<()>;
}

/// A mapped file of fixed length.
pub trait Arena: Debug + Send {
    /// All bytes.
    fn bytes(&self) -> &[u8];

    /// All bytes, mutable.
    fn bytes_mut(&mut self) -> &mut [u8];

    /// Makes the bytes of `range` durable.
    ///
    /// # Errors
    /// Those of the disk.
    fn sync(&self, range: Range<usize>) -> Result<()>;
}

impl Arena for BackingFile {
    fn bytes(&self) -> &[u8] {
        self.bytes()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes_mut()
    }

    fn sync(&self, range: Range<usize>) -> Result<()> {
        self.sync(range)
    }
}

impl DiskFile for File {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.seek(SeekFrom::Start(offset))?;
        self.write_all(bytes)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// The files of the locked directory.
impl Disk for DirectoryLock {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let entry = |entry: io::Result<fs::DirEntry>| {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            Ok(Entry { name, is_directory: entry.file_type()?.is_dir() })
        };
        fs::read_dir(path)?.map(entry).collect()
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::symlink_metadata(path)?.len())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::symlink_metadata(path)?.is_dir() {
            true => fs::remove_dir_all(path),
            false => fs::remove_file(path),
        }
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        sync_directory(path)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn create_arena(&self, path: &Path, len: u64) -> Result<()> {
        BackingFile::create_named(path, len, self).map(drop)
    }

    fn open_arena(&self, path: &Path, len: u64) -> Result<Box<dyn Arena>> {
        Ok(Box::new(BackingFile::open_named(path, len, self)?))
    }

    fn read_rows(&self, path: &Path, rect: RowSpan) -> Result<Vec<u8>> {
        backing_file::read_rows(path, rect)
    }
}
