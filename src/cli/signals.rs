//! Signals that end the work: Ctrl-C, SIGTERM and SIGHUP, but not those that the caller had ignored.

use crate::error::{Error, Result};

/// Calls `on_signal` when a signal asks for the end.
///
/// A signal that is ignored when the program starts stays so: `nohup` ignores SIGHUP, and shells ignore SIGINT for jobs in
/// the background.
///
/// # Errors
/// [`crate::error::Kind::Internal`] when handlers can't be set.
pub(super) fn handle(on_signal: impl FnMut() + Send + 'static) -> Result<()> {
    let ignored = ignored();
    ctrlc::set_handler(on_signal)
        .map_err(|e| Error::internal("installing a signal handler").with_source(e))?;
    ignore(&ignored);
    Ok(())
}

/// The signals that are ignored now.
#[cfg(unix)]
#[allow(unsafe_code, reason = "the standard library does not tell what is ignored")]
fn ignored() -> Vec<libc::c_int> {
    let is_ignored = |signal: &libc::c_int| {
        let mut now = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: without a new action the call only writes the present one, to memory of its type; all zeros are a valid
        // value of that.
        let (code, now) = unsafe {
            let code = libc::sigaction(*signal, std::ptr::null(), now.as_mut_ptr());
            (code, now.assume_init())
        };
        code == 0 && now.sa_sigaction == libc::SIG_IGN
    };
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP].into_iter().filter(is_ignored).collect()
}

/// Ignores `signals` again.
#[cfg(unix)]
#[allow(unsafe_code, reason = "the standard library does not set signals")]
fn ignore(signals: &[libc::c_int]) {
    for signal in signals {
        // SAFETY: SIG_IGN is no function, so nothing of this program runs when the signal comes.
        unsafe {
            libc::signal(*signal, libc::SIG_IGN);
        }
    }
}

#[cfg(not(unix))]
fn ignored() {}

#[cfg(not(unix))]
fn ignore((): &()) {}
