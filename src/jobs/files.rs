//! The files of a job: one directory with a journal and a backing file (arena).
//!
//! The arena contains two checkpoints of the sampler's state, written alternately so that one is always complete, and then the
//! picture's samples. It is allocated when the job is created, so a full disk is reported to the client at that time.
//! A job's directory is created under a temporary name and renamed when it is complete.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    engine::{
        plan::{Plan, Rect},
        tiles,
    },
    error::{Error, Kind, Result},
    image_out::Bits,
    jobs::{RETRY_AFTER, job::Saved, record::Record},
    model::sampler::{Latent, SamplerState},
    store::{self, BackingFile, DirectoryLock, Journal, sync_directory},
};

/// Prefix of files and directories that are being created or removed.
pub const UNFINISHED: &str = ".";

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobDirectory(PathBuf);

impl JobDirectory {
    /// The directory of the job `id` among the jobs of `root`.
    pub fn new(root: &Path, id: &str) -> Self {
        Self(root.join(id))
    }

    fn journal(&self) -> PathBuf {
        self.0.join("journal")
    }

    fn arena(&self) -> PathBuf {
        self.0.join("arena")
    }

    /// File of the preview of `level` and coarser levels.
    pub fn preview(&self, level: usize) -> PathBuf {
        self.0.join(format!("preview-{level}.png"))
    }

    /// File of the whole picture; it is written at the first download.
    pub fn picture(&self, extension: &str) -> PathBuf {
        self.0.join(format!("picture.{extension}"))
    }

    /// File of the source picture.
    pub fn source(&self) -> PathBuf {
        self.0.join("source")
    }

    /// Creates the directory with its first record, its arena and the source picture, which is moved there. On an error
    /// nothing is left.
    ///
    /// # Errors
    /// [`Kind::Exhausted`] if the disk is full; [`Kind::Io`].
    pub fn create(
        &self,
        first: &Record,
        layout: &Layout,
        source: Option<&Path>,
        lock: &DirectoryLock,
    ) -> Result<()> {
        let name = self.0.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let making = Self(self.0.with_file_name(format!("{UNFINISHED}{name}")));
        let failed = |e| Error::io("create", &self.0, e);
        let made = fs::create_dir(&making.0).map_err(failed).and_then(|()| {
            Journal::create(&making.journal())?.append(&[first.to_bytes()?])?;
            drop(BackingFile::create_named(&making.arena(), layout.bytes(), lock)?);
            if let Some(source) = source {
                fs::rename(source, making.source()).map_err(failed)?;
            }
            sync_directory(&making.0).map_err(failed)?;
            fs::rename(&making.0, &self.0).map_err(failed)?;
            self.0.parent().map_or(Ok(()), sync_directory).map_err(failed)
        });
        made.map_err(|error| {
            // Best effort: the next start removes leftovers too.
            let _ = fs::remove_dir_all(&making.0);
            full_disk(error, layout.bytes())
        })
    }

    /// Opens the journal.
    ///
    /// # Errors
    /// Those of [`Journal::open`] and of [`Record::from_bytes`].
    pub fn open_journal(&self) -> Result<(Journal, Vec<Record>)> {
        let (journal, recovered) = Journal::open(&self.journal())?;
        if recovered.torn_bytes > 0 {
            let path = self.journal();
            tracing::warn!("{}: {} torn bytes removed", path.display(), recovered.torn_bytes);
        }
        let records = recovered.records.iter().map(|bytes| Record::from_bytes(bytes));
        Ok((journal, records.collect::<Result<_>>()?))
    }

    /// Maps the arena. Only one thread may write to it.
    ///
    /// # Errors
    /// Those of [`BackingFile::open_named`].
    pub fn open_arena(&self, layout: &Layout, lock: &DirectoryLock) -> Result<JobBuffer> {
        let arena = BackingFile::open_named(&self.arena(), layout.bytes(), lock)?;
        Ok(JobBuffer { arena, layout: layout.clone(), next_slot: 0 })
    }

    /// Reads the samples of `rect`, which must be inside the picture: RGB rows without gaps, 16 bits in native byte order.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub fn read(&self, layout: &Layout, rect: Rect) -> Result<Vec<u8>> {
        store::read_rows(&self.arena(), layout.placed(rect))
    }

    /// Removes the directory. It is renamed first, so that a crash in between leaves no job.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub fn remove(&self) -> Result<()> {
        let failed = |e| Error::io("remove", &self.0, e);
        let name = self.0.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let leaving = self.0.with_file_name(format!("{UNFINISHED}{name}.removed"));
        fs::rename(&self.0, &leaving).map_err(failed)?;
        fs::remove_dir_all(&leaving).map_err(failed)
    }
}

/// A job's arena, mapped.
#[derive(Debug)]
pub struct JobBuffer {
    arena: BackingFile,
    layout: Layout,
    /// Slot of the next checkpoint, 0 or 1.
    next_slot: usize,
}

impl JobBuffer {
    /// Writes a checkpoint durably and returns its slot and CRC32C. The previous checkpoint is kept.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub fn save(&mut self, sampling: &SamplerState) -> Result<(usize, u32)> {
        let mut values: Vec<f32> = Vec::with_capacity(2 * self.layout.values);
        let previous = sampling.previous.iter().flatten();
        sampling.z.iter().chain(previous).for_each(|latent| values.extend(&latent.data));
        let bytes: &[u8] = bytemuck::cast_slice(&values);
        let slot = self.next_slot;
        let start = slot * self.layout.slot;
        self.arena.bytes_mut()[start..start + bytes.len()].copy_from_slice(bytes);
        self.arena.sync(start..start + bytes.len())?;
        self.next_slot = 1 - slot;
        Ok((slot, crc32c::crc32c(bytes)))
    }

    /// Loads the checkpoint of the journal; the next one will use the other slot.
    ///
    /// # Errors
    /// [`Kind::Io`] if its checksum does not match.
    pub(super) fn load(&mut self, plan: &Plan, saved: Saved) -> Result<SamplerState> {
        let Saved { step, slot, crc32c } = saved;
        self.next_slot = 1 - slot.min(1);
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
        Err(Error::wrong(
            Kind::Io,
            format!("checkpoint of step {step}"),
            "damaged",
            "the bytes of its checksum",
        ))
    }

    /// Writes the samples of tiles durably and returns the CRC32C of each, computed over little-endian samples.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub fn put(&mut self, tiles: &[(Rect, &[u8])]) -> Result<Vec<u32>> {
        let (mut start, mut end, mut sums) = (usize::MAX, 0, Vec::new());
        for &(rect, samples) in tiles {
            let placed = self.layout.placed(rect);
            self.arena.write_rows(placed, samples)?;
            let last = placed.offset + (placed.rows - 1) * placed.stride + placed.row_len;
            (start, end) = (start.min(placed.offset), end.max(last));
            sums.push(crc32c::crc32c(&little_endian(samples, self.layout.bits)));
        }
        // One range for all: unmodified pages in between cost nothing.
        self.arena.sync(start.min(end)..end)?;
        Ok(sums)
    }
}

/// Converts samples from native to little-endian byte order, the order of the API.
pub fn little_endian(samples: &[u8], bits: Bits) -> std::borrow::Cow<'_, [u8]> {
    if bits == Bits::Eight || cfg!(target_endian = "little") {
        return samples.into();
    }
    samples.chunks_exact(2).flat_map(|s| [s[1], s[0]]).collect::<Vec<_>>().into()
}

/// Converts a full-disk error to [`Kind::Exhausted`]; other errors are returned unchanged.
pub(super) fn full_disk(error: Error, needed: u64) -> Error {
    let source = std::error::Error::source(&error).and_then(|e| e.downcast_ref::<std::io::Error>());
    match source.map(std::io::Error::kind) {
        Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) => {
            Error::exhausted("disk_bytes", needed, None).with_retry_after(RETRY_AFTER)
        }
        _ => error,
    }
}
