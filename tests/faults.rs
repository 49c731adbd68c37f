//! What survives: the server is killed at random moments, its disk is full, its files are damaged, another one wants them.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a failed test panics")]

#[allow(dead_code, reason = "not all helpers are for these tests")]
mod common;

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{
    command::Dir,
    model,
    server::{Server, create, get, picture, spec, state, wait, watch},
};
use tessera::{
    api::{
        self, JobSpec, JobState, edit_picture_request::Part, job_event::Event,
        job_service_client::JobServiceClient,
    },
    engine::device::{Choice, Precision},
    image_out::Format,
    jobs::{self, Jobs, Models, Phase, Settings},
    ops::testing::Random,
    store::journal,
};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

type Client = JobServiceClient<Channel>;

/// How often the server is killed.
const KILLS: usize = 60;

fn open(directory: &Path) -> Jobs {
    let settings = Settings {
        directory: directory.to_owned(),
        devices: vec![Choice::Cpu],
        precision: Precision::F32,
        gpu_cache: None,
        memory: 1 << 32,
        queue: 100,
        active: 4,
    };
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

/// A job that a client has ordered, and what it knows of it.
#[derive(Clone, Debug, Default)]
struct Order {
    /// Its name, once the order was answered.
    name: Option<String>,
    cancelled: bool,
    cancel_tried: bool,
    deleted: bool,
    delete_tried: bool,
}

/// The orders by their seeds, which are all different.
type Orders = Arc<Mutex<Vec<Order>>>;

fn small_spec(seed: usize) -> JobSpec {
    let [width, height, steps] =
        [[64, 64, 40], [128, 96, 60], [32, 32, 2], [192, 128, 90]][seed % 4];
    spec(seed as u64, width, height, steps)
}

/// Sends the order `seed`: every seventh edits a picture.
async fn send(client: &mut Client, seed: usize) -> Result<String, Status> {
    let mut request = common::server::order(small_spec(seed));
    request.request_id = format!("order {seed}");
    let job = if seed.is_multiple_of(7) {
        let spec = request.spec.as_mut().unwrap();
        (spec.width, spec.height, spec.strength) = (0, 0, Some(0.3));
        let mut file = std::io::Cursor::new(Vec::new());
        let picture = common::server::noise(seed as u64, 96, 80);
        picture.write_to(&mut file, image::ImageFormat::Png).unwrap();
        let message = |part| api::EditPictureRequest { part: Some(part) };
        let data: Vec<_> = file
            .into_inner()
            .chunks(4000)
            .map(|bytes| message(Part::Data(bytes.to_vec())))
            .collect();
        let parts = std::iter::once(message(Part::Job(request))).chain(data);
        client.edit_picture(tokio_stream::iter(parts)).await?.into_inner().job
    } else {
        client.create_job(request).await?.into_inner().job
    };
    Ok(job.unwrap().name)
}

/// Random calls until the server is gone or `most` have been made.
async fn use_server(mut client: Client, url: String, orders: Orders, seed: u64, most: usize) {
    let mut random = Random::new(seed);
    for _ in 0..most {
        let known: Vec<_> = orders
            .lock()
            .unwrap()
            .iter()
            .enumerate()
            .filter(|(_, order)| !order.delete_tried)
            .filter_map(|(seed, order)| Some((seed, order.name.clone()?)))
            .collect();
        let any = known.get(random.bits() as usize % known.len().max(1)).cloned();
        let call = random.bits() % 10;
        match (call, any) {
            (0..4, _) | (_, None) => {
                let seed = {
                    let mut orders = orders.lock().unwrap();
                    // An order without an answer is repeated.
                    let open = orders.iter().position(|order| order.name.is_none());
                    let next = if call == 0 { open } else { None };
                    next.unwrap_or_else(|| {
                        orders.push(Order::default());
                        orders.len() - 1
                    })
                };
                let Ok(name) = send(&mut client, seed).await else { return };
                let known = orders.lock().unwrap()[seed].name.replace(name.clone());
                assert!(known.is_none_or(|known| known == name), "two jobs of one order");
            }
            (4, Some((seed, name))) => {
                orders.lock().unwrap()[seed].cancel_tried = true;
                let Ok(answer) = client.cancel_job(api::CancelJobRequest { name }).await else {
                    return;
                };
                let state = answer.into_inner().job.unwrap().state();
                orders.lock().unwrap()[seed].cancelled = state == JobState::Cancelled;
            }
            (5 | 6, Some((seed, name))) => {
                orders.lock().unwrap()[seed].delete_tried = true;
                // Another task may have been faster.
                match client.delete_job(api::DeleteJobRequest { name }).await {
                    Err(status) if status.code() != Code::NotFound => return,
                    _ => orders.lock().unwrap()[seed].deleted = true,
                }
            }
            (_, Some((_, name))) => {
                let file = ["image.tiff", "image.png"][random.bits() as usize % 2];
                let (url, path) = (url.clone(), format!("/{name}/{file}"));
                let got = move || common::server::try_get(&url, "localhost", &path).map(drop);
                if tokio::task::spawn_blocking(got).await.unwrap().is_err() {
                    return;
                }
            }
        }
    }
}

/// Kills the server `kills` times while clients create, edit, cancel, delete and download.
async fn kill_during_all_calls(kills: usize) {
    let dir = tempfile::tempdir().unwrap();
    let (orders, mut random) = (Orders::default(), Random::new(7));
    let mut before = BTreeMap::<String, Vec<Vec<u8>>>::new();
    let (mut left, mut all_left) = (Vec::<PathBuf>::new(), 0);
    for kill in 0..=kills {
        let mut server = Server::start(dir.path(), &[]);
        let kept = left.iter().find(|path| path.exists());
        assert!(kept.is_none(), "kill {kill}: {kept:?} is left");
        let mut client = server.client().await;
        let listed =
            client.list_jobs(api::ListJobsRequest { page_size: 1000, ..Default::default() });
        let listed = listed.await.unwrap().into_inner().jobs;
        let mut by_seed = BTreeMap::new();
        for job in &listed {
            let seed = job.spec.as_ref().unwrap().seed as usize;
            assert!(by_seed.insert(seed, job).is_none(), "kill {kill}: two jobs of order {seed}");
        }
        for (seed, order) in orders.lock().unwrap().iter().enumerate() {
            let job = by_seed.get(&seed);
            let lost = order.name.is_some() && !order.delete_tried && job.is_none();
            assert!(!lost, "kill {kill}: order {seed} is lost");
            assert!(!(order.deleted && job.is_some()), "kill {kill}: order {seed} is back");
            let state = job.map(|job| job.state());
            let kept = !order.cancelled || state.is_none_or(|state| state == JobState::Cancelled);
            assert!(kept, "kill {kill}: order {seed} is {state:?}");
        }
        if kill == kills {
            break;
        }
        let tasks: Vec<_> = (0..3)
            .map(|_| {
                let (client, url) = (client.clone(), server.url.clone());
                tokio::spawn(use_server(client, url, orders.clone(), random.bits(), 8))
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(random.bits() % 150)).await;
        server.kill();
        for task in tasks {
            task.await.unwrap();
        }
        left = unfinished(dir.path());
        all_left += left.len();
        let now = records(dir.path());
        for (job, known) in &before {
            let kept = now.get(job).is_none_or(|later| later.starts_with(known));
            assert!(kept, "kill {kill}: {job} lost what it had announced");
        }
        before = now;
    }

    eprintln!("{kills} kills left {all_left} unfinished files and directories; all were removed");

    // What is left ends, with the bytes of an undisturbed server.
    let orders = orders.lock().unwrap().clone();
    let left: Vec<_> = (0..orders.len())
        .filter(|&seed| orders[seed].name.is_some() && !orders[seed].delete_tried)
        .collect();
    assert!(left.len() > kills / 4, "{} orders are left", left.len());
    let calm = tempfile::tempdir().unwrap();
    let server = Server::start(calm.path(), &[]);
    let mut client = server.client().await;
    for &seed in &left {
        send(&mut client, seed).await.unwrap();
    }
    drop(server);
    let (found, expected) = (finish(dir.path()), finish(calm.path()));
    for seed in left {
        match found.get(&(seed as u64)) {
            Some(file) => assert!(*file == expected[&(seed as u64)], "order {seed}"),
            None => assert!(orders[seed].cancel_tried, "order {seed} has no picture"),
        }
    }
}

/// What a kill has left unfinished: the files and directories whose names begin with a dot.
fn unfinished(directory: &Path) -> Vec<PathBuf> {
    let dotted = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with('.');
    let inside = |job: PathBuf| {
        let files = if job.is_dir() { names(&job) } else { Vec::new() };
        files.into_iter().map(move |file| job.join(file)).filter(dotted)
    };
    let jobs = names(directory).into_iter().map(|name| directory.join(name));
    let (mut left, jobs): (Vec<_>, Vec<_>) = jobs.partition(dotted);
    left.extend(jobs.into_iter().flat_map(inside));
    left
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_server_keeps_every_promise_of_every_call() {
    kill_during_all_calls(15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes twenty times as long as the test before"]
async fn server_killed_300_times_keeps_every_promise_of_every_call() {
    kill_during_all_calls(300).await;
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
    // What a crash left of a job that was being made.
    fs::create_dir(dir.path().join(".half")).unwrap();

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
    assert!(!dir.path().join(".half").exists());
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

/// One flipped bit in the first record: nothing of the journal is cut, and the directory is named.
#[tokio::test]
async fn damaged_journal_is_kept_and_named() {
    let dir = Dir::new();
    let jobs = dir.path();
    let job = {
        let server = Server::start(jobs, &[]);
        let mut client = server.client().await;
        let job = create(&mut client, spec(1, 64, 64, 5)).await.unwrap();
        watch(&mut client, &job.name, 0).await.unwrap();
        job.name
    };
    let journal = directory(jobs, &job).join("journal");
    let mut bytes = fs::read(&journal).unwrap();
    bytes[40] ^= 1;
    fs::write(&journal, &bytes).unwrap();
    let server = Server::start(jobs, &[]);
    let mut client = server.client().await;
    assert_eq!(missing(&mut client, &job).await, Some(Code::NotFound));
    assert!(fs::read(&journal).unwrap() == bytes);
    let listed = dir.succeeds(&["jobs", "--damaged", "--server", &server.url]);
    let id = job.strip_prefix("jobs/").unwrap();
    assert!(
        listed.starts_with(id) && listed.contains("record 1") && listed.lines().count() == 1,
        "{listed}"
    );
    assert!(!listed.contains('/'), "{listed}");
}

/// Files of a job that an interrupted write has left are removed at the start; others are kept.
#[tokio::test]
async fn leftovers_of_interrupted_downloads_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (name, files) = {
        let server = Server::start(dir.path(), &[]);
        let mut client = server.client().await;
        let job = create(&mut client, spec(1, 64, 64, 5)).await.unwrap();
        watch(&mut client, &job.name, 0).await.unwrap();
        assert_eq!(get(&server, &format!("/{}/image.tiff", job.name)).0, 200);
        let files = names(&directory(dir.path(), &job.name));
        (job.name, files)
    };
    let job = directory(dir.path(), &name);
    for leftover in [".tessera-a1b2.partial", ".picture.tiff.x.partial", ".viewport"] {
        fs::write(job.join(leftover), b"half").unwrap();
    }
    let _server = Server::start(dir.path(), &[]);
    assert_eq!(names(&job), files);
}

/// The names in a directory, sorted.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A flipped byte of a tile is found on every way out, the tile is named, and it is decoded again.
#[tokio::test]
async fn damaged_tile_leaves_by_no_way_and_is_decoded_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    let job = create(&mut client, spec(1, 256, 192, 5)).await.unwrap();
    let whole = picture(&watch(&mut client, &job.name, 0).await.unwrap(), 256, 192);
    let arena = directory(dir.path(), &job.name).join("arena");
    let intact = fs::read(&arena).unwrap();
    // In the tile of column 1, row 2, whose rows are 3 * 256 bytes apart.
    let place = intact.len() - 256 * 192 * 3 + 3 * (256 * 150 + 100);
    let ways = [
        format!("/{}/image.tiff", job.name),
        format!("/{}/image.png", job.name),
        format!("/{}/image_files/8/0_0.png", job.name),
        format!("/{}/iiif/full/max/0/default.png", job.name),
        "GetTile".to_owned(),
        "WatchJob".to_owned(),
    ];
    for way in ways {
        let mut damaged = intact.clone();
        damaged[place] ^= 4;
        fs::write(&arena, &damaged).unwrap();
        let mut tries = 0;
        loop {
            tries += 1;
            let done = match way.as_str() {
                // In formats that were not cached before.
                "GetTile" => {
                    let request = api::GetTileRequest {
                        name: job.name.clone(),
                        column: 1,
                        row: 2,
                        format: api::ImageFormat::Png.into(),
                    };
                    client.get_tile(request).await.map(drop)
                }
                "WatchJob" => watch_all_as_webp(&mut client, &job.name).await,
                path => {
                    let (status, body) = get(&server, path);
                    let text = String::from_utf8_lossy(&body);
                    match status {
                        200 => Ok(()),
                        503 => {
                            assert!(text.contains("tiles/9") && text.contains("damaged"), "{text}");
                            Err(Status::data_loss(""))
                        }
                        status => panic!("{path}: {status} {text}"),
                    }
                }
            };
            match done {
                Ok(()) => break,
                Err(status) => assert_eq!(status.code(), Code::DataLoss, "{way}: {status}"),
            }
            assert!(tries < 2000, "{way}: not repaired");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(tries > 1, "{way}: a damaged tile was sent");
        assert!(fs::read(&arena).unwrap() == intact, "{way}");
        // Files and cached parts are made anew for the next way.
        for file in ["picture.tiff", "picture.png"] {
            let _ = fs::remove_file(directory(dir.path(), &job.name).join(file));
        }
    }
    let again = picture(&watch(&mut client, &job.name, 0).await.unwrap(), 256, 192);
    assert!(again == whole);
}

/// Reads all events of a job, with its tiles as WebP.
async fn watch_all_as_webp(client: &mut Client, name: &str) -> Result<(), Status> {
    let options =
        api::StreamOptions { tile_format: api::ImageFormat::Webp.into(), ..Default::default() };
    let request =
        api::WatchJobRequest { name: name.to_owned(), after_sequence: 0, options: Some(options) };
    let mut stream = client.watch_job(request).await?.into_inner();
    while stream.message().await?.is_some() {}
    Ok(())
}

/// The directory of the jobs disappears while one runs: clients learn that files failed, not which.
#[tokio::test]
async fn removed_directory_puts_no_path_into_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = dir.path().join("jobs");
    let server = Server::start(&jobs, &["--active", "1"]);
    let mut client = server.client().await;
    let running = create(&mut client, spec(1, 512, 512, 40)).await.unwrap();
    let queued = create(&mut client, spec(2, 512, 512, 40)).await.unwrap();
    let request = api::WatchJobRequest { name: running.name.clone(), ..Default::default() };
    let mut stream = client.watch_job(request).await.unwrap().into_inner();
    for _ in 0..4 {
        stream.message().await.unwrap().unwrap();
    }
    fs::remove_dir_all(&jobs).unwrap();
    let mut texts = Vec::new();
    while let Ok(Some(message)) = stream.message().await {
        texts.push(format!(
            "{:?}",
            message.event.unwrap().event.map(|event| match event {
                Event::Failed(failed) => failed.message,
                _ => String::new(),
            })
        ));
    }
    for path in ["image.tiff", "image_files/9/0_0.png", "preview.png"] {
        texts.push(
            String::from_utf8_lossy(&get(&server, &format!("/{}/{path}", running.name)).1)
                .into_owned(),
        );
    }
    let ended =
        wait(&mut client, &queued.name, |now| matches!(now, JobState::Failed | JobState::Finished));
    assert_eq!(ended.await, JobState::Failed);
    for name in [&running.name, &queued.name] {
        let request = api::GetJobRequest { name: name.clone() };
        texts.push(client.get_job(request).await.unwrap().into_inner().job.unwrap().error);
    }
    texts.push(create(&mut client, spec(3, 64, 64, 1)).await.unwrap_err().to_string());
    let inside = jobs.to_str().unwrap();
    assert!(
        texts.iter().all(|text| !text.contains(inside) && !text.contains("arena")),
        "{texts:?}"
    );
}

/// The command words that run a program with a file system of `size` on `directory`; `None` without the right to mount one.
#[cfg(unix)]
fn small_disk(directory: &Path, size: &str) -> Option<Vec<String>> {
    let mount = format!("mount -t tmpfs -o size={size} tmpfs {}", directory.display());
    let wrappers = [&["unshare", "-m"][..], &["unshare", "-Urm"]];
    let may_mount = |wrapper: &&[&str]| {
        let words = wrapper[1..].iter().copied().chain(["sh", "-c", &mount]);
        let output = Command::new(wrapper[0]).args(words).output();
        output.is_ok_and(|output| output.status.success())
    };
    let Some(wrapper) = wrappers.into_iter().find(may_mount) else {
        eprintln!("not tested: a full file system (neither root nor user namespaces here)");
        return None;
    };
    let script = format!("{mount} && exec \"$@\"");
    let words = wrapper.iter().copied().chain(["sh", "-c", &script, "sh"]);
    Some(words.map(str::to_owned).collect())
}

#[cfg(unix)]
#[tokio::test]
async fn disk_full_is_exhausted_and_leaves_no_job() {
    let dir = tempfile::tempdir().unwrap();
    let Some(words) = small_disk(dir.path(), "3m") else { return };
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let server = Server::start_by(&words, dir.path(), &[]);
    let mut client = server.client().await;
    let status = create(&mut client, spec(1, 1024, 1024, 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("disk"), "{status}");
    // It would not fit an empty disk either; another one fits when there is room again.
    assert!(status.get_details_retry_info().is_none(), "{status:?}");
    let large = create(&mut client, spec(1, 512, 512, 1)).await.unwrap();
    let status = create(&mut client, spec(2, 512, 512, 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.get_details_retry_info().is_some(), "{status:?}");
    watch(&mut client, &large.name, 0).await.unwrap();
    client.delete_job(api::DeleteJobRequest { name: large.name }).await.unwrap();
    let job = create(&mut client, spec(1, 256, 256, 2)).await.unwrap();
    let events = watch(&mut client, &job.name, 0).await.unwrap();
    picture(&events, 256, 256);
    let listed = client.list_jobs(api::ListJobsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.jobs.len(), 1);
}

/// A disk that fills up while a job runs: the job pauses with the reason, announces nothing, and goes on by itself when there
/// is room. A download meanwhile is refused with the code of a full disk.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn disk_that_fills_up_pauses_jobs_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let Some(words) = small_disk(dir.path(), "4m") else { return };
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let server = Server::start_by(&words, dir.path(), &[]);
    let mut client = server.client().await;
    let ended = create(&mut client, spec(1, 256, 256, 2)).await.unwrap();
    watch(&mut client, &ended.name, 0).await.unwrap();
    let job = create(&mut client, spec(2, 512, 512, 200)).await.unwrap();
    let request = api::WatchJobRequest { name: job.name.clone(), ..Default::default() };
    let mut stream = client.watch_job(request).await.unwrap().into_inner();
    let mut sequences = Vec::new();
    for _ in 0..4 {
        sequences.push(stream.message().await.unwrap().unwrap().event.unwrap().sequence);
    }
    // The file system is mounted for the server only.
    let inside = Path::new("/proc").join(server.id().to_string()).join("root");
    let filler = inside.join(dir.path().strip_prefix("/").unwrap()).join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    for size in [1 << 16, 1 << 12, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
    drop(file);
    let paused = async {
        loop {
            let request = api::GetJobRequest { name: job.name.clone() };
            let now = client.get_job(request).await.unwrap().into_inner().job.unwrap();
            assert!(matches!(now.state(), JobState::Denoising | JobState::Decoding), "{now:?}");
            if !now.paused.is_empty() {
                return now.paused;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let reason = tokio::time::timeout(Duration::from_secs(60), paused).await.unwrap();
    assert!(reason.contains("disk is full"), "{reason}");
    let (status, body) = get(&server, &format!("/{}/image.tiff", ended.name));
    let body = String::from_utf8_lossy(&body);
    assert_eq!(status, 507, "{body}");
    assert!(body.contains("disk_bytes") && !body.contains("picture.tiff"), "{body}");
    fs::remove_file(&filler).unwrap();
    let mut last = None;
    while let Some(message) = stream.message().await.unwrap() {
        let event = message.event.unwrap();
        sequences.push(event.sequence);
        last = event.event;
    }
    assert!(matches!(last, Some(Event::Finished(_))), "{last:?}");
    assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>());
    assert_eq!(get(&server, &format!("/{}/image.tiff", ended.name)).0, 200);
}
