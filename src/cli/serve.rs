//! `tessera serve`: the service.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use serde::Serialize;

use super::{
    args::{self, DeviceArgs},
    progress::{Progress, ProgressArgs},
};
use crate::{
    config::Config,
    engine::Cancel,
    error::Result,
    jobs::{self, Jobs, Models},
    service::{self, Tls},
};

/// Make pictures for others, and stream their tiles as they complete
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Address and port; port 0 takes any that is free
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:50051")]
    listen: SocketAddr,
    /// Directory where jobs lie and outlast restarts; one server at a time uses it
    #[arg(long, value_name = "DIR", default_value = "tessera-jobs")]
    jobs: PathBuf,
    /// Most memory of the jobs that are worked on at one time, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 8192, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    memory: u64,
    /// Most jobs that wait
    #[arg(long, value_name = "N", default_value_t = 1000)]
    queue: usize,
    /// Jobs that are worked on in turns
    #[arg(long, value_name = "N", default_value_t = 4)]
    active: usize,
    /// Certificate of the server, PEM; turns TLS on
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of the server, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Authority that clients' certificates must come from, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    client_ca: Option<PathBuf>,
    /// Clients that may call: lines of name, SHA-256 of the token, [most jobs waiting], [most pixels]
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Name by which clients reach a server on loopback, such as a proxy's; may be given several times
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
    /// Listen beyond this machine without TLS
    #[arg(long)]
    insecure: bool,
    /// Send traces to this OpenTelemetry collector by OTLP over gRPC, such as http://127.0.0.1:4317; needs a program that was
    /// built with the feature "otlp"
    #[arg(long, value_name = "URL")]
    pub(super) otlp_endpoint: Option<String>,
    /// Checkpoint to serve in place of the embedded one; may be given several times, the first is the default [env:
    /// TESSERA_MODEL]
    #[arg(long = "model", value_name = "FILE")]
    models: Vec<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    pub(super) progress: ProgressArgs,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "listening")]
struct Listening<'a> {
    url: &'a str,
}

pub(super) fn run(
    args: &Args,
    config: &Config,
    progress: &mut Progress,
    cancel: &Cancel,
) -> Result<()> {
    let models = match args.models.as_slice() {
        [] => vec![args::open_model(config.model.as_ref())?],
        paths => paths.iter().map(|path| args::open_model(Some(path))).collect::<Result<_>>()?,
    };
    let models = Models::new(models.into_iter().map(Arc::new).collect())?;
    let settings = jobs::Settings {
        directory: args.jobs.clone(),
        devices: vec![args.device.choice(config)?],
        precision: args.device.precision(config)?,
        gpu_cache: args.device.gpu_cache(config),
        memory: args.memory << 20,
        queue: args.queue,
        active: args.active,
    };
    let service = service::Settings {
        listen: args.listen,
        tls: args.tls_cert.clone().zip(args.tls_key.clone()).map(|(certificate, key)| Tls {
            certificate,
            key,
            client_ca: args.client_ca.clone(),
        }),
        tokens: args.tokens.clone(),
        insecure: args.insecure,
        hosts: args.hosts.clone(),
    };
    let jobs = Jobs::open(settings, models)?;
    service::serve(&service, jobs, cancel, |url| {
        progress.json(&Listening { url });
        progress.result(&format!("listening on {url}\n"))
    })
}
