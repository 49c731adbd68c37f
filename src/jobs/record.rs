//! What a job's journal holds: one JSON document per event, the same that watchers are told.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::{
    engine::plan::{Spec, TileSize},
    error::{Error, Kind, Result},
    image_out::Bits,
    model::sampler::Sampler,
};

/// One event of a job. Its sequence is its place in the journal, from 1 on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

impl Record {
    /// A record of what happens now.
    pub fn now(event: Event) -> Self {
        Self { time_ms: to_ms(SystemTime::now()), event }
    }

    /// Its bytes in the journal.
    ///
    /// # Errors
    /// [`Kind::Internal`], which no record gives.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| Error::internal("serialising a record").with_source(e))
    }

    /// The record of a journal's payload.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] when it is none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|e| {
            Error::invalid("record", "malformed", "a record of this version").with_source(e)
        })
    }
}

/// What happened to a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// It was queued: always the first record, and all that is known of the job.
    Queued {
        /// What was asked for.
        order: Order,
        /// Microseconds on the device as they were quoted; 0: the server could not tell.
        #[serde(default)]
        compute_us: u64,
        /// Values of the model's latents together, which tell where the pixels lie when the model is not there any more; 0: those of
        /// the model that is there.
        #[serde(default)]
        latent_values: u64,
    },
    /// A device began, or went on after a restart.
    Started {
        /// Name of the device.
        device: String,
    },
    /// Steps up to this one are done, and its latents lie in the arena. While the disk is slower than the device, steps are
    /// passed over; never the last one, nor one after which a level has settled.
    Step {
        /// Steps done.
        step: usize,
        /// Steps in all.
        of: usize,
        /// Shared sigma reached.
        sigma: f64,
        /// Which of the two checkpoints in the arena is this one's.
        slot: usize,
        /// CRC32C of the checkpoint.
        crc32c: u32,
    },
    /// A level reached its floor.
    Settled {
        /// The level, 0 the finest.
        level: usize,
        /// Rows of its grid.
        rows: usize,
        /// Columns of its grid.
        columns: usize,
        /// Whether there is a preview of it.
        pictured: bool,
    },
    /// A tile lies in the arena.
    Tile {
        /// Its number, row by row.
        index: usize,
        /// CRC32C of its samples, those of 16 bits in little-endian order.
        crc32c: u32,
    },
    /// The end: all tiles are done.
    Finished {
        /// What the picture was made from, a JSON object.
        receipt: String,
        /// The picture's sentence for people.
        description: String,
    },
    /// The end: an error.
    Failed {
        /// Its kind.
        kind: Kind,
        /// What went wrong.
        message: String,
    },
    /// The end: somebody did not want it any more.
    Cancelled,
}

impl Event {
    /// Whether no other event follows it.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Finished { .. } | Self::Failed { .. } | Self::Cancelled)
    }
}

/// A job as it was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// What to make.
    pub spec: StoredSpec,
    /// SHA-256 of the model's checkpoint, in hexadecimal.
    pub model_sha256: String,
    /// The client's name for the request; empty: none.
    pub request_id: String,
    /// Milliseconds since 1970 by when the job must have ended.
    pub deadline_ms: Option<u64>,
    /// Who asked, where clients have names.
    pub owner: String,
    /// SHA-256 of the picture that is edited, in hexadecimal; it lies in the job's directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_sha256: Option<String>,
}

impl Order {
    /// Whether a client that names both the same means the same.
    pub(super) fn is_the_same_as(&self, other: &Self) -> bool {
        self.spec == other.spec
            && self.model_sha256 == other.model_sha256
            && self.owner == other.owner
            && self.source_sha256 == other.source_sha256
    }
}

/// [`Spec`] as the journal holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredSpec {
    seed: u64,
    width: usize,
    height: usize,
    steps: usize,
    sampler: String,
    /// Side in pixels; 0: the whole picture at once.
    tile: usize,
    bits: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    strength: Option<f64>,
}

impl From<&Spec> for StoredSpec {
    fn from(spec: &Spec) -> Self {
        Self {
            seed: spec.seed,
            width: spec.width,
            height: spec.height,
            steps: spec.steps,
            sampler: spec.sampler.name().to_owned(),
            tile: match spec.tile {
                TileSize::Pixels(side) => side,
                TileSize::Whole => 0,
            },
            bits: 8 * spec.bits.sample_len() as u8,
            strength: spec.strength,
        }
    }
}

impl TryFrom<&StoredSpec> for Spec {
    type Error = Error;

    fn try_from(stored: &StoredSpec) -> Result<Self> {
        let StoredSpec { seed, width, height, steps, ref sampler, tile, bits, strength } = *stored;
        let method = Sampler::ALL.into_iter().find(|method| method.name() == sampler);
        Ok(Self {
            seed,
            width,
            height,
            steps,
            strength,
            sampler: method.ok_or_else(|| {
                Error::invalid("sampler", format!("{sampler:?}"), "a known sampler")
            })?,
            tile: if tile == 0 { TileSize::Whole } else { TileSize::Pixels(tile) },
            bits: match bits {
                8 => Bits::Eight,
                16 => Bits::Sixteen,
                _ => return Err(Error::invalid("bits", bits, "8 or 16")),
            },
        })
    }
}

/// Milliseconds since 1970.
pub fn to_ms(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The last moment that a journal can name, the end of the year 9999: that of the API's times as well.
const LAST_MS: u64 = 253_402_300_799_999;

/// The time of `ms` milliseconds since 1970; what lies behind the year 9999 is its end.
pub fn from_ms(ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms.min(LAST_MS))
}
