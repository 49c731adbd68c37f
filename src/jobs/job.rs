//! One job: its state, its events and its pixels.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use tokio::sync::watch;

use crate::{
    engine::{
        Cancel,
        plan::{Plan, Rect, Tile},
        run::Task,
    },
    error::{Detail, Error, Expected, Kind, Resource, Result},
    jobs::{
        Quote, RETRY_AFTER, Shared, Timings,
        admission::{Cost, Size},
        estimates::{Estimate, NewestEstimates},
        files::{self, JobDirectory, Layout},
        observe,
        record::{Event, JobRequest, Record},
        state::{Pause, Phase, Repair, Saved, Snapshot, State},
    },
    model::checkpoint::Checkpoint,
};

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
    /// Bytes of its files once it has ended, if they were counted since they last grew.
    bytes: Mutex<Option<u64>>,
    pub(super) estimates: NewestEstimates,
    /// The jobs that it belongs to; empty for a job without a server.
    owner: OnceLock<Weak<Shared>>,
}

impl Job {
    /// Creates a job from the records of its journal, at least one.
    pub(super) fn new(
        id: &str,
        model: Arc<Checkpoint>,
        request: JobRequest,
        mut plan: Plan,
        quote: Quote,
        directory: JobDirectory,
        records: Vec<Record>,
    ) -> Self {
        plan.notices.extend(request.notices.iter().cloned());
        let layout = match records.first().map(|record| &record.event) {
            Some(&Event::Queued { latent_values, .. }) if latent_values > 0 => {
                Layout::with_latents(&plan, latent_values as usize)
            }
            _ => Layout::new(&plan),
        };
        let tiles = vec![None; plan.tiling.tiles.len()];
        let viewport = request.viewport.map(|[x, y, width, height]| Rect { x, y, width, height });
        let mut state = State {
            journal: None,
            records: Vec::new(),
            phase: Phase::Queued,
            checkpoint: None,
            tiles,
            tiles_done: 0,
            settled: None,
            preview: None,
            viewport: viewport.filter(|&rect| plan.check_rect("viewport", rect).is_ok()),
            held: false,
            deleted: false,
            erasable: false,
            paused: None,
            halted: false,
            damaged: BTreeMap::new(),
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
            bytes: Mutex::new(None),
            estimates: NewestEstimates::default(),
            owner: OnceLock::new(),
        }
    }

    /// Tells the job which jobs it belongs to.
    pub(super) fn belongs_to(&self, shared: &Arc<Shared>) {
        // Set once: a job has one server.
        let _ = self.owner.set(Arc::downgrade(shared));
    }

    /// Measurements of its server.
    pub(super) fn timings(&self) -> Option<Timings> {
        let shared = self.owner.get().and_then(Weak::upgrade)?;
        Some(shared.timings.clone())
    }

    /// Its size for admission.
    pub(super) fn size(&self) -> Size {
        // Ids are numbers that grow with time; other names of directories come first.
        let arrival = u128::from_str_radix(&self.id, 16).unwrap_or(0);
        let plan = &self.plan;
        let steps = plan.schedule.steps().saturating_sub(plan.first_step);
        let encoding = usize::from(self.request.source_sha256.is_some());
        let slices = (encoding + steps + 1 + plan.tiling.tiles.len()) as u64;
        let cost = Cost { flops: self.quote.flops, slices };
        Size { arrival, cost, memory: self.quote.memory_bytes }
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
            paused: state.paused,
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

    /// Indices of the tiles that intersect `area`, which must be inside the picture.
    pub fn tiles_in(&self, area: Rect) -> Vec<usize> {
        let tiling = &self.plan.tiling;
        let Some(first) = tiling.tiles.first() else { return Vec::new() };
        let columns = area.x / first.rect.width..=(area.x + area.width - 1) / first.rect.width;
        let rows = area.y / first.rect.height..=(area.y + area.height - 1) / first.rect.height;
        rows.flat_map(|row| columns.clone().map(move |column| row * tiling.columns + column))
            .collect()
    }

    /// Samples of the tile `index` (RGB rows without gaps, 16 bits in native byte order) and their CRC32C. If they are
    /// damaged, the tile is decoded again if possible.
    ///
    /// # Errors
    /// [`Kind::NotReady`] if it is not decoded yet; [`Kind::Damaged`] if its samples are not those of its checksum, with
    /// [`Error::retry_after`] if it is decoded again; [`Kind::Io`].
    pub fn read_tile(&self, index: usize) -> Result<(Vec<u8>, u32)> {
        let name = || format!("{}/tiles/{index}", self.id);
        let pending = || Error::not_ready(Resource::Tile, name(), "pending", "decoded");
        let crc32c = self.checksum(index).ok_or_else(pending)?;
        let samples = self.directory.read(&self.layout, self.plan.tiling.tiles[index].rect)?;
        if files::checksum(&samples, self.plan.spec.bits) != crc32c {
            return Err(self.damaged_tile(index));
        }
        Ok((samples, crc32c))
    }

    /// CRC32C of the tile `index`, if it is decoded.
    pub(super) fn checksum(&self, index: usize) -> Option<u32> {
        self.state().tiles.get(index).copied().flatten()
    }

    /// Requests that a damaged tile is decoded again, and returns its error.
    fn damaged_tile(&self, index: usize) -> Error {
        let shared = self.owner.get().and_then(Weak::upgrade);
        let can = self.request.model_sha256 == self.model.sha256
            && !matches!(self.state().phase, Phase::Failed | Phase::Cancelled);
        let first = if can && shared.is_some() { Repair::Wanted } else { Repair::Impossible };
        let repair = *self.state().damaged.entry(index).or_insert(first);
        tracing::error!("job {}: tile {index} is damaged on the disk ({repair:?})", self.id);
        let detail = Detail::State {
            resource: Resource::Tile,
            name: format!("{}/tiles/{index}", self.id),
            state: "damaged".into(),
            required: "intact".into(),
        };
        let error = Error::new(Kind::Damaged, detail);
        match shared {
            Some(shared) if repair != Repair::Impossible => {
                shared.repair(&self.id);
                error.with_retry_after(RETRY_AFTER)
            }
            _ => error,
        }
    }

    /// True if a damaged tile is to be decoded again.
    pub(super) fn needs_repair(&self) -> bool {
        self.state().damaged.values().any(|&repair| repair == Repair::Wanted)
    }

    /// The damaged tiles that the device is to decode again, each once.
    pub(super) fn take_damaged(&self) -> Vec<usize> {
        let mut state = self.state();
        let wanted = state.damaged.iter_mut().filter(|(_, repair)| **repair == Repair::Wanted);
        let take = |(&index, repair): (&usize, &mut Repair)| {
            *repair = Repair::Begun;
            index
        };
        wanted.map(take).collect()
    }

    /// Records the outcome of decoding the tile `index` again.
    pub(super) fn repaired(&self, index: usize, intact: bool) {
        let mut state = self.state();
        if intact {
            if state.damaged.remove(&index).is_some() {
                tracing::info!("job {}: tile {index} was decoded again", self.id);
            }
        } else {
            tracing::error!("job {}: tile {index} can't be decoded again", self.id);
            state.damaged.insert(index, Repair::Impossible);
        }
    }

    /// The samples of `rect` of the finished picture; the tiles in it are compared to their checksums.
    ///
    /// # Errors
    /// [`Kind::NotReady`] if it is not finished; [`Kind::InvalidArgument`] if `rect` is not inside the picture; those of
    /// [`Job::read_tile`].
    pub fn read(&self, rect: Rect) -> Result<Vec<u8>> {
        self.need_finished()?;
        self.plan.check_rect("rect", rect)?;
        self.tiles_in(rect).into_iter().try_for_each(|index| self.read_tile(index).map(drop))?;
        self.read_unchecked(rect)
    }

    /// The samples of `rect`, not compared to checksums.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub(super) fn read_unchecked(&self, rect: Rect) -> Result<Vec<u8>> {
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

    /// Requests previews of the denoised estimate from now on, every few steps; see
    /// [`Plan::estimates`](crate::engine::plan::Plan::estimates).
    pub fn want_estimates(&self) {
        self.estimates.want();
    }

    /// The newest preview of the denoised estimate; none before the first one and once the finest level has settled.
    pub fn estimate(&self) -> Option<Arc<Estimate>> {
        self.estimates.last()
    }

    /// The preview of the denoised estimate after `step`, if it is one of the newest four.
    pub fn estimate_at(&self, step: usize) -> Option<Arc<Estimate>> {
        self.estimates.at(step)
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
        self.directory.read_preview(level)
    }

    /// Sets the rectangle whose tiles are decoded first; it is durable when this returns. An ended job is unchanged.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if it is empty or not inside the picture; [`Kind::NotFound`] if the job is being deleted;
    /// [`Kind::Exhausted`] if the disk is full; [`Kind::Io`].
    pub fn set_viewport(&self, viewport: Option<Rect>) -> Result<()> {
        if let Some(rect) = viewport {
            self.plan.check_rect("viewport", rect)?;
        }
        let mut state = self.state();
        if state.deleted {
            return Err(Error::not_found(Resource::Job, &self.id));
        }
        if !state.phase.is_last() {
            // Also if it is the same: a failed call may have stored another one.
            self.directory.save_viewport(viewport)?;
            state.viewport = viewport;
        }
        Ok(())
    }

    /// Bytes of its files.
    pub(super) fn bytes(&self) -> u64 {
        let ended = self.state().phase.is_last();
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        match *bytes {
            Some(bytes) => bytes,
            None if ended => *bytes.insert(self.directory.bytes()),
            None => self.directory.bytes(),
        }
    }

    /// Called when a file was added to those of an ended job.
    pub(super) fn has_grown(&self) {
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// True if no event can follow: the job has ended or is deleted.
    pub(super) fn is_over(&self) -> bool {
        self.state().is_over()
    }

    /// True once the job is deleted, or a call has tried to delete it and failed half-way.
    pub(super) fn is_deleted(&self) -> bool {
        self.state().deleted
    }

    /// Restores the viewport that a client has set, after a restart.
    pub(super) fn restore_viewport(&self) {
        let inside = |rect: &Rect| self.plan.check_rect("viewport", *rect).is_ok();
        if let Some(viewport) = self.directory.read_viewport() {
            self.state().viewport = viewport.filter(inside);
        }
    }

    /// Makes events durable, then notifies the watchers. False: the job had ended or is deleted, and is unchanged.
    ///
    /// # Errors
    /// [`Kind::Exhausted`] if the disk is full; [`Kind::Damaged`] and [`Kind::Io`]; the job is then unchanged.
    pub(super) fn publish(&self, events: Vec<Event>) -> Result<bool> {
        let records: Vec<_> = events.into_iter().map(Record::now).collect();
        let bytes = records.iter().map(Record::to_bytes).collect::<Result<Vec<_>>>()?;
        let mut state = self.state();
        if state.is_over() {
            return Ok(false);
        }
        let append = |state: &mut State| {
            let journal = match &mut state.journal {
                Some(journal) => journal,
                none => none.insert(self.directory.open_journal()?.0),
            };
            journal.append(&bytes)
        };
        let began = Instant::now();
        let appended = append(&mut state);
        if let Some(timings) = self.timings() {
            timings.fsync.observe(began.elapsed().as_secs_f64());
        }
        let events: Vec<_> = records.iter().map(|record| record.event.clone()).collect();
        if appended.is_ok() {
            records.into_iter().for_each(|record| state.apply(record, &self.plan));
            state.paused = None;
        }
        if !state.held || state.phase.is_last() {
            state.close_journal();
        }
        if state.phase.is_last() || state.preview == Some(0) {
            self.estimates.clear();
        }
        let size = bytes.iter().map(Vec::len).sum::<usize>() as u64;
        appended.map_err(|error| files::stored(error, size))?;
        events.iter().for_each(|event| observe::count(self, event));
        self.newest.send_replace(state.records.len() as u64);
        drop(state);
        events.iter().for_each(|event| observe::log(self, event));
        if events.iter().any(Event::is_last)
            && let Some(shared) = self.owner.get().and_then(Weak::upgrade)
        {
            shared.ended();
        }
        Ok(true)
    }

    /// Ends a job whose journal is gone, so that no restart finds it. Watchers are notified.
    pub(super) fn end_without_journal(&self, last: Event) {
        let mut state = self.state();
        if !state.phase.is_last() {
            observe::count(self, &last);
            state.apply(Record::now(last), &self.plan);
            state.journal = None;
            self.newest.send_replace(state.records.len() as u64);
        }
    }

    /// Stops the job until it is admitted again: a result could not be made durable because of `error`.
    pub(super) fn pause(&self, error: &Error) {
        let full = files::is_full_disk(error);
        let pause = if full { Pause::DiskFull } else { Pause::DiskFailed };
        let mut state = self.state();
        if state.paused != Some(pause) {
            tracing::error!("job {} pauses: {}", self.id, error.report());
        }
        (state.paused, state.halted) = (Some(pause), true);
    }

    /// True if results are dropped until the job is admitted again.
    pub(super) fn is_halted(&self) -> bool {
        self.state().halted
    }

    /// Returns an error if the device must not work on the job any more.
    ///
    /// # Errors
    /// [`Kind::Cancelled`].
    pub(super) fn check(&self) -> Result<()> {
        self.cancel.check()?;
        if self.is_halted() {
            Err(Error::cancelled("the job's time on the device"))
        } else {
            Ok(())
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

    /// The picture, as the engine computes it.
    pub(super) fn task(&self) -> Task<'_> {
        Task { model: &self.model, plan: &self.plan, cancel: &self.cancel }
    }

    /// Deletes the job durably; its files are removed now, or when the device releases the job. After an error the job
    /// publishes nothing more, and a repeated call completes the deletion.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub(super) fn delete(&self) -> Result<()> {
        let mut state = self.state();
        if let Err(error) = self.directory.mark_deleted() {
            state.deleted |= self.directory.is_gone();
            return Err(error);
        }
        (state.deleted, state.erasable) = (true, true);
        self.cancel.cancel();
        if !state.phase.is_last() {
            // For the watchers. The directory has its final name: no restart finds another state.
            state.apply(Record::now(Event::Cancelled), &self.plan);
            self.newest.send_replace(state.records.len() as u64);
        }
        if !state.held {
            self.directory.erase();
        }
        Ok(())
    }

    /// Called when the job is admitted.
    pub(super) fn hold(&self) {
        let mut state = self.state();
        (state.held, state.halted) = (true, false);
    }

    /// True while a device works on the job.
    pub(super) fn is_held(&self) -> bool {
        self.state().held
    }

    /// Called when the committer has processed the last result of the job's time on the device.
    pub(super) fn released(&self) {
        let mut state = self.state();
        state.close_journal();
        state.held = false;
        let again = if state.halted { Repair::Wanted } else { Repair::Impossible };
        for repair in state.damaged.values_mut().filter(|repair| **repair == Repair::Begun) {
            *repair = again;
        }
        if state.erasable {
            self.directory.erase();
        }
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
