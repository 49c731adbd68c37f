//! State between requests: decoded tiles and newest preview of each job, and blocks of final pixels.
//!
//! Guarantee: only final pixels are cached, and memory is bounded.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quick_cache::{Weighter, sync::Cache};

use super::composite::{Block, CompositeImage, Preview};
use crate::{
    error::{Error, Result},
    geometry::TilePosition,
    jobs::{Job, record::Event},
};

/// Jobs whose progress is cached; that of others is read again from their events.
const MAX_JOBS: usize = 32;

/// Capacity of the block cache in bytes.
const MAX_BYTES: u64 = 128 << 20;

/// Bytes of a block of 256 x 256 pixels.
const BLOCK_BYTES: u64 = 256 << 10;

/// Events read at a time.
const EVENTS: usize = 4096;

/// Job and place of a block.
type Key = (String, TilePosition);

/// Weighs blocks by their bytes.
#[derive(Clone, Debug)]
struct Bytes;

impl Weighter<Key, Arc<Block>> for Bytes {
    fn weight(&self, _: &Key, block: &Arc<Block>) -> u64 {
        block.bytes() as u64
    }
}

/// Caches of all jobs.
pub(super) struct TileCache {
    progress: Cache<String, Arc<Mutex<Progress>>>,
    blocks: Cache<Key, Arc<Block>, Bytes>,
}

impl Default for TileCache {
    fn default() -> Self {
        let blocks = Cache::with_weighter((MAX_BYTES / BLOCK_BYTES) as usize, MAX_BYTES, Bytes);
        Self { progress: Cache::new(MAX_JOBS), blocks }
    }
}

/// Progress of a job up to an event.
#[derive(Default)]
struct Progress {
    sequence: u64,
    done: Vec<bool>,
    /// True if a level has settled after the preview was read.
    settled: bool,
    /// Step of the estimate that the preview shows; 0: it shows settled levels.
    estimated: usize,
    preview: Option<Arc<Preview>>,
}

impl TileCache {
    /// The job's picture at this time.
    ///
    /// # Errors
    /// [`crate::error::Kind::Io`] if the preview can't be read.
    pub(super) fn composite(&self, job: Arc<Job>) -> Result<CompositeImage> {
        job.want_previews();
        let fresh = || Ok::<_, Error>(Arc::default());
        let progress = self.progress.get_or_insert_with(&job.id, fresh)?;
        let mut progress = lock(&progress);
        progress.follow(&job);
        let estimate = job.estimate();
        if let Some(estimate) = estimate.filter(|estimate| estimate.step > progress.estimated) {
            progress.estimated = estimate.step;
            let (width, height) = (estimate.width, estimate.height);
            progress.preview = Some(Arc::new(Preview::new(width, height, &estimate.samples)));
        }
        // An estimate shows finer levels than those that have settled, until all have.
        if progress.settled && (progress.estimated == 0 || job.newest_preview()? == 0) {
            let bytes = job.preview(job.newest_preview()?)?;
            progress.preview = Some(Arc::new(Preview::decode(&bytes)?));
            progress.settled = false;
        }
        let (done, preview) = (progress.done.clone(), progress.preview.clone());
        Ok(CompositeImage::new(job, done, preview))
    }

    /// The block of final pixels at `place`: from the cache, or composed once for all concurrent callers. To compose it, blocks
    /// of larger levels may be requested, never of smaller ones: so calls can't wait for each other in a circle.
    ///
    /// # Errors
    /// Those of `compose`.
    pub(super) fn final_block(
        &self,
        id: &str,
        place: TilePosition,
        compose: impl FnOnce() -> Result<Arc<Block>>,
    ) -> Result<Arc<Block>> {
        self.blocks.get_or_insert_with(&(id.to_owned(), place), compose)
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Cached values can be computed again, so a panic elsewhere leaves nothing inconsistent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
