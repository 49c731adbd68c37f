//! A disk in memory that loses, tears and reorders what is not synced, and whose operations fail.
//!
//! After a crash a file has, for each sector that was written since its last sync, the old or the new content, and any length
//! in between; a directory has the changes up to any one of those since its last sync. Mapped files are the same.

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use crate::{
    error::{Error, Result},
    ops::testing::Random,
    store::{
        Disk, RowSpan,
        disk::{Arena, DiskFile, Entry},
    },
};

/// Bytes that reach the disk together.
const SECTOR: usize = 512;

/// The disk; clones share it. Paths begin with [`ROOT`].
#[derive(Clone, Debug)]
pub(super) struct SimulatedDisk(Arc<Mutex<State>>);

/// The directory that exists from the start.
pub(super) const ROOT: &str = "/jobs";

#[derive(Debug)]
struct State {
    random: Random,
    nodes: Vec<Node>,
    /// Mutating operations until the crash; `None`: no crash.
    until_crash: Option<u64>,
    /// One of so many mutating operations fails; 0: none.
    failing: u64,
    /// True from the crash until the restart: every operation fails.
    crashed: bool,
}

#[derive(Debug)]
enum Node {
    File { now: Vec<u8>, durable: Vec<u8>, dirty: bool },
    Directory { now: Entries, durable: Entries, pending: Vec<Change> },
}

type Entries = BTreeMap<String, usize>;

/// A change of a directory.
#[derive(Clone, Debug)]
enum Change {
    Put(String, usize),
    Remove(String),
    Rename(String, String),
}

impl Change {
    fn apply(&self, entries: &mut Entries) {
        match self {
            Self::Put(name, node) => drop(entries.insert(name.clone(), *node)),
            Self::Remove(name) => drop(entries.remove(name)),
            Self::Rename(from, to) => {
                if let Some(node) = entries.remove(from) {
                    entries.insert(to.clone(), node);
                }
            }
        }
    }
}

fn crashed() -> io::Error {
    io::Error::other("the machine has crashed")
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl State {
    fn below(&mut self, limit: usize) -> usize {
        (self.random.bits() % limit.max(1) as u64) as usize
    }

    fn alive(&self) -> io::Result<()> {
        if self.crashed { Err(crashed()) } else { Ok(()) }
    }

    /// Begins a mutating operation: it may crash or fail, with a part of its effect.
    fn begin(&mut self) -> io::Result<()> {
        self.alive()?;
        if let Some(left) = &mut self.until_crash {
            if *left == 0 {
                self.crashed = true;
                return Err(crashed());
            }
            *left -= 1;
        }
        if self.failing > 0 && self.random.bits().is_multiple_of(self.failing) {
            let full = self.random.bits() & 1 == 0;
            let kind = if full { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
            return Err(io::Error::new(kind, "simulated"));
        }
        Ok(())
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        let inside = path.strip_prefix(ROOT).map_err(|_| missing())?;
        inside.iter().try_fold(0, |node, name| match &self.nodes[node] {
            Node::Directory { now, .. } => {
                now.get(name.to_str().unwrap_or_default()).copied().ok_or_else(missing)
            }
            Node::File { .. } => Err(io::ErrorKind::NotADirectory.into()),
        })
    }

    /// The directory and the name of a path.
    fn parent(&self, path: &Path) -> io::Result<(usize, String)> {
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(missing)?;
        Ok((self.find(path.parent().ok_or_else(missing)?)?, name.to_owned()))
    }

    fn change(&mut self, directory: usize, change: Change) {
        if let Node::Directory { now, pending, .. } = &mut self.nodes[directory] {
            change.apply(now);
            pending.push(change);
        }
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<usize> {
        let (directory, name) = self.parent(path)?;
        if self.find(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.begin()?;
        self.nodes.push(node);
        let node = self.nodes.len() - 1;
        self.change(directory, Change::Put(name, node));
        Ok(node)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        let (directory, name) = self.parent(path)?;
        let inside = match &self.nodes[self.find(path)?] {
            Node::Directory { now, .. } => now.keys().cloned().collect(),
            Node::File { .. } => Vec::new(),
        };
        for entry in inside {
            self.remove(&path.join(entry))?;
        }
        self.begin()?;
        self.change(directory, Change::Remove(name));
        Ok(())
    }

    /// Old or new content for each sector of a file, and a length in between.
    fn tear(&mut self, node: usize) {
        let Node::File { now, durable, .. } = &self.nodes[node] else { return };
        let (now, mut torn) = (now.clone(), durable.clone());
        let shorter = now.len().min(torn.len());
        let len = shorter + self.below(now.len().max(torn.len()) - shorter + 1);
        torn.resize(len, 0);
        for start in (0..len.min(now.len())).step_by(SECTOR) {
            let end = (start + SECTOR).min(len).min(now.len());
            if torn[start..end] != now[start..end] && self.random.bits() & 1 == 0 {
                torn[start..end].copy_from_slice(&now[start..end]);
            }
        }
        if let Node::File { durable, .. } = &mut self.nodes[node] {
            *durable = torn;
        }
    }

    fn sync_file(&mut self, node: usize) -> io::Result<()> {
        self.alive()?;
        let begun = self.begin();
        if begun.is_err() && !self.crashed {
            self.tear(node);
        }
        begun?;
        if let Node::File { now, durable, dirty } = &mut self.nodes[node] {
            durable.clone_from(now);
            *dirty = false;
        }
        Ok(())
    }
}

impl SimulatedDisk {
    /// An empty disk.
    pub(super) fn new(seed: u64) -> Self {
        let root =
            Node::Directory { now: Entries::new(), durable: Entries::new(), pending: Vec::new() };
        Self(Arc::new(Mutex::new(State {
            random: Random::new(seed),
            nodes: vec![root],
            until_crash: None,
            failing: 0,
            crashed: false,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Crashes in `until_crash` mutating operations; one in `failing` fails.
    pub(super) fn set_faults(&self, until_crash: Option<u64>, failing: u64) {
        let mut state = self.state();
        (state.until_crash, state.failing) = (until_crash, failing);
    }

    /// True after a crash.
    pub(super) fn has_crashed(&self) -> bool {
        self.state().crashed
    }

    /// Loses what is not durable, as a crash does, and works again.
    pub(super) fn restart(&self) {
        let mut state = self.state();
        state.crashed = false;
        for node in 0..state.nodes.len() {
            let torn = matches!(&state.nodes[node], Node::File { dirty: true, .. });
            if torn {
                state.tear(node);
            }
            let changes = match &state.nodes[node] {
                Node::Directory { pending, .. } => pending.len(),
                Node::File { .. } => 0,
            };
            let kept = state.below(changes + 1);
            match &mut state.nodes[node] {
                Node::File { now, durable, dirty } => {
                    if torn {
                        now.clone_from(durable);
                    }
                    *dirty = false;
                }
                Node::Directory { now, durable, pending } => {
                    pending.drain(..).take(kept).for_each(|change| change.apply(durable));
                    now.clone_from(durable);
                }
            }
        }
    }

    /// Flips a bit of a file.
    pub(super) fn flip(&self, path: &Path, bit: usize) {
        let mut state = self.state();
        let node = state.find(path).unwrap();
        if let Node::File { now, durable, .. } = &mut state.nodes[node] {
            durable[bit / 8] ^= 1 << (bit % 8);
            now.clone_from(durable);
        }
    }
}

impl Disk for SimulatedDisk {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        let node =
            Node::Directory { now: Entries::new(), durable: Entries::new(), pending: Vec::new() };
        self.state().add(path, node).map(drop)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let state = self.state();
        state.alive()?;
        let Node::Directory { now, .. } = &state.nodes[state.find(path)?] else {
            return Err(io::ErrorKind::NotADirectory.into());
        };
        let entry = |(name, &node): (&String, &usize)| Entry {
            name: name.clone(),
            is_directory: matches!(state.nodes[node], Node::Directory { .. }),
        };
        Ok(now.iter().map(entry).collect())
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        self.read(path).map(|bytes| bytes.len() as u64)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.alive()?;
        state.find(from)?;
        let ((directory, from), (target, to)) = (state.parent(from)?, state.parent(to)?);
        assert_eq!(directory, target, "renamed within its directory");
        state.begin()?;
        state.change(directory, Change::Rename(from, to));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.alive()?;
        state.remove(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.alive()?;
        let node = state.find(path)?;
        state.begin()?;
        if let Node::Directory { now, durable, pending } = &mut state.nodes[node] {
            durable.clone_from(now);
            pending.clear();
        }
        Ok(())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.state();
        state.alive()?;
        match &state.nodes[state.find(path)?] {
            Node::File { now, .. } => Ok(now.clone()),
            Node::Directory { .. } => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = Node::File { now: Vec::new(), durable: Vec::new(), dirty: false };
        let node = self.state().add(path, file)?;
        Ok(Box::new(SimulatedFile { disk: self.clone(), node }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let state = self.state();
        state.alive()?;
        let node = state.find(path)?;
        drop(state);
        Ok(Box::new(SimulatedFile { disk: self.clone(), node }))
    }

    fn create_arena(&self, path: &Path, len: u64) -> Result<()> {
        let zeros = vec![0; len as usize];
        let file = Node::File { now: zeros.clone(), durable: zeros, dirty: false };
        self.state().add(path, file).map(drop).map_err(|e| Error::io("create", path, e))
    }

    fn open_arena(&self, path: &Path, len: u64) -> Result<Box<dyn Arena>> {
        let failed = |e| Error::io("open", path, e);
        let map = self.read(path).map_err(failed)?;
        assert_eq!(map.len() as u64, len);
        let node = self.state().find(path).map_err(failed)?;
        Ok(Box::new(SimulatedArena { disk: self.clone(), node, path: path.to_owned(), map }))
    }

    fn read_rows(&self, path: &Path, rect: RowSpan) -> Result<Vec<u8>> {
        let bytes = self.read(path).map_err(|e| Error::io("read", path, e))?;
        let row = |row| &bytes[rect.offset + row * rect.stride..][..rect.row_len];
        Ok((0..rect.rows).flat_map(row).copied().collect())
    }
}

#[derive(Debug)]
struct SimulatedFile {
    disk: SimulatedDisk,
    node: usize,
}

impl SimulatedFile {
    fn edit(&self, edit: impl FnOnce(&mut Vec<u8>)) {
        if let Node::File { now, dirty, .. } = &mut self.disk.state().nodes[self.node] {
            edit(now);
            *dirty = true;
        }
    }
}

impl DiskFile for SimulatedFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.state().alive()?;
        let begun = self.disk.state().begin();
        let written = match begun {
            Ok(()) => bytes.len(),
            Err(_) => self.disk.state().below(bytes.len() + 1),
        };
        let offset = offset as usize;
        self.edit(|now| {
            now.resize(now.len().max(offset + written), 0);
            now[offset..offset + written].copy_from_slice(&bytes[..written]);
        });
        begun
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.disk.state().begin()?;
        self.edit(|now| now.resize(len as usize, 0));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.state().sync_file(self.node)
    }
}

#[derive(Debug)]
struct SimulatedArena {
    disk: SimulatedDisk,
    node: usize,
    path: PathBuf,
    map: Vec<u8>,
}

impl SimulatedArena {
    /// Copies `range` to the file; not durably.
    fn write_back(&self, range: Range<usize>) {
        if let Node::File { now, dirty, .. } = &mut self.disk.state().nodes[self.node] {
            now[range.clone()].copy_from_slice(&self.map[range]);
            *dirty = true;
        }
    }
}

impl Arena for SimulatedArena {
    fn bytes(&self) -> &[u8] {
        &self.map
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }

    fn sync(&self, range: Range<usize>) -> Result<()> {
        let failed = |e| Error::io("sync", &self.path, e);
        self.disk.state().alive().map_err(failed)?;
        self.write_back(range);
        self.disk.state().sync_file(self.node).map_err(failed)
    }
}

impl Drop for SimulatedArena {
    fn drop(&mut self) {
        // What was written to the map and not synced may reach the disk.
        self.write_back(0..self.map.len());
    }
}
