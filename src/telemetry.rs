//! The process's log: `tracing` events on standard error.

use tracing_subscriber::EnvFilter;

use crate::error::{Error, Result};

/// Starts the log with `filter` (for example `info` or `tessera=debug`); without one, warnings and errors are shown.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] when the filter can't be read or a log was started before.
pub fn start(filter: Option<&str>) -> Result<()> {
    // The graphics layers warn about many a harmless thing; who wants to see it names them in the filter.
    let filter =
        EnvFilter::try_new(filter.unwrap_or("warn,wgpu_core=error,wgpu_hal=error,naga=error"))
            .map_err(|e| Error::invalid("TESSERA_LOG can't be read as a filter").with_source(e))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .try_init()
        .map_err(|e| Error::invalid("the log can't be started twice").with_source(e))
}
