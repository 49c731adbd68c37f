//! The service under load, on loopback: the cost of streaming compared with a plain `generate`, the latency of a tile, the
//! effect of many watchers, a slow one and a full queue, and a crowd of everything at once. Prints a table; every tile's
//! CRC32C is checked on the way.
//!
//! `cargo bench --bench serve`, or with the name of a part of it: `streaming`, `latency`, `load`, `crowd`
#![allow(clippy::panic, clippy::unwrap_used, reason = "a failed measurement ends the benchmark")]

#[allow(dead_code, reason = "not all helpers are for this benchmark")]
#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use common::server::{Server, create, picture, spec, watch};
use tessera::api::{
    self, JobEvent, JobSpec, job_event::Event, job_service_client::JobServiceClient,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// Alternating runs of each kind; the cost of streaming is the median.
const STREAMED: usize = 15;
/// Alternating pairs of runs; the cost of a slow client to the others is the median.
const ROUNDS: usize = 5;
/// Watchers of one job.
const WATCHERS: usize = 200;
/// Factor by which the slow watcher reads more slowly than the others.
const SLOWER: u32 = 100;
/// Jobs in the queue.
const JOBS: u64 = 1000;

/// Calls of `GetTile` whose latencies are compared.
const CALLS: usize = 2000;
/// Watchers in the crowd, and their connections.
const CROWD: (usize, usize) = (300, 10);
/// Clients in the crowd, and the jobs of each.
const CLIENTS: (u64, u64) = (8, 250);
/// Streams in the crowd that are never read.
const UNREAD: usize = 200;
/// Streams of tiles of 6 MiB in the crowd that are never read.
const HEAVY: usize = 120;
/// Invalid requests a second in the crowd.
const INVALID: u32 = 500;

/// The median of ratios and their range.
fn of_it(mut ratios: Vec<f64>) -> String {
    ratios.sort_by(f64::total_cmp);
    let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
    format!("{:.3} of it ({least:.3} to {most:.3})", ratios[ratios.len() / 2])
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Seconds from the engine's start to the last tile: wall-clock and CPU time.
#[derive(Clone, Copy, Default)]
struct Took {
    wall: f64,
    cpu: f64,
}

/// Cost of streaming compared with a plain run, in pairs.
#[derive(Default)]
struct Ratios {
    pairs: Vec<(Took, Took)>,
}

impl Ratios {
    fn add(&mut self, streamed: Took, plain: Took) {
        self.pairs.push((streamed, plain));
    }

    fn print(&self, what: &str) {
        let ratios = |part: fn(&Took) -> f64| {
            self.pairs.iter().map(|(streamed, plain)| part(streamed) / part(plain)).collect()
        };
        // On a machine that others use as well, the least disturbed runs say most.
        let least = |took: &mut dyn Iterator<Item = f64>| took.fold(f64::INFINITY, f64::min);
        let streamed = least(&mut self.pairs.iter().map(|(streamed, _)| streamed.wall));
        let plain = least(&mut self.pairs.iter().map(|(_, plain)| plain.wall));
        row(&format!("{what}: time"), of_it(ratios(|took| took.wall)));
        row(
            &format!("{what}: the fastest run beside the fastest"),
            format!("{:.3}", streamed / plain),
        );
        row(&format!("{what}: processors"), of_it(ratios(|took| took.cpu)));
    }
}

/// Start of a measurement of a process: time and its CPU time.
struct Begun(Instant, f64);

impl Begun {
    fn now(pid: u32) -> Self {
        Self(Instant::now(), cpu(pid))
    }

    fn took(&self, pid: u32) -> Took {
        Took { wall: self.0.elapsed().as_secs_f64(), cpu: cpu(pid) - self.1 }
    }
}

/// CPU seconds of a process; 0 without /proc.
fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    // utime and stime, in hundredths.
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// A local `tessera generate` with the embedded model.
fn local(seed: u64, out: &std::path::Path) -> Took {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tessera"))
        .args(["generate", "--device", "cpu", "--json", "--seed", &seed.to_string(), "--out"])
        .arg(out)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut begun, mut took) = (Begun::now(child.id()), Took::default());
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let event: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        match event["event"].as_str() {
            Some("started") => begun = Begun::now(child.id()),
            Some("tile") => took = begun.took(child.id()),
            _ => {}
        }
    }
    assert!(child.wait().unwrap().success());
    took
}

fn time(event: &JobEvent) -> f64 {
    let time = event.time.unwrap();
    time.seconds as f64 + f64::from(time.nanos) * 1e-9
}

/// Peak memory of a process in MiB.
fn peak(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

/// One line of the table.
fn row(what: &str, found: String) {
    println!("{what:<50} {found}");
}

/// A picture of the default size from a server, as its client sees it.
#[derive(Default)]
struct Streamed {
    /// Seconds from the order to the first event of the engine.
    begins: f64,
    /// From there to the last tile, all of them read and checked.
    took: Took,
    /// Seconds from the last denoising step to the first tile, by the server's clock.
    gap: f64,
}

async fn streamed(
    pid: u32,
    client: &mut JobServiceClient<Channel>,
    seed: u64,
    without_previews: bool,
) -> Streamed {
    let ordered = Instant::now();
    let job = create(client, JobSpec { seed, ..JobSpec::default() }).await.unwrap();
    let request = api::WatchJobRequest {
        name: job.name,
        options: Some(api::StreamOptions { without_previews, ..Default::default() }),
        ..Default::default()
    };
    let mut stream = client.watch_job(request).await.unwrap().into_inner();
    let (mut begun, mut events, mut out) = (Begun::now(pid), Vec::new(), Streamed::default());
    while let Some(message) = stream.message().await.unwrap() {
        let event = message.event.unwrap();
        match event.event {
            Some(Event::Started(_)) => {
                begun = Begun::now(pid);
                out.begins = ordered.elapsed().as_secs_f64();
            }
            Some(Event::Tile(_)) => out.took = begun.took(pid),
            _ => {}
        }
        events.push(event);
    }
    picture(&events, 2048, 1024);
    let step = events.iter().rfind(|e| matches!(e.event, Some(Event::Step(_)))).unwrap();
    let tile = events.iter().find(|e| matches!(e.event, Some(Event::Tile(_)))).unwrap();
    out.gap = time(tile) - time(step);
    out
}

async fn streaming() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(&[], &dir.path().join("jobs"), &[]);
    let mut client = server.client().await;
    let (mut locals, mut begins, mut gaps) = (vec![], vec![], vec![]);
    let (mut without, mut with) = (Ratios::default(), Ratios::default());
    for round in 0..=STREAMED as u64 {
        let plain = local(round, &dir.path().join("local.tiff"));
        let there = streamed(server.id(), &mut client, round, true).await;
        let shown = streamed(server.id(), &mut client, round, false).await;
        // The first round warms both up.
        if round > 0 {
            locals.push(plain.wall);
            without.add(there.took, plain);
            with.add(shown.took, plain);
            begins.push(1e3 * there.begins);
            gaps.push(1e3 * there.gap);
        }
    }
    row("2048x1024, 25 steps, local", format!("{:.2} s", median(locals)));
    without.print("streamed");
    with.print("with all previews");
    row("from the order to the engine's start", format!("{:.0} ms", median(begins)));
    row("from the last step to the first tile", format!("{:.0} ms", median(gaps)));
}

/// Seconds until each of the watchers has all of a job of 512x512 in 64 tiles, the median, and its number of events.
/// Beside them one may read an event every `pause` for as long; it gets the rest afterwards.
async fn watchers(server: &Server, pause: Option<Duration>, seed: u64) -> (f64, u32) {
    // The slow one has a connection of its own.
    let (mut client, apart) = (server.client().await, server.client().await);
    let job = create(&mut client, spec(seed, 512, 512, 60)).await.unwrap();
    let began = Instant::now();
    let (ended, mut end) = tokio::sync::watch::channel(false);
    let dawdler = pause.map(|pause| {
        let (mut client, name) = (apart, job.name.clone());
        tokio::spawn(async move {
            let options = api::StreamOptions { without_previews: true, ..Default::default() };
            let request =
                api::WatchJobRequest { name, options: Some(options), ..Default::default() };
            let mut stream = client.watch_job(request).await.unwrap().into_inner();
            let mut events = Vec::new();
            while let Some(message) = stream.message().await.unwrap() {
                events.push(message.event.unwrap());
                // In vain if all have ended.
                let _ = tokio::time::timeout(pause, end.wait_for(|&ended| ended)).await;
            }
            picture(&events, 512, 512);
        })
    });
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..WATCHERS {
        let (mut client, name) = (client.clone(), job.name.clone());
        tasks.spawn(async move {
            let events = watch(&mut client, &name, 0).await.unwrap();
            let took = began.elapsed().as_secs_f64();
            picture(&events, 512, 512);
            (took, events.len() as u32)
        });
    }
    let (times, counts): (Vec<_>, Vec<_>) = tasks.join_all().await.into_iter().unzip();
    ended.send_replace(true);
    if let Some(dawdler) = dawdler {
        dawdler.await.unwrap();
    }
    (median(times), counts[0])
}

async fn load() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--queue", "1001"]);
    let (mut alone, mut ratios, mut pause) = (Vec::new(), Vec::new(), Duration::ZERO);
    for round in 0..=ROUNDS as u64 {
        // In turns which of the two comes first, lest something that grows be taken for the slow one's doing.
        let mut all = 0.0;
        if round % 2 == 0 {
            let (took, events) = watchers(&server, None, 2 * round).await;
            (all, pause) = (took, Duration::from_secs_f64(took) / events * SLOWER);
        }
        let (beside, _) = watchers(&server, Some(pause), 2 * round + 1).await;
        if round % 2 == 1 {
            (all, _) = watchers(&server, None, 2 * round).await;
        }
        if round > 0 {
            alone.push(all);
            ratios.push(beside / all);
        }
    }
    row(&format!("{WATCHERS} watchers, all events and tiles"), format!("{:.2} s", median(alone)));
    row(&format!("the same beside one that is {SLOWER} times slower"), of_it(ratios));
    row("the server's most memory with them", format!("{:.0} MiB", peak(server.id())));

    let mut client = server.client().await;
    let began = Instant::now();
    let mut names = Vec::new();
    for seed in 0..JOBS {
        names.push(create(&mut client, spec(seed, 64, 64, 2)).await.unwrap().name);
    }
    let queued = began.elapsed().as_secs_f64();
    for name in &names {
        let events = watch(&mut client, name, 0).await.unwrap();
        picture(&events, 64, 64);
    }
    let ended = began.elapsed().as_secs_f64();
    row(&format!("{JOBS} jobs, all queued"), format!("{queued:.1} s"));
    row("all ended, and read tile by tile", format!("{ended:.1} s"));
    row("the server's most memory with them", format!("{:.0} MiB", peak(server.id())));
}

/// The `share` of sorted latencies, in milliseconds.
fn percentile(sorted: &[Duration], share: f64) -> f64 {
    1e3 * sorted[((sorted.len() - 1) as f64 * share) as usize].as_secs_f64()
}

/// Latency of `GetTile` for a tile of 256 pixels of a finished picture.
async fn latency() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    let asked = JobSpec { tile_size: 256, ..spec(1, 512, 512, 2) };
    let job = create(&mut client, asked).await.unwrap();
    watch(&mut client, &job.name, 0).await.unwrap();
    let mut times = Vec::new();
    for call in 0..CALLS as u32 {
        let request = api::GetTileRequest {
            name: job.name.clone(),
            column: call % 2,
            row: call / 2 % 2,
            format: 0,
        };
        let began = Instant::now();
        let tile = client.get_tile(request).await.unwrap().into_inner().tile.unwrap();
        times.push(began.elapsed());
        assert_eq!(crc32c::crc32c(&tile.data), tile.crc32c);
    }
    times.sort();
    let [middle, late] = [0.5, 0.99].map(|share| percentile(&times, share));
    row("GetTile of 256x256 pixels, median", format!("{middle:.2} ms"));
    row("GetTile of 256x256 pixels, 99 of 100", format!("{late:.2} ms"));
}

/// Resident memory of a process in MiB.
fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

/// The value of a metric; 0 without it.
fn metric(server: &Server, name: &str) -> f64 {
    let text = common::server::answer(server, "localhost", "/metrics");
    let name = format!("tessera_{name} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.map_or(0.0, |value| value.parse().unwrap())
}

/// Streams of a job that are never read, on two connections.
async fn unread(
    server: &Server,
    name: &str,
    count: usize,
) -> Vec<tonic::Streaming<api::WatchJobResponse>> {
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut client = server.client().await;
        for _ in 0..count / 2 {
            let request = api::WatchJobRequest { name: name.to_owned(), ..Default::default() };
            streams.push(client.watch_job(request).await.unwrap().into_inner());
        }
    }
    streams
}

/// Sends invalid requests in turns until `stop`; returns the sorted latencies of their answers.
async fn invalid(mut client: JobServiceClient<Channel>, stop: CancellationToken) -> Vec<Duration> {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / INVALID);
    let mut calls = tokio::task::JoinSet::new();
    for number in 0u64.. {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => break,
        }
        let mut client = client.clone();
        calls.spawn(async move {
            let began = Instant::now();
            let code = match number % 4 {
                0 => create(&mut client, spec(1, 33, 64, 1)).await.map(drop),
                1 => {
                    let request = api::GetJobRequest { name: format!("jobs/none-{number}") };
                    client.get_job(request).await.map(drop)
                }
                2 => {
                    let request =
                        api::GetTileRequest { name: "tiles".into(), ..Default::default() };
                    client.get_tile(request).await.map(drop)
                }
                _ => create(&mut client, spec(1, u32::MAX, 64, 5000)).await.map(drop),
            };
            let code = code.unwrap_err().code();
            assert!(
                matches!(code, tonic::Code::InvalidArgument | tonic::Code::NotFound),
                "{code:?}"
            );
            began.elapsed()
        });
    }
    // The connection is used until the last of them.
    let mut times = calls.join_all().await;
    client.list_jobs(api::ListJobsRequest { page_size: 1, ..Default::default() }).await.unwrap();
    times.sort();
    times
}

/// A small job of the crowd.
fn small(seed: u64) -> JobSpec {
    spec(seed, 64, 64, 2)
}

/// Everything at once: watchers, streams that are not read, many small jobs with a normal one among them, invalid requests.
async fn crowd() {
    let dir = tempfile::tempdir().unwrap();
    let server = Arc::new(Server::start(dir.path(), &["--queue", "3000"]));
    let pid = server.id();
    let mut client = server.client().await;
    let normal = spec(77, 256, 256, 5);
    let alone = create(&mut client, normal.clone()).await.unwrap();
    let alone = picture(&watch(&mut client, &alone.name, 0).await.unwrap(), 256, 256);
    let heavy = JobSpec { tile_size: 1024, bits: 16, ..spec(5, 2048, 2048, 1) };
    let heavy = create(&mut client, heavy).await.unwrap();
    watch(&mut client, &heavy.name, 0).await.unwrap();

    let before = resident(pid);
    let heavy = unread(&server, &heavy.name, HEAVY).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    row(&format!("memory before {HEAVY} heavy unread streams"), format!("{before:.0} MiB"));
    row("with them", format!("{:.0} MiB", resident(pid)));

    let watched = create(&mut client, spec(8, 512, 512, 60)).await.unwrap();
    let light = unread(&server, &watched.name, UNREAD).await;
    let stop = CancellationToken::new();
    let refused = tokio::spawn(invalid(server.client().await, stop.clone()));
    let mut watching = tokio::task::JoinSet::new();
    for _ in 0..CROWD.1 {
        let client = server.client().await;
        for _ in 0..CROWD.0 / CROWD.1 {
            let (mut client, name) = (client.clone(), watched.name.clone());
            watching.spawn(async move {
                picture(&watch(&mut client, &name, 0).await.unwrap(), 512, 512)
            });
        }
    }
    let ordered = Arc::new(AtomicU64::new(0));
    let start = metric(&server, "jobs{state=\"finished\"}");
    let mut ordering = tokio::task::JoinSet::new();
    let began = Instant::now();
    for number in 0..CLIENTS.0 {
        let (mut client, ordered) = (server.client().await, ordered.clone());
        ordering.spawn(async move {
            let mut names = Vec::new();
            for job in 0..CLIENTS.1 {
                let seed = 1000 * (number + 1) + job;
                names.push(create(&mut client, small(seed)).await.unwrap().name);
                ordered.fetch_add(1, Relaxed);
            }
            for name in &names {
                picture(&watch(&mut client, name, 0).await.unwrap(), 64, 64);
            }
        });
    }
    let waiting = {
        let (mut client, ordered, server) =
            (server.client().await, ordered.clone(), server.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let flops = async |client: &mut JobServiceClient<Channel>, spec| {
                let request = api::QuoteJobRequest { spec: Some(spec) };
                client.quote_job(request).await.unwrap().into_inner().quote.unwrap().flops
            };
            let own = flops(&mut client, normal.clone()).await / flops(&mut client, small(0)).await;
            // Steps, the global stage and tiles.
            let own = own.min((5 + 1 + 16) / (2 + 1 + 1));
            let finished = || metric(&server, "jobs{state=\"finished\"}");
            let before = finished();
            let job = create(&mut client, normal).await.unwrap();
            // The jobs before it, and later ones with as many operations and slices as its own.
            let bound = ordered.load(Relaxed) + own - (before - start) as u64;
            let request = api::WatchJobRequest { name: job.name, ..Default::default() };
            let mut stream = client.watch_job(request).await.unwrap().into_inner();
            let (mut events, mut begun) = (Vec::new(), f64::NAN);
            while let Some(message) = stream.message().await.unwrap() {
                let event = message.event.unwrap();
                if matches!(event.event, Some(Event::Started(_))) {
                    begun = finished() - before;
                }
                events.push(event);
            }
            (picture(&events, 256, 256), begun, bound)
        })
    };
    let (mut most, mut used) = (0f64, 0f64);
    while !ordering.is_empty() {
        let pause = tokio::time::sleep(Duration::from_millis(100));
        tokio::select! {
            joined = ordering.join_next() => joined.unwrap().unwrap(),
            () = pause => {}
        }
        most = most.max(resident(pid));
        used = used.max(metric(&server, "watch_memory_bytes") / f64::from(1 << 20));
    }
    let all = began.elapsed();
    let (bytes, begun, bound) = waiting.await.unwrap();
    assert!(bytes == alone, "the normal job has the bytes of the one alone");
    for watched in watching.join_all().await {
        assert_eq!(watched.len(), 3 * 512 * 512);
    }
    stop.cancel();
    let times = refused.await.unwrap();
    let jobs = CLIENTS.0 * CLIENTS.1;
    row(
        &format!("{jobs} jobs of {} clients, all ended and read", CLIENTS.0),
        format!("{:.1} s", all.as_secs_f64()),
    );
    row("the job of 256x256 among them began after", format!("{begun:.0} jobs, bound {bound}"));
    row(&format!("{} watchers", CROWD.0), "every event and tile".to_owned());
    let limit = metric(&server, "watch_memory_limit_bytes") / f64::from(1 << 20);
    row("memory for watchers, most", format!("{used:.0} of {limit:.0} MiB"));
    row("the server's memory, most", format!("{most:.0} MiB"));
    let [middle, late] = [0.5, 0.99].map(|share| percentile(&times, share));
    row(&format!("{} invalid requests, median of answers", times.len()), format!("{middle:.1} ms"));
    row("99 of 100", format!("{late:.1} ms"));
    drop((heavy, light));
}

fn main() {
    const PARTS: [&str; 4] = ["streaming", "latency", "load", "crowd"];
    let asked = |part: &str| {
        let mut parts = std::env::args().filter(|arg| PARTS.contains(&arg.as_str()));
        parts.next().is_none_or(|first| first == part)
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if asked("streaming") {
        runtime.block_on(streaming());
    }
    if asked("latency") {
        runtime.block_on(latency());
    }
    if asked("load") {
        runtime.block_on(load());
    }
    if asked("crowd") {
        runtime.block_on(crowd());
    }
}
