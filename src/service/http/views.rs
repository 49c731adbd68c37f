//! What is kept between requests: which tiles of a job are done, its newest preview, and overviews.
//!
//! The guarantee: only final pixels are kept, and memory stays below a bound whatever is looked at.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::scene::{Block, Preview, Scene};
use crate::{
    error::Result,
    geometry::TilePosition,
    jobs::{Job, record::Event},
};

/// Jobs whose progress is kept; that of others is read again from their events.
const MAX_JOBS: usize = 32;

/// Most bytes of blocks.
const MAX_BYTES: usize = 128 << 20;

/// Events read at a time.
const EVENTS: usize = 4096;

/// What is kept, for all jobs.
#[derive(Default)]
pub(super) struct Views {
    progress: Mutex<Kept<String, Arc<Mutex<Progress>>>>,
    blocks: Mutex<Kept<(String, TilePosition), Arc<Block>>>,
}

/// How far a job is, by its events so far.
#[derive(Default)]
struct Progress {
    sequence: u64,
    done: Vec<bool>,
    /// Whether a level has settled since the preview was read.
    settled: bool,
    preview: Option<Arc<Preview>>,
}

impl Views {
    /// The job's picture as it is now.
    ///
    /// # Errors
    /// [`crate::error::Kind::Io`] when the preview can't be read.
    pub(super) fn scene(&self, job: Arc<Job>) -> Result<Scene> {
        job.want_previews();
        let progress = {
            let mut kept = lock(&self.progress);
            let known = kept.get(&job.id);
            known.unwrap_or_else(|| {
                let fresh = Arc::<Mutex<Progress>>::default();
                kept.put(job.id.clone(), fresh.clone(), 1, MAX_JOBS);
                fresh
            })
        };
        let mut progress = lock(&progress);
        progress.follow(&job);
        if progress.settled {
            let bytes = job.preview(job.newest_preview()?)?;
            progress.preview = Some(Arc::new(Preview::decode(&bytes)?));
            progress.settled = false;
        }
        let (done, preview) = (progress.done.clone(), progress.preview.clone());
        Ok(Scene::new(job, done, preview))
    }

    /// A block that was kept.
    pub(super) fn block(&self, id: &str, place: TilePosition) -> Option<Arc<Block>> {
        lock(&self.blocks).get(&(id.to_owned(), place))
    }

    /// Keeps a block of final pixels.
    pub(super) fn keep(&self, id: &str, place: TilePosition, block: Arc<Block>) {
        let bytes = block.bytes();
        lock(&self.blocks).put((id.to_owned(), place), block, bytes, MAX_BYTES);
    }
}

impl Progress {
    fn follow(&mut self, job: &Job) {
        self.done.resize(job.plan.tiling.tiles.len(), false);
        loop {
            let events = job.events_after(self.sequence, EVENTS);
            if events.is_empty() {
                return;
            }
            for (sequence, record) in events {
                self.sequence = sequence;
                match record.event {
                    Event::Tile { index, .. } => {
                        if let Some(done) = self.done.get_mut(index) {
                            *done = true;
                        }
                    }
                    Event::Settled { pictured, .. } => self.settled |= pictured,
                    _ => {}
                }
            }
        }
    }
}

/// A map that forgets what was not asked for the longest.
struct Kept<K, V> {
    entries: HashMap<K, Entry<V>>,
    size: usize,
    clock: u64,
}

struct Entry<V> {
    value: V,
    size: usize,
    used: u64,
}

impl<K, V> Default for Kept<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new(), size: 0, clock: 0 }
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Kept<K, V> {
    fn get(&mut self, key: &K) -> Option<V> {
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.clock;
        Some(entry.value.clone())
    }

    /// Puts a value of `size` in, and others out until all fit `limit`.
    fn put(&mut self, key: K, value: V, size: usize, limit: usize) {
        self.clock += 1;
        let old = self.entries.insert(key, Entry { value, size, used: self.clock });
        self.size = self.size + size - old.map_or(0, |old| old.size);
        while self.size > limit {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else { return };
            self.size -= self.entries.remove(&key).map_or(0, |entry| entry.size);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is kept can be made again from the job; a panic elsewhere leaves at worst too little of it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_asked_for_the_longest_goes_first() {
        let mut kept = Kept::default();
        for key in 0..3 {
            kept.put(key, key, 10, 30);
        }
        assert_eq!(kept.get(&0), Some(0));
        kept.put(3, 3, 10, 30);
        assert_eq!([0, 1, 2, 3].map(|key| kept.get(&key)), [Some(0), None, Some(2), Some(3)]);
        kept.put(3, 4, 30, 30);
        assert_eq!((kept.get(&3), kept.entries.len(), kept.size), (Some(4), 1, 30));
        kept.put(5, 5, 31, 30);
        assert_eq!((kept.entries.len(), kept.size), (0, 0));
    }
}
