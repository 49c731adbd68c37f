//! A seeded simulation of the jobs: scheduler, journals and watchers in one thread, over a simulated disk and clock.
//!
//! The jobs are those of the program: admission, deadlines, creation, cancellation, deletion, pruning, the committer, recovery and the
//! files' formats. Only the networks are replaced: steps and tiles are numbers that follow from the seed. A schedule is a
//! sequence of random calls, slices and commits; the disk may crash at each operation and tear, reorder or refuse what it is
//! given ([`disk`]).
//!
//! Checked after each call and each restart: what a call has acknowledged stays (creation, cancellation, deletion,
//! viewports); a `request_id` has one job; an event that was seen is never changed or lost, and comes once; a seen tile and a
//! loaded checkpoint have their bytes; the last event is final; no job is overtaken by more work than its own; damaged
//! journals are reported and unchanged. At the end every job ends.

mod disk;

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use disk::{ROOT, SimulatedDisk};

use crate::{
    engine::{
        device::{Choice, Precision},
        plan::{Plan, Rect, Spec, TileSize},
    },
    jobs::{
        Job, Jobs, Models, Phase, Pruned, Request, Retention, Settings, Shared,
        admission::Cost,
        committer::{self, Settled, Tile, Write, WriteRequest},
        files::JobBuffer,
        prune::prune_on,
        record::{Event, Record, to_ms},
        worker,
    },
    model::{checkpoint::Checkpoint, sampler::SamplerState},
    ops::testing::Random,
    store::Disk,
};

/// Random actions of a schedule.
const ACTIONS: usize = 70;

static MODELS: LazyLock<Models> = LazyLock::new(|| {
    let bytes = include_bytes!("../../../tests/fixtures/net-a.safetensors");
    Models::new(vec![Arc::new(Checkpoint::from_bytes(bytes).unwrap())]).unwrap()
});

/// Width, height and steps of the jobs.
const SIZES: [(usize, usize, usize); 4] = [(32, 32, 1), (32, 32, 3), (64, 32, 2), (128, 64, 2)];

/// The plans of all specs of the simulation.
static PLANS: LazyLock<Vec<Plan>> = LazyLock::new(|| {
    let plan =
        |(width, height, steps)| Plan::new(small(0, width, height, steps), &MODELS.first().arch);
    SIZES.into_iter().map(|size| plan(size).unwrap()).collect()
});

/// A spec of the simulation.
fn small(seed: u64, width: usize, height: usize, steps: usize) -> Spec {
    Spec {
        width,
        height,
        steps: steps.into(),
        tile: TileSize::Pixels(64),
        ..Spec::new(&MODELS.first().arch, seed)
    }
}

thread_local! {
    /// True in the threads of the simulation.
    static KEEPS_PLANS: Cell<bool> = const { Cell::new(false) };
}

/// The kept plan of `spec`, in the threads of the simulation.
pub(super) fn kept_plan(spec: &Spec) -> Option<Plan> {
    let plans = KEEPS_PLANS.get().then(|| PLANS.iter())?;
    let seeded = plans.cloned().map(|mut plan| {
        plan.spec.seed = spec.seed;
        plan
    });
    seeded.into_iter().find(|plan| plan.spec == *spec)
}

/// What the outside world knows of a job.
#[derive(Debug, Default)]
struct Known {
    request_id: String,
    /// Events that watchers have seen.
    seen: Vec<Record>,
    cancelled: bool,
    /// A deletion was acknowledged.
    deleted: bool,
    /// A deletion was tried and not acknowledged.
    maybe_deleted: bool,
    viewport: Option<Option<Rect>>,
    /// The journal with a flipped bit.
    damaged: Option<Vec<u8>>,
}

/// A job on the simulated device.
struct Active {
    job: Arc<Job>,
    buffer: Arc<Mutex<JobBuffer>>,
    sampling: SamplerState,
    sent: Vec<bool>,
    served: u64,
}

/// The process: lost in a crash.
struct Process {
    jobs: Jobs,
    active: Vec<Active>,
    results: VecDeque<WriteRequest>,
    /// FLOPs of later jobs that took a slot before each queued job.
    overtaken: BTreeMap<String, Cost>,
}

struct World {
    random: Random,
    disk: SimulatedDisk,
    known: BTreeMap<String, Known>,
    process: Option<Process>,
    now_ms: u64,
    flips: bool,
    failing: u64,
    crashes: usize,
    /// Values of `request_id` of jobs that the server could not read at one of its starts.
    hidden: BTreeSet<String>,
}

fn settings() -> Settings {
    Settings {
        directory: PathBuf::from(ROOT),
        devices: vec![Choice::Cpu],
        fault: None,
        precision: Precision::F32,
        gpu_cache: None,
        memory: 1 << 40,
        queue: 6,
        active: 1,
        retention: Retention::default(),
    }
}

/// A number that follows from a job's seed and a place.
fn value(seed: u64, place: usize) -> u8 {
    (seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as u8 ^ (place as u8).wrapping_mul(37)
}

/// The simulated samples of a tile.
fn samples(job: &Job, index: usize) -> Vec<u8> {
    let rect = job.plan.tiling.tiles[index].rect;
    vec![value(job.plan.spec.seed, index); 3 * rect.width * rect.height]
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let disk = SimulatedDisk::new(random.bits());
        let failing = if random.bits().is_multiple_of(2) { 0 } else { 20 + random.bits() % 200 };
        let flips = random.bits().is_multiple_of(4);
        let (known, process) = (BTreeMap::new(), None);
        let hidden = BTreeSet::new();
        Self { random, disk, known, process, now_ms: 1_000_000, flips, failing, crashes: 3, hidden }
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.random.bits() % limit.max(1) as u64) as usize
    }

    /// Starts the process, with faults if there are crashes left.
    fn start(&mut self) {
        while self.process.is_none() {
            let crash = (self.crashes > 0).then(|| self.random.bits() % 300);
            self.crashes = self.crashes.saturating_sub(1);
            let failing = if crash.is_some() { self.failing } else { 0 };
            if self.below(8) == 0 {
                self.prune_without_server(crash, failing);
            } else {
                self.disk.set_faults(crash, failing);
            }
            let shared = Shared::open(settings(), MODELS.clone(), Arc::new(self.disk.clone()));
            if self.disk.has_crashed() {
                drop(shared);
                self.disk.restart();
                continue;
            }
            match shared {
                Ok(shared) => {
                    let jobs = Jobs { shared, threads: Arc::default() };
                    let (active, results) = (Vec::new(), VecDeque::new());
                    let overtaken = BTreeMap::new();
                    self.process = Some(Process { jobs, active, results, overtaken });
                    self.check_recovered();
                }
                // Leftovers can't be removed now.
                Err(_) => assert!(self.failing > 0),
            }
        }
    }

    fn jobs(&self) -> &Jobs {
        &self.process.as_ref().unwrap().jobs
    }

    fn all(&self) -> Vec<Arc<Job>> {
        self.jobs().shared.table().jobs.values().cloned().collect()
    }

    fn any(&mut self) -> Option<Arc<Job>> {
        let all = self.all();
        let place = self.below(all.len());
        all.get(place).cloned()
    }

    /// What was acknowledged before the restart is there.
    fn check_recovered(&mut self) {
        let jobs = self.all();
        let ids: BTreeSet<_> = jobs.iter().map(|job| job.id.clone()).collect();
        let damaged: BTreeSet<_> =
            self.jobs().damaged().iter().map(|damaged| damaged.id.clone()).collect();
        let mut hidden = std::mem::take(&mut self.hidden);
        for (id, known) in &self.known {
            assert!(!(known.deleted && ids.contains(id)), "{id} was deleted and is back");
            if let Some(bytes) = &known.damaged {
                hidden.insert(known.request_id.clone());
                let gone = known.deleted || known.maybe_deleted;
                assert!(gone || damaged.contains(id), "{id} is damaged and not reported");
                if let Ok(now) = self.disk.read(&journal(id)) {
                    assert_eq!(&now, bytes, "the damaged journal of {id} was changed");
                }
            } else {
                // A file that can't be synced now.
                let found = damaged.contains(id);
                hidden.extend(found.then(|| known.request_id.clone()));
                assert!(!found || self.failing > 0, "{:?}", self.jobs().damaged());
                let here = known.deleted || known.maybe_deleted || found || ids.contains(id);
                assert!(here, "{id} was acknowledged and is gone");
            }
        }
        // Also of jobs that nobody knows.
        for id in damaged.iter().filter(|id| !self.known.contains_key(*id)) {
            let bytes = self.disk.read(&journal(id)).unwrap_or_default();
            let first = crate::store::journal::scan(&bytes)
                .and_then(|(records, _)| Record::from_bytes(records.first()?).ok());
            if let Some(Record { event: Event::Queued { request, .. }, .. }) = first {
                hidden.insert(request.request_id);
            }
        }
        let mut requests = BTreeSet::new();
        for job in &jobs {
            let request_id = job.request.request_id.clone();
            let open = request_id.is_empty() || hidden.contains(&request_id);
            assert!(open || requests.insert(request_id), "two jobs of a request");
            let known = self.known.entry(job.id.clone()).or_default();
            known.request_id.clone_from(&job.request.request_id);
            let events = job.events_after(0, usize::MAX);
            assert!(
                events.len() >= known.seen.len(),
                "{}: seen events are lost: {:?} of {:?}",
                job.id,
                events,
                known.seen
            );
            for (record, (_, event)) in known.seen.iter().zip(&events) {
                assert_eq!(record, event, "{}: a seen event has changed", job.id);
            }
            let phase = job.snapshot().phase;
            assert!(!known.cancelled || phase == Phase::Cancelled, "{}: {phase:?}", job.id);
            if let Some(viewport) = known.viewport {
                assert_eq!(job.snapshot().viewport, viewport, "{}: the viewport", job.id);
            }
        }
        self.hidden = hidden;
        // Jobs that were not seen to be deleted and are gone were deleted.
        for (id, known) in &mut self.known {
            known.deleted |= known.maybe_deleted && !ids.contains(id) && !damaged.contains(id);
        }
    }

    fn act(&mut self) {
        match self.below(100) {
            0..12 => self.create(),
            12..15 => self.cancel(),
            15..18 => self.delete(),
            18 => self.prune(),
            19..22 => self.set_viewport(),
            22..32 => self.watch(),
            32..36 => self.pass_time(),
            36 => self.stop(),
            37..70 => self.slice(),
            _ => self.commit(),
        }
        if self.disk.has_crashed() {
            self.process = None;
            self.disk.restart();
            self.damage();
            self.start();
        }
    }

    /// Stops without a crash.
    fn stop(&mut self) {
        self.jobs().shared.table().closed = true;
        while !self.process.as_ref().unwrap().results.is_empty() && !self.disk.has_crashed() {
            self.commit();
        }
        if !self.disk.has_crashed() {
            self.process = None;
            self.start();
        }
    }

    fn create(&mut self) {
        let (width, height, steps) = SIZES[self.below(SIZES.len())];
        let request_id = ["", "", "a", "b"][self.below(4)].to_owned();
        let model = MODELS.first().clone();
        // The same request_id stands for the same request.
        let seed = if request_id.is_empty() { self.random.bits() >> 1 } else { 7 };
        let (width, height, steps) =
            if request_id.is_empty() { (width, height, steps) } else { SIZES[2] };
        let spec = small(seed, width, height, steps);
        let late = self.below(8) == 0;
        let deadline =
            late.then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(self.now_ms + 2000));
        let viewport = (self.below(4) == 0).then_some(Rect { x: 0, y: 0, width: 16, height: 8 });
        let existing = (!request_id.is_empty() && !self.hidden.contains(&request_id))
            .then(|| self.all().into_iter().find(|job| job.request.request_id == request_id))
            .flatten();
        let owner = String::new();
        let request = Request {
            model,
            spec,
            request_id: request_id.clone(),
            deadline,
            viewport,
            owner,
            source: None,
        };
        let created = self.jobs().create(request);
        if self.disk.has_crashed() {
            return;
        }
        let Ok(job) = created else { return };
        if let Some(existing) = existing {
            assert_eq!(existing.id, job.id, "a repeated request has made another job");
            return;
        }
        if self.hidden.contains(&request_id) && self.known.contains_key(&job.id) {
            return;
        }
        let known = Known { request_id, viewport: Some(viewport), ..Known::default() };
        assert!(self.known.insert(job.id.clone(), known).is_none());
        self.process.as_mut().unwrap().overtaken.insert(job.id.clone(), Cost::default());
    }

    fn cancel(&mut self) {
        let Some(job) = self.any() else { return };
        let cancelled = self.jobs().cancel(&job.id);
        if cancelled.is_ok() && !self.disk.has_crashed() {
            let phase = job.snapshot().phase;
            assert!(phase.is_last(), "{phase:?} after a cancellation");
            self.known.get_mut(&job.id).unwrap().cancelled = phase == Phase::Cancelled;
        }
    }

    fn delete(&mut self) {
        let Some(job) = self.any() else { return };
        let deleted = self.jobs().delete(&job.id).is_ok() && !self.disk.has_crashed();
        let known = self.known.get_mut(&job.id).unwrap();
        (known.deleted, known.maybe_deleted) = (deleted, true);
        if deleted {
            assert!(self.jobs().get(&job.id).is_err());
        }
    }

    /// A random limit of the bytes of all jobs.
    fn retention(&mut self) -> Retention {
        Retention { older_than: None, keep_bytes: Some(self.below(400_000) as u64) }
    }

    /// The server removes ended jobs.
    fn prune(&mut self) {
        let retention = self.retention();
        let shared = self.jobs().shared.clone();
        let before = self.all();
        let running: Vec<_> = before.iter().filter(|job| !job.snapshot().phase.is_last()).collect();
        let pruned = shared.prune(retention, to_ms(SystemTime::now()));
        for Pruned { id, .. } in &pruned {
            let deleted = self.jobs().get(id).is_err() && !self.disk.has_crashed();
            let known = self.known.get_mut(id).unwrap();
            (known.deleted, known.maybe_deleted) = (deleted, true);
        }
        if self.disk.has_crashed() {
            return;
        }
        let now = self.all();
        for job in running {
            assert!(now.iter().any(|kept| kept.id == job.id), "{} was pruned", job.id);
        }
        let failed = pruned.iter().any(|pruned| self.jobs().get(&pruned.id).is_ok());
        let ended = now.iter().any(|job| job.snapshot().phase.is_last());
        let bytes: u64 = now.iter().map(|job| job.directory.bytes()).sum();
        assert!(failed || !ended || Some(bytes) <= retention.keep_bytes, "{bytes} bytes are left");
    }

    /// Between two processes the command removes ended jobs, on a disk that crashes and fails from then on. What it may
    /// remove is what it chooses on a disk without faults: one that can't read a file chooses fewer jobs.
    fn prune_without_server(&mut self, crash: Option<u64>, failing: u64) {
        self.disk.set_faults(None, 0);
        let retention = self.retention();
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let prune = |dry_run| {
            let mut pruned = Vec::new();
            let mut seen = |job: Pruned| {
                pruned.push(job.id);
                Ok(())
            };
            // After an error some are left.
            let _ = prune_on(&disk, Path::new(ROOT), retention, dry_run, &mut seen);
            pruned
        };
        let chosen = prune(true);
        for id in &chosen {
            if let Ok(bytes) = self.disk.read(&journal(id)) {
                let (records, _) = crate::store::journal::scan(&bytes).unwrap();
                let last = Record::from_bytes(records.last().unwrap()).unwrap();
                assert!(last.event.is_last(), "{id} is chosen and has not ended");
            }
        }
        self.disk.set_faults(crash, failing);
        let pruned = prune(false);
        assert!(pruned.iter().all(|id| chosen.contains(id)), "{pruned:?} of {chosen:?}");
        for id in &chosen {
            let known = self.known.entry(id.clone()).or_default();
            known.maybe_deleted = true;
            known.deleted |= pruned.contains(id);
        }
        assert!(self.disk.has_crashed() || self.failing > 0 || chosen == pruned);
    }

    fn set_viewport(&mut self) {
        let Some(job) = self.any() else { return };
        let viewport =
            (self.below(3) > 0).then(|| Rect { x: self.below(8), y: 0, width: 8, height: 8 });
        let ended = job.snapshot().phase.is_last();
        let set = job.set_viewport(viewport).is_ok() && !self.disk.has_crashed();
        let known = self.known.get_mut(&job.id).unwrap();
        if !ended {
            // After an error either may be stored.
            known.viewport = set.then_some(viewport);
        }
    }

    /// A watcher reads some events, and the tiles that they name.
    fn watch(&mut self) {
        let Some(job) = self.any() else { return };
        let most = 1 + self.below(6);
        let known = self.known.get_mut(&job.id).unwrap();
        let after = self.random.bits() % (known.seen.len() as u64 + 1);
        for (sequence, record) in job.events_after(after, most) {
            if let Event::Tile { index, .. } = record.event
                && !known.maybe_deleted
            {
                let (read, _) = job.read_tile(index).unwrap();
                assert_eq!(read, samples(&job, index), "{}: tile {index}", job.id);
            }
            match known.seen.get(sequence as usize - 1) {
                Some(seen) => assert_eq!(seen, &record, "{}: event {sequence}", job.id),
                None => known.seen.push(record),
            }
            assert_eq!(known.seen.len() as u64, known.seen.len().max(sequence as usize) as u64);
        }
        let last = known.seen.iter().position(|record| record.event.is_last());
        assert!(last.is_none_or(|last| last + 1 == known.seen.len()), "events after the last one");
        assert_eq!(*job.newest().borrow(), job.snapshot().sequence);
    }

    fn pass_time(&mut self) {
        self.now_ms += self.below(3000) as u64;
        // Paused jobs are due by the real clock.
        let real = crate::jobs::record::to_ms(SystemTime::now()) + 2000;
        let mut table = self.jobs().shared.table();
        let now = self.now_ms;
        table.paused.iter_mut().filter(|(at, _)| *at < real).for_each(|(at, _)| *at = now);
        drop(table);
        self.jobs().shared.look_after(now);
    }

    /// A time slice of the device: admission, then a step or a tile.
    fn slice(&mut self) {
        let chance = self.below(3);
        let process = self.process.as_mut().unwrap();
        if process.results.len() >= 4 {
            return self.commit();
        }
        let shared = process.jobs.shared.clone();
        let running: Vec<_> = process.active.iter().map(|active| active.job.clone()).collect();
        let (admitted, waiting) = {
            let mut table = shared.table();
            let admitted = shared.admit(&mut table, &running);
            (admitted, table.waiting.iter().cloned().collect::<Vec<_>>())
        };
        for (place, entry) in admitted.iter().enumerate() {
            let size = entry.item.size();
            let later = admitted[place + 1..].iter().map(|entry| &entry.item);
            for older in waiting.iter().chain(later).filter(|job| job.size().arrival < size.arrival)
            {
                let sum = process.overtaken.entry(older.id.clone()).or_default();
                *sum = if entry.in_slot { sum.plus(size.cost) } else { *sum };
                let within = sum.is_within(older.size().cost);
                assert!(within, "{} is overtaken by {sum:?}", older.id);
            }
        }
        for entry in admitted {
            let job = entry.item;
            process.overtaken.remove(&job.id);
            match worker::open(&shared, &job, "simulated") {
                Ok((buffer, sampling)) => {
                    let sampling = sampling.unwrap();
                    if sampling.step > 0 {
                        let expected = f32::from(value(job.plan.spec.seed, sampling.step));
                        assert!(sampling.z.iter().flat_map(|z| &z.data).all(|&v| v == expected));
                    }
                    let served = process.active.iter().map(|active| active.served).min();
                    let (buffer, sent) = (Arc::new(Mutex::new(buffer)), job.tiles_done());
                    let served = served.unwrap_or(0);
                    process.active.push(Active { job, buffer, sampling, sent, served });
                }
                Err(error) => {
                    process.results.push_back(WriteRequest { job, write: Write::Fail(error) })
                }
            }
        }
        let next = (0..process.active.len()).min_by_key(|&i| process.active[i].served);
        let Some(next) = next else { return };
        let mut active = process.active.swap_remove(next);
        let (job, buffer) = (active.job.clone(), active.buffer.clone());
        let mut send = |write| process.results.push_back(WriteRequest { job: job.clone(), write });
        if let Err(error) = job.check() {
            return send(Write::Fail(error));
        }
        if active.sampling.step < job.plan.schedule.steps() {
            active.sampling.step += 1;
            let step = active.sampling.step;
            let fill = f32::from(value(job.plan.spec.seed, step));
            active.sampling.z.iter_mut().for_each(|z| z.data.fill(fill));
            active.served += job.quote.step_flops;
            // Steps may be skipped, except the last one.
            if step == job.plan.schedule.steps() || chance > 0 {
                let settled = Settled { levels: Vec::new(), picture: None };
                send(Write::Step { buffer, sampling: active.sampling.clone(), settled });
            }
        } else if let Some(index) = job.next_tile(&active.sent) {
            active.sent[index] = true;
            active.served += job.quote.tile_flops;
            send(Write::Tile(Tile { buffer, index, samples: samples(&job, index) }));
        }
        if active.sent.iter().all(|&sent| sent) {
            let (receipt, description) = ("{}".to_owned(), String::new());
            send(Write::End(Event::Finished { receipt, description }));
        } else {
            process.active.push(active);
        }
    }

    /// The committer processes a result.
    fn commit(&mut self) {
        let together = self.below(2) == 0;
        let process = self.process.as_mut().unwrap();
        let Some(WriteRequest { job, write }) = process.results.pop_front() else { return };
        let mut more = Vec::new();
        while together
            && matches!(write, Write::Tile(_))
            && process.results.front().is_some_and(|next| {
                Arc::ptr_eq(&next.job, &job) && matches!(next.write, Write::Tile(_))
            })
        {
            if let Some(WriteRequest { write: Write::Tile(tile), .. }) = process.results.pop_front()
            {
                more.push(tile);
            }
        }
        committer::commit(&process.jobs.shared, &job, write, more);
    }

    /// Flips a bit of a journal before its last append, at a restart.
    fn damage(&mut self) {
        if !self.flips || self.below(3) > 0 {
            return;
        }
        let intact: Vec<_> =
            self.known.iter().filter(|(_, known)| known.damaged.is_none()).collect();
        let Some((id, _)) = intact.get(self.random.bits() as usize % intact.len().max(1)) else {
            return;
        };
        let (id, path) = ((*id).clone(), journal(id));
        let Ok(bytes) = self.disk.read(&path) else { return };
        let Some((records, _)) = crate::store::journal::scan(&bytes) else { return };
        let ends: Vec<_> = records
            .iter()
            .scan(8, |end, record| {
                *end += 16 + record.len();
                Some(*end)
            })
            .collect();
        // The first record, or one before a record that begins an append.
        let begins = |place: usize| {
            let at = ends[place - 1];
            bytes[at + 15] & 0x80 == 0
        };
        let last =
            (1..records.len()).rev().find(|&place| begins(place)).map_or(0, |place| place - 1);
        let bit = 8 * 8 + self.random.bits() as usize % (8 * (ends[last] - 8));
        self.disk.flip(&path, bit);
        let damaged = self.disk.read(&path).unwrap();
        self.known.get_mut(&id).unwrap().damaged = Some(damaged);
    }

    /// Without faults every job ends.
    fn finish(&mut self) {
        self.crashes = 0;
        self.process = None;
        self.disk.restart();
        self.start();
        for _ in 0..2000 {
            if self.all().iter().all(|job| job.snapshot().phase.is_last()) {
                return self.all().iter().for_each(|job| self.check_ended(job));
            }
            self.slice();
            self.commit();
        }
        panic!("a job does not end");
    }

    fn check_ended(&self, job: &Job) {
        let now = job.snapshot();
        if now.phase == Phase::Finished {
            for index in 0..job.plan.tiling.tiles.len() {
                assert_eq!(job.read_tile(index).unwrap().0, samples(job, index));
            }
            let events = job.events_after(0, usize::MAX);
            let tiles: BTreeSet<_> = events
                .iter()
                .filter_map(|(_, record)| match record.event {
                    Event::Tile { index, .. } => Some(index),
                    _ => None,
                })
                .collect();
            assert_eq!(tiles.len(), job.plan.tiling.tiles.len());
        } else if let Some((kind, message)) = now.error {
            // A failed disk may have failed the job; else only its deadline.
            assert!(self.failing > 0 || kind == crate::error::Kind::Expired, "{message}");
        }
    }
}

fn journal(id: &str) -> PathBuf {
    Path::new(ROOT).join(id).join("journal")
}

/// Runs the schedules of the seeds below `schedules` on all processors.
fn run(schedules: u64) {
    let next = AtomicU64::new(0);
    let work = || loop {
        KEEPS_PLANS.set(true);
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= schedules {
            return;
        }
        let schedule = || {
            let mut world = World::new(seed);
            world.start();
            (0..ACTIONS).for_each(|_| world.act());
            world.finish();
        };
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(schedule));
        if let Err(cause) = done {
            next.store(schedules, Ordering::Relaxed);
            eprintln!("seed {seed}");
            std::panic::resume_unwind(cause);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
}

#[test]
fn nothing_acknowledged_is_lost_in_any_of_100_000_schedules() {
    run(100_000);
}

#[test]
#[ignore = "takes ten times as long as the test before"]
fn nothing_acknowledged_is_lost_in_any_of_1_000_000_schedules() {
    run(1_000_000);
}
