//! The service under load, on loopback: what streaming costs beside a plain `generate`, and what many watchers, a slow one
//! and a full queue do to it. Prints a table; every tile's CRC32C is checked on the way.
//!
//! `cargo bench --bench serve`
#![allow(clippy::panic, clippy::unwrap_used, reason = "a failed measurement ends the benchmark")]

#[path = "../tests/common/server.rs"]
mod server;

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use server::{Server, create, picture, spec, watch};
use tessera::api::{self, JobEvent, JobSpec, job_event::Event};

/// Pairs of runs that the cost of streaming is the median of.
const ROUNDS: usize = 5;
/// Watchers of one job.
const WATCHERS: usize = 200;
/// Jobs in the queue.
const JOBS: u64 = 1000;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Seconds from the first event to the last tile of a local `tessera generate` with the embedded model.
fn local(seed: u64, out: &std::path::Path) -> f64 {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tessera"))
        .args(["generate", "--device", "cpu", "--json", "--seed", &seed.to_string(), "--out"])
        .arg(out)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut began, mut last) = (None, Duration::ZERO);
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let event: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        match event["event"].as_str() {
            Some("started") => began = Some(Instant::now()),
            Some("tile") => last = began.unwrap().elapsed(),
            _ => {}
        }
    }
    assert!(child.wait().unwrap().success());
    last.as_secs_f64()
}

fn time(event: &JobEvent) -> f64 {
    let time = event.time.unwrap();
    time.seconds as f64 + f64::from(time.nanos) * 1e-9
}

/// Resident memory of a process in MiB.
fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

async fn streaming() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(&[], &dir.path().join("jobs"), &[]);
    let mut client = server.client().await;
    let (mut ratios, mut gaps) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS as u64 {
        let plain = local(round, &dir.path().join("local.tiff"));
        let began = Instant::now();
        let job = create(&mut client, JobSpec { seed: round, ..JobSpec::default() }).await.unwrap();
        let events = watch(&mut client, &job.name, 0).await.unwrap();
        let streamed = began.elapsed().as_secs_f64();
        picture(&events, 2048, 1024);
        let step = events.iter().rfind(|e| matches!(e.event, Some(Event::Step(_)))).unwrap();
        let tile = events.iter().find(|e| matches!(e.event, Some(Event::Tile(_)))).unwrap();
        // The first round warms both up.
        if round > 0 {
            ratios.push(streamed / plain);
            gaps.push(time(tile) - time(step));
        }
    }
    println!("2048x1024, 25 steps: streamed / local  {:.3}", median(ratios));
    println!("last step to first tile                {:.0} ms", 1e3 * median(gaps));
}

/// Seconds until each of `count` watchers has all of a job of 512x512 in 64 tiles, the median; with a slow one beside them.
async fn watchers(server: &Server, count: usize, slow: bool, seed: u64) -> f64 {
    let mut client = server.client().await;
    let job = create(&mut client, spec(seed, 512, 512, 60)).await.unwrap();
    let began = Instant::now();
    let dawdler = slow.then(|| {
        let (mut client, name) = (client.clone(), job.name.clone());
        tokio::spawn(async move {
            let request = api::WatchJobRequest { name, ..Default::default() };
            let mut stream = client.watch_job(request).await.unwrap().into_inner();
            let mut events = Vec::new();
            while let Some(message) = stream.message().await.unwrap() {
                events.push(message.event.unwrap());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            picture(&events, 512, 512);
        })
    });
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..count {
        let (mut client, name) = (client.clone(), job.name.clone());
        tasks.spawn(async move {
            let events = watch(&mut client, &name, 0).await.unwrap();
            let took = began.elapsed().as_secs_f64();
            picture(&events, 512, 512);
            took
        });
    }
    let took = median(tasks.join_all().await);
    if let Some(dawdler) = dawdler {
        dawdler.await.unwrap();
    }
    took
}

async fn load() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--queue", "1001"]);
    watchers(&server, 1, false, 0).await;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for round in 1..=3 {
        alone.push(watchers(&server, WATCHERS, false, 2 * round).await);
        beside.push(watchers(&server, WATCHERS, true, 2 * round + 1).await);
    }
    let (alone, beside) = (median(alone), median(beside));
    println!("{WATCHERS} watchers, all tiles              {alone:.2} s");
    println!("the same beside a slow one             {:.3} of it", beside / alone);
    println!("server's memory after them             {:.0} MiB", resident(server.id()));

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
    println!("{JOBS} jobs queued in {queued:.1} s, all ended and read after {ended:.1} s");
    println!("server's memory after them             {:.0} MiB", resident(server.id()));
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        streaming().await;
        load().await;
    });
}
