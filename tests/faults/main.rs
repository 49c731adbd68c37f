//! Faults: the server is killed at random moments, its disk is full, its files are damaged, a second server opens them.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a failed test panics")]

#[allow(dead_code, reason = "not all helpers are for these tests")]
#[path = "../common/mod.rs"]
mod common;

mod calls;
mod disk;
mod prune;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use common::{
    command::Dir,
    jobs::settings,
    model,
    server::{Server, create, picture, spec, state, wait, watch},
};
use tessera::{
    api::{self, JobSpec, JobState, job_event::Event, job_service_client::JobServiceClient},
    engine::device::Choice,
    image_out::Format,
    jobs::{self, Jobs, Models, Phase, Settings},
    ops::testing::Random,
    store::journal,
};
use tonic::{Code, transport::Channel};

type Client = JobServiceClient<Channel>;

/// Number of times that the server is killed.
const KILLS: usize = 60;

fn open(directory: &Path) -> Jobs {
    let settings = Settings { active: 4, ..settings(directory, vec![Choice::Cpu]) };
    Jobs::open(settings, Models::new(vec![Arc::new(model("net-a"))]).unwrap()).unwrap()
}

/// Every finished job's picture file, by its seed, once all have ended.
fn finish(directory: &Path) -> BTreeMap<u64, Vec<u8>> {
    let jobs = open(directory);
    let mut files = BTreeMap::new();
    for job in jobs.list(None, jobs::Order::OldestFirst, "", 10_000) {
        let began = std::time::Instant::now();
        while !job.snapshot().phase.is_last() {
            assert!(began.elapsed() < Duration::from_secs(120), "{} does not end", job.id);
            std::thread::sleep(Duration::from_millis(5));
        }
        let end = job.snapshot();
        assert!(matches!(end.phase, Phase::Finished | Phase::Cancelled), "{:?}", end.error);
        if end.phase == Phase::Finished {
            let path = jobs.picture(&job, Format::Tiff).unwrap();
            files.insert(job.plan.spec.seed, fs::read(path).unwrap());
        }
    }
    jobs.close();
    files
}

/// The records of every journal below `directory`.
fn records(directory: &Path) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // Jobs that are being made or removed are none.
        if let Some(bytes) = fs::read(path.join("journal")).ok().filter(|_| !name.starts_with('.'))
        {
            all.insert(name, journal::scan(&bytes).unwrap().0);
        }
    }
    all
}

/// Several shapes, samplers and depths; long enough to be killed many times.
fn specs() -> Vec<JobSpec> {
    let sampler = |sampler: api::Sampler| i32::from(sampler);
    vec![
        JobSpec { sampler: sampler(api::Sampler::Dpmpp), ..spec(1, 256, 192, 120) },
        JobSpec { sampler: sampler(api::Sampler::Heun), bits: 16, ..spec(2, 320, 256, 60) },
        JobSpec { sampler: sampler(api::Sampler::Ddim), ..spec(3, 512, 512, 30) },
        JobSpec { sampler: sampler(api::Sampler::Dpmpp), ..spec(4, 48, 32, 400) },
    ]
}

#[tokio::test]
async fn killed_server_finishes_jobs_with_the_same_bytes() {
    let (calm, rough) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&calm, &rough] {
        let mut server = Server::start(dir.path(), &[]);
        let mut client = server.client().await;
        for spec in specs() {
            create(&mut client, spec).await.unwrap();
        }
        // Killed right after the answer: what was answered for is there.
        server.kill();
    }
    let expected = finish(calm.path());
    assert_eq!(expected.len(), specs().len());

    let mut random = Random::new(41);
    let mut before = records(rough.path());
    assert_eq!(before.len(), specs().len());
    for kill in 0..KILLS {
        let mut server = Server::start(rough.path(), &[]);
        let wait = random.values(1, 30.0, 30.0)[0].max(0.0);
        tokio::time::sleep(Duration::from_secs_f32(wait / 1000.0)).await;
        server.kill();
        let now = records(rough.path());
        for (job, known) in &before {
            let later = &now[job];
            assert!(later.starts_with(known), "kill {kill}: {job} lost what it had announced");
        }
        before = now;
    }
    let unfinished = before.values().filter(|records| {
        !String::from_utf8_lossy(records.last().unwrap()).contains("\"finished\"")
    });
    assert!(unfinished.count() > 0, "all had finished before the last kill: not long enough");
    assert_eq!(finish(rough.path()), expected);
}

/// A job of a model with groups of levels, killed in its first group, between the groups and in its second, ends with the
/// bytes of one that was left alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_any_group_a_job_ends_with_the_same_bytes() {
    let model = common::fixture("net-g.safetensors");
    let flags = ["--threads", "1", "--model", model.to_str().unwrap()];
    let group_steps = [("layout".to_owned(), 40), ("detail".to_owned(), 40)].into();
    let asked = JobSpec { group_steps, ..spec(3, 384, 256, 0) };
    let mut pictures = Vec::new();
    for kills in [&[][..], &[15, 40, 60]] {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Server::start_with(&[], dir.path(), &flags);
        let name = create(&mut server.client().await, asked.clone()).await.unwrap().name;
        for &step in kills {
            let request = api::WatchJobRequest { name: name.clone(), ..Default::default() };
            let mut events = server.client().await.watch_job(request).await.unwrap().into_inner();
            loop {
                let event = events.message().await.unwrap().unwrap().event.unwrap();
                match event.event {
                    Some(Event::Step(done)) if done.step >= step => break,
                    Some(Event::Finished(_)) => panic!("finished before step {step}"),
                    _ => {}
                }
            }
            server.kill();
            server = Server::start_with(&[], dir.path(), &flags);
        }
        let events = watch(&mut server.client().await, &name, 0).await.unwrap();
        pictures.push(picture(&events, 384, 256));
    }
    assert!(pictures[0] == pictures[1]);
}

#[tokio::test]
async fn killed_server_leaves_no_gap_for_a_watcher() {
    let dir = tempfile::tempdir().unwrap();
    let (mut seen, mut name) = (Vec::<api::JobEvent>::new(), String::new());
    for round in 0.. {
        let mut server = Server::start(dir.path(), &[]);
        let mut client = server.client().await;
        if round == 0 {
            name = create(&mut client, spec(8, 256, 256, 40)).await.unwrap().name;
        }
        let request = api::WatchJobRequest {
            name: name.clone(),
            after_sequence: seen.last().map_or(0, |event| event.sequence),
            options: None,
        };
        let mut stream = client.watch_job(request).await.unwrap().into_inner();
        for _ in 0..9 {
            match stream.message().await.unwrap() {
                Some(message) => seen.push(message.event.unwrap()),
                None => break,
            }
        }
        server.kill();
        if matches!(seen.last().unwrap().event, Some(Event::Finished(_))) {
            break;
        }
    }
    let numbers: Vec<_> = seen.iter().map(|event| event.sequence).collect();
    assert_eq!(numbers, (1..=seen.len() as u64).collect::<Vec<_>>());
    picture(&seen, 256, 256);
}

#[cfg(unix)]
#[tokio::test]
async fn stopped_server_resumes_at_its_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    let job = create(&mut client, spec(8, 512, 512, 300)).await.unwrap();
    let request = api::WatchJobRequest { name: job.name.clone(), ..Default::default() };
    let mut stream = client.watch_job(request).await.unwrap().into_inner();
    for _ in 0..10 {
        stream.message().await.unwrap().unwrap();
    }
    let stopped = tokio::task::spawn_blocking(move || server.stop());
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended as if the job had"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
    assert!(stopped.await.unwrap().success());
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    let events = watch(&mut client, &job.name, 0).await.unwrap();
    picture(&events, 512, 512);
}

#[tokio::test]
async fn lock_refuses_a_second_server_on_the_directory() {
    let dir = Dir::new();
    let _first = Server::start(dir.path(), &[]);
    let serve = ["serve", "--listen", "127.0.0.1:0", "--jobs", "."];
    dir.run(&serve).ended(2, &["no other server is using"]);
}

#[tokio::test]
async fn damaged_files_fail_their_own_job_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    {
        let mut server = Server::start(dir.path(), &["--active", "1"]);
        let mut client = server.client().await;
        for seed in 0..5 {
            names.push(create(&mut client, spec(seed, 512, 512, 500)).await.unwrap().name);
        }
        let request = api::WatchJobRequest { name: names[0].clone(), ..Default::default() };
        let mut stream = client.watch_job(request).await.unwrap().into_inner();
        for _ in 0..5 {
            stream.message().await.unwrap().unwrap();
        }
        server.kill();
    }
    let path = |i: usize| dir.path().join(names[i].strip_prefix("jobs/").unwrap());
    let edit = |path: &Path, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    };
    // The checkpoints are overwritten.
    edit(&path(0).join("arena"), &|bytes| bytes.fill(0x55));
    // The arena is shorter than it was.
    edit(&path(1).join("arena"), &|bytes| bytes.truncate(4096));
    // The journal is another file.
    edit(&path(2).join("journal"), &|bytes| *bytes = b"nonsense".repeat(9));
    // The journal has a torn tail.
    edit(&path(3).join("journal"), &|bytes| bytes.extend([7; 21]));
    // The folder of a job whose creation a crash has interrupted.
    let half = dir.path().join(format!(".{}", "7".repeat(32)));
    fs::create_dir(&half).unwrap();
    // A directory of somebody else.
    fs::create_dir(dir.path().join(".config")).unwrap();

    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    let mut ends = Vec::new();
    for i in [0, 1, 3, 4] {
        if i >= 3 {
            let request = api::GetJobRequest { name: names[i].clone() };
            let state = client.get_job(request).await.unwrap().into_inner().job.unwrap().state();
            ends.push(!matches!(state, JobState::Failed));
            continue;
        }
        let last = watch(&mut client, &names[i], 0).await.unwrap().pop().unwrap();
        let Some(Event::Failed(failed)) = last.event else { panic!("{last:?}") };
        // What lies where is nothing for clients.
        assert!(!failed.message.contains('/'), "{}", failed.message);
        ends.push(true);
    }
    assert_eq!(ends, [true; 4]);
    let request = api::GetJobRequest { name: names[2].clone() };
    assert_eq!(client.get_job(request).await.unwrap_err().code(), Code::NotFound);
    assert!(path(2).join("journal").exists(), "what can't be read is left alone");
    assert!(!half.exists());
    assert!(dir.path().join(".config").exists(), "only directories of jobs are removed");
}

/// The path of a job's directory.
fn directory(jobs: &Path, name: &str) -> PathBuf {
    jobs.join(name.strip_prefix("jobs/").unwrap())
}

async fn delete(client: &mut Client, name: &str) {
    client.delete_job(api::DeleteJobRequest { name: name.to_owned() }).await.unwrap();
}

/// The code of GetJob's error, if it fails.
async fn missing(client: &mut Client, name: &str) -> Option<Code> {
    let request = api::GetJobRequest { name: name.to_owned() };
    client.get_job(request).await.err().map(|status| status.code())
}

#[tokio::test]
async fn killed_server_forgets_no_deletion_cancellation_or_viewport() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), &["--active", "3"]);
    let mut client = server.client().await;
    let mut order = common::server::order(spec(1, 512, 512, 1000));
    order.request_id = "mine".into();
    let deleted = client.create_job(order.clone()).await.unwrap().into_inner().job.unwrap();
    let cancelled = create(&mut client, spec(2, 512, 512, 1000)).await.unwrap();
    let viewed = create(&mut client, spec(3, 512, 512, 1000)).await.unwrap();
    for job in [&deleted, &cancelled, &viewed] {
        wait(&mut client, &job.name, |now| now == JobState::Denoising).await;
    }
    let viewport = Some(api::Rect { x: 64, y: 0, width: 100, height: 9 });
    let request = api::SetViewportRequest { name: viewed.name.clone(), viewport };
    client.set_viewport(request).await.unwrap();
    let request = api::CancelJobRequest { name: cancelled.name.clone() };
    let answer = client.cancel_job(request).await.unwrap().into_inner().job.unwrap();
    assert_eq!(answer.state(), JobState::Cancelled);
    delete(&mut client, &deleted.name).await;
    server.kill();

    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    assert_eq!(missing(&mut client, &deleted.name).await, Some(Code::NotFound));
    assert!(!directory(dir.path(), &deleted.name).exists());
    assert_eq!(state(&mut client, &cancelled.name).await, JobState::Cancelled);
    let request = api::GetJobRequest { name: viewed.name.clone() };
    let job = client.get_job(request).await.unwrap().into_inner().job.unwrap();
    assert_eq!(job.viewport, viewport);
    // The request_id is free again, for one job.
    let again = client.create_job(order.clone()).await.unwrap().into_inner().job.unwrap();
    assert_ne!(again.name, deleted.name);
    let repeated = client.create_job(order).await.unwrap().into_inner().job.unwrap();
    assert_eq!(again.name, repeated.name);
    let listed = client.list_jobs(api::ListJobsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.jobs.len(), 3);
}

/// The names in a directory, sorted.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
