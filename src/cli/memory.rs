//! Memory of a long-running process: what the allocator keeps after a load is given back to the system.

use std::{thread, time::Duration};

use crate::error::{Error, Result};

/// Time between two attempts.
const PERIOD: Duration = Duration::from_secs(30);

/// Starts a thread that gives free memory back every [`PERIOD`]. On Linux with glibc; elsewhere it does nothing.
///
/// # Errors
/// [`Kind::Io`](crate::error::Kind) if the thread can't be started.
pub(super) fn give_back_regularly() -> Result<()> {
    if cfg!(not(all(target_os = "linux", target_env = "gnu"))) {
        return Ok(());
    }
    let regularly = || loop {
        thread::sleep(PERIOD);
        give_back();
    };
    let thread = thread::Builder::new().name("memory".to_owned()).spawn(regularly);
    thread.map(drop).map_err(|e| Error::io("start", "the thread that gives memory back", e))
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn give_back() {
    #[allow(unsafe_code, reason = "the allocator of glibc")]
    // SAFETY: may be called from any thread at any time; live allocations are not touched.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_back() {}
