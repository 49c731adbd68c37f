//! The state of a job, derived from the records of its journal.

use std::collections::BTreeMap;

use strum::{IntoStaticStr, VariantArray};

use crate::{
    engine::plan::{Plan, Rect},
    error::Kind,
    jobs::record::{Event, Record},
    store::Journal,
};

/// Phase of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Phase {
    /// In the queue.
    Queued,
    /// Taking denoising steps.
    Denoising,
    /// Decoding tiles.
    Decoding,
    /// All tiles are decoded.
    Finished,
    /// Ended by an error.
    Failed,
    /// Ended by a client.
    Cancelled,
}

impl Phase {
    /// All phases.
    pub const ALL: &[Self] = <Self as VariantArray>::VARIANTS;

    /// Its machine-readable name.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// True if no event follows.
    pub fn is_last(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Cancelled)
    }
}

/// State derived from the records.
#[derive(Debug)]
pub(super) struct State {
    /// Open while a device works on the job.
    pub(super) journal: Option<Journal>,
    pub(super) records: Vec<Record>,
    pub(super) phase: Phase,
    /// Newest checkpoint.
    pub(super) checkpoint: Option<Saved>,
    /// CRC32C of every decoded tile.
    pub(super) tiles: Vec<Option<u32>>,
    pub(super) tiles_done: usize,
    /// Finest level that has settled.
    pub(super) settled: Option<usize>,
    /// Finest level that has settled and has a preview.
    pub(super) preview: Option<usize>,
    pub(super) viewport: Option<Rect>,
    /// True from admission until the committer has processed the last result of this time on the device.
    pub(super) held: bool,
    /// True if the directory has the name of a deleted job.
    pub(super) deleted: bool,
    /// True if that name is durable: the files are removed when the job is not held any more.
    pub(super) erasable: bool,
    /// Reason why the last result could not be made durable.
    pub(super) paused: Option<Pause>,
    /// True from a pause until the job is admitted again: the other results of this time on the device are dropped.
    pub(super) halted: bool,
    /// Tiles whose samples were not those of their checksum.
    pub(super) damaged: BTreeMap<usize, Repair>,
}

/// Reason why a job does not go on for some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
pub enum Pause {
    /// No space is left.
    #[strum(serialize = "the server's disk is full")]
    DiskFull,
    /// Writing failed.
    #[strum(serialize = "the server's disk failed")]
    DiskFailed,
}

impl Pause {
    /// Its description.
    pub fn text(self) -> &'static str {
        self.into()
    }
}

/// State of a damaged tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repair {
    /// To be decoded again.
    Wanted,
    /// Being decoded again.
    Begun,
    /// Can't be decoded again.
    Impossible,
}

/// A checkpoint in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Saved {
    /// Steps done.
    pub(super) step: usize,
    /// Slot, 0 or 1.
    pub(super) slot: usize,
    /// Its CRC32C.
    pub(super) crc32c: u32,
}

/// A copy of a job's state.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Phase.
    pub phase: Phase,
    /// Sequence number of the newest event.
    pub sequence: u64,
    /// Number of steps done.
    pub steps_done: usize,
    /// Number of tiles decoded.
    pub tiles_done: usize,
    /// Creation time in milliseconds since 1970.
    pub created_ms: u64,
    /// End time in milliseconds since 1970.
    pub ended_ms: Option<u64>,
    /// Kind and report of the error of a failed job.
    pub error: Option<(Kind, String)>,
    /// Rectangle whose tiles are decoded first.
    pub viewport: Option<Rect>,
    /// Reason why the job does not go on at this time.
    pub paused: Option<Pause>,
}

impl State {
    /// Closes the journal: only running jobs keep a file open, there may be thousands of others. After a failed append it
    /// stays open, so that the next one cuts off what the failed one has written.
    pub(super) fn close_journal(&mut self) {
        self.journal = self.journal.take().filter(Journal::is_torn);
    }

    /// True if no event can follow.
    pub(super) fn is_over(&self) -> bool {
        self.phase.is_last() || self.deleted
    }

    /// Updates the state by one record.
    pub(super) fn apply(&mut self, record: Record, plan: &Plan) {
        match &record.event {
            Event::Queued { .. } => self.phase = Phase::Queued,
            Event::Started { .. } => {
                let denoised =
                    self.checkpoint.is_some_and(|saved| saved.step >= plan.schedule.steps());
                self.phase = if denoised { Phase::Decoding } else { Phase::Denoising };
            }
            &Event::Step { step, of, slot, crc32c, .. } => {
                self.checkpoint = Some(Saved { step, slot, crc32c });
                self.phase = if step == of { Phase::Decoding } else { Phase::Denoising };
            }
            Event::Settled { level, pictured, .. } => {
                self.settled = Some(*level);
                if *pictured {
                    self.preview = Some(*level);
                }
            }
            Event::Tile { index, crc32c } => {
                // An edit of strength 0 decodes without a step.
                self.phase = Phase::Decoding;
                if let Some(tile) = self.tiles.get_mut(*index) {
                    self.tiles_done += usize::from(tile.is_none());
                    *tile = Some(*crc32c);
                }
            }
            Event::Finished { .. } => self.phase = Phase::Finished,
            Event::Failed { .. } => self.phase = Phase::Failed,
            Event::Cancelled => self.phase = Phase::Cancelled,
        }
        self.records.push(record);
    }
}
