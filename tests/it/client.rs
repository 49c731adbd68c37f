//! The client's promises: whatever becomes of the connection, a fetched file is the file, or there is none.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tessera::{
    api::{
        JobEvent, StreamOptions,
        job_event::{self, Event},
    },
    client::{Client, FetchOptions, Retry, Settings},
    error::{Error, Kind},
    image_out::Bits,
};
use tonic::Code;

use crate::common::{
    command::{Dir, events, names},
    server::{Server, noise},
    stub::{Made, NAME, Proxy, Stub},
};

async fn client(address: SocketAddr) -> Client {
    patient(address, Duration::from_secs(60)).await
}

/// A client that gives a server up after `give_up`.
async fn patient(address: SocketAddr, give_up: Duration) -> Client {
    let retry = Retry { first: Duration::from_millis(2), most: Duration::from_millis(50), give_up };
    let settings = Settings { retry, ..Settings::new(format!("http://{address}")) };
    Client::connect(&settings).await.unwrap()
}

/// Fetches what must fail; gives the error. Nothing is left, and a file that was there stays.
async fn fails(stub: Arc<Stub>, name: &str, out: &str) -> Error {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(out);
    fs::write(&path, "before").unwrap();
    let client = client(stub.serve().await).await;
    let mut seen = |_: &JobEvent| {};
    let work = client.fetch(name, &path, FetchOptions::default(), &mut seen);
    let ended = tokio::time::timeout(Duration::from_secs(20), work).await;
    let error = ended.unwrap_or_else(|_| panic!("{name} is not given up")).unwrap_err();
    assert_eq!(names(dir.path()), [out], "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"before", "{error}");
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fetch_over_cut_streams_and_a_damaged_tile_gives_the_same_bytes() {
    for (bits, out) in [(Bits::Eight, "a.tiff"), (Bits::Sixteen, "a.tif"), (Bits::Sixteen, "a.png")]
    {
        let made = Made::new(700, 520, bits);
        let mut stub = Stub::new(&made, made.events());
        stub.cut = 3;
        stub.damage();
        let stub = Arc::new(stub);
        let client = client(stub.clone().serve().await).await;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(out);
        let mut seen = Vec::new();
        client
            .fetch("one", &path, FetchOptions::default(), &mut |event: &JobEvent| {
                seen.push(event.sequence)
            })
            .await
            .unwrap();
        assert!(fs::read(&path).unwrap() == made.file(out), "{out} differs");
        assert_eq!(names(dir.path()), [out]);
        // Every event once and in order; every stream where the one before was cut.
        let count = stub.events.len() as u64;
        assert_eq!(seen, (1..=count).collect::<Vec<_>>());
        let watches = stub.watches.lock().unwrap().clone();
        assert_eq!(watches, (0..count).step_by(3).collect::<Vec<_>>());
        assert_eq!(stub.tiles_asked.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fetch_over_broken_connections_gives_the_same_bytes() {
    let made = Made::new(700, 520, Bits::Sixteen);
    let stub = Arc::new(Stub::new(&made, made.events()));
    // Two tiles and a half.
    let proxy = Proxy::start(stub.clone().serve().await, 250_000);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tiff");
    let mut seen = Vec::new();
    let client = client(proxy.address).await;
    client
        .fetch(NAME, &path, FetchOptions::default(), &mut |event: &JobEvent| {
            seen.push(event.sequence)
        })
        .await
        .unwrap();
    assert!(fs::read(&path).unwrap() == made.file("a.tiff"));
    assert_eq!(seen, (1..=stub.events.len() as u64).collect::<Vec<_>>());
    assert!(proxy.connections.load(Ordering::SeqCst) > 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_does_not_repeat_permanent_failures() {
    let made = Made::new(200, 130, Bits::Eight);
    let stub = || Stub::new(&made, made.events());

    let error = fails(Arc::new(stub()), "jobs/other", "a.tiff").await;
    assert_eq!(error.kind(), Kind::NotFound);
    for (code, kind) in [
        (Code::NotFound, Kind::NotFound),
        (Code::Unauthenticated, Kind::Unauthenticated),
        (Code::PermissionDenied, Kind::Unauthenticated),
        (Code::InvalidArgument, Kind::InvalidArgument),
        (Code::Internal, Kind::Internal),
    ] {
        let refusing = Arc::new(Stub { refusal: Some(code), ..stub() });
        let error = fails(refusing.clone(), NAME, "a.tiff").await;
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(*refusing.watches.lock().unwrap(), [0], "{code}");
    }
    // The tile is damaged both times.
    let mut damaged = Stub { damaged: AtomicUsize::new(1), ..stub() };
    damaged.damage();
    let error = fails(Arc::new(damaged), NAME, "a.tiff").await;
    assert_eq!(error.kind(), Kind::Io);
    let field = error.field().unwrap();
    assert!(field.contains("column 1, row 1"), "{error}");
    // Event 5 is left out.
    let mut gap = stub();
    gap.events.remove(4);
    let error = fails(Arc::new(gap), NAME, "a.png").await;
    let fields = error.detail().fields();
    assert_eq!((&fields["value"], &fields["expected"]), (&"6".into(), &"5".into()), "{error}");
    // A tile is left out.
    let mut events = made.events();
    events.remove(5);
    let error = fails(Arc::new(Stub::new(&made, events)), NAME, "a.tiff").await;
    assert_eq!(error.field(), Some("missing tiles of the finished job"));
    // A tile says that it lies where another one lies.
    let mut events = made.events();
    if let Event::Tile(tile) = &mut events[5] {
        tile.rect.as_mut().unwrap().x += 1;
    }
    let error = fails(Arc::new(Stub::new(&made, events)), NAME, "a.tiff").await;
    assert!(error.field().unwrap().contains("rectangle"), "{error}");
    // Sizes that nobody has memory for.
    let mut huge = stub();
    huge.job.spec.as_mut().unwrap().width = u32::MAX;
    let error = fails(Arc::new(huge), NAME, "a.tiff").await;
    assert_eq!((error.field(), error.kind()), (Some("width"), Kind::Internal));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_ends_after_the_time_limit() {
    let made = Made::new(200, 130, Bits::Eight);
    let give_up = Duration::from_millis(200);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tiff");
    // It refuses every stream, or opens them and cuts them before the first event.
    for (refusal, cut) in [(Some(Code::Unavailable), usize::MAX), (None, 0)] {
        let stub = Arc::new(Stub { refusal, cut, ..Stub::new(&made, made.events()) });
        let client = patient(stub.clone().serve().await, give_up).await;
        let error = client
            .fetch(NAME, &path, FetchOptions::default(), &mut |_: &JobEvent| {})
            .await
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert_eq!(error.detail().fields()["limit_seconds"], 0.2);
        let watches = stub.watches.lock().unwrap().clone();
        assert!(watches.len() > 2 && watches.iter().all(|&after| after == 0), "{watches:?}");
    }
    assert_eq!(names(dir.path()), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fetch_of_a_failed_job_gives_its_reason_and_no_file() {
    let made = Made::new(200, 130, Bits::Eight);
    let end = |event: Event| {
        let mut events = made.events();
        events.truncate(6);
        events.push(event);
        Arc::new(Stub::new(&made, events))
    };
    let failed = job_event::Failed { code: Code::DeadlineExceeded.into(), message: "late".into() };
    let error = fails(end(Event::Failed(failed)), NAME, "a.tiff").await;
    assert_eq!((error.kind(), error.to_string()), (Kind::Expired, "jobs/one failed: late".into()));
    let error = fails(end(Event::Cancelled(job_event::Cancelled {})), NAME, "a.png").await;
    assert_eq!(error.kind(), Kind::Cancelled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fetch_that_is_dropped_leaves_no_file() {
    let made = Made::new(700, 520, Bits::Eight);
    let mut events = made.events();
    events.truncate(12);
    let stub = Arc::new(Stub { stays: true, ..Stub::new(&made, events) });
    let client = client(stub.serve().await).await;
    let dir = tempfile::tempdir().unwrap();
    let mut count = 0;
    let path = dir.path().join("a.tiff");
    let mut seen = |_: &JobEvent| count += 1;
    let work = client.fetch(NAME, &path, FetchOptions::default(), &mut seen);
    assert!(tokio::time::timeout(Duration::from_millis(500), work).await.is_err());
    assert_eq!(count, 12);
    assert_eq!(names(dir.path()), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_after_the_last_event_ends_at_once() {
    let made = Made::new(200, 130, Bits::Eight);
    let stub = Arc::new(Stub::new(&made, made.events()));
    let last = stub.events.len() as u64;
    let client = client(stub.clone().serve().await).await;
    let mut watch = client.watch("one", last, StreamOptions::default());
    assert_eq!(watch.next().await.unwrap(), None);
    let mut watch = client.watch("one", last - 1, StreamOptions::default());
    assert_eq!(watch.next().await.unwrap().map(|event| event.sequence), Some(last));
    assert_eq!(watch.next().await.unwrap(), None);
    assert_eq!(watch.last_sequence(), last);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn address_of_a_server_keeps_its_path() {
    let made = Made::new(200, 130, Bits::Eight);
    let stub = Arc::new(Stub::new(&made, made.events()));
    let address = stub.serve_under("/pictures/tessera").await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.png");
    for end in ["", "/"] {
        let settings = Settings::new(format!("http://{address}/pictures/tessera{end}"));
        for client in
            [Client::connect(&settings).await.unwrap(), Client::connect_lazy(&settings).unwrap()]
        {
            client
                .fetch(NAME, &path, FetchOptions::default(), &mut |_: &JobEvent| {})
                .await
                .unwrap();
            assert!(fs::read(&path).unwrap() == made.file("a.png"));
        }
    }
    for path in ["", "/pictures", "/pictures/tessera/tessera"] {
        let client = Client::connect(&Settings::new(format!("http://{address}{path}"))).await;
        client.unwrap().get(NAME).await.unwrap_err();
    }
}

#[test]
fn watch_and_fetch_wait_for_a_server_that_is_not_there_yet() {
    let jobs = tempfile::tempdir().unwrap();
    let server = Server::start(jobs.path(), &[]);
    let url = server.url.clone();
    let dir = Dir::new().with_server(&url);
    let job = dir.succeeds(&["submit", "--size", "64x32", "--steps", "2"]);
    let job = job.trim();
    dir.succeeds(&["fetch", job, "--out", "before.tiff"]);
    drop(server);
    // No time to wait: the server is named, and why it can't be reached.
    for args in [&["watch", job][..], &["fetch", job, "--out", "none.tiff"]] {
        let args = [args, &["--give-up", "0"]].concat();
        dir.fails(&args, 1, &["retrying", "0 s", &url, "refused"]);
    }
    let start = |args: &[&str]| {
        let mut command = dir.command();
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut waiting =
        [start(&["watch", job, "--json"]), start(&["fetch", job, "--out", "a.tiff", "--json"])];
    for child in &mut waiting {
        let mut line = String::new();
        BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains(&url) && line.contains("trying again for up to 600s"), "{line}");
    }
    let address = url.trim_start_matches("http://");
    let _server = Server::start(jobs.path(), &["--listen", address]);
    for child in waiting {
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        // One note for the whole outage.
        assert!(output.status.success() && stderr.is_empty(), "{stderr}");
        let lines = events(&String::from_utf8(output.stdout).unwrap());
        assert_eq!(lines[0]["event"], "queued");
        assert!(lines.iter().any(|line| line["event"] == "finished"));
    }
    let (before, after) = (fs::read(dir.join("before.tiff")), fs::read(dir.join("a.tiff")));
    assert!(before.unwrap() == after.unwrap());
}

#[test]
fn fetch_gives_the_bytes_of_generate() {
    let jobs = tempfile::tempdir().unwrap();
    let server = Server::start(jobs.path(), &[]);
    let dir = Dir::new().with_server(&server.url);
    for (flags, out) in [
        (vec!["--seed", "7", "--tile", "64"], "eight.tiff"),
        (vec!["--seed", "8", "--bits", "16", "--sampler", "heun"], "sixteen.tiff"),
        (vec!["--seed", "18446744073709551615", "--sampler", "ddim"], "eight.png"),
    ] {
        let common = ["--size", "256x256", "--steps", "2"];
        let flags = [&common, flags.as_slice()].concat();
        let job = dir.succeeds(&[&["submit"], flags.as_slice()].concat());
        let fetched = dir.succeeds(&["fetch", job.trim(), "--out", out]);
        assert!(fetched.contains("256 x 256"), "{fetched}");
        let local = format!("local-{out}");
        let generate = ["generate", "--device", "cpu", "--threads", "1", "--out", &local];
        dir.succeeds(&[&generate, flags.as_slice()].concat());
        let (fetched, local) = (fs::read(dir.join(out)), fs::read(dir.join(local)));
        assert!(fetched.unwrap() == local.unwrap(), "{out} differs");
    }
    // The same for a picture that is edited, whose size need not be a multiple of anything.
    noise(7, 149, 67).save(dir.join("in.png")).unwrap();
    let flags = ["--strength", "0.6", "--seed", "9", "--steps", "5", "--tile", "64"];
    let submit = [&["submit", "--edit", "in.png"], &flags[..]].concat();
    let job = dir.succeeds(&submit);
    dir.succeeds(&["fetch", job.trim(), "--out", "edited.tiff"]);
    let edit = ["edit", "in.png", "local.tiff", "--device", "cpu", "--threads", "1"];
    dir.succeeds(&[&edit, &flags[..]].concat());
    let (fetched, local) = (fs::read(dir.join("edited.tiff")), fs::read(dir.join("local.tiff")));
    assert!(fetched.unwrap() == local.unwrap());
    fs::write(dir.join("no.png"), "no picture").unwrap();
    dir.fails(&["submit", "--edit", "no.png"], 2, &["JPEG, PNG, TIFF or WebP"]);
    dir.fails(&["submit", "--edit", "gone.png"], 2, &["gone.png"]);
    dir.fails(&["submit", "--edit", "in.png", "--size", "96x64"], 2, &["width", "149"]);

    // The size is the model's own if none is given, and events say so.
    let submitted = events(&dir.succeeds(&["submit", "--steps", "1", "--json"])).remove(0);
    assert_eq!((&submitted["event"], &submitted["width"]), (&"submitted".into(), &96.into()));
    let job = submitted["job"].as_str().unwrap();
    let args = ["fetch", job, "--out", "own.png", "--json"];
    let lines = events(&dir.succeeds(&args));
    let names: Vec<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!((names[0], names[1]), ("queued", "started"));
    assert_eq!(names[names.len() - 2..], ["finished", "fetched"]);
    assert!(names.contains(&"tile") && names.contains(&"step"), "{names:?}");
    assert_eq!(lines[names.len() - 2]["receipt"]["seed"], 0);
}

#[test]
fn fetch_survives_server_restarts_with_the_same_bytes() {
    let jobs = tempfile::tempdir().unwrap();
    let mut server = Server::start(jobs.path(), &[]);
    let address = |server: &Server| server.url.trim_start_matches("http://").parse().unwrap();
    let proxy = Proxy::start(address(&server), usize::MAX);
    let spec = ["--seed", "5", "--size", "512x512", "--steps", "40", "--tile", "64"];
    let dir = Dir::new().with_server(&proxy.url());
    let job = dir.succeeds(&[&["submit"], spec.as_slice()].concat());
    let mut fetch = dir
        .command()
        .args(["fetch", job.trim(), "--out", "a.tiff", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(fetch.stdout.take().unwrap()).lines();
    let (mut steps, mut tiles, mut sequences) = (0, 0, Vec::new());
    for line in lines {
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        sequences.extend(line["job_sequence"].as_u64());
        match line["event"].as_str() {
            Some("step") => steps += 1,
            Some("tile") => tiles += 1,
            _ => continue,
        }
        if (steps, tiles) == (10, 0) || (tiles, line["event"] == "tile") == (20, true) {
            server.kill();
            server = Server::start(jobs.path(), &[]);
            *proxy.target.lock().unwrap() = address(&server);
        }
    }
    assert!(fetch.wait().unwrap().success());
    assert!(proxy.connections.load(Ordering::SeqCst) >= 4);
    assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>());
    assert_eq!((steps, tiles), (40, 64));
    let generate = ["generate", "--device", "cpu", "--threads", "1", "--out", "local.tiff"];
    dir.succeeds(&[&generate, spec.as_slice()].concat());
    assert!(fs::read(dir.join("a.tiff")).unwrap() == fs::read(dir.join("local.tiff")).unwrap());
}

#[test]
fn jobs_are_submitted_once_watched_listed_cancelled_and_deleted() {
    let jobs = tempfile::tempdir().unwrap();
    let server = Server::start(jobs.path(), &[]);
    let dir = Dir::new().with_server(&server.url);
    let small = ["submit", "--size", "64x32", "--steps", "2", "--request-id", "mine"];
    let job = dir.succeeds(&[&small[..], &["--model", "net-a"]].concat());
    let job = job.trim();
    assert!(job.starts_with("jobs/"), "{job}");
    assert_eq!(dir.succeeds(&small).trim(), job);
    let other = ["submit", "--size", "64x32", "--steps", "3", "--request-id", "mine"];
    dir.fails(&other, 2, &["request_id", "mine"]);

    let watched = dir.succeeds(&["watch", job]);
    assert!(watched.contains("finished") && watched.contains("seed 0"), "{watched}");
    let all = events(&dir.succeeds(&["watch", job, "--json"]));
    let rest = events(&dir.succeeds(&["watch", job, "--after", "2", "--json"]));
    let sequence = |line: &Value| line["job_sequence"].as_u64().unwrap();
    let (all, rest): (Vec<_>, Vec<_>) =
        (all.iter().map(sequence).collect(), rest.iter().map(sequence).collect());
    assert_eq!(all[2..], rest);
    assert_eq!(dir.succeeds(&["watch", job, "--after", "1000", "--json"]), "");

    let long = ["submit", "--size", "2048x2048", "--steps", "1000"];
    let long = dir.succeeds(&long);
    let long = long.trim();
    let table = dir.succeeds(&["jobs"]);
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("JOB") && lines[0].contains("PROGRESS"), "{table}");
    assert!(lines[1].starts_with(job) && lines[1].contains("finished"), "{table}");
    assert!(lines[2].starts_with(long) && lines[2].contains("2048 x 2048"), "{table}");
    let report = events(&dir.succeeds(&["jobs", "--json"])).remove(0);
    assert_eq!(report["jobs"][1]["steps"], 1000);

    let id = long.trim_start_matches("jobs/");
    assert!(dir.succeeds(&["cancel", id]).contains("cancelled"));
    dir.fails(&["watch", long], 130, &["cancelled"]);
    dir.fails(&["fetch", long, "--out", "a.tiff"], 130, &["cancelled"]);
    assert!(dir.succeeds(&["delete", long]).contains("deleted"));
    for args in [&["watch", long][..], &["cancel", long], &["fetch", long, "--out", "a.tiff"]] {
        dir.fails(args, 1, &["does not exist"]);
    }
    assert_eq!(dir.names(), [""; 0]);
}

#[test]
fn flags_that_are_invalid_and_absent_servers_are_named() {
    let nobody = Dir::new().with_server("http://127.0.0.1:9");
    nobody.fails(&["jobs"], 1, &["http://127.0.0.1:9", "unavailable", "refused"]);
    nobody.fails(&["jobs", "--server", "here"], 2, &["server", "here", "http://"]);
    nobody.fails(&["jobs", "--ca", "missing.pem"], 2, &["ca", "missing.pem"]);
    nobody.fails(&["jobs", "--token", "ä"], 2, &["token", "ASCII"]);
    for (flags, words) in [
        (["--tile", "whole"], &["tile", "whole", "1024"]),
        (["--steps", "0"], &["steps", "0", "1000"]),
        (["--deadline", "0"], &["deadline", "0", "seconds"]),
        (["--size", "0x64"], &["size", "0", "1"]),
    ] {
        nobody.fails(&[&["submit"], flags.as_slice()].concat(), 2, words);
    }
    let fetch = |out: &'static str| ["fetch", "1", "--out", out];
    nobody.fails(&fetch("a.gif"), 2, &["a.gif", ".tiff"]);
    nobody.fails(&fetch("no/a.tiff"), 2, &["no/a.tiff", "existing directory"]);
    assert_eq!(nobody.names(), [""; 0]);

    let jobs = tempfile::tempdir().unwrap();
    let server = Server::start(jobs.path(), &[]);
    let dir = Dir::new().with_server(&server.url);
    let submit = |size: &'static str| ["submit", "--size", size];
    dir.fails(&submit("100x64"), 2, &["width", "100", "16"]);
    dir.fails(&submit("16400x64"), 2, &["width", "16400", "16384"]);
    dir.fails(&["submit", "--tile", "5000"], 2, &["tile", "5000", "1024"]);
    dir.fails(&["watch", "jobs/../etc"], 2, &["name"]);
    dir.fails(&["submit", "--model", "other"], 1, &["model", "other"]);
    dir.fails(&["submit", "--model", "../x"], 2, &["model", "../x"]);
    assert_eq!(dir.names(), [""; 0]);
}

#[cfg(unix)]
#[test]
fn fetch_that_is_interrupted_leaves_no_file() {
    let jobs = tempfile::tempdir().unwrap();
    let server = Server::start(jobs.path(), &[]);
    let dir = Dir::new().with_server(&server.url);
    let job = dir.succeeds(&["submit", "--size", "512x512", "--steps", "1000"]);
    let mut fetch = dir
        .command()
        .args(["fetch", job.trim(), "--out", "a.tiff", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut lines = BufReader::new(fetch.stdout.take().unwrap());
    lines.read_line(&mut line).unwrap();
    assert!(line.contains("queued"), "{line}");
    let asked = Command::new("kill").args(["-INT", &fetch.id().to_string()]).status().unwrap();
    assert!(asked.success());
    assert_eq!(fetch.wait().unwrap().code(), Some(130));
    assert_eq!(dir.names(), [""; 0]);
}

#[test]
fn tls_client_certificates_and_tokens_are_presented() {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use sha2::Digest as _;

    let dir = Dir::new();
    let mut authority = CertificateParams::new([]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let certificate = authority.self_signed(&authority_key).unwrap();
    fs::write(dir.join("ca.pem"), certificate.pem()).unwrap();
    let issuer = Issuer::from_params(&authority, &authority_key);
    for name in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let hosts = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let certificate = CertificateParams::new(hosts).unwrap().signed_by(&key, &issuer).unwrap();
        fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    let hash: String = sha2::Sha256::digest("open").iter().map(|b| format!("{b:02x}")).collect();
    fs::write(dir.join("tokens"), format!("anna {hash}\n")).unwrap();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (cert, key) = (path("server.pem"), path("server.key"));
    let (ca, tokens) = (path("ca.pem"), path("tokens"));
    let flags = ["--tls-cert", &cert, "--tls-key", &key, "--client-ca", &ca, "--tokens", &tokens];
    let jobs = tempfile::tempdir().unwrap();
    let server = Server::start(jobs.path(), &flags);
    assert!(server.url.starts_with("https://"), "{}", server.url);
    let dir = dir.with_server(&server.url);
    let shown = ["--ca", "ca.pem", "--cert", "client.pem", "--key", "client.key"];
    let all = [&shown[..], &["--token", "open"]].concat();
    let with = |flags: &[&'static str]| [&["jobs"], flags].concat();
    assert!(dir.succeeds(&with(&all)).starts_with("JOB"));
    dir.finish(dir.command().env("TESSERA_TOKEN", "open").args(with(&shown))).ended(0, &[]);
    dir.fails(&with(&shown), 1, &["token"]);
    dir.fails(&with(&[&shown[..], &["--token", "close"]].concat()), 1, &["token"]);
    // No certificate, and an authority that did not sign the server's.
    dir.fails(&with(&["--ca", "ca.pem", "--token", "open"]), 1, &["unavailable"]);
    let stranger = ["--ca", "client.pem", "--cert", "client.pem", "--key", "client.key"];
    dir.fails(&with(&stranger), 1, &["unavailable", "certificate"]);
    // Nor is it waited for.
    let watch = dir.run(&[&["watch", "1", "--give-up", "1"], &stranger[..]].concat());
    watch.ended(1, &["unavailable", "certificate"]);
    assert!(!watch.stderr.contains("trying again"), "{watch}");
    dir.refused(&with(&["--ca", "tokens"]), &["ca is tokens", "not PEM"]);
}
