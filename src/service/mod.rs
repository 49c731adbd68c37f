//! The service: gRPC, gRPC-Web and HTTP in front of [`crate::jobs`], on one port.
//!
//! Guarantees: a watcher receives every event of a job once and in order, at any reading speed, and does not delay others:
//! unread data is in the job's files, not in memory. No request can stop the server. Details of internal failures are logged
//! and not sent to clients.

mod access;
mod blocking;
mod bodies;
mod connections;
mod convert;
mod encode;
mod framing;
mod grpc;
pub mod http;
mod metrics;
mod process;
mod requests;
mod stream;
mod tls;
mod upload;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use axum::middleware::{from_fn, from_fn_with_state};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::{
    server::NamedService,
    service::{LayerExt as _, Routes},
};
use tonic_web::GrpcWebLayer;
use tower::util::MapResponseLayer;

pub use access::Tokens;
pub use convert::request;

use crate::{
    api::{
        DESCRIPTORS, job_service_server::JobServiceServer, model_service_server::ModelServiceServer,
    },
    error::{Error, Result},
    jobs::Jobs,
    service::{
        connections::Connections,
        encode::Encoder,
        framing::CheckFrames,
        metrics::{Metrics, Traffic},
        upload::Uploads,
    },
};

/// Longest request in bytes.
pub const MAX_REQUEST: usize = 64 << 10;

/// Default of [`Settings::connections`]: less than the files that a process may usually have open, 1024.
pub const CONNECTIONS: usize = 512;

/// Default of [`Settings::watch_memory`].
pub const WATCH_MEMORY: u64 = 256 << 20;

/// TLS files, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The server's certificate chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authority of client certificates, if they are required.
    pub client_ca: Option<PathBuf>,
}

/// Address, encryption and access control of the service.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Address and port; port 0: any free port.
    pub listen: SocketAddr,
    /// TLS.
    pub tls: Option<Tls>,
    /// Token file; without it no token is required.
    pub tokens: Option<PathBuf>,
    /// Allows a non-loopback address without TLS.
    pub insecure: bool,
    /// Host names of a server on loopback, such as a proxy's, in addition to addresses and `localhost`.
    pub hosts: Vec<String>,
    /// Most connections at one time; more are closed at once.
    pub connections: usize,
    /// Memory in bytes for the tiles and previews that watchers read and for the buffers of their streams, whose number it
    /// limits.
    pub watch_memory: u64,
}

impl Settings {
    /// Checks that an address beyond this machine is protected by TLS or explicitly allowed, and that the files can be used.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`](crate::error::Kind) naming the setting or the file.
    pub fn check(&self) -> Result<()> {
        self.tls.as_ref().map(tls::server_config).transpose()?;
        self.tokens.as_deref().map(Tokens::read).transpose()?;
        if self.listen.ip().is_loopback() || self.tls.is_some() || self.insecure {
            return Ok(());
        }
        let expected = "a loopback address, unless --tls-cert or --insecure is given";
        Err(Error::invalid("listen", self.listen, expected))
    }
}

/// Serves `jobs` until `cancel` is cancelled, then ends streams and uploads with UNAVAILABLE, lets other calls finish within a
/// grace period and closes the jobs: running ones stop at their last durable step or tile. `ready` is called with the URL once the port is open.
///
/// # Errors
/// [`Kind::InvalidArgument`](crate::error::Kind) if a setting is invalid; [`Kind::Io`](crate::error::Kind) if the port can't be
/// opened.
pub fn serve(
    settings: &Settings,
    jobs: Jobs,
    cancel: &CancellationToken,
    ready: impl FnOnce(&str) -> Result<()>,
) -> Result<()> {
    settings.check()?;
    let tls = settings.tls.as_ref().map(tls::server_config).transpose()?.map(TlsAcceptor::from);
    let tokens = settings.tokens.as_deref().map(Tokens::read).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("service")
        .build()
        .map_err(|e| Error::io("start", "the service's threads", e))?;
    let served = runtime.block_on(run(settings, tls, tokens, jobs.clone(), cancel, ready));
    jobs.close();
    // Remaining streams are closed; their watchers reconnect with their last sequence number.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

async fn run(
    settings: &Settings,
    tls: Option<TlsAcceptor>,
    tokens: Option<Tokens>,
    jobs: Jobs,
    cancel: &CancellationToken,
    ready: impl FnOnce(&str) -> Result<()>,
) -> Result<()> {
    let failed = |e| Error::io("listen on", settings.listen.to_string(), e);
    let listener = TcpListener::bind(settings.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;

    let (health, health_service) = tonic_health::server::health_reporter();
    let uploads = Uploads::new(jobs.clone(), cancel.clone());
    let encoder = Arc::new(Encoder::new(settings.watch_memory));
    let grpc_service =
        grpc::GrpcService::new(jobs.clone(), encoder.clone(), uploads.clone(), cancel.clone());
    let reflection = |e| Error::internal("building the reflection service").with_source(e);
    let describe = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let job_service =
        JobServiceServer::from_arc(grpc_service.clone()).max_decoding_message_size(MAX_REQUEST);
    let model_service =
        ModelServiceServer::from_arc(grpc_service).max_decoding_message_size(MAX_REQUEST);
    let job_service =
        MapResponseLayer::new(bodies::with_frames).named_layer(CheckFrames(job_service));
    let model_service = CheckFrames(model_service);
    // Cancelled once health has been reported for the last time.
    let reported = CancellationToken::new();
    let ending = MapResponseLayer::new(bodies::ending(reported.clone(), cancel.clone()));
    let routes = Routes::new(GrpcWebLayer::new().named_layer(job_service))
        .add_service(GrpcWebLayer::new().named_layer(model_service))
        .add_service(GrpcWebLayer::new().named_layer(ending.named_layer(health_service)))
        .add_service(ending.named_layer(describe().build_v1().map_err(reflection)?))
        .add_service(ending.named_layer(describe().build_v1alpha().map_err(reflection)?));
    let connections = Connections::new(settings.connections);
    let traffic = Traffic { connections: connections.clone(), encoder };
    let metrics = Metrics::new(jobs.clone(), traffic);
    let mut router = routes
        .into_axum_router()
        .fallback(requests::not_found)
        .merge(metrics::router(metrics.clone()))
        .merge(http::pictures(jobs.clone(), tokens.is_none()))
        .merge(http::uploads(uploads));
    if let Some(tokens) = tokens {
        router = router.layer(from_fn_with_state(Arc::new(tokens), access::check));
    }
    router = router.merge(http::viewer()).merge(requests::probes(jobs.clone(), cancel.clone()));
    router = router.layer(from_fn(requests::check_deadline));
    router = router.layer(from_fn_with_state(metrics, metrics::observe));
    if settings.listen.ip().is_loopback() {
        let hosts = Arc::new(access::Hosts::new(&settings.hosts));
        router = router.layer(from_fn_with_state(hosts, access::check_host));
    }
    router = router.layer(from_fn(requests::check_host));

    let scheme = if tls.is_some() { "https" } else { "http" };
    // Before a client can ask.
    set_health(&health, &jobs, false).await;
    ready(&format!("{scheme}://{address}"))?;

    let health_task = tokio::spawn(report_health(health, jobs, cancel.clone(), reported));
    connections::serve(listener, tls, router, &connections, cancel.clone()).await;
    health_task.abort();
    Ok(())
}

/// Sets the status of all services: not serving while a device does not respond or the server stops.
async fn set_health(health: &tonic_health::server::HealthReporter, jobs: &Jobs, stop: bool) {
    use tonic_health::ServingStatus::{NotServing, Serving};
    let status = if jobs.is_healthy() && !stop { Serving } else { NotServing };
    let names = [
        "",
        <JobServiceServer<grpc::GrpcService> as NamedService>::NAME,
        <ModelServiceServer<grpc::GrpcService> as NamedService>::NAME,
    ];
    for name in names {
        health.set_service_status(name, status).await;
    }
}

/// Updates the health service every second. Cancels `reported` after the last update, when the server stops.
async fn report_health(
    health: tonic_health::server::HealthReporter,
    jobs: Jobs,
    stopping: CancellationToken,
    reported: CancellationToken,
) {
    loop {
        let stop = stopping.is_cancelled();
        set_health(&health, &jobs, stop).await;
        if stop {
            return reported.cancel();
        }
        let pause = tokio::time::sleep(Duration::from_secs(1));
        tokio::select! {
            () = pause => {}
            () = stopping.cancelled() => {}
        }
    }
}
