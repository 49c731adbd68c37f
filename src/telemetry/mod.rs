//! The log of the process on standard error, and traces for an OpenTelemetry collector.

#[cfg(feature = "otlp")]
mod otlp;

use tracing_subscriber::{
    EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::error::{Error, Result};

/// Exporter of traces; dropping it sends the remaining ones.
#[derive(Debug)]
pub struct Traces {
    #[cfg(feature = "otlp")]
    _exporter: otlp::Exporter,
}

/// Starts the log with `filter`, such as `info` or `tessera=debug`; by default warnings and errors are shown. Spans are sent
/// to `collector`, the URL of an OTLP service over gRPC, if given.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] for an invalid filter or URL, or a URL in a build without the feature `otlp`;
/// [`crate::error::Kind::Internal`] if a log was started before.
pub fn start(filter: Option<&str>, collector: Option<&str>) -> Result<Option<Traces>> {
    // The graphics libraries log many harmless warnings; a filter can name them.
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
