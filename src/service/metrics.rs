//! `/metrics` in the OpenMetrics text format: the jobs' state, histograms of durations, the process.

use std::{collections::HashSet, fmt, sync::Arc, time::Instant};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::header,
    middleware::Next,
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text},
    metrics::{
        counter::ConstCounter, family::Family, gauge::ConstGauge, histogram::Histogram, info::Info,
    },
    registry::{Registry, Unit},
};

use super::{
    connections::Connections, encode::Encoder, http::reply::Failure, process::ProcessCollector,
};
use crate::{
    api::descriptors,
    error::Error,
    jobs::{Jobs, Phase, seconds},
};

/// Features of the program that concern the service, as they are named in its manifest.
const FEATURES: &str = match (cfg!(feature = "gpu"), cfg!(feature = "otlp")) {
    (true, true) => "gpu,otlp",
    (true, false) => "gpu",
    (false, true) => "otlp",
    (false, false) => "",
};

/// Labels of a request's duration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    /// Path of a gRPC method or template of an HTTP path: no more values than there are routes.
    route: String,
    /// HTTP status code.
    status: u16,
}

/// The server's metrics.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Histogram, fn() -> Histogram>,
    /// Paths of the gRPC methods.
    methods: HashSet<String>,
}

impl Metrics {
    /// The metrics of `jobs` and `traffic`; requests are counted by [`observe`].
    pub(super) fn new(jobs: Jobs, traffic: Traffic) -> Arc<Self> {
        let mut root = Registry::default();
        root.register_collector(Box::new(ProcessCollector));
        let registry = root.sub_registry_with_prefix("tessera");
        let requests = Family::new_with_constructor(seconds as fn() -> Histogram);
        let timings = jobs.timings().clone();
        let mut register = |name: &str, help: &str, histogram: Histogram| {
            registry.register_with_unit(name, help, Unit::Seconds, histogram);
        };
        register("queue_wait", "Time from creation to the first unit of work", timings.queue_wait);
        register("step", "Duration of a denoising step", timings.step);
        register("tile", "Duration of decoding a tile", timings.tile);
        register("commit", "Duration of making a step or tiles durable", timings.commit);
        register("fsync", "Duration of a write to a job's journal and its fsync", timings.fsync);
        let help = "Time from a request's headers to its response's";
        registry.register_with_unit("request", help, Unit::Seconds, requests.clone());
        let help = "Jobs that have ended since the start, by state and kind of error";
        registry.register("jobs_ended", help, timings.ended);
        let help = "Ended jobs that were removed since the start, by reason";
        registry.register("jobs_pruned", help, timings.pruned);
        let build = [("version", env!("CARGO_PKG_VERSION")), ("features", FEATURES)];
        let help = "Version and features of the program";
        registry.register("build", help, Info::new(build.to_vec()));
        registry.register_collector(Box::new(JobCollector(jobs)));
        registry.register_collector(Box::new(traffic));
        Arc::new(Self { registry: root, requests, methods: descriptors::method_paths().collect() })
    }
}

/// The route of `/metrics`.
pub(super) fn router(metrics: Arc<Metrics>) -> Router {
    Router::new().route("/metrics", get(encode)).with_state(metrics)
}

async fn encode(State(metrics): State<Arc<Metrics>>) -> Response {
    const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let mut text = String::new();
    match text::encode(&mut text, &metrics.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(e) => Failure::from(Error::internal("encoding metrics").with_source(e)).into_response(),
    }
}

/// Middleware that observes the duration of every request.
pub(super) async fn observe(
    State(metrics): State<Arc<Metrics>>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    let template = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let route = match metrics.methods.contains(path) {
        true => path,
        false => template.unwrap_or("unmatched"),
    };
    let route = route.to_owned();
    let began = Instant::now();
    let response = next.run(request).await;
    let labels = RequestLabels { route, status: response.status().as_u16() };
    metrics.requests.get_or_create(&labels).observe(began.elapsed().as_secs_f64());
    response
}

/// Reads the jobs' state when metrics are asked for.
#[derive(Debug)]
struct JobCollector(Jobs);

impl Collector for JobCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Self(jobs) = self;
        let mut gauge = |name: &str, help: &str, value: f64| {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)
        };
        gauge("queue_waiting", "Queued jobs.", jobs.waiting(None) as f64)?;
        gauge(
            "device_flops",
            "Speed of the devices in FLOPs per second.",
            jobs.flops_per_second(),
        )?;
        let healthy = f64::from(u8::from(jobs.is_healthy()));
        gauge("devices", "Devices that respond.", jobs.devices() as f64)?;
        gauge("healthy", "1 if a device responds, else 0.", healthy)?;
        let mut counter = |name: &str, help: &str, value: u64| {
            let counter = ConstCounter::new(value);
            let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(metric)
        };
        counter("steps", "Denoising steps of all jobs.", jobs.steps().taken())?;
        counter("step_turns", "Time slices in which steps were taken.", jobs.steps().turns())?;
        let gauge_type = ConstGauge::new(0u64).metric_type();
        let mut family = encoder.encode_descriptor("jobs", "Jobs by state.", None, gauge_type)?;
        for (phase, count) in jobs.phases() {
            let state = [("state", Phase::name(phase))];
            ConstGauge::new(count as u64).encode(family.encode_family(&state)?)?;
        }
        Ok(())
    }
}

/// Reads connections, streams and their memory when metrics are asked for.
#[derive(Debug)]
pub(super) struct Traffic {
    pub(super) connections: Arc<Connections>,
    pub(super) encoder: Arc<Encoder>,
}

impl Collector for Traffic {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Self { connections, encoder: streams } = self;
        for (name, help, value) in [
            ("connections", "Open connections.", connections.open() as u64),
            ("connections_limit", "Most open connections.", connections.limit() as u64),
            ("watch_streams", "Open streams of events and tiles.", streams.open_streams() as u64),
            ("watch_streams_limit", "Most open streams.", streams.most_streams() as u64),
            ("watch_memory_bytes", "Memory of tiles and streams in use.", streams.used()),
            ("watch_memory_limit_bytes", "Most memory of tiles and streams.", streams.memory()),
        ] {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        let refused = ConstCounter::new(connections.refused());
        let (name, help) = ("connections_refused", "Connections closed because of the limit.");
        refused.encode(encoder.encode_descriptor(name, help, None, refused.metric_type())?)
    }
}
