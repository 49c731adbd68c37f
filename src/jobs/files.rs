//! The files of a job: one directory with a journal and a backing file (arena).
//!
//! The arena contains two checkpoints of the sampler's state, written alternately so that one is always complete, and then the
//! picture's samples. It is allocated when the job is created, so a full disk is reported to the client at that time.
//! A job's directory is created under a temporary name and renamed when it is complete.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    engine::{
        plan::{Plan, Rect},
        tiles,
    },
    error::{Detail, Error, Kind, Result},
    image_out::Bits,
    jobs::{RETRY_AFTER, record::Record, state::Saved},
    model::sampler::{Latent, SamplerState},
    store::{self, Disk, Journal, disk::Arena},
};

/// Prefix of files and directories that are being created or removed.
pub const UNFINISHED: &str = ".";

/// End of the name of a directory that is being removed.
const REMOVED: &str = ".removed";

/// True for the name of a job's directory that is being created or removed.
pub(super) fn is_unfinished(name: &str) -> bool {
    let id = |name: &str| name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.strip_prefix(UNFINISHED).is_some_and(|name| name.ends_with(REMOVED) || id(name))
}

/// Bytes of a page; the parts of the arena are aligned to pages.
const PAGE: usize = 4096;

/// Offsets and sizes in a job's arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of one checkpoint, rounded up to pages.
    slot: usize,
    /// Number of values of all latents.
    values: usize,
    /// Bytes of the picture.
    pixels: usize,
    width: usize,
    bits: Bits,
}

/// Number of values of all latents of a plan.
pub fn latent_values(plan: &Plan) -> usize {
    plan.latents.iter().map(|shape| shape.len()).sum()
}

impl Layout {
    /// The layout for a plan.
    pub fn new(plan: &Plan) -> Self {
        Self::with_latents(plan, latent_values(plan))
    }

    /// The layout for a plan of a model whose latents have `values` values in all.
    pub fn with_latents(plan: &Plan, values: usize) -> Self {
        // z, and for multistep samplers the previous step's D.
        let slot = (2 * 4 * values + 8usize).next_multiple_of(PAGE);
        let (width, bits) = (plan.spec.width, plan.spec.bits);
        Self { slot, values, pixels: plan.picture_bytes as usize, width, bits }
    }

    /// Bytes of the arena.
    pub fn bytes(&self) -> u64 {
        (2 * self.slot + self.pixels) as u64
    }

    /// Byte ranges of the samples of `rect`.
    fn placed(&self, rect: Rect) -> store::RowSpan {
        let mut placed = tiles::placed(rect, self.width, self.bits);
        placed.offset += 2 * self.slot;
        placed
    }
}

/// The directory of a job.
#[derive(Clone, Debug)]
pub struct JobDirectory {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

impl JobDirectory {
    /// The directory of the job `id` among the jobs of `root`, which is on `disk`.
    pub fn new(disk: Arc<dyn Disk>, root: &Path, id: &str) -> Self {
        Self { disk, path: root.join(id) }
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    fn arena(&self) -> PathBuf {
        self.path.join("arena")
    }

    fn viewport(&self) -> PathBuf {
        self.path.join("viewport")
    }

    /// File of the preview of `level` and coarser levels.
    pub fn preview(&self, level: usize) -> PathBuf {
        self.path.join(format!("preview-{level}.png"))
    }

    /// File of the whole picture; it is written at the first download.
    pub fn picture(&self, extension: &str) -> PathBuf {
        self.path.join(format!("picture.{extension}"))
    }

    /// File of the source picture.
    pub fn source(&self) -> PathBuf {
        self.path.join("source")
    }

    /// Its path with a name that marks it as unfinished.
    fn unfinished(&self, suffix: &str) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!("{UNFINISHED}{name}{suffix}"))
    }

    /// Path of the directory while it is made.
    fn making(&self) -> Self {
        Self { disk: self.disk.clone(), path: self.unfinished("") }
    }

    /// Path of the directory once the job is deleted.
    fn deleted(&self) -> PathBuf {
        self.unfinished(REMOVED)
    }

    fn sync_parent(&self) -> io::Result<()> {
        self.path.parent().map_or(Ok(()), |parent| self.disk.sync_directory(parent))
    }

    /// Creates the directory with its first record, its arena and the source picture, which is moved there. After an error
    /// `undo_create` is needed.
    ///
    /// # Errors
    /// [`Kind::Exhausted`] if the disk is full; [`Kind::Io`].
    pub fn create(&self, first: &Record, layout: &Layout, source: Option<&Path>) -> Result<()> {
        let (disk, making) = (&*self.disk, self.making());
        let failed = |e| Error::io("create", &self.path, e);
        let made = disk.create_directory(&making.path).map_err(failed).and_then(|()| {
            Journal::create(disk, &making.journal())?.append(&[first.to_bytes()?])?;
            disk.create_arena(&making.arena(), layout.bytes())?;
            if let Some(source) = source {
                disk.rename(source, &making.source()).map_err(failed)?;
            }
            disk.sync_directory(&making.path).map_err(failed)?;
            disk.rename(&making.path, &self.path).map_err(failed)?;
            self.sync_parent().map_err(failed)
        });
        made.map_err(|error| {
            // Best effort: the next start removes leftovers too.
            let _ = disk.remove(&making.path);
            stored(error, layout.bytes())
        })
    }

    /// Takes a failed creation back; it is durable with the next creation.
    ///
    /// # Errors
    /// [`Kind::Io`]: another attempt is needed, or a restart finds the job.
    pub(super) fn undo_create(&self) -> Result<()> {
        match self.disk.rename(&self.path, &self.deleted()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io("remove", &self.path, e)),
            Ok(()) => {
                self.erase();
                Ok(())
            }
        }
    }

    /// Opens the journal and reads its records, at least one.
    ///
    /// # Errors
    /// Those of [`Journal::open`] and of [`Record::from_bytes`]; [`Kind::Damaged`] if the first record can't be read: it was
    /// durable before the job existed.
    pub fn open_journal(&self) -> Result<(Journal, Vec<Record>)> {
        let (journal, recovered) = Journal::open(&*self.disk, &self.journal())?;
        if recovered.records.is_empty() {
            let expected = "the record of the request";
            return Err(Error::wrong(Kind::Damaged, "record 1", "unreadable", expected));
        }
        if recovered.torn_bytes > 0 {
            let path = self.journal();
            tracing::warn!("{}: {} torn bytes", path.display(), recovered.torn_bytes);
        }
        let records = recovered.records.iter().map(|bytes| Record::from_bytes(bytes));
        Ok((journal, records.collect::<Result<_>>()?))
    }

    /// True if the journal is missing, so that no restart finds the job.
    pub(super) fn is_gone(&self) -> bool {
        let read = self.disk.read(&self.journal());
        read.is_err_and(|e| {
            matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        })
    }

    /// Maps the arena. Only one thread may write to it.
    ///
    /// # Errors
    /// Those of [`Disk::open_arena`].
    pub fn open_arena(&self, layout: &Layout) -> Result<JobBuffer> {
        let arena = self.disk.open_arena(&self.arena(), layout.bytes())?;
        Ok(JobBuffer { arena, layout: layout.clone() })
    }

    /// Reads the samples of `rect`, which must be inside the picture: RGB rows without gaps, 16 bits in native byte order.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub fn read(&self, layout: &Layout, rect: Rect) -> Result<Vec<u8>> {
        self.disk.read_rows(&self.arena(), layout.placed(rect))
    }

    /// Reads the preview of `level`, a PNG.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub(super) fn read_preview(&self, level: usize) -> Result<Vec<u8>> {
        let path = self.preview(level);
        self.disk.read(&path).map_err(|e| Error::io("read", path, e))
    }

    /// Makes the viewport durable.
    ///
    /// # Errors
    /// [`Kind::Exhausted`] if the disk is full; [`Kind::Io`].
    pub(super) fn save_viewport(&self, viewport: Option<Rect>) -> Result<()> {
        let (disk, path) = (&*self.disk, self.viewport());
        let making = self.path.join(format!("{UNFINISHED}viewport"));
        let text = serde_json::to_vec(&viewport.map(|r| [r.x, r.y, r.width, r.height]))
            .map_err(|e| Error::internal("serialising a viewport").with_source(e))?;
        // The rest of a failed attempt.
        let _ = disk.remove(&making);
        let saved = disk.create(&making).and_then(|mut file| {
            file.write_at(0, &text)?;
            file.sync()?;
            disk.rename(&making, &path)?;
            disk.sync_directory(&self.path)
        });
        saved.map_err(|e| stored(Error::io("write", path, e), text.len() as u64))
    }

    /// The viewport that [`Self::save_viewport`] has made durable.
    pub(super) fn read_viewport(&self) -> Option<Option<Rect>> {
        let text = self.disk.read(&self.viewport()).ok()?;
        let viewport: Option<[usize; 4]> = serde_json::from_slice(&text).ok()?;
        Some(viewport.map(|[x, y, width, height]| Rect { x, y, width, height }))
    }

    /// Gives the directory a name that recovery removes; a repeated call completes one that failed.
    ///
    /// # Errors
    /// [`Kind::Io`]; the outcome of a crash is then open.
    pub(super) fn mark_deleted(&self) -> Result<()> {
        match self.disk.rename(&self.path, &self.deleted()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => self.sync_parent(),
        }
        .map_err(|e| Error::io("remove", &self.path, e))
    }

    /// Removes the files of a deleted job. What remains after an error is removed at the next start.
    pub(super) fn erase(&self) {
        let path = self.deleted();
        match self.disk.remove(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("{}: not removed: {e}", path.display());
            }
            _ => {}
        }
    }

    /// Bytes of its files; those that can't be read count nothing.
    pub(super) fn bytes(&self) -> u64 {
        let entries = self.disk.list(&self.path).unwrap_or_default();
        entries.iter().filter_map(|entry| self.disk.len(&self.path.join(&entry.name)).ok()).sum()
    }

    /// Removes files that an interrupted write has left.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub(super) fn sweep(&self) -> Result<()> {
        let failed = |e| Error::io("remove leftovers of", &self.path, e);
        for entry in self.disk.list(&self.path).map_err(failed)? {
            if entry.name.starts_with(UNFINISHED) {
                self.disk.remove(&self.path.join(entry.name)).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// A job's arena, mapped.
#[derive(Debug)]
pub struct JobBuffer {
    arena: Box<dyn Arena>,
    layout: Layout,
}

impl JobBuffer {
    /// Writes a checkpoint durably to `slot`, 0 or 1, and returns its CRC32C. The other slot is kept: it must be that of the
    /// newest durable record.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub fn save(&mut self, sampling: &SamplerState, slot: usize) -> Result<u32> {
        let mut values: Vec<f32> = Vec::with_capacity(2 * self.layout.values);
        let previous = sampling.previous.iter().flatten();
        sampling.z.iter().chain(previous).for_each(|latent| values.extend(&latent.data));
        let bytes: &[u8] = bytemuck::cast_slice(&values);
        let start = slot * self.layout.slot;
        self.arena.bytes_mut()[start..start + bytes.len()].copy_from_slice(bytes);
        self.arena.sync(start..start + bytes.len())?;
        Ok(crc32c::crc32c(bytes))
    }

    /// Loads the checkpoint of the journal.
    ///
    /// # Errors
    /// [`Kind::Damaged`] if its checksum does not match.
    pub(super) fn load(&self, plan: &Plan, saved: Saved) -> Result<SamplerState> {
        let Saved { step, slot, crc32c } = saved;
        let start = slot.min(1) * self.layout.slot;
        for latents in [2, 1] {
            let bytes = &self.arena.bytes()[start..start + 4 * latents * self.layout.values];
            if crc32c::crc32c(bytes) == crc32c {
                let mut values = bytemuck::pod_collect_to_vec::<u8, f32>(bytes).into_iter();
                let mut take = || -> Vec<Latent> {
                    (plan.latents.iter())
                        .map(|&shape| Latent {
                            shape,
                            data: values.by_ref().take(shape.len()).collect(),
                        })
                        .collect()
                };
                let z = take();
                return Ok(SamplerState { step, z, previous: (latents == 2).then(take) });
            }
        }
        let expected = "the bytes of its checksum";
        Err(Error::wrong(Kind::Damaged, format!("checkpoint of step {step}"), "damaged", expected))
    }

    /// Writes the samples of tiles durably.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub fn put(&mut self, tiles: &[(Rect, &[u8])]) -> Result<()> {
        let (mut start, mut end) = (usize::MAX, 0);
        for &(rect, samples) in tiles {
            let placed = self.layout.placed(rect);
            store::write_rows(self.arena.bytes_mut(), placed, samples)?;
            let last = placed.offset + (placed.rows - 1) * placed.stride + placed.row_len;
            (start, end) = (start.min(placed.offset), end.max(last));
        }
        // One range for all: unmodified pages in between cost nothing.
        self.arena.sync(start.min(end)..end)
    }
}

/// Converts samples from native to little-endian byte order, the order of the API.
pub fn little_endian(samples: &[u8], bits: Bits) -> std::borrow::Cow<'_, [u8]> {
    if bits == Bits::Eight || cfg!(target_endian = "little") {
        return samples.into();
    }
    samples.chunks_exact(2).flat_map(|s| [s[1], s[0]]).collect::<Vec<_>>().into()
}

/// CRC32C of samples in little-endian byte order; `samples` are in native byte order.
pub(super) fn checksum(samples: &[u8], bits: Bits) -> u32 {
    crc32c::crc32c(&little_endian(samples, bits))
}

/// Converts an error of the server's files: a full disk to [`Kind::Exhausted`], damage and internal errors unchanged, others
/// to [`Kind::Io`], whose details are not sent to clients.
pub(super) fn stored(error: Error, needed: u64) -> Error {
    if is_full_disk(&error) {
        return Error::exhausted(DISK, needed, None).with_retry_after(RETRY_AFTER);
    }
    match error.kind() {
        Kind::InvalidArgument | Kind::NotFound => {
            Error::new(Kind::Io, Detail::Internal { problem: "a file of the server".into() })
                .with_source(error)
        }
        _ => error,
    }
}

/// True if no space or quota is left on the disk.
pub(super) fn is_full_disk(error: &Error) -> bool {
    let mut causes = std::iter::successors(std::error::Error::source(error), |e| e.source());
    let full = causes.any(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        matches!(io, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    });
    full || matches!(error.detail(), Detail::Exhausted { resource, .. } if resource == DISK)
}

/// Name of the disk in errors of [`Kind::Exhausted`].
pub const DISK: &str = "disk_bytes";
