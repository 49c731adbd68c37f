//! Export of spans by OTLP over gRPC, in batches from a separate thread. Spans that can't be sent are dropped.

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider},
};
use tokio::runtime::Runtime;
use tracing::Subscriber;
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::{EnvFilter, Layer, registry::LookupSpan};

use crate::error::{Error, Result};

/// Traced spans: those of this crate.
const SPANS: &str = "off,tessera=info";

/// Exporter; dropping it sends the remaining spans.
#[derive(Debug)]
pub(super) struct Exporter {
    provider: SdkTracerProvider,
    /// Runtime of the connection.
    _runtime: Runtime,
}

/// A layer that collects spans, and the exporter that sends them to `url`.
pub(super) fn start<S>(url: &str) -> Result<(impl Layer<S> + use<S>, Exporter)>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let unusable = || {
        let expected = "a URL like http://127.0.0.1:4317";
        Error::invalid("otlp_endpoint", format!("{url:?}"), expected)
    };
    if !url.starts_with("http://") {
        return Err(unusable());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("otlp")
        .enable_all()
        .build()
        .map_err(|e| Error::io("start", "a thread for traces", e))?;
    let exporter = {
        let _inside = runtime.enter();
        SpanExporter::builder().with_tonic().with_endpoint(url).build()
    };
    let exporter = exporter.map_err(|e| unusable().with_source(e))?;
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(Resource::builder().with_service_name(env!("CARGO_PKG_NAME")).build())
        .build();
    let filter = EnvFilter::try_new(SPANS)
        .map_err(|e| Error::internal("building the filter of spans").with_source(e))?;
    let tracer: SdkTracer = provider.tracer(env!("CARGO_PKG_NAME"));
    let layer = OpenTelemetryLayer::new(tracer).with_filter(filter);
    Ok((layer, Exporter { provider, _runtime: runtime }))
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!("traces were not sent: {error}");
        }
    }
}
