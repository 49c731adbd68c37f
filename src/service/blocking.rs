//! Work that waits for a disk or computes for long, away from the threads that serve connections.

use crate::error::{Error, Result};

/// Runs `work` on a thread of the runtime's blocking pool.
///
/// # Errors
/// Those of `work`, and [`Internal`](crate::error::Kind::Internal) if it panics.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::internal("a blocking task panicked").with_source(e))
        .flatten()
}
