//! One job: what is known of it, its events, and the reading of its pixels.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

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
        record::{Event, Order, Record},
    },
    model::checkpoint::Checkpoint,
    store::Journal,
};

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waits for its turn.
    Queued,
    /// Is being denoised.
    Denoising,
    /// Is being decoded.
    Decoding,
    /// All tiles are done.
    Finished,
    /// Ended by an error.
    Failed,
    /// Ended by a client.
    Cancelled,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Queued,
        Self::Denoising,
        Self::Decoding,
        Self::Finished,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Its name for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Denoising => "denoising",
            Self::Decoding => "decoding",
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more will happen.
    pub fn is_last(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Cancelled)
    }
}

/// A job. Shared by the engine's thread, which alone works on it, and by whoever asks about it.
#[derive(Debug)]
pub struct Job {
    /// Its name, chosen by the server: 32 hexadecimal digits, in the order of their making.
    pub id: String,
    /// What it is made with.
    pub model: Arc<Checkpoint>,
    /// What was asked for.
    pub order: Order,
    /// What follows from it.
    pub plan: Plan,
    /// What it was admitted with.
    pub quote: Quote,
    /// Raised when somebody does not want it any more.
    pub(super) cancel: Cancel,
    pub(super) directory: JobDirectory,
    pub(super) layout: Layout,
    /// Guards the journal and all that follows from its records. Held for short: never while computing.
    state: Mutex<State>,
    /// Sequence of the newest event, for those who wait for the next one.
    newest: watch::Sender<u64>,
    /// Somebody has asked for previews.
    previews_wanted: AtomicBool,
}

/// What follows from the records so far.
#[derive(Debug)]
struct State {
    /// Open while an engine works on the job.
    journal: Option<Journal>,
    records: Vec<Record>,
    phase: Phase,
    /// Newest checkpoint.
    checkpoint: Option<Saved>,
    /// CRC32C of every tile that is done.
    tiles: Vec<Option<u32>>,
    tiles_done: usize,
    /// Finest level that has settled.
    settled: Option<usize>,
    /// Finest level that has settled and has a preview.
    preview: Option<usize>,
    viewport: Option<Rect>,
    /// The job was deleted: its directory goes when the engine lets go of it.
    deleted: bool,
}

/// A checkpoint in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Saved {
    /// Steps done.
    pub(super) step: usize,
    /// Which of the two.
    pub(super) slot: usize,
    /// Its CRC32C.
    pub(super) crc32c: u32,
}

/// A job's state at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Where it stands.
    pub phase: Phase,
    /// Sequence of the newest event.
    pub sequence: u64,
    /// Steps done.
    pub steps_done: usize,
    /// Tiles done.
    pub tiles_done: usize,
    /// When it was queued, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// Why it failed.
    pub error: Option<(Kind, String)>,
    /// What is looked at.
    pub viewport: Option<Rect>,
}

impl Job {
    /// A job with the records of its journal, at least the first one.
    pub(super) fn new(
        id: &str,
        model: Arc<Checkpoint>,
        order: Order,
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
        records.into_iter().for_each(|record| state.take(record, &plan));
        Self {
            id: id.to_owned(),
            model,
            order,
            plan,
            quote,
            cancel: Cancel::default(),
            directory,
            layout,
            state: Mutex::new(state),
            newest: watch::Sender::new(newest),
            previews_wanted: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is changed only after its record is on the disk, in one go: a panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The job's state now.
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

    /// At most `most` events after the sequence number `after`, with their own numbers.
    pub fn events_after(&self, after: u64, most: usize) -> Vec<(u64, Record)> {
        let state = self.state();
        let first = usize::try_from(after).unwrap_or(usize::MAX).min(state.records.len());
        let later = state.records[first..].iter().take(most).cloned();
        (first as u64 + 1..).zip(later).collect()
    }

    /// The sequence of the newest event, to be waited for.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// How many wait for the newest event.
    pub fn watchers(&self) -> usize {
        self.newest.receiver_count()
    }

    /// The tile in `column` and `row`, with its number.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] when there is none.
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

    /// Samples of the tile number `index` (rows without gaps, 16 bits in the machine's byte order) and their CRC32C.
    ///
    /// # Errors
    /// [`Kind::NotReady`] when it is not done yet; [`Kind::Io`].
    pub fn read_tile(&self, index: usize) -> Result<(Vec<u8>, u32)> {
        let done = self.state().tiles.get(index).copied().flatten();
        let pending = || Error::not_ready(Resource::Tile, index.to_string(), "pending", "decoded");
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

    /// The picture's samples in `rect`, once the job is finished.
    ///
    /// # Errors
    /// [`Kind::NotReady`] before; [`Kind::InvalidArgument`] when the rectangle leaves the picture; [`Kind::Io`].
    pub fn read(&self, rect: Rect) -> Result<Vec<u8>> {
        self.need_finished()?;
        self.plan.check_rect("rect", rect)?;
        self.directory.read(&self.layout, rect)
    }

    /// Refuses a job that is not finished.
    pub(super) fn need_finished(&self) -> Result<()> {
        match self.state().phase {
            Phase::Finished => Ok(()),
            phase => Err(Error::not_ready(Resource::Job, &self.id, phase.name(), "finished")),
        }
    }

    /// Asks for previews of the levels that settle from now on. Each costs as much as a few steps, so none is made that
    /// nobody wants; but for the last one, which comes with the decoding.
    pub fn want_previews(&self) {
        self.previews_wanted.store(true, Ordering::Relaxed);
    }

    /// Whether somebody has asked for previews.
    pub(super) fn previews_wanted(&self) -> bool {
        self.previews_wanted.load(Ordering::Relaxed)
    }

    /// The finest level that was announced to have settled.
    pub(super) fn settled(&self) -> Option<usize> {
        self.state().settled
    }

    /// The level of the newest preview.
    ///
    /// # Errors
    /// [`Kind::NotReady`] when there is none.
    pub fn newest_preview(&self) -> Result<usize> {
        let pending = || Error::not_ready(Resource::Preview, &self.id, "pending", "available");
        self.state().preview.ok_or_else(pending)
    }

    /// The PNG of the preview that came with `level`.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub fn preview(&self, level: usize) -> Result<Vec<u8>> {
        let path = self.directory.preview(level);
        std::fs::read(&path).map_err(|e| Error::io("read", path, e))
    }

    /// Tells what is looked at: its tiles are decoded first.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] when it is empty or leaves the picture.
    pub fn set_viewport(&self, viewport: Option<Rect>) -> Result<()> {
        if let Some(rect) = viewport {
            self.plan.check_rect("viewport", rect)?;
        }
        self.state().viewport = viewport;
        Ok(())
    }

    /// Makes events durable, then tells everybody of them. After the last event nothing is added any more.
    ///
    /// # Errors
    /// [`Kind::Io`]; nothing has happened then.
    pub(super) fn announce(&self, events: Vec<Event>) -> Result<()> {
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
        records.into_iter().for_each(|record| state.take(record, &self.plan));
        if matches!(state.phase, Phase::Queued) || state.phase.is_last() {
            // Thousands of jobs may wait or have ended; only those at work keep a file open.
            state.journal = None;
        }
        self.newest.send_replace(state.records.len() as u64);
        Ok(())
    }

    /// Ends the job without its journal, whose disk has failed: those who watch are told, and a restart goes on from
    /// what the journal has.
    pub(super) fn abandon(&self, error: &Error) {
        let mut state = self.state();
        if !state.phase.is_last() {
            let (kind, message) = (error.kind(), error.report().to_string());
            state.take(Record::now(Event::Failed { kind, message }), &self.plan);
            state.journal = None;
            self.newest.send_replace(state.records.len() as u64);
        }
    }

    /// Newest checkpoint.
    pub(super) fn checkpoint(&self) -> Option<Saved> {
        self.state().checkpoint
    }

    /// The tile to decode next among those that are not `sent` yet: one that is looked at, if any is left, else the first one.
    pub(super) fn next_tile(&self, sent: &[bool]) -> Option<usize> {
        let viewport = self.state().viewport;
        let tiles = &self.plan.tiling.tiles;
        let mut left = (0..tiles.len()).filter(|&index| !sent[index]);
        let seen = |&index: &usize| viewport.is_some_and(|v| tiles[index].rect.intersects(v));
        left.clone().find(seen).or_else(|| left.next())
    }

    /// Which tiles are done.
    pub(super) fn tiles_done(&self) -> Vec<bool> {
        self.state().tiles.iter().map(Option::is_some).collect()
    }

    /// Takes the job's directory away: now if no engine works on it, else as soon as that lets go.
    pub(super) fn delete(&self) -> Result<()> {
        self.cancel.cancel();
        let mut state = self.state();
        state.deleted = true;
        match state.phase {
            Phase::Denoising | Phase::Decoding => Ok(()),
            _ => self.directory.remove(),
        }
    }

    /// The engine has let go of the job.
    pub(super) fn released(&self) -> Result<()> {
        let mut state = self.state();
        state.journal = None;
        if std::mem::take(&mut state.deleted) { self.directory.remove() } else { Ok(()) }
    }

    /// File of the whole picture, once it was made.
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
    /// Follows one record.
    fn take(&mut self, record: Record, plan: &Plan) {
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
                // A picture that is decoded as it was given has no step before.
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
