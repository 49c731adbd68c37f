//! Runs calls from synchronous code, to their end or until they are cancelled.

use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};

/// Runs `work` on this thread and returns its result; if `cancel` is cancelled first, `work` is dropped.
///
/// # Errors
/// [`Kind::Cancelled`](crate::error::Kind) if `cancel` was cancelled; those of `work`.
pub fn run<T>(cancel: &CancellationToken, work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("start", "a runtime for calls", e))?;
    runtime.block_on(async {
        tokio::select! {
            done = work => done,
            () = cancel.cancelled() => Err(Error::cancelled("the command")),
        }
    })
}
