//! What the service promises about turns, on the built program: jobs share a device, what is looked at comes first, and what
//! there is no room or time for is refused.

use std::time::{Duration, SystemTime};

use tessera::api::{
    self, JobSpec, JobState, Rect, job_event::Event, model_service_client::ModelServiceClient,
};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::common::{
    fixture,
    gpu::any_adapter,
    server::{Server, answer, create, get, order, picture, spec, state, wait, watch},
};

#[tokio::test]
async fn small_job_finishes_before_large_ones() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--active", "2"]);
    let mut client = server.client().await;
    let mut large = Vec::new();
    for seed in 0..3 {
        large.push(create(&mut client, spec(seed, 1024, 1024, 1000)).await.unwrap());
    }
    // All places are taken when it comes.
    for job in &large[..2] {
        wait(&mut client, &job.name, |now| now == JobState::Denoising).await;
    }
    let small = create(&mut client, spec(9, 32, 32, 2)).await.unwrap();
    let last = watch(&mut client, &small.name, 0).await.unwrap().pop().unwrap();
    assert!(matches!(last.event, Some(Event::Finished(_))));
    assert_ne!(state(&mut client, &large[0].name).await, JobState::Finished);
    for job in large {
        let request = api::CancelJobRequest { name: job.name.clone() };
        client.cancel_job(request).await.unwrap();
        let last = watch(&mut client, &job.name, 0).await.unwrap().pop().unwrap();
        assert!(matches!(last.event, Some(Event::Cancelled(_))));
    }
}

/// Equal small jobs share runs of the network; each gets the picture that it gets alone.
#[tokio::test]
async fn batching_small_jobs_changes_no_pixel() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--active", "4"]);
    let mut client = server.client().await;
    let counts = || {
        let metrics = answer(&server, "localhost", "/metrics");
        ["tessera_steps_total ", "tessera_step_turns_total "].map(|name| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().parse::<u64>().unwrap()
        })
    };
    let (mut jobs, mut together, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for seed in 0..4 {
        jobs.push(create(&mut client, spec(seed, 32, 32, 1000)).await.unwrap());
    }
    for job in &jobs {
        together.push(picture(&watch(&mut client, &job.name, 0).await.unwrap(), 32, 32));
    }
    let [steps, turns] = counts();
    assert_eq!(steps, 4000);
    assert!(turns < 3000, "{turns}");
    for seed in 0..4 {
        let job = create(&mut client, spec(seed, 32, 32, 1000)).await.unwrap();
        alone.push(picture(&watch(&mut client, &job.name, 0).await.unwrap(), 32, 32));
    }
    assert!(together == alone);
    assert_eq!(counts(), [8000, turns + 4000]);
}

/// A server of two models makes with each what a server of that one makes, also by steps that equal jobs take together; and
/// what can't be finished any more fails.
#[tokio::test]
async fn models_are_served_side_by_side() {
    let other = fixture("net-c.safetensors");
    let other = ["--model", other.to_str().unwrap()];
    let (dir, alone) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut server = Server::start(dir.path(), &other);
    let mut models = ModelServiceClient::connect(server.url.clone()).await.unwrap();
    let listed = models.list_models(api::ListModelsRequest::default()).await.unwrap().into_inner();
    let names: Vec<_> = listed.models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(names, ["models/net-a", "models/net-c"]);
    let request = api::GetModelRequest { name: "models/net-c".into() };
    let found = models.get_model(request).await.unwrap().into_inner().model.unwrap();
    assert_eq!(found, listed.models[1]);

    let mut client = server.client().await;
    let with = |seed, model: &str| JobSpec { model: model.into(), ..spec(seed, 112, 112, 200) };
    let mut jobs = Vec::new();
    for seed in 0..2 {
        for model in ["", "models/net-a", "models/net-c"] {
            jobs.push(create(&mut client, with(seed, model)).await.unwrap());
        }
    }
    let mut made = Vec::new();
    for job in &jobs {
        made.push(picture(&watch(&mut client, &job.name, 0).await.unwrap(), 112, 112));
    }
    assert!(made[0] == made[1] && made[3] == made[4] && made[0] != made[2] && made[2] != made[5]);
    let only = Server::start_with(&[], alone.path(), &[&["--threads", "1"], &other[..]].concat());
    let mut only = only.client().await;
    let job = create(&mut only, spec(1, 112, 112, 200)).await.unwrap();
    assert!(picture(&watch(&mut only, &job.name, 0).await.unwrap(), 112, 112) == made[5]);

    for (model, code) in [("models/net-b", Code::NotFound), ("net-a", Code::InvalidArgument)] {
        let status = create(&mut client, with(1, model)).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
    }
    let long = JobSpec { steps: 1000, ..with(9, "models/net-c") };
    let unfinished = create(&mut client, long).await.unwrap();
    server.kill();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    let last = watch(&mut client, &unfinished.name, 0).await.unwrap().pop().unwrap();
    let Some(Event::Failed(failed)) = last.event else { panic!("{last:?}") };
    assert!(failed.message.contains("model"), "{failed:?}");
    let kept = watch(&mut client, &jobs[2].name, 0).await.unwrap();
    assert!(picture(&kept, 112, 112) == made[2]);
}

#[tokio::test]
async fn viewport_tiles_come_first() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    let mut request = order(spec(5, 256, 256, 1));
    request.viewport = Some(Rect { x: 130, y: 130, width: 100, height: 20 });
    let job = client.create_job(request).await.unwrap().into_inner().job.unwrap();
    let events = watch(&mut client, &job.name, 0).await.unwrap();
    let order: Vec<_> = events
        .iter()
        .filter_map(|event| match &event.event {
            Some(Event::Tile(tile)) => Some((tile.column, tile.row)),
            _ => None,
        })
        .collect();
    assert_eq!(order[..3], [(2, 2), (3, 2), (0, 0)]);
    assert_eq!(order.len(), 16);
}

#[tokio::test]
async fn deadline_that_passes_fails_the_job() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    let mut request = order(spec(2, 1024, 1024, 1000));
    request.deadline = Some((SystemTime::now() + Duration::from_millis(300)).into());
    let job = client.create_job(request).await.unwrap().into_inner().job.unwrap();
    let last = watch(&mut client, &job.name, 0).await.unwrap().pop().unwrap();
    let Some(Event::Failed(failed)) = last.event else { panic!("{last:?}") };
    assert_eq!(Code::from(failed.code), Code::DeadlineExceeded);
}

/// A deadline that passes in the queue ends the job, although the device is busy with another one.
#[tokio::test]
async fn deadline_that_passes_in_the_queue_fails_the_job() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--active", "1"]);
    let mut client = server.client().await;
    let running = create(&mut client, spec(1, 1024, 1024, 1000)).await.unwrap();
    wait(&mut client, &running.name, |now| now == JobState::Denoising).await;
    let mut request = order(spec(2, 1024, 1024, 1000));
    request.deadline = Some((SystemTime::now() + Duration::from_millis(200)).into());
    let job = client.create_job(request).await.unwrap().into_inner().job.unwrap();
    let events = watch(&mut client, &job.name, 0).await.unwrap();
    let [Some(Event::Queued(_)), Some(Event::Failed(failed))] =
        [&events[0].event, &events[1].event]
    else {
        panic!("{events:?}")
    };
    assert_eq!(Code::from(failed.code), Code::DeadlineExceeded);
    assert_eq!(state(&mut client, &running.name).await, JobState::Denoising);
}

/// While eight small jobs wait at any time, a large one begins before later ones have taken as much work as it needs itself.
#[tokio::test]
async fn large_job_begins_although_small_ones_keep_coming() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--active", "2"]);
    let mut client = server.client().await;
    let mut small = std::collections::VecDeque::new();
    for seed in 0..10 {
        small.push_back(create(&mut client, spec(seed, 64, 64, 10)).await.unwrap());
    }
    let large = create(&mut client, spec(99, 128, 128, 20)).await.unwrap();
    let flops = |job: &api::Job| job.quote.as_ref().unwrap().flops;
    let (mut later, mut begun) = (Vec::new(), Vec::new());
    // More small jobs than may overtake it and are there already.
    let limit = 30 + flops(&large) / flops(&small[0]);
    for seed in 100..100 + limit {
        let next = create(&mut client, spec(seed, 64, 64, 10)).await.unwrap();
        later.push(next.name.clone());
        small.push_back(next);
        let oldest = small.pop_front().unwrap();
        let events = watch(&mut client, &oldest.name, 0).await.unwrap();
        let started = |event: &api::JobEvent| match &event.event {
            Some(Event::Started(_)) => event.time.map(|time| (time.seconds, time.nanos)),
            _ => None,
        };
        if later.contains(&oldest.name) {
            begun.push((events.iter().find_map(started).unwrap(), flops(&oldest)));
        }
        if state(&mut client, &large.name).await != JobState::Queued {
            let events = watch(&mut client, &large.name, 0).await.unwrap();
            let at = events.iter().find_map(started).unwrap();
            let before = begun.iter().filter(|(started, _)| *started < at);
            let overtaken: Vec<_> = before.map(|(_, flops)| flops).collect();
            // Steps, the global stage and tiles.
            let slices = (overtaken.len() * (10 + 1 + 1), 20 + 1 + 4);
            assert!(slices.0 <= slices.1, "{slices:?}");
            let overtaken = overtaken.into_iter().sum::<u64>();
            assert!(overtaken <= flops(&large), "{overtaken} of {}", flops(&large));
            return;
        }
    }
    panic!("the large job starves");
}

/// The picture's files and everything else of a job are within its quote, also when the picture can't be compressed.
#[tokio::test]
async fn quoted_disk_space_includes_downloads() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    for (seed, side, bits) in [(1, 32, 8), (2, 320, 8), (3, 272, 16)] {
        let asked = JobSpec { bits, ..spec(seed, side, side, 3) };
        let job = create(&mut client, asked).await.unwrap();
        watch(&mut client, &job.name, 0).await.unwrap();
        for file in ["image.tiff", "image.png"] {
            assert_eq!(get(&server, &format!("/{}/{file}", job.name)).0, 200);
        }
        let files = std::fs::read_dir(dir.path().join(job.name.strip_prefix("jobs/").unwrap()));
        let used: u64 = files.unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
        let quoted = job.quote.unwrap().disk_bytes;
        assert!(used <= quoted && quoted < 2 * used + (200 << 10), "{used} of {quoted}");
    }
}

#[tokio::test]
async fn quote_equals_what_admission_uses() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--memory", "1"]);
    let mut client = server.client().await;
    for side in [64, 2048] {
        let asked = spec(1, side, side, 3);
        let request = api::QuoteJobRequest { spec: Some(asked.clone()) };
        let quote = client.quote_job(request).await.unwrap().into_inner().quote.unwrap();
        match create(&mut client, asked).await {
            Ok(job) => {
                let own = job.quote.unwrap();
                assert!(quote.memory_bytes <= 1 << 20);
                let numbers = |q: &api::Quote| (q.memory_bytes, q.disk_bytes, q.flops, q.tiles);
                assert_eq!(numbers(&own), numbers(&quote));
            }
            Err(status) => {
                assert!(quote.memory_bytes > 1 << 20);
                assert_eq!(status.code(), Code::ResourceExhausted);
                assert!(status.message().contains(&quote.memory_bytes.to_string()));
                let details = status.get_error_details();
                assert_eq!(details.quota_failure().unwrap().violations[0].subject, "memory_bytes");
                assert!(details.retry_info().is_none(), "no later attempt can fit either");
            }
        }
    }
}

#[tokio::test]
async fn queue_full_is_exhausted_and_later_has_room() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--queue", "2", "--active", "1"]);
    let mut client = server.client().await;
    let first = create(&mut client, spec(0, 1024, 1024, 1000)).await.unwrap();
    wait(&mut client, &first.name, |now| now == JobState::Denoising).await;
    for seed in 1..=2 {
        create(&mut client, spec(seed, 1024, 1024, 1000)).await.unwrap();
    }
    let status = create(&mut client, spec(3, 32, 32, 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.get_details_retry_info().is_some());
    client.cancel_job(api::CancelJobRequest { name: first.name }).await.unwrap();
    for _ in 0..18_000 {
        if create(&mut client, spec(4, 32, 32, 1)).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the queue stays full");
}

/// A GPU works on the next tile before the last one's pixels are taken from it, also when that is another job's: each job gets
/// its own tiles, every one, and they are those of the CPU.
#[test]
fn gpu_shared_by_jobs_gives_each_its_own_tiles() {
    let Some((_, _turn)) = any_adapter() else { return };
    tokio::runtime::Runtime::new().unwrap().block_on(shared_gpu());
}

/// The test above, while the caller holds the GPU.
async fn shared_gpu() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(dir.path(), &["--device", "gpu", "--active", "3"]);
    let (mut client, mut jobs) = (server.client().await, Vec::new());
    for (seed, width, height, steps) in [(1, 256, 192, 2), (2, 192, 256, 2), (3, 64, 64, 9)] {
        jobs.push(create(&mut client, spec(seed, width, height, steps)).await.unwrap());
    }
    let server = Server::start(other.path(), &[]);
    let mut cpu = server.client().await;
    for job in jobs {
        let asked = job.spec.unwrap();
        let (width, height) = (asked.width as usize, asked.height as usize);
        let own = picture(&watch(&mut client, &job.name, 0).await.unwrap(), width, height);
        let job = create(&mut cpu, asked).await.unwrap();
        let wanted = picture(&watch(&mut cpu, &job.name, 0).await.unwrap(), width, height);
        let most = own.iter().zip(&wanted).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(most <= Some(1), "{most:?} of 255");
    }
}
