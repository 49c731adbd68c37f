//! With the feature `otlp`: what a collector hears of a job.
#![cfg(all(feature = "otlp", unix))]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a failed test panics")]

#[allow(dead_code, reason = "not all helpers are for these tests")]
mod common;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use common::{
    command::Dir,
    server::{Server, create, spec, watch},
};
use prost::Message;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, server::UnaryService};

/// `opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest`, as far as it is looked at.
#[derive(Clone, PartialEq, Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
}

/// A collector that keeps what it hears.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

impl UnaryService<Export> for Collector {
    type Response = ();
    type Future = std::future::Ready<Result<Response<()>, Status>>;

    fn call(&mut self, request: Request<Export>) -> Self::Future {
        let scopes = request.into_inner().resources.into_iter().flat_map(|all| all.scopes);
        self.0.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
        std::future::ready(Ok(Response::new(())))
    }
}

impl Collector {
    async fn serve(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let collector = self.clone();
        let export = move |request: axum::extract::Request| {
            let collector = collector.clone();
            async move {
                let codec = tonic_prost::ProstCodec::<(), Export>::default();
                tonic::server::Grpc::new(codec).unary(collector, request).await
            }
        };
        let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
        let router = axum::Router::new().route(path, axum::routing::post(export));
        let serving = tonic::transport::Server::builder()
            .add_routes(tonic::service::Routes::from(router))
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
        tokio::spawn(serving);
        address
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn otlp_exports_every_step_and_tile_of_a_job() {
    let collector = Collector::default();
    let url = format!("http://{}", collector.serve().await);
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--otlp-endpoint", &url]);
    let mut client = server.client().await;
    let job = create(&mut client, spec(1, 128, 64, 3)).await.unwrap();
    watch(&mut client, &job.name, 0).await.unwrap();
    let stopped = tokio::task::spawn_blocking(move || server.stop()).await.unwrap();
    assert!(stopped.success());

    let spans = collector.0.lock().unwrap().clone();
    let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let [job] = named("job")[..] else { panic!("{spans:?}") };
    assert!(job.parent_span_id.is_empty());
    for (name, count) in [("step", 3), ("global_stage", 1), ("tile", 2)] {
        let found = named(name);
        assert_eq!(found.len(), count, "{name}");
        for span in found {
            assert_eq!((&span.trace_id, &span.parent_span_id), (&job.trace_id, &job.span_id));
        }
    }
    // Nothing else is traced.
    assert_eq!(spans.len(), 1 + 3 + 1 + 2);
}

#[test]
fn otlp_endpoint_that_is_invalid_is_refused() {
    let serve = ["serve", "--listen", "127.0.0.1:0", "--otlp-endpoint", "here", "--jobs", "."];
    Dir::new().run(&serve).ended(2, &["otlp_endpoint is \"here\""]);
}
