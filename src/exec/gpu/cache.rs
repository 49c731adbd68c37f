//! The cache folder: compiled pipelines and measurements, in one file per adapter, driver and set of shaders.
//!
//! A file is a line of JSON with the key, the length and the checksum of the content, then the content. Files are
//! written atomically; one that is truncated, changed or of another device is ignored with a log message. A cache that
//! can't be read or written only costs time.

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    device::{AdapterInfo, Device},
    operators,
};
use crate::{
    error::{Error, Result},
    store::{AtomicFile, hash::hex},
};

/// Largest file that is read, in bytes; the pipeline cache for all shaders has a few megabytes.
const MAX_FILE_BYTES: u64 = 1 << 28;

/// The files of one device.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    directory: PathBuf,
    /// SHA-256, in hexadecimal, of everything that the contents depend on.
    key: String,
}

/// The first line of a file.
#[derive(Serialize, Deserialize, PartialEq)]
struct Header {
    /// [`Folder::key`].
    key: String,
    /// Length of the content in bytes.
    bytes: u64,
    /// Checksum of the content.
    crc32c: u32,
}

impl Header {
    fn of(key: &str, content: &[u8]) -> Self {
        Self { key: key.to_owned(), bytes: content.len() as u64, crc32c: crc32c::crc32c(content) }
    }
}

impl Folder {
    /// The files about `adapter` in `directory`, which is made when something is written.
    pub(super) fn new(directory: &Path, adapter: &AdapterInfo) -> Self {
        let AdapterInfo { name, backend, driver, .. } = adapter;
        let mut hash = Sha256::new();
        let mut part = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        [env!("CARGO_PKG_VERSION"), name, backend, driver].into_iter().for_each(&mut part);
        for operator in operators() {
            part(operator.name);
            part(operator.source);
        }
        Self { directory: directory.to_owned(), key: hex(&hash.finalize()) }
    }

    /// Path of the file `name`; files of several devices share the folder.
    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{}-{name}", &self.key[..16]))
    }

    /// The content of the file `name`; None if there is none or it is damaged.
    pub(super) fn read(&self, name: &str) -> Option<Vec<u8>> {
        let path = self.path(name);
        let content = match read(&path) {
            Ok(file) => content(file, &self.key),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => Err(error.to_string()),
        };
        content.inspect_err(|why| tracing::warn!("{} is ignored: {why}", path.display())).ok()
    }

    /// Writes `content` as the file `name`, replacing an existing one.
    pub(super) fn write(&self, name: &str, content: &[u8]) {
        let path = self.path(name);
        if let Err(error) = self.replace(&path, content) {
            tracing::warn!("{}", error.report());
        }
    }

    fn replace(&self, path: &Path, content: &[u8]) -> Result<()> {
        let failed = |e| Error::io("write", path, e);
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        {
            // Drivers trust their data: no other user may write it.
            use std::os::unix::fs::DirBuilderExt as _;
            builder.mode(0o700);
        }
        builder.recursive(true).create(&self.directory).map_err(failed)?;
        let header = serde_json::to_vec(&Header::of(&self.key, content));
        let header = header.map_err(|e| failed(e.into()))?;
        let mut file = AtomicFile::create(path)?;
        for part in [&header[..], b"\n", content] {
            file.write_all(part).map_err(failed)?;
        }
        file.commit()
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = Vec::new();
    fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut file)?;
    Ok(file)
}

/// The content of `file` after its header, if they agree; else the difference.
fn content(mut file: Vec<u8>, key: &str) -> Result<Vec<u8>, String> {
    if file.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("its size is beyond {MAX_FILE_BYTES} bytes"));
    }
    let end = file.iter().position(|&byte| byte == b'\n').ok_or("it has no first line")?;
    let header: Header = serde_json::from_slice(&file[..end])
        .map_err(|error| format!("its first line can't be read: {error}"))?;
    file.drain(..=end);
    let found = Header::of(key, &file);
    match header {
        Header { key, .. } if key != found.key => Err("it is about another device".into()),
        Header { bytes, .. } if bytes != found.bytes => {
            Err(format!("it has {} bytes, {bytes} were written", found.bytes))
        }
        Header { crc32c, .. } if crc32c != found.crc32c => Err("its checksum is wrong".into()),
        _ => Ok(file),
    }
}

/// A driver's pipeline cache (Vulkan only).
#[derive(Debug)]
pub(super) struct Compiled {
    /// The cache that pipelines are created with.
    pub(super) cache: wgpu::PipelineCache,
    folder: Folder,
    /// Checksum of the data that was read.
    known: Option<u32>,
}

impl Compiled {
    const NAME: &str = "pipelines";

    /// The pipeline cache of `device` from `folder`; None if the backend has no pipeline caches.
    pub(super) fn open(device: &Device, folder: &Folder) -> Option<Self> {
        if !device.device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let data = folder.read(Self::NAME);
        let descriptor = wgpu::PipelineCacheDescriptor {
            label: Some("tessera"),
            data: data.as_deref(),
            fallback: true,
        };
        #[allow(unsafe_code, reason = "wgpu has no other way to give a driver its data back")]
        let make = |d: &wgpu::Device| {
            // SAFETY: by its key and checksum the data, if any, is the complete result of `get_data` for an adapter and
            // driver of the same names and versions; wgpu also compares the ids of vendor, device and driver.
            unsafe { d.create_pipeline_cache(&descriptor) }
        };
        let cache = device.caught(make);
        let cache = cache.inspect_err(|e| tracing::warn!("no cache of pipelines: {e}")).ok()?;
        Some(Self { cache, folder: folder.clone(), known: data.as_deref().map(crc32c::crc32c) })
    }

    /// Writes the driver's cache if it has changed.
    pub(super) fn save(&self) {
        let Some(data) = self.cache.get_data() else { return };
        if self.known != Some(crc32c::crc32c(&data)) {
            self.folder.write(Self::NAME, &data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        exec::gpu::{AdapterKind, tests::gpu},
        ops::testing::Random,
    };

    fn adapter(driver: &str) -> AdapterInfo {
        AdapterInfo {
            index: 0,
            name: "card".into(),
            backend: "Vulkan".into(),
            driver: driver.into(),
            kind: AdapterKind::Discrete,
            software: false,
            max_tensor_bytes: 1 << 30,
            matrix: None,
        }
    }

    /// A file is read back by the device that wrote it and by no other.
    #[test]
    fn cache_files_belong_to_one_device() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("not/yet/there");
        let (one, other) = (Folder::new(&inner, &adapter("1")), Folder::new(&inner, &adapter("2")));
        assert_eq!(one.read("a"), None);
        one.write("a", b"first\nlines");
        one.write("a", b"second\nlines");
        assert_eq!(one.read("a").as_deref(), Some(&b"second\nlines"[..]));
        assert_eq!(one.read("b"), None);
        assert_eq!(other.read("a"), None);
        // Also if the file is copied to the other device's path.
        fs::copy(one.path("a"), other.path("a")).unwrap();
        assert_eq!(other.read("a"), None);
        assert_eq!(fs::read_dir(&inner).unwrap().count(), 2);
    }

    /// A file with any byte changed, or cut anywhere, is ignored.
    #[test]
    fn damaged_cache_files_are_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path(), &adapter("1"));
        let data: Vec<u8> =
            Random::new(4).values(99, 0.0, 100.0).iter().map(|v| *v as i8 as u8).collect();
        folder.write("a", &data);
        let path = folder.path("a");
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1 << (at % 8);
            fs::write(&path, changed).unwrap();
            assert_eq!(folder.read("a"), None, "byte {at} changed");
            fs::write(&path, &whole[..at]).unwrap();
            assert_eq!(folder.read("a"), None, "{at} bytes left");
        }
        fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert_eq!(folder.read("a"), None);
        fs::write(&path, &whole).unwrap();
        assert_eq!(folder.read("a"), Some(data));
    }

    #[test]
    fn unwritable_cache_folder_is_ignored() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let folder = Folder::new(&file.path().join("under"), &adapter("1"));
        folder.write("a", b"lost");
        assert_eq!(folder.read("a"), None);
        let Some(gpu) = gpu(Default::default()) else { return };
        drop(gpu.prepared(Some(file.path())));
    }
}
