//! The process's log, `tracing` events on standard error; and its traces, for an OpenTelemetry collector.

#[cfg(feature = "otlp")]
mod otlp;

use tracing_subscriber::{
    EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::error::{Error, Result};

/// Traces on their way to a collector: what is left is sent when the value goes.
#[derive(Debug)]
pub struct Traces {
    #[cfg(feature = "otlp")]
    _exporter: otlp::Exporter,
}

/// Starts the log with `filter` (for example `info` or `tessera=debug`); without one, warnings and errors are shown. Spans
/// go to the `collector`, the URL of its OTLP service over gRPC, if there is one.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] when the filter or the URL can't be used, a log was started before, or this
/// program was built without the feature `otlp`.
pub fn start(filter: Option<&str>, collector: Option<&str>) -> Result<Option<Traces>> {
    // The graphics layers warn about many a harmless thing; who wants to see it names them in the filter.
    let filter =
        EnvFilter::try_new(filter.unwrap_or("warn,wgpu_core=error,wgpu_hal=error,naga=error"))
            .map_err(|e| {
                Error::invalid("TESSERA_LOG", filter.unwrap_or_default(), "a log filter")
                    .with_source(e)
            })?;
    let log = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .without_time()
        .with_filter(filter);
    let registry = tracing_subscriber::registry().with(log);
    #[cfg(feature = "otlp")]
    let (registry, traces) = {
        let (layer, exporter) = collector.map(otlp::start).transpose()?.unzip();
        (registry.with(layer), exporter.map(|exporter| Traces { _exporter: exporter }))
    };
    #[cfg(not(feature = "otlp"))]
    let traces = match collector {
        None => None,
        Some(url) => {
            let expected = "no value: this build has no feature otlp";
            return Err(Error::invalid("otlp_endpoint", format!("{url:?}"), expected));
        }
    };
    registry.try_init().map_err(|e| Error::internal("installing the log").with_source(e))?;
    Ok(traces)
}
