//! One job: its state, its events and its pixels.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use strum::{IntoStaticStr, VariantArray};
use tokio::sync::watch;

use crate::{
    engine::{
        Cancel,
        plan::{Plan, Rect, Tile},
    },
    error::{Error, Expected, Kind, Resource, Result},
    jobs::{
        Quote,
        files::{JobDirectory, Layout},
        observe::{self, Ended},
        record::{Event, JobRequest, Record},
    },
    model::checkpoint::Checkpoint,
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

/// A job. One engine thread works on it at a time; everything else may be read from any thread.
#[derive(Debug)]
pub struct Job {
    /// Its id: 32 hexadecimal digits that sort by creation time.
    pub id: String,
    /// Its model.
    pub model: Arc<Checkpoint>,
    /// The request.
    pub request: JobRequest,
    /// The plan of the request.
    pub plan: Plan,
    /// Its cost at admission.
    pub quote: Quote,
    /// Raised to end the job early.
    pub(super) cancel: Cancel,
    pub(super) directory: JobDirectory,
    pub(super) layout: Layout,
    /// Journal and derived state. Locked briefly: never while computing.
    state: Mutex<State>,
    /// Sequence number of the newest event.
    newest: watch::Sender<u64>,
    /// True once a client has asked for previews.
    previews_wanted: AtomicBool,
    /// Counts of the server's ended jobs.
    ended: OnceLock<Ended>,
}

/// State derived from the records.
#[derive(Debug)]
struct State {
    /// Open while an engine thread works on the job.
    journal: Option<Journal>,
    records: Vec<Record>,
    phase: Phase,
    /// Newest checkpoint.
    checkpoint: Option<Saved>,
    /// CRC32C of every decoded tile.
    tiles: Vec<Option<u32>>,
    tiles_done: usize,
    /// Finest level that has settled.
    settled: Option<usize>,
    /// Finest level that has settled and has a preview.
    preview: Option<usize>,
    viewport: Option<Rect>,
    /// True if the job was deleted: the directory is removed when the engine thread releases the job.
    deleted: bool,
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
}

impl Job {
    /// Creates a job from the records of its journal, at least one.
    pub(super) fn new(
        id: &str,
        model: Arc<Checkpoint>,
        request: JobRequest,
        plan: Plan,
        quote: Quote,
        directory: JobDirectory,
        records: Vec<Record>,
    ) -> Self {
        let layout = match records.first().map(|record| &record.event) {
            Some(&Event::Queued { latent_values, .. }) if latent_values > 0 => {
                Layout::with_latents(&plan, latent_values as usize)
            }
            _ => Layout::new(&plan),
        };
        let tiles = vec![None; plan.tiling.tiles.len()];
        let mut state = State {
            journal: None,
            records: Vec::new(),
            phase: Phase::Queued,
            checkpoint: None,
            tiles,
            tiles_done: 0,
            settled: None,
            preview: None,
            viewport: None,
            deleted: false,
        };
        let newest = records.len() as u64;
        records.into_iter().for_each(|record| state.apply(record, &plan));
        Self {
            id: id.to_owned(),
            model,
            request,
            plan,
            quote,
            cancel: Cancel::default(),
            directory,
            layout,
            state: Mutex::new(state),
            newest: watch::Sender::new(newest),
            previews_wanted: AtomicBool::new(false),
            ended: OnceLock::new(),
        }
    }

    /// Counts the job's end in `ended`, the counts of its server.
    pub(super) fn count_in(&self, ended: &Ended) {
        // A job has one server.
        let _ = self.ended.set(ended.clone());
    }

    /// Counts of the server's ended jobs.
    pub(super) fn ended(&self) -> Option<&Ended> {
        self.ended.get()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // State changes after its record is durable, in one assignment: it is consistent after a panic elsewhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of the current state.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state();
        let last = state.records.last().filter(|record| record.event.is_last());
        Snapshot {
            phase: state.phase,
            sequence: state.records.len() as u64,
            steps_done: state.checkpoint.map_or(0, |saved| saved.step),
            tiles_done: state.tiles_done,
            created_ms: state.records.first().map_or(0, |record| record.time_ms),
            ended_ms: last.map(|record| record.time_ms),
            error: last.and_then(|record| match &record.event {
                Event::Failed { kind, message } => Some((*kind, message.clone())),
                _ => None,
            }),
            viewport: state.viewport,
        }
    }

    /// At most `most` events after the sequence number `after`, with their sequence numbers.
    pub fn events_after(&self, after: u64, most: usize) -> Vec<(u64, Record)> {
        let state = self.state();
        let first = usize::try_from(after).unwrap_or(usize::MAX).min(state.records.len());
        let later = state.records[first..].iter().take(most).cloned();
        (first as u64 + 1..).zip(later).collect()
    }

    /// A receiver of the newest event's sequence number.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Number of receivers of [`Job::newest`].
    pub fn watchers(&self) -> usize {
        self.newest.receiver_count()
    }

    /// The tile in `column` and `row`, with its index.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if it does not exist.
    pub fn tile(&self, column: usize, row: usize) -> Result<(usize, &Tile)> {
        let tiling = &self.plan.tiling;
        for (field, value, count) in [("column", column, tiling.columns), ("row", row, tiling.rows)]
        {
            if value >= count {
                return Err(Error::invalid(field, value, Expected::within(0..=count - 1)));
            }
        }
        let index = row * tiling.columns + column;
        Ok((index, &tiling.tiles[index]))
    }

    /// Samples of the tile `index` (RGB rows without gaps, 16 bits in native byte order) and their CRC32C.
    ///
    /// # Errors
    /// [`Kind::NotReady`] if it is not decoded yet; [`Kind::Io`].
    pub fn read_tile(&self, index: usize) -> Result<(Vec<u8>, u32)> {
        let done = self.state().tiles.get(index).copied().flatten();
        let name = || format!("{}/tiles/{index}", self.id);
        let pending = || Error::not_ready(Resource::Tile, name(), "pending", "decoded");
        let crc32c = done.ok_or_else(pending)?;
        let samples = self.directory.read(&self.layout, self.plan.tiling.tiles[index].rect)?;
        let found = crc32c::crc32c(&super::files::little_endian(&samples, self.plan.spec.bits));
        if found != crc32c {
            return Err(Error::wrong(
                Kind::Io,
                format!("crc32c of tile {index}"),
                found,
                crc32c.to_string(),
            ));
        }
        Ok((samples, crc32c))
    }

    /// The samples of `rect` of the finished picture.
    ///
    /// # Errors
    /// [`Kind::NotReady`] if it is not finished; [`Kind::InvalidArgument`] if `rect` is not inside the picture; [`Kind::Io`].
    pub fn read(&self, rect: Rect) -> Result<Vec<u8>> {
        self.need_finished()?;
        self.plan.check_rect("rect", rect)?;
        self.directory.read(&self.layout, rect)
    }

    /// Returns an error if the job is not finished.
    pub(super) fn need_finished(&self) -> Result<()> {
        match self.state().phase {
            Phase::Finished => Ok(()),
            phase => Err(Error::not_ready(Resource::Job, &self.id, phase.name(), "finished")),
        }
    }

    /// Requests previews of the levels that settle from now on. A preview costs as much as a few steps, so by default only the
    /// last one is computed, which comes with the decoding.
    pub fn want_previews(&self) {
        self.previews_wanted.store(true, Ordering::Relaxed);
    }

    /// True once a client has asked for previews.
    pub(super) fn previews_wanted(&self) -> bool {
        self.previews_wanted.load(Ordering::Relaxed)
    }

    /// The finest level that has settled.
    pub(super) fn settled(&self) -> Option<usize> {
        self.state().settled
    }

    /// The level of the newest preview.
    ///
    /// # Errors
    /// [`Kind::NotReady`] if there is none.
    pub fn newest_preview(&self) -> Result<usize> {
        let pending = || Error::not_ready(Resource::Preview, &self.id, "pending", "available");
        self.state().preview.ok_or_else(pending)
    }

    /// The PNG of the preview of `level`.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub fn preview(&self, level: usize) -> Result<Vec<u8>> {
        let path = self.directory.preview(level);
        std::fs::read(&path).map_err(|e| Error::io("read", path, e))
    }

    /// Sets the rectangle whose tiles are decoded first.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if it is empty or not inside the picture.
    pub fn set_viewport(&self, viewport: Option<Rect>) -> Result<()> {
        if let Some(rect) = viewport {
            self.plan.check_rect("viewport", rect)?;
        }
        self.state().viewport = viewport;
        Ok(())
    }

    /// Makes events durable, then notifies the watchers. Events after the last one are ignored.
    ///
    /// # Errors
    /// [`Kind::Io`]; the job is then unchanged.
    pub(super) fn publish(&self, events: Vec<Event>) -> Result<()> {
        let records: Vec<_> = events.into_iter().map(Record::now).collect();
        let bytes = records.iter().map(Record::to_bytes).collect::<Result<Vec<_>>>()?;
        let mut state = self.state();
        if state.phase.is_last() {
            return Ok(());
        }
        let journal = match &mut state.journal {
            Some(journal) => journal,
            none => none.insert(self.directory.open_journal()?.0),
        };
        journal.append(&bytes)?;
        let events: Vec<_> = records.iter().map(|record| record.event.clone()).collect();
        records.into_iter().for_each(|record| state.apply(record, &self.plan));
        if matches!(state.phase, Phase::Queued) || state.phase.is_last() {
            // Only running jobs keep a file open: there may be thousands of others.
            state.journal = None;
        }
        events.iter().for_each(|event| observe::count(self, event));
        self.newest.send_replace(state.records.len() as u64);
        drop(state);
        events.iter().for_each(|event| observe::log(self, event));
        Ok(())
    }

    /// Fails the job without its journal, whose disk has failed. Watchers are notified; a restart resumes from the journal.
    pub(super) fn abandon(&self, error: &Error) {
        let mut state = self.state();
        if !state.phase.is_last() {
            let (kind, message) = (error.kind(), error.report().to_string());
            state.apply(Record::now(Event::Failed { kind, message }), &self.plan);
            state.journal = None;
            self.newest.send_replace(state.records.len() as u64);
        }
    }

    /// Newest checkpoint.
    pub(super) fn checkpoint(&self) -> Option<Saved> {
        self.state().checkpoint
    }

    /// Index of the tile to decode next among those not `sent` yet: one in the viewport if any is left, else the first.
    pub(super) fn next_tile(&self, sent: &[bool]) -> Option<usize> {
        let viewport = self.state().viewport;
        let tiles = &self.plan.tiling.tiles;
        let mut left = (0..tiles.len()).filter(|&index| !sent[index]);
        let seen = |&index: &usize| viewport.is_some_and(|v| tiles[index].rect.intersects(v));
        left.clone().find(seen).or_else(|| left.next())
    }

    /// True for each decoded tile.
    pub(super) fn tiles_done(&self) -> Vec<bool> {
        self.state().tiles.iter().map(Option::is_some).collect()
    }

    /// Removes the job's directory: now, or when the engine thread releases the job.
    pub(super) fn delete(&self) -> Result<()> {
        self.cancel.cancel();
        let mut state = self.state();
        state.deleted = true;
        match state.phase {
            Phase::Denoising | Phase::Decoding => Ok(()),
            _ => self.directory.remove(),
        }
    }

    /// Called when the engine thread has released the job.
    pub(super) fn released(&self) -> Result<()> {
        let mut state = self.state();
        state.journal = None;
        if std::mem::take(&mut state.deleted) { self.directory.remove() } else { Ok(()) }
    }

    /// File of the whole picture.
    pub(super) fn picture_file(&self, extension: &str) -> PathBuf {
        self.directory.picture(extension)
    }

    /// Description and receipt, once the job is finished.
    pub fn receipt(&self) -> Option<(String, String)> {
        self.state().records.last().and_then(|record| match &record.event {
            Event::Finished { receipt, description } => {
                Some((description.clone(), receipt.clone()))
            }
            _ => None,
        })
    }
}

impl State {
    /// Updates the state by one record.
    fn apply(&mut self, record: Record, plan: &Plan) {
        match &record.event {
            Event::Queued { .. } => self.phase = Phase::Queued,
            Event::Started { .. } => {
                let denoised = self.checkpoint.is_some_and(|saved| saved.step >= plan.spec.steps);
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
