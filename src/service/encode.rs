//! The parts of pictures that watchers read, tiles and previews, and the memory for them. A part is read and encoded once,
//! however many clients ask for it at the same time; recent ones are cached. Nothing here depends on the speed of a client:
//! parts that a slow one needs later are read again.
//!
//! The memory for watchers ([`Encoder::new`]) is divided: half is for the buffers of open streams, whose number it limits;
//! three eighths are for cached parts; the rest is for parts that are being read and encoded.

use std::{borrow::Cow, io::Cursor, sync::Arc};

use image::{
    ExtendedColorType, ImageEncoder as _,
    codecs::{jpeg::JpegEncoder, png::PngEncoder, webp::WebPEncoder},
    imageops,
};
use quick_cache::{
    DefaultHashBuilder, OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    api::ImageFormat,
    error::{Error, Resource, Result},
    image_out::Bits,
    jobs::{self, Estimate, Job, RETRY_AFTER, files::little_endian},
    service::{
        blocking::blocking,
        bodies::{CHUNK, STREAM_BYTES},
    },
};

/// JPEG quality of tiles, 1 to 100.
const JPEG_QUALITY: u8 = 90;

/// Typical size of a part in bytes, from which the cache chooses the size of its tables.
const PART_BYTES: u64 = 512 << 10;

/// Unit in which memory for reading parts is given out.
const UNIT: u64 = 1 << 10;

/// Share of the cache for parts that were read several times. The rest is for new ones, which must stay until their
/// watchers have read them.
const HOT: f64 = 0.5;

/// Memory to read a preview; its size is not known before.
const PREVIEW_BYTES: u64 = 4 << 20;

/// Most bytes of the samples of an estimate that is sent to a watcher. A PNG is hardly larger than its samples.
const ESTIMATE_BYTES: usize = CHUNK - (2 << 10);

/// A part of a job's picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Content {
    /// A tile, by its index.
    Tile {
        /// Its index in the job's tiling.
        index: usize,
        /// Its format.
        format: ImageFormat,
    },
    /// The preview of a level, as PNG.
    Preview {
        /// The level.
        level: usize,
    },
    /// The preview of the denoised estimate, as PNG.
    Estimate {
        /// Its step.
        step: usize,
    },
}

/// A part in its format.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) data: Vec<u8>,
    /// CRC32C of a tile's samples, little-endian; 0 for a preview.
    pub(super) crc32c: u32,
}

/// Job and part.
type Key = (String, Content);

/// Weighs parts by their bytes.
#[derive(Clone, Debug)]
struct Bytes;

impl Weighter<Key, Arc<Loaded>> for Bytes {
    fn weight(&self, _: &Key, loaded: &Arc<Loaded>) -> u64 {
        loaded.data.len() as u64
    }
}

/// Reads and encodes parts of pictures within a budget of memory.
#[derive(Debug)]
pub(super) struct Encoder {
    memory: u64,
    cache: Cache<Key, Arc<Loaded>, Bytes>,
    /// Bounds the threads that read and encode.
    threads: Semaphore,
    /// Memory for reading, in units of [`UNIT`].
    room: Semaphore,
    units: u32,
    streams: Arc<Semaphore>,
    most_streams: usize,
}

impl Encoder {
    /// An encoder that uses `memory` bytes, for twice as many concurrent parts as there are cores.
    pub(super) fn new(memory: u64) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let cached = memory / 8 * 3;
        let options = OptionsBuilder::new()
            .shards(1)
            .hot_allocation(HOT)
            .estimated_items_capacity((cached / PART_BYTES) as usize)
            .weight_capacity(cached)
            .build();
        let cache = match options {
            Ok(options) => Cache::with_options(
                options,
                Bytes,
                DefaultHashBuilder::default(),
                DefaultLifecycle::default(),
            ),
            // All that is required was given.
            Err(_) => Cache::with_weighter(1, cached, Bytes),
        };
        let units = (memory / 8 / UNIT).clamp(1, u64::from(u32::MAX >> 4)) as u32;
        let most_streams = (memory / 2 / STREAM_BYTES as u64).clamp(1, 1 << 20) as usize;
        Self {
            memory,
            cache,
            threads: Semaphore::new(2 * cores),
            room: Semaphore::new(units as usize),
            units,
            streams: Arc::new(Semaphore::new(most_streams)),
            most_streams,
        }
    }

    /// A place among the open streams.
    ///
    /// # Errors
    /// [`Kind::Exhausted`](crate::error::Kind) if there are as many as their memory allows.
    pub(super) fn stream(&self) -> Result<OwnedSemaphorePermit> {
        self.streams.clone().try_acquire_owned().map_err(|_| {
            let limit = self.most_streams as u64;
            Error::exhausted("open_streams", limit + 1, limit).with_retry_after(RETRY_AFTER)
        })
    }

    /// Bytes of the budget.
    pub(super) fn memory(&self) -> u64 {
        self.memory
    }

    /// Bytes in use: cached parts, parts being read, and the most that the open streams hold.
    pub(super) fn used(&self) -> u64 {
        let reading = u64::from(self.units) - self.room.available_permits() as u64;
        self.cache.weight() + reading * UNIT + (self.open_streams() * STREAM_BYTES) as u64
    }

    /// Streams that are open.
    pub(super) fn open_streams(&self) -> usize {
        self.most_streams - self.streams.available_permits()
    }

    /// Most streams that may be open.
    pub(super) fn most_streams(&self) -> usize {
        self.most_streams
    }

    /// A part of a job's picture.
    ///
    /// # Errors
    /// [`Kind::NotReady`](crate::error::Kind) if it does not exist yet; [`Kind::Io`](crate::error::Kind).
    pub(super) async fn load(
        self: &Arc<Self>,
        job: &Arc<Job>,
        part: Content,
    ) -> Result<Arc<Loaded>> {
        let key = (job.id.clone(), part);
        if let Some(loaded) = self.cache.get(&key) {
            return Ok(loaded);
        }
        let closed = |_| jobs::shutting_down();
        let _thread = self.threads.acquire().await.map_err(closed)?;
        let units = bytes_to_read(job, part).div_ceil(UNIT).min(u64::from(self.units)) as u32;
        let _room = self.room.acquire_many(units).await.map_err(closed)?;
        let (encoder, job) = (self.clone(), job.clone());
        blocking(move || encoder.cache.get_or_insert_with(&key, || read(&job, part).map(Arc::new)))
            .await
    }
}

/// Memory to read and encode a part.
fn bytes_to_read(job: &Job, part: Content) -> u64 {
    match part {
        Content::Tile { index, .. } => {
            let rect = job.plan.tiling.tiles[index].rect;
            2 * (3 * rect.width * rect.height * job.plan.spec.bits.sample_len()) as u64
        }
        Content::Preview { .. } | Content::Estimate { .. } => PREVIEW_BYTES,
    }
}

fn read(job: &Job, part: Content) -> Result<Loaded> {
    let (index, format) = match part {
        Content::Tile { index, format } => (index, format),
        Content::Preview { level } => return Ok(Loaded { data: job.preview(level)?, crc32c: 0 }),
        Content::Estimate { step } => {
            let replaced = || Error::not_ready(Resource::Preview, &job.id, "replaced", "available");
            let found = job.estimate_at(step).ok_or_else(replaced)?;
            return Ok(Loaded { data: estimate(&found)?, crc32c: 0 });
        }
    };
    let (samples, crc32c) = job.read_tile(index)?;
    let bits = job.plan.spec.bits;
    if format == ImageFormat::Raw {
        let swapped = match little_endian(&samples, bits) {
            Cow::Borrowed(_) => None,
            Cow::Owned(swapped) => Some(swapped),
        };
        return Ok(Loaded { data: swapped.unwrap_or(samples), crc32c });
    }
    let rect = job.plan.tiling.tiles[index].rect;
    let data = encode(&samples, rect.width as u32, rect.height as u32, bits, format)?;
    Ok(Loaded { data, crc32c })
}

/// An estimate as PNG, reduced to be sent at once: it may be replaced before a slow watcher has read a second frame.
fn estimate(estimate: &Estimate) -> Result<Vec<u8>> {
    let size = (estimate.width as u32, estimate.height as u32);
    let picture = image::RgbImage::from_raw(size.0, size.1, estimate.samples.clone());
    let picture = picture.ok_or_else(|| Error::internal("an estimate has no samples"))?;
    let (mut width, mut height) = size;
    while 3 * width as usize * height as usize > ESTIMATE_BYTES {
        (width, height) = (width.div_ceil(2), height.div_ceil(2));
    }
    let reduced = (width, height) != size;
    let picture = if reduced { imageops::thumbnail(&picture, width, height) } else { picture };
    encode(&picture, width, height, Bits::Eight, ImageFormat::Png)
}

/// Encodes RGB samples in native byte order as a file of `format`.
///
/// # Errors
/// [`Kind::Internal`](crate::error::Kind) if the encoder fails.
pub(super) fn encode(
    samples: &[u8],
    width: u32,
    height: u32,
    bits: Bits,
    format: ImageFormat,
) -> Result<Vec<u8>> {
    let eight: Vec<u8>;
    let (samples, color) = match (bits, format) {
        (Bits::Eight, _) => (samples, ExtendedColorType::Rgb8),
        (Bits::Sixteen, ImageFormat::Png) => (samples, ExtendedColorType::Rgb16),
        (Bits::Sixteen, _) => {
            let narrow = |s: &[u8]| {
                let sample = u32::from(u16::from_ne_bytes([s[0], s[1]]));
                ((sample * 255 + 32767) / 65535) as u8
            };
            eight = samples.chunks_exact(2).map(narrow).collect();
            (eight.as_slice(), ExtendedColorType::Rgb8)
        }
    };
    let mut out = Cursor::new(Vec::new());
    let written = match format {
        ImageFormat::Jpeg => JpegEncoder::new_with_quality(&mut out, JPEG_QUALITY)
            .write_image(samples, width, height, color),
        ImageFormat::Webp => {
            WebPEncoder::new_lossless(&mut out).write_image(samples, width, height, color)
        }
        _ => PngEncoder::new(&mut out).write_image(samples, width, height, color),
    };
    written.map_err(|e| Error::internal("encoding a tile").with_source(e))?;
    Ok(out.into_inner())
}
