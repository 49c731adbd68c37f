//! Tiles as clients ask for them. What costs time to compress is compressed once: the newest results are kept.

use std::{
    collections::VecDeque,
    io::Cursor,
    sync::{Arc, Mutex, PoisonError},
};

use image::{
    ExtendedColorType, ImageEncoder as _,
    codecs::{jpeg::JpegEncoder, png::PngEncoder, webp::WebPEncoder},
};
use tokio::sync::Semaphore;

use crate::{
    api::{self, ImageFormat},
    error::{Error, Result},
    image_out::Bits,
    jobs::{self, Job, files::little_endian},
    service::convert,
};

/// Quality of JPEG tiles, of 100.
const JPEG_QUALITY: u8 = 90;

/// Bytes of compressed tiles that are kept.
const KEPT: usize = 64 << 20;

/// Which tile, how encoded.
type Key = (String, usize, ImageFormat);

/// Reads and encodes tiles, a few at a time.
#[derive(Debug)]
pub(super) struct Encoder {
    /// Newest last. Held for short: never while encoding.
    kept: Mutex<VecDeque<(Key, Arc<Vec<u8>>)>>,
    /// Bounds the threads and the memory that watchers take together.
    places: Semaphore,
}

impl Encoder {
    /// An encoder that works on as many tiles at a time as there are cores.
    pub(super) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self { kept: Mutex::default(), places: Semaphore::new(2 * cores) }
    }

    /// The message of a finished tile.
    ///
    /// # Errors
    /// [`Kind::NotReady`](crate::error::Kind) while it is not finished; [`Kind::Io`](crate::error::Kind).
    pub(super) async fn tile(
        self: &Arc<Self>,
        job: &Arc<Job>,
        index: usize,
        format: ImageFormat,
    ) -> Result<api::Tile> {
        let _place = self.places.acquire().await.map_err(|_| jobs::shutting_down())?;
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
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|e| Error::internal("encoding a tile").with_source(e))?
    }

    fn data(&self, job: &Job, index: usize, format: ImageFormat) -> Result<(Vec<u8>, u32)> {
        let (samples, crc32c) = job.read_tile(index)?;
        let bits = job.plan.spec.bits;
        if format == ImageFormat::Raw {
            return Ok((little_endian(&samples, bits).into_owned(), crc32c));
        }
        let key = (job.id.clone(), index, format);
        if let Some(kept) = self.find(&key) {
            return Ok((kept.to_vec(), crc32c));
        }
        let rect = job.plan.tiling.tiles[index].rect;
        let data = encode(&samples, rect.width as u32, rect.height as u32, bits, format)?;
        self.keep(key, Arc::new(data.clone()));
        Ok((data, crc32c))
    }

    fn find(&self, key: &Key) -> Option<Arc<Vec<u8>>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(other, _)| other == key).map(|(_, data)| data.clone())
    }

    fn keep(&self, key: Key, data: Arc<Vec<u8>>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back((key, data));
        let mut bytes: usize = kept.iter().map(|(_, data)| data.len()).sum();
        while bytes > KEPT {
            let Some((_, oldest)) = kept.pop_front() else { break };
            bytes -= oldest.len();
        }
    }
}

/// RGB samples in the machine's byte order as a file of `format`.
///
/// # Errors
/// [`Kind::Internal`](crate::error::Kind) when the encoder fails.
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
