//! Atomic writing of files.

use std::{
    fs,
    io::{self, BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// A file being written under a temporary name in the directory of its final one.
///
/// [`commit`](Self::commit) syncs it to the disk and then renames it to its final name in one step, replacing an
/// existing file. If dropped before, it is removed, and an existing file is unchanged.
#[derive(Debug)]
pub struct AtomicFile {
    file: BufWriter<NamedTempFile>,
    path: PathBuf,
}

/// Checks that an output file can be written, before the work for it is done, by creating and removing a temporary file
/// in its directory.
///
/// # Errors
///
/// [`Kind::InvalidArgument`](crate::error::Kind) if the path names no file, its directory is
/// missing, or it is a directory or another thing that isn't a regular file;
/// [`Kind::Io`](crate::error::Kind::Io) if its directory can't be written to.
pub fn preflight(path: &Path) -> Result<()> {
    AtomicFile::create(path).map(drop)
}

impl AtomicFile {
    /// Starts the file that will be `path`. A symbolic link is followed: what it points to is
    /// replaced, or made if it is missing. A file that is replaced hands on its permissions.
    ///
    /// # Errors
    ///
    /// Those of [`preflight`].
    pub fn create(path: &Path) -> Result<Self> {
        let path = target(path);
        let refused = |expected: &'static str| Error::invalid("out", path.display(), expected);
        let present = match fs::metadata(&path) {
            Ok(there) if there.is_dir() => return Err(refused("a file: it is a directory")),
            Ok(there) if !there.is_file() => return Err(refused("a regular file")),
            // A name that is too long, links that go round.
            Err(source)
                if !matches!(
                    source.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Err(Error::io("use", &path, source));
            }
            there => there.ok(),
        };
        if names_a_directory(&path) {
            return Err(refused("a file: it ends as the name of a directory does"));
        }
        if path.file_name().is_none() {
            return Err(refused("a path with a file name"));
        }
        let directory = directory_of(&path);
        if !directory.is_dir() {
            return Err(refused("a file in an existing directory"));
        }
        let mut builder = tempfile::Builder::new();
        // The final name is no part of it: the two together could be too long.
        builder.prefix(".tessera-").suffix(".partial");
        #[cfg(unix)]
        {
            // As for any new file, the umask decides; without this it would be the owner's alone.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let file = builder
            .tempfile_in(directory)
            .map_err(|source| Error::io("create a file in", directory, source))?;
        if let Some(present) = present {
            file.as_file()
                .set_permissions(present.permissions())
                .map_err(|source| Error::io("set the permissions of", &path, source))?;
        }
        Ok(Self { file: BufWriter::with_capacity(1 << 20, file), path })
    }

    /// The final name, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An empty file without a name, in the same directory.
    ///
    /// # Errors
    ///
    /// [`Kind::Io`](crate::error::Kind::Io).
    pub fn scratch(&self) -> Result<fs::File> {
        let directory = directory_of(&self.path);
        tempfile::tempfile_in(directory)
            .map_err(|source| Error::io("create a file in", directory, source))
    }

    /// Flushes the buffer, syncs the file to the disk and renames it to its final name.
    ///
    /// # Errors
    ///
    /// [`Kind::Io`](crate::error::Kind::Io); the file is removed then.
    pub fn commit(self) -> Result<()> {
        let Self { file, path } = self;
        let failed = |source| Error::io("write", &path, source);
        let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        sync_directory(directory_of(&path)).map_err(failed)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.file.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

/// The file that `path` names once its symbolic links are followed, whether it is there or not.
fn target(path: &Path) -> PathBuf {
    /// Links after which the system gives up, too.
    const MAX_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(next) => path = directory_of(&path).join(next),
            Err(_) => break,
        }
    }
    path
}

/// Whether a path ends with a separator or a dot, which [`Path::file_name`] passes over.
fn names_a_directory(path: &Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    let last = |b: &u8| std::path::is_separator(char::from(*b));
    bytes.last().is_some_and(last) || bytes.ends_with(b"/.")
}

/// The directory of the file `path`.
fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Syncs a directory to the disk, so that a renamed file keeps its new name.
///
/// # Errors
///
/// Those of the disk.
#[cfg(unix)]
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    fs::File::open(directory)?.sync_all()
}

/// Does nothing: here directories can't be synced.
///
/// # Errors
///
/// Never.
#[cfg(not(unix))]
pub fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}
