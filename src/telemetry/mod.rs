//! The log of the process on standard error, and traces for an OpenTelemetry collector.

#[cfg(feature = "otlp")]
mod otlp;

use std::io::IsTerminal as _;

use strum::{EnumString, VariantNames};
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

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Of a command: lines without times; warnings and errors by default.
    Command,
    /// Of a service: with times; what happens to jobs too by default.
    Service(Format),
}

/// Format of a service's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum Format {
    /// Lines for people; coloured on a terminal.
    #[default]
    Text,
    /// A JSON object a line: `timestamp` (UTC, RFC 3339), `level`, `target`, `message`, and the fields of the event.
    Json,
}

impl Style {
    /// The filter if none is given. The graphics libraries log many harmless warnings.
    fn filter(self) -> &'static str {
        match self {
            Self::Command => "warn,wgpu_core=error,wgpu_hal=error,naga=error",
            Self::Service(_) => "warn,tessera=info,wgpu_core=error,wgpu_hal=error,naga=error",
        }
    }
}

/// Starts the log with `filter`, such as `info` or `tessera=debug`, or that of the style. Spans are sent to `collector`, the URL of
/// an OTLP service over gRPC, if given.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] for an invalid filter or URL, or a URL in a build without the feature `otlp`;
/// [`crate::error::Kind::Internal`] if a log was started before.
pub fn start(
    style: Style,
    filter: Option<&str>,
    collector: Option<&str>,
) -> Result<Option<Traces>> {
    let filter = EnvFilter::try_new(filter.unwrap_or(style.filter())).map_err(|e| {
        Error::invalid("TESSERA_LOG", filter.unwrap_or_default(), "a log filter").with_source(e)
    })?;
    let mut log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    if !std::io::stderr().is_terminal() {
        log = log.with_ansi(false);
    }
    let log = match style {
        Style::Command => log.without_time().boxed(),
        Style::Service(Format::Text) => log.boxed(),
        Style::Service(Format::Json) => {
            let log = log.json().flatten_event(true);
            log.with_current_span(false).with_span_list(false).boxed()
        }
    };
    let log = log.with_filter(filter);
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
