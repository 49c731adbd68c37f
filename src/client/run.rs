//! From synchronous code: runs calls to the end or to Ctrl-C.

use std::time::Duration;

use crate::{
    engine::Cancel,
    error::{Error, Result},
};

/// How often the flag is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Runs `work` on this thread and returns what it returns; when `cancel` is raised, `work` is dropped first.
///
/// # Errors
/// [`Kind::Cancelled`](crate::error::Kind) when `cancel` was raised; what `work` returns.
pub fn run<T>(cancel: &Cancel, work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("start", "a runtime for calls", e))?;
    runtime.block_on(async {
        tokio::select! {
            done = work => done,
            error = raised(cancel) => Err(error),
        }
    })
}

async fn raised(cancel: &Cancel) -> Error {
    loop {
        if let Err(error) = cancel.check() {
            return error;
        }
        tokio::time::sleep(LOOK).await;
    }
}
