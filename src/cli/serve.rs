//! `tessera serve`: runs the service.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    args::{self, ComputeArgs},
    memory,
    progress::{Progress, ProgressArgs},
    quantity,
};
use crate::{
    config::Config,
    engine::device::{self, Choice},
    error::Result,
    jobs::{self, Jobs, Models, Retention},
    service::{self, Tls},
    telemetry,
};

/// Run the service: make pictures for clients and stream their tiles
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Address and port; port 0 selects a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:50051", value_parser = parse_address)]
    listen: SocketAddr,
    /// Directory of the jobs, kept across restarts; only one server may use it
    #[arg(long, value_name = "DIR", default_value = "tessera-jobs")]
    jobs: PathBuf,
    /// Memory budget of the running jobs, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 8192, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    memory: u64,
    /// Most queued jobs
    #[arg(long, value_name = "N", default_value_t = 1000)]
    queue: usize,
    /// Jobs that share the device at one time
    #[arg(long, value_name = "N", default_value_t = 4)]
    active: usize,
    /// Remove jobs that ended longer ago, in s, m, h, d or w, as in 30d; all are kept if not given
    #[arg(long, value_name = "TIME", value_parser = quantity::duration)]
    prune_older_than: Option<Duration>,
    /// Remove the jobs that ended first until the files of all jobs have at most this many bytes, with K, M, G, T or Ki, Mi,
    /// Gi, Ti, as in 50G
    #[arg(long, value_name = "SIZE", value_parser = quantity::bytes)]
    keep_bytes: Option<u64>,
    /// Most connections at one time; more are closed at once
    #[arg(long, value_name = "N", default_value_t = service::CONNECTIONS, value_parser = parse_connections)]
    connections: usize,
    /// Memory for the tiles that clients read and for the buffers of their streams, in MiB; also limits the number of streams
    #[arg(long, value_name = "MIB", default_value_t = service::WATCH_MEMORY >> 20, value_parser = clap::value_parser!(u64).range(32..=1 << 20))]
    watch_memory: u64,
    /// Certificate of the server, PEM; enables TLS
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of the server, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Authority of the clients' certificates, PEM; clients must have one
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    client_ca: Option<PathBuf>,
    /// File of clients with tokens; one line each: NAME SHA-256 [MOST-QUEUED-JOBS] [MOST-PIXELS] [admin]. A client sees its own
    /// jobs, an admin those of all
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Host name of a server on loopback, such as a proxy's; may be given several times
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
    /// Allow a non-loopback address without TLS
    #[arg(long)]
    insecure: bool,
    /// Format of the log on standard error; the environment variable TESSERA_LOG filters it, for example warn or
    /// tessera=debug
    #[arg(long, value_name = "FORMAT", value_parser = args::names::<telemetry::Format>(), default_value = "text")]
    pub(super) log_format: telemetry::Format,
    /// Send traces to this OpenTelemetry collector by OTLP over gRPC, such as http://127.0.0.1:4317; needs a build with the
    /// feature "otlp"
    #[arg(long, value_name = "URL")]
    pub(super) otlp_endpoint: Option<String>,
    /// Checkpoint to serve instead of the embedded one, by the name NAME or else its own; may be given several times, the
    /// first is the default
    #[arg(long = "model", value_name = "[NAME=]FILE", env = "TESSERA_MODEL", value_parser = OsStringValueParser::new().map(NamedFile::from))]
    models: Vec<NamedFile>,
    /// auto, cpu, gpu, gpu:N or all; may be given several times: all take jobs from one queue. auto selects a hardware GPU,
    /// else the CPU; all selects every hardware GPU, else the CPU
    #[arg(
        long = "device",
        value_name = "DEVICE",
        env = "TESSERA_DEVICE",
        value_delimiter = ',',
        default_value = "auto"
    )]
    devices: Vec<Devices>,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    pub(super) progress: ProgressArgs,
}

/// Devices of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Devices {
    One(Choice),
    /// Every hardware GPU, else the CPU.
    All,
}

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            _ => {
                let one = text.parse().map(Self::One);
                one.map_err(|_| "expected auto, cpu, gpu, gpu:N or all".to_owned())
            }
        }
    }
}

impl Devices {
    fn choices(&self) -> Vec<Choice> {
        match self {
            Self::One(choice) => vec![*choice],
            Self::All => device::all(),
        }
    }
}

/// A checkpoint's file and the name of the model, if it is not its own.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NamedFile {
    name: Option<String>,
    path: PathBuf,
}

impl From<OsString> for NamedFile {
    /// `NAME=FILE` or `FILE`. A path that looks like the former can be written with `./`.
    fn from(text: OsString) -> Self {
        let named = text.to_str().and_then(|text| text.split_once('='));
        match named.filter(|(name, _)| jobs::is_model_name(name)) {
            Some((name, path)) => Self { name: Some(name.to_owned()), path: path.into() },
            None => Self { name: None, path: text.into() },
        }
    }
}

/// The models of the server.
fn open_models(files: &[NamedFile]) -> Result<Models> {
    if files.is_empty() {
        return Models::new(vec![Arc::new(args::open_model(None)?)]);
    }
    let models = files.iter().map(|NamedFile { name, path }| {
        let model = args::open_model(Some(path))?;
        Ok((name.clone().unwrap_or_else(|| model.arch.name.clone()), Arc::new(model)))
    });
    Models::with_names(models.collect::<Result<_>>()?)
}

/// An address and a port.
fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "expected an IP address and a port, such as 127.0.0.1:0, [::1]:0 or 0.0.0.0:50051"
            .to_owned()
    })
}

/// A number of connections.
fn parse_connections(text: &str) -> Result<usize, String> {
    let value = text.parse().ok().filter(|value| (1..=1 << 20).contains(value));
    value.ok_or_else(|| format!("expected a number from 1 to {}", 1 << 20))
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
    cancel: &CancellationToken,
) -> Result<()> {
    args.compute.set_threads()?;
    let models = open_models(&args.models)?;
    let settings = jobs::Settings {
        directory: args.jobs.clone(),
        devices: args.devices.iter().flat_map(Devices::choices).collect(),
        precision: args.compute.precision,
        gpu_cache: args.compute.gpu_cache(config),
        memory: args.memory << 20,
        queue: args.queue,
        active: args.active,
        fault: None,
        retention: Retention { older_than: args.prune_older_than, keep_bytes: args.keep_bytes },
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
        connections: args.connections,
        watch_memory: args.watch_memory << 20,
    };
    // Before the jobs are opened: they are left alone if a setting can't be used.
    service.check()?;
    memory::give_back_regularly()?;
    let jobs = Jobs::open(settings, models)?;
    service::serve(&service, jobs, cancel, |url| {
        progress.json(&Listening { url });
        progress.result(&format!("listening on {url}\n"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serve_reads_names_before_files() {
        for (text, name, path) in [
            ("first=a.safetensors", Some("first"), "a.safetensors"),
            ("first=a=b", Some("first"), "a=b"),
            ("a.safetensors", None, "a.safetensors"),
            ("./a=b", None, "./a=b"),
            ("=b", None, "=b"),
        ] {
            let expected = NamedFile { name: name.map(str::to_owned), path: path.into() };
            assert_eq!(NamedFile::from(OsString::from(text)), expected, "{text}");
        }
    }
}
