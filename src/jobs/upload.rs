//! Pictures that clients send: written beside the jobs while they arrive, checked, then moved into their job's directory.

use std::{io::Write as _, path::Path, sync::Arc};

use tempfile::{NamedTempFile, TempPath};

use crate::{
    engine::plan::MAX_EXTENT,
    error::{Error, Expected, Kind, Result},
    image_in::{self, Limits},
    jobs::files::{UNFINISHED, full_disk},
    store::hash,
};

/// Most bytes of a file that a client sends.
pub const MAX_UPLOAD: u64 = 64 << 20;

/// How large a picture that a client sends may be: decoding it takes up to 20 bytes of memory a pixel.
const LIMITS: Limits = Limits { side: MAX_EXTENT as u32, pixels: 1 << 25 };

/// How the names of arriving files begin, after [`UNFINISHED`].
const NAME: &str = "upload-";

/// Whether a file among the jobs is a picture that never became a job's.
pub(super) fn is_name(name: &str) -> bool {
    name.strip_prefix(UNFINISHED).is_some_and(|rest| rest.starts_with(NAME))
}

/// A picture while it arrives.
#[derive(Debug)]
pub struct Receiving {
    file: NamedTempFile,
    bytes: u64,
}

impl Receiving {
    /// An empty file in the jobs' `directory`.
    pub(super) fn create(directory: &Path) -> Result<Self> {
        let prefix = format!("{UNFINISHED}{NAME}");
        let file = tempfile::Builder::new().prefix(&prefix).tempfile_in(directory);
        let file = file.map_err(|e| Error::io("create a file in", directory, e))?;
        Ok(Self { file, bytes: 0 })
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`Kind::InvalidImage`] beyond [`MAX_UPLOAD`] bytes; [`Kind::Exhausted`] when the disk is full; [`Kind::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        if self.bytes > MAX_UPLOAD {
            return Err(Error::wrong(
                Kind::InvalidImage,
                "picture",
                format!("more than {MAX_UPLOAD} bytes long"),
                Expected::at_most(format!("{MAX_UPLOAD} bytes")),
            ));
        }
        let written = self.file.write_all(bytes);
        written.map_err(|e| full_disk(Error::io("write", self.file.path(), e), self.bytes))
    }

    /// The whole picture, once all of it is on the disk and can be read.
    ///
    /// # Errors
    /// [`Kind::InvalidImage`] when it is no picture, damaged or too large; [`Kind::Exhausted`] when the disk is full;
    /// [`Kind::Io`].
    pub fn finish(self) -> Result<Upload> {
        let (file, path) = self.file.into_parts();
        let failed = |e| full_disk(Error::io("write", &path, e), self.bytes);
        file.sync_all().map_err(failed)?;
        // The client knows the picture by the name of its field; the path stays inside the server.
        let picture = image_in::read(&path, LIMITS).map_err(|error| error.with_field("picture"))?;
        let size = (picture.width as usize, picture.height as usize);
        let sha256 = hash::sha256_file(&path)?;
        Ok(Upload { path: Arc::new(path), size, sha256 })
    }
}

/// A picture that has arrived. Its file goes with the last copy of the value, unless a job has it.
#[derive(Clone, Debug)]
pub struct Upload {
    path: Arc<TempPath>,
    size: (usize, usize),
    sha256: String,
}

impl Upload {
    /// Its file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Width and height in pixels, after its orientation was applied.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// SHA-256 of its file, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }
}

/// The picture in a job's directory.
///
/// # Errors
/// Those of [`image_in::read`].
pub(super) fn read(path: &Path) -> Result<image_in::Picture> {
    image_in::read(path, LIMITS)
}
