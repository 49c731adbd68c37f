//! The promises of connections and streams: bounded numbers, bounded memory, silent clients are left, the end is quick.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tessera::api::{self, JobSpec, JobState, edit_picture_request::Part};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio_stream::StreamExt as _;
use tonic::{Code, Status, metadata::MetadataValue, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

use crate::common::server::{Server, answer, create, order, picture, spec, wait, watch};

/// A server's certificate of its own authority in `dir`, and the flags that name it.
fn tls_files(dir: &Path) -> [String; 4] {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    std::fs::write(path("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
    ["--tls-cert".to_owned(), path("cert.pem"), "--tls-key".to_owned(), path("key.pem")]
}

/// The address of a server.
fn address(server: &Server) -> &str {
    server.url.split_once("://").unwrap().1
}

/// A TLS connection that offers `protocol`.
fn tls(server: &Server, cert: &str, protocol: &[u8]) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(cert).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = "localhost".try_into().unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    StreamOwned::new(connection, connect(server))
}

/// A connection whose reads end after a minute.
fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(address(server)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// What a server sends until it closes the connection.
fn until_closed(mut stream: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert!(
            matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof),
            "not closed: {error}"
        ),
    }
    bytes
}

/// The value of a metric.
fn metric(server: &Server, name: &str) -> f64 {
    let metrics = answer(server, "localhost", "/metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("tessera_{name} ")));
    line.unwrap_or_else(|| panic!("{name} in {metrics}")).parse().unwrap()
}

#[tokio::test]
async fn tls_serves_http1_and_http2() {
    let dir = tempfile::tempdir().unwrap();
    let flags = tls_files(dir.path());
    let jobs = dir.path().join("jobs");
    let server = Server::start(&jobs, &flags.each_ref().map(String::as_str));
    let mut stream = tls(&server, &flags[1], b"http/1.1");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let page = until_closed(&mut stream);
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert!(page.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&page));
    let mut stream = tls(&server, &flags[1], b"h2");
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).unwrap();
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(frame[3], 4, "the server's SETTINGS");
}

#[test]
fn silent_connections_are_closed() {
    let dir = tempfile::tempdir().unwrap();
    let flags = tls_files(dir.path());
    let plain = Server::start(&dir.path().join("plain"), &[]);
    let secure = Server::start(&dir.path().join("secure"), &flags.each_ref().map(String::as_str));
    let mut partial = connect(&plain);
    partial.write_all(b"PRI * HT").unwrap();
    let mut shaken = tls(&secure, &flags[1], b"h2");
    shaken.conn.complete_io(&mut shaken.sock).unwrap();
    let mut torn = connect(&secure);
    torn.write_all(b"\x16\x03\x01\x02\0\x01\0").unwrap();
    let silent = [connect(&plain), partial, connect(&secure), torn];
    // A client that is idle after its HTTP/2 preface stays.
    let mut idle = connect(&plain);
    idle.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    for stream in silent {
        assert_eq!(until_closed(stream), b"");
    }
    assert_eq!(until_closed(shaken), b"");
    let mut frame = [0; 9];
    idle.read_exact(&mut frame).unwrap();
    idle.write_all(b"\0\0\x08\x06\0\0\0\0\0pingpong").unwrap();
    let mut rest = Vec::new();
    while !rest.ends_with(b"pingpong") {
        let mut byte = [0];
        idle.read_exact(&mut byte).unwrap();
        rest.push(byte[0]);
    }
}

#[test]
fn connections_beyond_the_limit_are_closed_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--connections", "4"]);
    let held: Vec<_> = (0..4).map(|_| connect(&server)).collect();
    for _ in 0..3 {
        assert_eq!(until_closed(connect(&server)), b"");
    }
    drop(held);
    let refused = || {
        let stream = connect(&server);
        let mut writer = &stream;
        let _ = writer
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let text = String::from_utf8(until_closed(&stream)).unwrap();
        let line = text.lines().find_map(|line| {
            line.strip_prefix("tessera_connections_refused_total ")?.parse::<f64>().ok()
        });
        line.map(|count| (count, text))
    };
    // The places are free once the server has seen that the clients have left.
    let (count, text) = std::iter::repeat_with(refused).flatten().next().unwrap();
    assert!(count >= 3.0, "{count}");
    assert!(text.contains("tessera_connections_limit 4"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_ends_streams_and_half_requests_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let channel =
        || async { Channel::from_shared(server.url.clone()).unwrap().connect().await.unwrap() };
    let mut health = HealthClient::new(channel().await);
    let mut health = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(health.message().await.unwrap().unwrap().status, 1);
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest,
    };
    let request = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let requests = tokio_stream::once(request).chain(tokio_stream::pending());
    let mut reflection = ServerReflectionClient::new(channel().await);
    let mut reflection = reflection.server_reflection_info(requests).await.unwrap().into_inner();
    reflection.message().await.unwrap().unwrap();
    let mut client = server.client().await;
    let upload = tokio::spawn(async move {
        let first = api::EditPictureRequest { part: Some(Part::Job(order(spec(1, 0, 0, 2)))) };
        client.edit_picture(tokio_stream::once(first).chain(tokio_stream::pending())).await
    });
    let mut client = server.client().await;
    let job = create(&mut client, spec(1, 512, 512, 1000)).await.unwrap();
    let mut watching = {
        let request = api::WatchJobRequest { name: job.name.clone(), ..Default::default() };
        client.watch_job(request).await.unwrap().into_inner()
    };
    watching.message().await.unwrap().unwrap();
    // Half a head, half a body, a download of nothing yet.
    let mut half = connect(&server);
    half.write_all(b"GET / HTTP/1.1\r\nHos").unwrap();
    let mut body = connect(&server);
    body.write_all(
        b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 999\r\n\r\nabc",
    )
    .unwrap();
    while metric(&server, "watch_streams") < 1.0 {}
    let began = Instant::now();
    assert!(tokio::task::block_in_place(|| server.stop()).success());
    let took = began.elapsed();
    // The grace period of useful calls is 10 s.
    assert!(took < Duration::from_secs(5), "{took:?}");
    let not_serving = health.message().await.unwrap().unwrap();
    assert_eq!(not_serving.status, 2);
    assert_eq!(health.message().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(reflection.message().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(upload.await.unwrap().unwrap_err().code(), Code::Unavailable);
    let end = loop {
        match watching.message().await {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    assert_eq!(end.unwrap_err().code(), Code::Unavailable);
    assert_eq!(until_closed(half), b"");
    let text = String::from_utf8(until_closed(body)).unwrap();
    assert!(text.starts_with("HTTP/1.1 503"), "{text}");
}

#[tokio::test]
async fn unknown_addresses_and_probes_are_answered_without_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("tokens");
    std::fs::write(&tokens, format!("anna {}\n", "0".repeat(64))).unwrap();
    let open = Server::start(&dir.path().join("open"), &[]);
    let flags = ["--tokens", tokens.to_str().unwrap()];
    let closed = Server::start(&dir.path().join("closed"), &flags);
    for server in [&open, &closed] {
        for path in ["/healthz", "/readyz"] {
            let answer = answer(server, "localhost", path);
            assert!(
                answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nok\n"),
                "{answer}"
            );
        }
    }
    for path in ["/favicon.ico", "/healthz/", "/jobs/x", "/tessera.v1.Other/Nothing", "/."] {
        let answer = answer(&open, "localhost", path);
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
    }
    let mut stream = connect(&open);
    stream
        .write_all(
            b"POST /tessera.v1.JobService/Nothing HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/grpc-web\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        )
        .unwrap();
    let text = String::from_utf8(until_closed(stream)).unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("grpc-status: 12"), "{text}");
    // Through gRPC's own transport.
    let channel = Channel::from_shared(open.url.clone()).unwrap().connect().await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<api::GetJobRequest, api::GetJobResponse>::default();
    let path = "/tessera.v1.JobService/Nothing".parse().unwrap();
    let request = tonic::Request::new(api::GetJobRequest::default());
    let status: Status = grpc.unary(request, path, codec).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status}");
}

#[test]
fn requests_need_exactly_one_host() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    for (head, expected) in [
        ("GET /healthz HTTP/1.1\r\n", "HTTP/1.1 400"),
        ("GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", "HTTP/1.1 400"),
        ("GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n", "HTTP/1.1 400"),
        ("GET http://localhost/healthz HTTP/1.1\r\n", "HTTP/1.1 400"),
        ("GET /healthz HTTP/1.0\r\nHost: localhost\r\nHost: localhost\r\n", "HTTP/1.0 400"),
        ("GET /healthz HTTP/1.1\r\nHost: localhost\r\n", "HTTP/1.1 200"),
        ("GET /healthz HTTP/1.0\r\n", "HTTP/1.0 200"),
    ] {
        let mut stream = connect(&server);
        stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).unwrap();
        let text = String::from_utf8(until_closed(stream)).unwrap();
        assert!(text.starts_with(expected), "{head}: {text}");
    }
}

/// A message of an upload.
fn message(part: Part) -> api::EditPictureRequest {
    api::EditPictureRequest { part: Some(part) }
}

/// Calls with a bearer token.
fn bearer(
    token: &str,
) -> impl FnMut(tonic::Request<()>) -> Result<tonic::Request<()>, Status> + Clone {
    let value: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
    move |mut request| {
        request.metadata_mut().insert("authorization", value.clone());
        Ok(request)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_are_read_or_refused_at_once_and_slow_ones_end() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("tokens");
    // SHA-256 of "foo" and of "bar".
    std::fs::write(
        &tokens,
        "anna 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae\n\
         ben fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9\n",
    )
    .unwrap();
    let jobs = dir.path().join("jobs");
    let server = Server::start(&jobs, &["--tokens", tokens.to_str().unwrap()]);
    let channel = Channel::from_shared(server.url.clone()).unwrap().connect().await.unwrap();
    let client = |token| {
        api::job_service_client::JobServiceClient::with_interceptor(channel.clone(), bearer(token))
    };
    let first = message(Part::Job(order(spec(1, 0, 0, 2))));
    // Together larger than a connection's window, and never completed.
    let data = vec![message(Part::Data(vec![0; 30 << 10])); 3];
    let stuck = [vec![first.clone()], data].concat();
    let stuck = || tokio_stream::iter(stuck.clone()).chain(tokio_stream::pending());
    let mut anna = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (mut client, stream) = (client("foo"), stuck());
        anna.spawn(async move { client.edit_picture(stream).await.unwrap_err() });
    }
    // Four are refused while the others are read, and the connection goes on.
    let soon = Duration::from_secs(8);
    let refused = async {
        for _ in 0..4 {
            let status = anna.join_next().await.unwrap().unwrap();
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            let details = status.get_error_details();
            assert!(details.retry_info().unwrap().retry_delay.is_some());
            assert_eq!(details.error_info().unwrap().metadata["resource"], "uploads_of_client");
        }
        let request = api::GetJobRequest { name: "jobs/none".into() };
        assert_eq!(client("foo").get_job(request).await.unwrap_err().code(), Code::NotFound);
        let mut file = std::io::Cursor::new(Vec::new());
        let picture = crate::common::server::noise(3, 64, 48);
        picture.write_to(&mut file, image::ImageFormat::Png).unwrap();
        let parts = [first.clone(), message(Part::Data(file.into_inner()))];
        client("bar").edit_picture(tokio_stream::iter(parts)).await.unwrap();
        // The same limit for uploads over HTTP.
        let mut stream = connect(&server);
        let head = "POST /jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer foo\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut line = [0; 12];
        tokio::task::block_in_place(|| stream.read_exact(&mut line)).unwrap();
        assert_eq!(&line, b"HTTP/1.1 429");
    };
    tokio::time::timeout(soon, refused).await.unwrap();
    // Nothing comes any more, and the places are free again.
    while let Some(status) = anna.join_next().await {
        let status = status.unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    }
    let left: Vec<_> = std::fs::read_dir(&jobs)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("upload"))
        .collect();
    assert_eq!(left, [""; 0]);
}

/// The messages and the trailers of a response by gRPC-Web over HTTP/1.1.
fn grpc_web(response: &[u8]) -> (Vec<Vec<u8>>, String) {
    let end = response.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let (mut rest, mut body) = (&response[end + 4..], Vec::new());
    loop {
        let line = rest.windows(2).position(|w| w == b"\r\n").unwrap();
        let size = std::str::from_utf8(&rest[..line]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        let chunk = &rest[line + 2..];
        if size == 0 {
            break;
        }
        body.extend_from_slice(&chunk[..size]);
        rest = &chunk[size + 2..];
    }
    let (mut messages, mut trailers, mut rest) = (Vec::new(), String::new(), &body[..]);
    while let [flag, a, b, c, d, after @ ..] = rest {
        let (frame, next) = after.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        match flag {
            0 => messages.push(frame.to_vec()),
            _ => trailers += std::str::from_utf8(frame).unwrap(),
        }
        rest = next;
    }
    (messages, trailers)
}

#[tokio::test]
async fn browsers_get_the_stream_of_other_clients() {
    use prost::Message as _;
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    let asked = JobSpec { tile_size: 256, ..spec(1, 256, 128, 2) };
    let job = create(&mut client, asked).await.unwrap();
    let events = watch(&mut client, &job.name, 0).await.unwrap();
    let call = |method: &str, message: Vec<u8>| {
        let mut stream = connect(&server);
        let (path, length) = (format!("/tessera.v1.JobService/{method}"), 5 + message.len());
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/grpc-web+proto\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        let prefix = [&[0][..], &(message.len() as u32).to_be_bytes()].concat();
        stream.write_all(&[head.into_bytes(), prefix, message].concat()).unwrap();
        grpc_web(&until_closed(stream))
    };
    let options = api::StreamOptions { without_previews: true, ..Default::default() };
    let request = api::WatchJobRequest {
        name: job.name.clone(),
        options: Some(options),
        ..Default::default()
    };
    let (messages, trailers) = call("WatchJob", request.encode_to_vec());
    let found: Vec<_> = messages
        .iter()
        .map(|message| api::WatchJobResponse::decode(&message[..]).unwrap().event.unwrap())
        .collect();
    assert!(found == events, "{} of {} events", found.len(), events.len());
    assert!(trailers.contains("grpc-status:0"), "{trailers}");
    picture(&found, 256, 128);
    let request = api::GetTileRequest { name: job.name, ..Default::default() };
    let (messages, trailers) = call("GetTile", request.encode_to_vec());
    let tile = api::GetTileResponse::decode(&messages[0][..]).unwrap().tile.unwrap();
    assert_eq!((messages.len(), crc32c::crc32c(&tile.data)), (1, tile.crc32c));
    assert!(trailers.contains("grpc-status:0"), "{trailers}");
}

/// Resident memory of a process in bytes.
#[cfg(target_os = "linux")]
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn streams_that_are_not_read_stay_within_the_memory_for_watchers() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--watch-memory", "64"]);
    let mut client = server.client().await;
    let big = JobSpec { tile_size: 1024, bits: 16, ..spec(5, 2048, 1024, 1) };
    let job = create(&mut client, big).await.unwrap();
    wait(&mut client, &job.name, |now| now == JobState::Finished).await;
    let before = resident(server.id());
    let mut unread = Vec::new();
    for _ in 0..2 {
        let mut client = server.client().await;
        for _ in 0..40 {
            let request = api::WatchJobRequest { name: job.name.clone(), ..Default::default() };
            unread.push(client.watch_job(request).await.unwrap().into_inner());
        }
    }
    // Others are served meanwhile, with the right bytes.
    let other = create(&mut client, spec(6, 128, 128, 2)).await.unwrap();
    picture(&watch(&mut client, &other.name, 0).await.unwrap(), 128, 128);
    let whole = watch(&mut client, &job.name, 0).await.unwrap();
    let tiles = whole.iter().filter_map(|event| match &event.event {
        Some(api::job_event::Event::Tile(tile)) => Some(tile),
        _ => None,
    });
    let lengths: Vec<_> = tiles
        .map(|tile| {
            assert_eq!(crc32c::crc32c(&tile.data), tile.crc32c);
            tile.data.len()
        })
        .collect();
    assert_eq!(lengths, [6 << 20; 2]);
    assert_eq!(metric(&server, "watch_streams"), 80.0);
    let (used, limit) =
        (metric(&server, "watch_memory_bytes"), metric(&server, "watch_memory_limit_bytes"));
    assert!(used <= limit && limit == f64::from(64 << 20), "{used} of {limit}");
    // Beside the budget: the sockets' and connections' own buffers, and what the allocator keeps.
    let grown = resident(server.id()).saturating_sub(before);
    assert!(grown < 128 << 20, "{} MiB", grown >> 20);

    // Beyond the number of streams that the memory allows, calls are refused; those in progress go on.
    let most = metric(&server, "watch_streams_limit") as usize;
    let mut status = None;
    for _ in 0..=most {
        let request = api::WatchJobRequest { name: job.name.clone(), ..Default::default() };
        match client.watch_job(request).await {
            Ok(stream) => unread.push(stream.into_inner()),
            Err(refused) => status = Some(refused),
        }
    }
    let status = status.unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.get_error_details().retry_info().is_some());
    // An unread stream has lost nothing.
    let mut stream = unread.swap_remove(7);
    drop(unread);
    let mut late = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        late.push(message.event.unwrap());
    }
    let sequence =
        |events: &[api::JobEvent]| -> Vec<_> { events.iter().map(|e| e.sequence).collect() };
    assert_eq!(sequence(&late), sequence(&whole));
}
