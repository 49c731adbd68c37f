//! Histograms of how long jobs wait and work, in seconds.

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// Durations of the parts of jobs. Cloning shares the histograms.
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
}

impl Default for Timings {
    fn default() -> Self {
        Self { queue_wait: seconds(), step: seconds(), tile: seconds(), commit: seconds() }
    }
}

/// An empty histogram of durations, with buckets from 1 ms to 1000 s.
pub fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(1e-3, 10f64.sqrt(), 13))
}
