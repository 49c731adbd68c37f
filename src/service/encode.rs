//! Encodes tiles as clients ask for them. A tile is compressed once, however many clients ask at the same time; recent
//! results are cached.

use std::{io::Cursor, sync::Arc};

use image::{
    ExtendedColorType, ImageEncoder as _,
    codecs::{jpeg::JpegEncoder, png::PngEncoder, webp::WebPEncoder},
};
use quick_cache::{Weighter, sync::Cache};
use tokio::sync::Semaphore;

use crate::{
    api::{self, ImageFormat},
    error::{Error, Result},
    image_out::Bits,
    jobs::{self, Job, files::little_endian},
    service::{blocking::blocking, convert},
};

/// JPEG quality of tiles, 1 to 100.
const JPEG_QUALITY: u8 = 90;

/// Capacity of the cache in bytes.
const CACHE_BYTES: u64 = 64 << 20;

/// Typical size of a tile in bytes, from which the cache chooses its number of shards.
const TILE_BYTES: u64 = 512 << 10;

/// Job, tile and format.
type Key = (String, usize, ImageFormat);

/// Weighs tiles by their bytes.
#[derive(Clone, Debug)]
struct Bytes;

impl Weighter<Key, Arc<Vec<u8>>> for Bytes {
    fn weight(&self, _: &Key, data: &Arc<Vec<u8>>) -> u64 {
        data.len() as u64
    }
}

/// Reads and encodes tiles with bounded concurrency.
#[derive(Debug)]
pub(super) struct Encoder {
    cache: Cache<Key, Arc<Vec<u8>>, Bytes>,
    /// Bounds the threads and the memory of all watchers.
    permits: Semaphore,
}

impl Encoder {
    /// An encoder for twice as many concurrent tiles as there are cores.
    pub(super) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let cache = Cache::with_weighter((CACHE_BYTES / TILE_BYTES) as usize, CACHE_BYTES, Bytes);
        Self { cache, permits: Semaphore::new(2 * cores) }
    }

    /// The message of a decoded tile.
    ///
    /// # Errors
    /// [`Kind::NotReady`](crate::error::Kind) if it is not decoded yet; [`Kind::Io`](crate::error::Kind).
    pub(super) async fn tile(
        self: &Arc<Self>,
        job: &Arc<Job>,
        index: usize,
        format: ImageFormat,
    ) -> Result<api::Tile> {
        let _permit = self.permits.acquire().await.map_err(|_| jobs::shutting_down())?;
        let (encoder, job) = (self.clone(), job.clone());
        let work = move || {
            let (data, crc32c) = encoder.data(&job, index, format)?;
            let tile = &job.plan.tiling.tiles[index];
            Ok(api::Tile {
                column: tile.column as u32,
                row: tile.row as u32,
                rect: Some(convert::rect_message(tile.rect)),
                format: format.into(),
                data,
                crc32c,
                level: 0,
            })
        };
        blocking(work).await
    }

    fn data(&self, job: &Job, index: usize, format: ImageFormat) -> Result<(Vec<u8>, u32)> {
        let (samples, crc32c) = job.read_tile(index)?;
        let bits = job.plan.spec.bits;
        if format == ImageFormat::Raw {
            return Ok((little_endian(&samples, bits).into_owned(), crc32c));
        }
        let key = (job.id.clone(), index, format);
        let rect = job.plan.tiling.tiles[index].rect;
        let (width, height) = (rect.width as u32, rect.height as u32);
        let data = self.cache.get_or_insert_with(&key, || {
            encode(&samples, width, height, bits, format).map(Arc::new)
        })?;
        Ok((data.to_vec(), crc32c))
    }
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
