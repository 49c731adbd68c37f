//! The service's promises, on the built program: streams that resume, fairness, limits, and an answer to everything.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use tessera::api::{
    self, GenerateRequest, JobSpec, JobState, Rect, StreamOptions, job_event::Event,
    model_service_client::ModelServiceClient,
};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

use crate::common::{
    command::Dir,
    fixture,
    server::{Server, create, order, picture, spec, wait, watch},
};

#[tokio::test]
async fn watch_resumes_by_sequence_wherever_it_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    let job = create(&mut client, spec(7, 160, 96, 5)).await.unwrap();
    let whole = watch(&mut client, &job.name, 0).await.unwrap();
    let numbers: Vec<_> = whole.iter().map(|event| event.sequence).collect();
    assert_eq!(numbers, (1..=whole.len() as u64).collect::<Vec<_>>());
    assert!(matches!(whole.last().unwrap().event, Some(Event::Finished(_))));
    for cut in 0..=whole.len() {
        let rest = watch(&mut client, &job.name, cut as u64).await.unwrap();
        assert_eq!(rest, whole[cut..], "after {cut}");
    }
    assert_eq!(watch(&mut client, &job.name, u64::MAX).await.unwrap(), []);
    // All the levels settle, coarse ones first.
    let settled = whole.iter().filter_map(|event| match &event.event {
        Some(Event::LevelSettled(settled)) => Some(settled.level),
        _ => None,
    });
    assert_eq!(settled.collect::<Vec<_>>(), [2, 1, 0]);
}

#[tokio::test]
async fn previews_are_sent_on_request_and_the_last_one_always() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    // By level: whether there was a preview, which has twice the level's grid, at most the finest latent's.
    let previews = |events: Vec<Event>| {
        let settled = events.into_iter().filter_map(|event| match event {
            Event::LevelSettled(settled) => Some(settled),
            _ => None,
        });
        let pictured = settled.map(|settled| {
            settled.preview.map(|preview| {
                let picture = image::load_from_memory(&preview.data).unwrap();
                let size = (picture.width(), picture.height());
                let wanted = if settled.level == 0 { (40, 24) } else { (20, 12) };
                assert_eq!((preview.level, size), (settled.level, wanted));
                assert_eq!((preview.width, preview.height), size);
            })
        });
        pictured.map(|preview| preview.is_some()).collect::<Vec<_>>()
    };
    let generate = GenerateRequest { job: Some(order(spec(7, 160, 96, 80))), ..Default::default() };
    let mut stream = client.generate(generate).await.unwrap().into_inner();
    let mut events = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        events.extend(message.event.unwrap().event);
    }
    assert_eq!(previews(events), [true, true, true]);

    // Nobody wanted them while it was made.
    let job = create(&mut client, spec(7, 160, 96, 80)).await.unwrap();
    watch(&mut client, &job.name, 0).await.unwrap();
    let request = api::WatchJobRequest { name: job.name.clone(), ..Default::default() };
    let mut stream = client.watch_job(request).await.unwrap().into_inner();
    let mut events = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        events.extend(message.event.unwrap().event);
    }
    assert_eq!(previews(events), [false, false, true]);
    let request = api::GetPreviewRequest { name: job.name };
    let preview = client.get_preview(request).await.unwrap().into_inner().preview.unwrap();
    assert_eq!(preview.level, 0);
}

#[tokio::test]
async fn get_tile_gives_every_tile_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    for bits in [8, 16] {
        let asked = JobSpec { bits, ..spec(3, 96, 80, 2) };
        let job = create(&mut client, asked).await.unwrap();
        let events = watch(&mut client, &job.name, 0).await.unwrap();
        let tiles = events.iter().filter_map(|event| match &event.event {
            Some(Event::Tile(tile)) => Some(tile.clone()),
            _ => None,
        });
        let tiles: Vec<_> = tiles.collect();
        assert_eq!(tiles.len(), 4);
        for tile in tiles {
            let mut read = async |format: api::ImageFormat| {
                let request = api::GetTileRequest {
                    name: job.name.clone(),
                    column: tile.column,
                    row: tile.row,
                    format: format.into(),
                };
                client.get_tile(request).await.unwrap().into_inner().tile.unwrap()
            };
            assert_eq!(read(api::ImageFormat::Raw).await, tile);
            let png = read(api::ImageFormat::Png).await;
            let decoded = image::load_from_memory(&png.data).unwrap();
            let samples = match bits {
                8 => decoded.to_rgb8().into_raw(),
                _ => decoded.to_rgb16().iter().flat_map(|v| v.to_le_bytes()).collect(),
            };
            assert_eq!((samples, png.crc32c), (tile.data.clone(), tile.crc32c));
            for format in [api::ImageFormat::Jpeg, api::ImageFormat::Webp] {
                let decoded = image::load_from_memory(&read(format).await.data).unwrap();
                let rect = tile.rect.unwrap();
                assert_eq!((decoded.width(), decoded.height()), (rect.width, rect.height));
            }
        }
    }
}

#[tokio::test]
async fn request_id_makes_creation_idempotent() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    let mut request = order(spec(1, 32, 32, 1));
    request.request_id = "mine".into();
    let first = client.create_job(request.clone()).await.unwrap().into_inner().job.unwrap();
    let again = client.create_job(request.clone()).await.unwrap().into_inner().job.unwrap();
    assert_eq!(first.name, again.name);
    // After a crash too.
    server.kill();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    let again = client.create_job(request.clone()).await.unwrap().into_inner().job.unwrap();
    assert_eq!(first.name, again.name);
    request.spec.as_mut().unwrap().seed = 2;
    let status = client.create_job(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "request_id");
}

#[tokio::test]
async fn generate_is_cancelled_when_its_client_leaves_unless_detached() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    for (detach, steps) in [(false, 1000), (true, 20)] {
        let request = GenerateRequest {
            job: Some(order(spec(2, 512, 512, steps))),
            options: Some(StreamOptions::default()),
            detach,
        };
        let mut stream = client.generate(request).await.unwrap().into_inner();
        let first = stream.message().await.unwrap().unwrap().event.unwrap();
        let Some(Event::Queued(queued)) = first.event else { panic!("{first:?}") };
        let name = queued.job.unwrap().name;
        drop(stream);
        let ended = |now| matches!(now, JobState::Cancelled | JobState::Finished);
        let expected = if detach { JobState::Finished } else { JobState::Cancelled };
        assert_eq!(wait(&mut client, &name, ended).await, expected);
    }
}

#[tokio::test]
async fn delete_removes_the_job_and_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--active", "1"]);
    let mut client = server.client().await;
    let running = create(&mut client, spec(1, 1024, 1024, 1000)).await.unwrap();
    let waiting = create(&mut client, spec(2, 1024, 1024, 1000)).await.unwrap();
    wait(&mut client, &running.name, |now| now == JobState::Denoising).await;
    for job in [&running, &waiting] {
        let request = api::DeleteJobRequest { name: job.name.clone() };
        client.delete_job(request).await.unwrap();
        let request = api::GetJobRequest { name: job.name.clone() };
        assert_eq!(client.get_job(request).await.unwrap_err().code(), Code::NotFound);
    }
    for _ in 0..18_000 {
        let left = std::fs::read_dir(dir.path()).unwrap().count();
        if left == 1 {
            return; // the lock
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("files are left");
}

#[tokio::test]
async fn list_jobs_pages_in_both_orders() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    let mut made = Vec::new();
    for seed in 0..5 {
        made.push(create(&mut client, spec(seed, 32, 32, 1)).await.unwrap().name);
    }
    let newest_first: Vec<_> = made.iter().rev().cloned().collect();
    for (order_by, expected) in
        [("", &made), ("create_time", &made), ("create_time desc", &newest_first)]
    {
        let (mut listed, mut page_token) = (Vec::new(), String::new());
        loop {
            let order_by = order_by.to_owned();
            let request = api::ListJobsRequest { page_size: 2, page_token, order_by };
            let page = client.list_jobs(request).await.unwrap().into_inner();
            assert!(page.jobs.len() <= 2);
            listed.extend(page.jobs.into_iter().map(|job| job.name));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(&listed, expected, "{order_by:?}");
    }
    let request = api::ListJobsRequest { order_by: "seed".into(), ..Default::default() };
    let status = client.list_jobs(request).await.unwrap_err();
    let details = status.get_details_bad_request().unwrap();
    assert_eq!(details.field_violations[0].field, "order_by");
}

#[tokio::test]
async fn request_fields_out_of_range_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    let good = spec(1, 32, 32, 1);
    let bad: [(&str, JobSpec); 9] = [
        ("spec.width", JobSpec { width: 33, ..good.clone() }),
        ("spec.height", JobSpec { height: u32::MAX, ..good.clone() }),
        ("spec.steps", JobSpec { steps: 1001, ..good.clone() }),
        ("spec.tile_size", JobSpec { tile_size: 63, ..good.clone() }),
        ("spec.tile_size", JobSpec { tile_size: u32::MAX, ..good.clone() }),
        ("spec.bits", JobSpec { bits: 7, ..good.clone() }),
        ("spec.sampler", JobSpec { sampler: -1, ..good.clone() }),
        ("spec.sampler", JobSpec { sampler: i32::MAX, ..good.clone() }),
        ("spec.model", JobSpec { model: "../../etc/passwd".into(), ..good.clone() }),
    ];
    for (field, spec) in bad {
        let status = create(&mut client, spec.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{spec:?}");
        let details = status.get_details_bad_request().unwrap();
        assert_eq!(details.field_violations[0].field, field, "{}", status.message());
    }
    let job = create(&mut client, good.clone()).await.unwrap();
    let mut request = order(good.clone());
    request.request_id = "x".repeat(129);
    assert_eq!(client.create_job(request).await.unwrap_err().code(), Code::InvalidArgument);
    let mut request = order(good.clone());
    request.deadline = Some(prost_types::Timestamp { seconds: i64::MIN, nanos: -1 });
    assert_eq!(client.create_job(request).await.unwrap_err().code(), Code::InvalidArgument);
    for rect in [(0, 0, 0, 1), (0, 0, 33, 1), (u32::MAX, 0, u32::MAX, 1)] {
        let (x, y, width, height) = rect;
        let viewport = Some(Rect { x, y, width, height });
        let request = api::SetViewportRequest { name: job.name.clone(), viewport };
        let status = client.set_viewport(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{rect:?}");
    }
    for name in ["", "jobs", "jobs/", "jobs/../../etc", "jobs/a/b", "models/x", &"j".repeat(9999)] {
        let status = client.get_job(api::GetJobRequest { name: name.into() }).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{name:?}");
    }
    for name in ["jobs/..", "jobs/lock", "jobs/\0", "jobs/0"] {
        let status = client.get_job(api::GetJobRequest { name: name.into() }).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{name:?}");
    }
    for (column, row) in [(1, 0), (0, 1), (u32::MAX, u32::MAX)] {
        let request = api::GetTileRequest { name: job.name.clone(), column, row, format: 0 };
        let status = client.get_tile(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{column} {row}");
    }
    // Longer than a request may be.
    let mut request = order(good.clone());
    request.request_id = "x".repeat(1 << 20);
    assert_eq!(client.create_job(request).await.unwrap_err().code(), Code::ResourceExhausted);
    let last = watch(&mut client, &job.name, 0).await.unwrap().pop().unwrap();
    assert!(matches!(last.event, Some(Event::Finished(_))));
}

#[tokio::test]
async fn malformed_requests_do_not_end_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let address = server.url.strip_prefix("http://").unwrap().to_owned();
    let connect = || {
        let stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    };
    // Connections that stay half open, for as long as the test takes.
    let idle: Vec<_> = (0..64).map(|_| connect()).collect();
    let mut torn = connect();
    torn.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0").unwrap();
    for garbage in [
        &b"\x16\x03\x01\x02\0\x01\0"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /tessera.v1.JobService/CreateJob HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc-web\r\nContent-Length: 9\r\n\r\n\0\xff\xff\xff\xffabcd",
        &[0xff; 4096],
    ] {
        let mut stream = connect();
        // The server may hang up before it has read everything.
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
    }
    let mut client = server.client().await;
    let job = create(&mut client, spec(1, 32, 32, 1)).await.unwrap();
    let events = watch(&mut client, &job.name, 0).await.unwrap();
    picture(&events, 32, 32);
    drop((idle, torn));
}

#[cfg(unix)]
#[tokio::test]
async fn connections_beyond_the_system_limit_do_not_end_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let few = ["sh", "-c", "ulimit -n 96; exec \"$@\"", "sh"];
    let server = Server::start_by(&few, dir.path(), &[]);
    let mut early = server.client().await;
    let address = server.url.strip_prefix("http://").unwrap().to_owned();
    let idle: Vec<_> = (0..200).map(|_| TcpStream::connect(&address).unwrap()).collect();
    // Who is in is served: all that a job needs is open at times only.
    let request = api::ListJobsRequest::default();
    early.list_jobs(request).await.unwrap();
    drop(idle);
    let mut late = server.client().await;
    let job = create(&mut late, spec(1, 32, 32, 1)).await.unwrap();
    let events = watch(&mut late, &job.name, 0).await.unwrap();
    picture(&events, 32, 32);
}

#[tokio::test]
async fn streams_beyond_the_limit_of_a_connection_wait_and_block_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--active", "1"]);
    let mut client = server.client().await;
    let long = create(&mut client, spec(0, 1024, 1024, 1000)).await.unwrap();
    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..400 {
        let (mut client, name) = (client.clone(), long.name.clone());
        streams.spawn(async move { watch(&mut client, &name, 0).await });
    }
    // Another connection is answered while they wait.
    let mut other = server.client().await;
    wait(&mut other, &long.name, |now| now == JobState::Denoising).await;
    other.cancel_job(api::CancelJobRequest { name: long.name }).await.unwrap();
    for events in streams.join_all().await {
        let last = events.unwrap().pop().unwrap();
        assert!(matches!(last.event, Some(Event::Cancelled(_))));
    }
}

#[tokio::test]
async fn queued_event_is_the_same_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    let compute = |quote: Option<api::Quote>| quote.unwrap().compute_time.unwrap();
    // A server that has computed something can tell how long the next picture takes.
    let first = create(&mut client, spec(1, 32, 32, 1)).await.unwrap();
    watch(&mut client, &first.name, 0).await.unwrap();
    let job = create(&mut client, spec(1, 512, 512, 100)).await.unwrap();
    assert_ne!(compute(job.quote), prost_types::Duration::default());
    let request = api::CancelJobRequest { name: job.name.clone() };
    client.cancel_job(request).await.unwrap();
    let before = watch(&mut client, &job.name, 0).await.unwrap();
    server.kill();
    let server = Server::start(dir.path(), &[]);
    let after = watch(&mut server.client().await, &job.name, 0).await.unwrap();
    assert_eq!(after[0], before[0]);
}

/// Models that were trained with one configuration, and so state the same name, are served together by names of their own.
#[tokio::test]
async fn models_of_one_configuration_are_served_by_given_names() {
    let dir = Dir::new();
    let twin = dir.join("twin.safetensors");
    // Another model of the same architecture: net-a with one number changed.
    let mut bytes = std::fs::read(fixture("net-a.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header] ^= 1;
    std::fs::write(&twin, bytes).unwrap();
    let original = fixture("net-a.safetensors");
    let (original, twin) = (original.to_str().unwrap(), twin.to_str().unwrap());
    let serve = ["serve", "--listen", "127.0.0.1:0", "--jobs", "jobs"];
    let refused = |models: &[&str], words: &[&str]| {
        let flags: Vec<_> = models.iter().flat_map(|model| ["--model", model]).collect();
        dir.refused(&[&serve[..], &flags].concat(), words);
    };
    refused(&[original, twin], &["model", "\"net-a\"", "two models", "--model NAME=FILE"]);
    let (named, again) = (format!("a={original}"), format!("b={original}"));
    refused(&[&named, &again], &["\"b\"", "the same file as \"a\""]);
    refused(&[&format!("a={original}.missing")], &["model", "missing"]);

    let jobs = tempfile::tempdir().unwrap();
    let second = format!("winter={twin}");
    let mut server = Server::start(jobs.path(), &["--model", &second]);
    let channel = Channel::from_shared(server.url.clone()).unwrap().connect().await.unwrap();
    let mut models = ModelServiceClient::new(channel);
    let list = models.list_models(api::ListModelsRequest::default()).await.unwrap().into_inner();
    let names: Vec<_> = list.models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(names, ["models/net-a", "models/winter"]);
    let request = api::GetModelRequest { name: "models/winter".into() };
    let found = models.get_model(request).await.unwrap().into_inner().model.unwrap();
    assert_eq!(found, list.models[1]);
    let mut client = server.client().await;
    let asked = JobSpec { model: "models/winter".into(), ..spec(1, 32, 32, 1) };
    let job = create(&mut client, asked.clone()).await.unwrap();
    assert_eq!(job.spec.as_ref().unwrap().model, "models/winter");
    let request = api::QuoteJobRequest { spec: Some(asked) };
    let quoted = client.quote_job(request).await.unwrap().into_inner().spec.unwrap();
    assert_eq!(quoted.model, "models/winter");
    let before = watch(&mut client, &job.name, 0).await.unwrap();
    server.kill();
    // Jobs find their model by its content, whatever its name is now.
    let server = Server::start(jobs.path(), &["--model", &format!("spring={twin}")]);
    let after = watch(&mut server.client().await, &job.name, 0).await.unwrap();
    assert_eq!(after[1..], before[1..]);
    let Some(Event::Queued(queued)) = &after[0].event else { panic!("{:?}", after[0]) };
    assert_eq!(queued.job.as_ref().unwrap().spec.as_ref().unwrap().model, "models/spring");
}

#[tokio::test]
async fn health_reflection_and_models_are_found_by_standard_clients() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let channel = Channel::from_shared(server.url.clone()).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "tessera.v1.JobService", "tessera.v1.ModelService"] {
        let request = HealthCheckRequest { service: service.into() };
        let status = health.check(request).await.unwrap().into_inner().status;
        assert_eq!(status, 1, "{service} is serving");
    }
    let mut models = ModelServiceClient::new(channel.clone());
    let list = models.list_models(api::ListModelsRequest::default()).await.unwrap().into_inner();
    assert_eq!((list.models[0].name.as_str(), list.models[0].size_multiple), ("models/net-a", 16));
    let request = api::GetModelRequest { name: "models/other".into() };
    assert_eq!(models.get_model(request).await.unwrap_err().code(), Code::NotFound);

    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let mut answers =
        reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(services) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = services.service.into_iter().map(|service| service.name).collect();
    for name in ["tessera.v1.JobService", "tessera.v1.ModelService", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|known| known == name), "{name} in {names:?}");
    }
}

/// The details of a status are made from the fields of the error.
#[tokio::test]
async fn statuses_have_the_fields_of_their_errors() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    let channel = Channel::from_shared(server.url.clone()).unwrap().connect().await.unwrap();
    let mut models = ModelServiceClient::new(channel);
    let job = api::GetJobRequest { name: "jobs/none".into() };
    let model = api::GetModelRequest { name: "models/none".into() };
    for (status, kind, name, reason) in [
        (client.get_job(job).await.unwrap_err(), "tessera.v1.Job", "jobs/none", "job"),
        (models.get_model(model).await.unwrap_err(), "tessera.v1.Model", "models/none", "model"),
    ] {
        assert_eq!(status.code(), Code::NotFound, "{status}");
        let details = status.get_error_details();
        let resource = details.resource_info().unwrap();
        assert_eq!(
            (resource.resource_type.as_str(), resource.resource_name.as_str()),
            (kind, name)
        );
        let info = details.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("NOT_FOUND", "tessera"));
        assert_eq!(
            (&info.metadata["resource"], &info.metadata["name"]),
            (&reason.into(), &"none".into())
        );
    }
    let status = create(&mut client, spec(1, 100, 64, 1)).await.unwrap_err();
    let details = status.get_error_details();
    assert_eq!(details.bad_request().unwrap().field_violations[0].field, "spec.width");
    let metadata = &details.error_info().unwrap().metadata;
    assert_eq!((&metadata["value"], &metadata["nearest"]), (&"100".into(), &"96".into()));
    let job = create(&mut client, spec(1, 1024, 1024, 1000)).await.unwrap();
    let tile = api::GetTileRequest { name: job.name.clone(), ..Default::default() };
    let status = client.get_tile(tile).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let details = status.get_error_details();
    assert_eq!(details.precondition_failure().unwrap().violations[0].r#type, "DECODED");
}
