//! The service: gRPC (and gRPC-Web) and HTTP in front of [`crate::jobs`], on one port.
//!
//! Guarantees: a watcher gets every event of a job in order and once, however slowly it reads, and costs the others
//! nothing, since what it has not read lies in the job's files and not in memory. No request, whatever is in it, ends the
//! server; what went wrong inside is logged and not told to clients.

mod access;
mod convert;
mod encode;
mod grpc;
pub mod http;
mod metrics;
mod stream;
mod upload;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::watch};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    server::NamedService,
    service::{LayerExt as _, Routes},
    transport::{Certificate, Identity, Server, ServerTlsConfig},
};
use tonic_web::GrpcWebLayer;

pub use access::Tokens;
pub use convert::request;

use crate::{
    api::{
        DESCRIPTORS, job_service_server::JobServiceServer, model_service_server::ModelServiceServer,
    },
    engine::Cancel,
    error::{Error, Result},
    jobs::Jobs,
    service::upload::Uploads,
};

/// Longest request in bytes.
pub const MAX_REQUEST: usize = 64 << 10;

/// Streams that one connection may have open.
const MAX_STREAMS: u32 = 256;

/// Time between signs of life on an idle connection, and how long an answer may take.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// How long open calls may go on once the server is to stop.
const GRACE: Duration = Duration::from_secs(10);

/// Files of TLS, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The server's certificate and those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authority of the clients' certificates, if they must have one.
    pub client_ca: Option<PathBuf>,
}

/// How the service listens.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Address and port; port 0: any that is free.
    pub listen: SocketAddr,
    /// TLS.
    pub tls: Option<Tls>,
    /// Who may call, if not everybody.
    pub tokens: Option<PathBuf>,
    /// Listens beyond this machine without TLS.
    pub insecure: bool,
    /// Names by which clients reach a server that listens on loopback, such as a proxy's: besides them it answers only to
    /// addresses and `localhost`.
    pub hosts: Vec<String>,
}

/// Serves `jobs` until `cancel` is raised, then lets clients finish what they read, and closes the jobs: running ones
/// stop at their last durable step or tile. `ready` hears the URL once the port is open.
///
/// # Errors
/// [`Kind::InvalidArgument`](crate::error::Kind) when a setting can't be used; [`Kind::Io`](crate::error::Kind) when the port can't be opened.
pub fn serve(
    settings: &Settings,
    jobs: Jobs,
    cancel: &Cancel,
    ready: impl FnOnce(&str) -> Result<()>,
) -> Result<()> {
    if !settings.listen.ip().is_loopback() && settings.tls.is_none() && !settings.insecure {
        let expected = "a loopback address, unless --tls-cert or --insecure is given";
        return Err(Error::invalid("listen", settings.listen, expected));
    }
    let tls = settings.tls.as_ref().map(tls_config).transpose()?;
    let tokens = settings.tokens.as_deref().map(Tokens::read).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("service")
        .build()
        .map_err(|e| Error::io("start", "the service's threads", e))?;
    let served = runtime.block_on(run(settings, tls, tokens, jobs.clone(), cancel, ready));
    jobs.close();
    // Watchers that did not go within the grace are cut off: they come back with their last sequence.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

async fn run(
    settings: &Settings,
    tls: Option<ServerTlsConfig>,
    tokens: Option<Tokens>,
    jobs: Jobs,
    cancel: &Cancel,
    ready: impl FnOnce(&str) -> Result<()>,
) -> Result<()> {
    let failed = |e| Error::io("listen on", settings.listen.to_string(), e);
    let listener = TcpListener::bind(settings.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let (stop, stopping) = watch::channel(false);

    let (health, health_service) = tonic_health::server::health_reporter();
    let uploads = Uploads::new(jobs.clone());
    let calls = grpc::Calls::new(jobs.clone(), uploads.clone(), stopping.clone());
    let reflection = |e| Error::internal("building the reflection service").with_source(e);
    let describe = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let job_service =
        JobServiceServer::from_arc(calls.clone()).max_decoding_message_size(MAX_REQUEST);
    let model_service = ModelServiceServer::from_arc(calls).max_decoding_message_size(MAX_REQUEST);
    let routes = Routes::new(GrpcWebLayer::new().named_layer(job_service))
        .add_service(GrpcWebLayer::new().named_layer(model_service))
        .add_service(GrpcWebLayer::new().named_layer(health_service))
        .add_service(describe().build_v1().map_err(reflection)?)
        .add_service(describe().build_v1alpha().map_err(reflection)?);
    let mut router = routes
        .into_axum_router()
        .merge(metrics::router(jobs.clone()))
        .merge(http::pictures(jobs.clone(), tokens.is_none()))
        .merge(http::uploads(uploads));
    if let Some(tokens) = tokens {
        router =
            router.layer(axum::middleware::from_fn_with_state(Arc::new(tokens), access::check));
    }
    router = router.merge(http::viewer());
    if settings.listen.ip().is_loopback() {
        let hosts = Arc::new(access::Hosts::new(&settings.hosts));
        router = router.layer(axum::middleware::from_fn_with_state(hosts, access::check_host));
    }

    let mut server = Server::builder()
        .accept_http1(true)
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .http2_max_pending_accept_reset_streams(Some(64))
        .http2_max_header_list_size(16 << 10)
        .max_concurrent_streams(MAX_STREAMS);
    let scheme = if tls.is_some() { "https" } else { "http" };
    if let Some(tls) = tls {
        server = server.tls_config(tls).map_err(|e| {
            Error::invalid("tls", "unusable", "a certificate and its key as PEM").with_source(e)
        })?;
    }
    ready(&format!("{scheme}://{address}"))?;

    let truth = tell_health(health, jobs, stopping.clone());
    let shutdown = {
        let mut stopping = stopping.clone();
        async move {
            // An error means that the sender is gone: then too it is time to stop.
            let _ = stopping.wait_for(|&stop| stop).await;
        }
    };
    let serving = server
        .add_routes(Routes::from(router))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown);
    let stopped = async {
        while !cancel.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tracing::info!("stopping");
        stop.send_replace(true);
        tokio::time::sleep(GRACE).await;
    };
    let truth = tokio::spawn(truth);
    tokio::select! {
        served = serving => {
            served.map_err(|e| Error::internal("serving connections").with_source(e))?;
        }
        () = stopped => tracing::warn!("calls that did not end in {GRACE:?} are cut off"),
    }
    truth.abort();
    Ok(())
}

/// Keeps the health service truthful: not serving while a device does not answer, or while the server stops.
async fn tell_health(
    health: tonic_health::server::HealthReporter,
    jobs: Jobs,
    mut stopping: watch::Receiver<bool>,
) {
    use tonic_health::ServingStatus::{NotServing, Serving};
    loop {
        let stop = *stopping.borrow_and_update();
        let status = if jobs.is_healthy() && !stop { Serving } else { NotServing };
        let names = [
            "",
            <JobServiceServer<grpc::Calls> as NamedService>::NAME,
            <ModelServiceServer<grpc::Calls> as NamedService>::NAME,
        ];
        for name in names {
            health.set_service_status(name, status).await;
        }
        if stop {
            return;
        }
        let pause = tokio::time::sleep(Duration::from_secs(1));
        tokio::select! {
            () = pause => {}
            changed = stopping.changed() => if changed.is_err() { return },
        }
    }
}

fn tls_config(tls: &Tls) -> Result<ServerTlsConfig> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|e| {
            Error::invalid("tls", path.display(), "a readable PEM file").with_source(e)
        })
    };
    let identity = Identity::from_pem(read(&tls.certificate)?, read(&tls.key)?);
    let config = ServerTlsConfig::new().identity(identity);
    Ok(match &tls.client_ca {
        Some(ca) => config.client_ca_root(Certificate::from_pem(read(ca)?)),
        None => config,
    })
}
