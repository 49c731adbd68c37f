//! Measurements of jobs: histograms of how long they wait and work, in seconds, and counts of their ends.

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::jobs::{Ended, PrunedCount, observe};

/// Durations of the parts of jobs, and numbers of ended jobs. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Timings {
    /// From a job's creation to its first unit of work.
    pub queue_wait: Histogram,
    /// Of a denoising step, of one job or of a batch of jobs.
    pub step: Histogram,
    /// Of decoding a tile.
    pub tile: Histogram,
    /// Of making a step or tiles durable: latents or pixels, then the journal.
    pub commit: Histogram,
    /// Of a write to a journal and its fsync.
    pub fsync: Histogram,
    /// Numbers of ended jobs since the start.
    pub ended: Ended,
    /// Numbers of ended jobs that were removed since the start.
    pub pruned: PrunedCount,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            queue_wait: seconds(),
            step: seconds(),
            tile: seconds(),
            commit: seconds(),
            fsync: seconds(),
            ended: Ended::default(),
            pruned: observe::pruned_count(),
        }
    }
}

/// An empty histogram of durations, with buckets from 1 ms to 1000 s.
pub fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(1e-3, 10f64.sqrt(), 13))
}
