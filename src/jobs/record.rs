//! Records of a job's journal: one JSON document per event. Clients receive the same events.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::{
    attribution::Attribution,
    engine::plan::{Spec, Steps, TileSize},
    error::{Error, Kind, Result},
    image_out::Bits,
};

/// One event of a job. Its sequence number is its position in the journal, from 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
}

impl Record {
    /// A record of `event` with the current time.
    pub fn now(event: Event) -> Self {
        Self { time_ms: to_ms(SystemTime::now()), event }
    }

    /// The record as JSON, its payload in the journal.
    ///
    /// # Errors
    /// [`Kind::Internal`] if serialisation fails.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| Error::internal("serialising a record").with_source(e))
    }

    /// Parses a journal's payload.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if it is malformed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|e| {
            Error::invalid("record", "malformed", "a record of this version").with_source(e)
        })
    }
}

/// An event of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "the first record of a job alone is large")]
pub enum Event {
    /// The job was queued. Always the first record; it describes the job completely.
    Queued {
        /// The request.
        #[serde(rename = "order")]
        request: JobRequest,
        /// Quoted device time in microseconds; 0: unknown.
        #[serde(default)]
        compute_us: u64,
        /// Number of values of all latents, which determines the arena's layout even if the model is no longer available; 0: that
        /// of the available model.
        #[serde(default)]
        latent_values: u64,
    },
    /// A device started or, after a restart, resumed the job.
    Started {
        /// Name of the device.
        device: String,
    },
    /// A denoising step is done and its checkpoint is durable. If the disk is slower than the device, steps are skipped, except
    /// the last one and those that settle a level.
    Step {
        /// Steps done.
        step: usize,
        /// Number of steps.
        of: usize,
        /// Shared sigma after the step.
        sigma: f64,
        /// Slot of the checkpoint in the arena, 0 or 1.
        slot: usize,
        /// CRC32C of the checkpoint.
        crc32c: u32,
    },
    /// A level has settled: it will not change any more.
    Settled {
        /// The level, 0 the finest.
        level: usize,
        /// Rows of its grid.
        rows: usize,
        /// Columns of its grid.
        columns: usize,
        /// True if there is a preview of it.
        pictured: bool,
    },
    /// A tile is decoded and durable.
    Tile {
        /// Its index, row by row.
        index: usize,
        /// CRC32C of its samples in little-endian byte order.
        crc32c: u32,
    },
    /// The job is finished: all tiles are decoded.
    Finished {
        /// Provenance of the picture, a JSON object.
        receipt: String,
        /// Description of the picture for people.
        description: String,
    },
    /// The job failed.
    Failed {
        /// Kind of the error.
        kind: Kind,
        /// Report of the error and its causes.
        message: String,
    },
    /// The job was cancelled.
    Cancelled,
}

impl Event {
    /// True if no event can follow.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Finished { .. } | Self::Failed { .. } | Self::Cancelled)
    }
}

/// The request of a job as the journal stores it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRequest {
    /// The spec.
    pub spec: StoredSpec,
    /// SHA-256 of the model's checkpoint, in hexadecimal.
    pub model_sha256: String,
    /// Identifier of the request chosen by the client; empty: none.
    pub request_id: String,
    /// Deadline in milliseconds since 1970.
    pub deadline_ms: Option<u64>,
    /// Name of the client; empty if the server had no tokens.
    #[serde(default)]
    pub owner: String,
    /// SHA-256 of the source picture in the job's directory, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_sha256: Option<String>,
    /// Author, rights, date and resolution of that picture.
    #[serde(default, skip_serializing_if = "Attribution::is_empty")]
    pub attribution: Attribution,
    /// Notices about the reading of that picture.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<String>,
    /// Rectangle whose tiles are decoded first, until a client sets another one: column, row, width and height in pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub viewport: Option<[usize; 4]>,
}

impl JobRequest {
    /// Owner and `request_id`, by which a repeated request is recognised.
    pub(super) fn key(&self) -> (String, String) {
        (self.owner.clone(), self.request_id.clone())
    }

    /// True if both requests, sent by the same client with the same `request_id`, describe the same job.
    pub(super) fn is_same_request(&self, other: &Self) -> bool {
        self.spec == other.spec
            && self.model_sha256 == other.model_sha256
            && self.source_sha256 == other.source_sha256
    }
}

/// [`Spec`] as the journal stores it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredSpec {
    seed: u64,
    width: usize,
    height: usize,
    steps: usize,
    sampler: String,
    /// Side in pixels; 0: one tile for the whole picture.
    tile: usize,
    bits: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    strength: Option<f64>,
    /// Steps of each group of levels; empty: `steps` are shared among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    group_steps: Vec<usize>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    labels: Vec<usize>,
    #[serde(default = "unguided", skip_serializing_if = "is_unguided")]
    guidance: f64,
}

fn unguided() -> f64 {
    1.0
}

fn is_unguided(guidance: &f64) -> bool {
    *guidance == unguided()
}

impl From<&Spec> for StoredSpec {
    fn from(spec: &Spec) -> Self {
        Self {
            seed: spec.seed,
            width: spec.width,
            height: spec.height,
            steps: spec.steps.total(),
            group_steps: match &spec.steps {
                Steps::Total(_) => Vec::new(),
                Steps::PerGroup(steps) => steps.clone(),
            },
            sampler: spec.sampler.name().to_owned(),
            tile: match spec.tile {
                TileSize::Pixels(side) => side,
                TileSize::Whole => 0,
            },
            bits: spec.bits.per_sample() as u8,
            strength: spec.strength,
            labels: spec.labels.clone(),
            guidance: spec.guidance,
        }
    }
}

impl TryFrom<&StoredSpec> for Spec {
    type Error = Error;

    fn try_from(stored: &StoredSpec) -> Result<Self> {
        let StoredSpec { seed, width, height, steps, tile, bits, strength, guidance, .. } = *stored;
        let sampler = &stored.sampler;
        let method = sampler.parse().ok();
        Ok(Self {
            seed,
            width,
            height,
            steps: match stored.group_steps.is_empty() {
                true => Steps::Total(steps),
                false => Steps::PerGroup(stored.group_steps.clone()),
            },
            strength,
            labels: stored.labels.clone(),
            guidance,
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

/// The latest time of records, the end of the year 9999, as for timestamps of the API.
const LAST_MS: u64 = 253_402_300_799_999;

/// The time of `ms` milliseconds since 1970, at most the end of the year 9999.
pub fn from_ms(ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms.min(LAST_MS))
}
