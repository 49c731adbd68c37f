//! Uploaded pictures: received into a temporary file, decoded once as a check, then moved to their job's directory.

use std::{io::Write as _, path::Path, sync::Arc};

use tempfile::{NamedTempFile, TempPath};

use crate::{
    attribution::Attribution,
    engine::plan::MAX_EXTENT,
    error::{Error, Expected, Kind, Result},
    image_in::{self, Limits, Photo, depth_notice},
    image_out::Bits,
    jobs::files::{UNFINISHED, stored},
    store::hash,
};

/// Largest uploaded file in bytes.
pub const MAX_UPLOAD: u64 = 64 << 20;

/// Limits of an uploaded picture; decoding takes up to 24 bytes of memory per pixel.
const LIMITS: Limits = Limits { side: MAX_EXTENT as u32, pixels: 1 << 25 };

/// Prefix of the names of incomplete uploads, after [`UNFINISHED`].
const NAME: &str = "upload-";

/// True for the name of an incomplete or abandoned upload.
pub(super) fn is_name(name: &str) -> bool {
    name.strip_prefix(UNFINISHED).is_some_and(|rest| rest.starts_with(NAME))
}

/// An upload in progress.
#[derive(Debug)]
pub struct Receiving {
    file: NamedTempFile,
    bytes: u64,
}

impl Receiving {
    /// Creates an empty file in `directory`.
    ///
    /// # Errors
    /// [`Kind::Exhausted`] if the disk is full; [`Kind::Io`] if no file can be created there.
    pub fn create(directory: &Path) -> Result<Self> {
        let prefix = format!("{UNFINISHED}{NAME}");
        let file = tempfile::Builder::new().prefix(&prefix).tempfile_in(directory);
        let file = file.map_err(|e| stored(Error::io("create a file in", directory, e), 1))?;
        Ok(Self { file, bytes: 0 })
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// [`Kind::InvalidImage`] beyond [`MAX_UPLOAD`] bytes; [`Kind::Exhausted`] if the disk is full; [`Kind::Io`].
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
        written.map_err(|e| stored(Error::io("write", self.file.path(), e), self.bytes))
    }

    /// Makes the file durable and checks that it can be decoded.
    ///
    /// # Errors
    /// [`Kind::InvalidImage`] if it is not a picture, damaged or too large; [`Kind::Exhausted`] if the disk is full;
    /// [`Kind::Io`].
    pub fn finish(self) -> Result<Upload> {
        let (file, path) = self.file.into_parts();
        let failed = |e| stored(Error::io("write", &path, e), self.bytes);
        file.sync_all().map_err(failed)?;
        let Photo { picture, attribution, notices } = image_in::read(&path, LIMITS)?;
        let (size, bits) = ((picture.width as usize, picture.height as usize), picture.bits);
        let sha256 = hash::sha256_file(&path)?;
        Ok(Upload { path: Arc::new(path), size, bits, sha256, attribution, notices })
    }
}

/// A complete upload. Its file is removed with the last clone, unless a job has taken it.
#[derive(Clone, Debug)]
pub struct Upload {
    path: Arc<TempPath>,
    size: (usize, usize),
    /// Bits per sample in the file.
    bits: u8,
    sha256: String,
    attribution: Attribution,
    /// Notices about its reading.
    notices: Vec<String>,
}

impl Upload {
    /// Its file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Width and height in pixels, after applying its orientation.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// SHA-256 of its file, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Notices about its reading, and about writing `bits` of it.
    pub fn notices(&self, bits: Bits) -> Vec<String> {
        let depth = depth_notice(self.bits, bits.per_sample());
        self.notices.iter().cloned().chain(depth).collect()
    }

    /// Author, rights, date and resolution as its file states them.
    pub fn attribution(&self) -> &Attribution {
        &self.attribution
    }
}

/// Reads the source picture of a job.
///
/// # Errors
/// Those of [`image_in::read`].
pub(super) fn read(path: &Path) -> Result<image_in::Picture> {
    image_in::read(path, LIMITS).map(|photo| photo.picture)
}
