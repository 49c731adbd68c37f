//! Labels, guidance, steps per group of levels, and previews of the estimate, of a version 2 model on a server.

use std::fs;

use serde_json::json;
use tessera::api::{
    self, JobEvent, JobSpec, StreamOptions, job_event::Event, model::Label,
    model_service_client::ModelServiceClient,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::common::{
    command::{Dir, events},
    fixture,
    server::{Server, create, get, noise, spec},
};

fn start(jobs: &std::path::Path) -> Server {
    let model = fixture("net-g.safetensors");
    let flags = ["--threads", "1", "--model", model.to_str().unwrap()];
    Server::start_with(&[], jobs, &flags)
}

const ASKED: [&str; 8] =
    ["--label", "time=dusk", "--guidance", "3", "--steps", "layout=4,detail=3", "--seed", "11"];

/// A server makes the picture of `generate` with the same labels, guidance and steps; the job, its receipt and the model tell
/// them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_guidance_and_steps_of_groups_make_the_picture_of_generate() {
    let jobs = tempfile::tempdir().unwrap();
    let server = start(jobs.path());
    let dir = Dir::new().with_server(&server.url);
    let job = dir.succeeds(&[&["submit"], &ASKED[..]].concat());
    let fetched = events(&dir.succeeds(&["fetch", job.trim(), "--out", "served.tiff", "--json"]));
    let model = fixture("net-g.safetensors");
    let local = ["generate", "--device", "cpu", "--out", "local.tiff", "--model"];
    let local = [&local[..], &[model.to_str().unwrap()], &ASKED[..]].concat();
    let started = events(&dir.succeeds(&[&local[..], &["--json"]].concat())).remove(0);
    assert!(
        fs::read(dir.join("served.tiff")).unwrap() == fs::read(dir.join("local.tiff")).unwrap()
    );
    let receipt = &fetched[fetched.len() - 2]["receipt"];
    assert_eq!(receipt["labels"]["time"], "dusk");
    assert_eq!(receipt["digital_source_type"], "trainedAlgorithmicMedia");
    assert_eq!((&receipt["guidance"], &receipt["steps"]), (&json!(3.0), &json!(7)));
    assert_eq!(receipt["group_steps"], json!({"layout": 4, "detail": 3}));
    for field in ["labels", "guidance", "group_steps"] {
        assert_eq!(receipt[field], started[field], "{field}");
    }

    let mut client = server.client().await;
    let request = api::GetJobRequest { name: job.trim().to_owned() };
    let made = client.get_job(request).await.unwrap().into_inner().job.unwrap().spec.unwrap();
    assert_eq!(json!(made.labels), receipt["labels"]);
    assert_eq!((made.labels.len(), made.guidance, made.steps), (2, Some(3.0), 7));
    assert_eq!(json!(made.group_steps), receipt["group_steps"]);
    // The spec of a job is one that can be asked for.
    let again = create(&mut client, made.clone()).await.unwrap().spec.unwrap();
    assert_eq!(again, made);

    let mut models = ModelServiceClient::connect(server.url.clone()).await.unwrap();
    let request = api::GetModelRequest { name: made.model };
    let model = models.get_model(request).await.unwrap().into_inner().model.unwrap();
    let values = ["day", "dusk", "night"].map(str::to_owned).to_vec();
    assert_eq!(model.labels[0], Label { name: "time".to_owned(), values });
    let groups: Vec<_> = model.groups.iter().map(|group| group.name.as_str()).collect();
    assert_eq!(groups, ["layout", "detail"]);
    assert_eq!(model.groups[1].levels, [0]);
    assert_eq!((model.sizes[0].width, model.sizes[0].height), (model.width, model.height));
}

/// Labels of an edited picture are in the query of a POST; labels that nobody names are drawn by the seed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_of_edited_pictures_are_in_the_query() {
    let jobs = tempfile::tempdir().unwrap();
    let server = start(jobs.path());
    let mut file = std::io::Cursor::new(Vec::new());
    noise(3, 96, 64).write_to(&mut file, image::ImageFormat::Png).unwrap();
    let file = file.into_inner();
    let post = |query: &str| {
        use std::io::{Read as _, Write as _};
        let address = server.url.strip_prefix("http://").unwrap();
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let head = format!(
            "POST /jobs?{query} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            file.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&file).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let answer =
        post("seed=7&labels.time=night&guidance=2.5&group_steps.layout=2&group_steps.detail=1");
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    let mut client = server.client().await;
    let listed = client.list_jobs(api::ListJobsRequest::default()).await.unwrap().into_inner();
    let made = listed.jobs[0].spec.clone().unwrap();
    assert_eq!((made.labels["time"].as_str(), made.guidance, made.steps), ("night", Some(2.5), 3));
    assert!(made.labels.contains_key("water"));
    let answer = post("labels.time=noon");
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("one of day, dusk, night"),
        "{answer}"
    );
    assert!(answer.contains("labels.time"), "{answer}");
    assert_eq!(get(&server, &format!("/{}/preview.png", "jobs/none")).0, 404);
}

/// Unknown labels, values and groups are refused with the path of the field and the list of valid names.
#[tokio::test]
async fn unknown_labels_and_groups_are_refused_by_field() {
    let jobs = tempfile::tempdir().unwrap();
    let server = start(jobs.path());
    let mut client = server.client().await;
    let plain = spec(1, 0, 0, 0);
    let labels = |name: &str, value: &str| JobSpec {
        labels: [(name.to_owned(), value.to_owned())].into(),
        ..plain.clone()
    };
    let steps = |steps: u32, groups: &[(&str, u32)]| JobSpec {
        steps,
        group_steps: groups.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect(),
        ..plain.clone()
    };
    let guidance = |guidance| JobSpec { guidance: Some(guidance), ..plain.clone() };
    let field = |status: &Status| {
        status.get_error_details().bad_request().unwrap().field_violations[0].field.clone()
    };
    for (asked, path, word) in [
        (labels("weather", "rain"), "spec.labels", "time, water"),
        (labels("time", "noon"), "spec.labels.time", "day, dusk, night"),
        (steps(0, &[("layout", 3), ("colour", 2)]), "spec.group_steps", "layout, detail"),
        (steps(0, &[("layout", 3)]), "spec.group_steps.detail", "each group"),
        (steps(0, &[("layout", 3), ("detail", 0)]), "spec.group_steps.detail", "at least 1"),
        (steps(6, &[("layout", 3), ("detail", 2)]), "spec.steps", "5"),
        (steps(0, &[("layout", 900), ("detail", 900)]), "spec.steps", "1000"),
        (guidance(0.5), "spec.guidance", "1 to 20"),
        (guidance(f64::NAN), "spec.guidance", "1 to 20"),
    ] {
        let status = create(&mut client, asked).await.unwrap_err();
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, path));
        assert!(status.message().contains(word), "{status}");
    }
    // A guided step of the first group is quoted as two evaluations, and the quote tells the labels that the seed has drawn.
    let mut quote = async |asked| {
        let request = api::QuoteJobRequest { spec: Some(asked) };
        let answer = client.quote_job(request).await.unwrap().into_inner();
        (answer.quote.unwrap().flops, answer.spec.unwrap())
    };
    let ((plain, of), (guided, _)) = (quote(guidance(1.0)).await, quote(guidance(2.0)).await);
    assert!(guided > plain && guided < 2 * plain, "{guided} and {plain}");
    assert!(!of.labels.is_empty());
}

/// A watcher that asks for estimates sees the layout long before a level has settled, more like the picture with every
/// preview, and only it: the previews take at most 3 % of the operations, and other watchers get none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn estimates_show_the_layout_to_those_who_ask() {
    let jobs = tempfile::tempdir().unwrap();
    let server = start(jobs.path());
    let mut client = server.client().await;
    let asked = JobSpec {
        group_steps: [("layout".to_owned(), 120), ("detail".to_owned(), 60)].into(),
        ..spec(4, 384, 256, 0)
    };
    let mut follow = async |estimates| -> Vec<JobEvent> {
        let request = api::GenerateRequest {
            job: Some(api::CreateJobRequest { spec: Some(asked.clone()), ..Default::default() }),
            options: Some(StreamOptions { estimates, ..Default::default() }),
            detach: false,
        };
        let mut stream = client.generate(request).await.unwrap().into_inner();
        let mut events = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            events.extend(message.event);
        }
        events
    };
    let (with, without) = (follow(true).await, follow(false).await);
    let estimates = |events: &[JobEvent]| -> Vec<(u32, api::Preview)> {
        let step = |event: &JobEvent| match &event.event {
            Some(Event::Step(step)) => step.estimate.clone().map(|preview| (step.step, preview)),
            _ => None,
        };
        events.iter().filter_map(step).collect()
    };
    assert_eq!(estimates(&without), []);
    let seen = estimates(&with);
    let layout: Vec<_> = seen.iter().filter(|(step, _)| *step <= 120).collect();
    assert!(layout.len() >= 3 && layout[0].0 <= 30, "{} of {}", layout.len(), seen.len());
    assert!(seen.iter().all(|(step, preview)| preview.level == u32::from(*step <= 120)));
    let settled = with.iter().find_map(|event| match &event.event {
        Some(Event::LevelSettled(settled)) if settled.level == 1 => settled.preview.clone(),
        _ => None,
    });
    let pixels = |preview: &api::Preview| {
        let picture = image::load_from_memory(&preview.data).unwrap().into_rgb8();
        assert_eq!(picture.dimensions(), (preview.width, preview.height));
        picture.into_raw().into_iter().map(f64::from).collect::<Vec<_>>()
    };
    let settled = pixels(&settled.unwrap());
    let apart = |preview: &api::Preview| -> f64 {
        pixels(preview).iter().zip(&settled).map(|(a, b)| (a - b).powi(2)).sum()
    };
    let (first, last) = (apart(&layout[0].1), apart(&layout[layout.len() - 1].1));
    assert!(last < 0.5 * first, "{last} and {first}");
    // The tiles are those of a job that nobody watched so.
    let tiles = |events: &[JobEvent]| {
        let tile = |event: &JobEvent| match &event.event {
            Some(Event::Tile(tile)) => Some((tile.column, tile.row, tile.crc32c)),
            _ => None,
        };
        events.iter().filter_map(tile).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(tiles(&with), tiles(&without));
}

/// The default model settles its levels one after the other: no estimate shows less than a settled level whose preview was
/// sent before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn estimates_show_more_than_settled_levels() {
    let jobs = tempfile::tempdir().unwrap();
    let server = Server::start_with(&[], jobs.path(), &["--threads", "1"]);
    let request = api::GenerateRequest {
        job: Some(api::CreateJobRequest {
            spec: Some(spec(5, 512, 256, 120)),
            ..Default::default()
        }),
        options: Some(StreamOptions { estimates: true, ..Default::default() }),
        detach: false,
    };
    let mut stream = server.client().await.generate(request).await.unwrap().into_inner();
    let (mut settled, mut seen) = (u32::MAX, 0);
    while let Some(message) = stream.message().await.unwrap() {
        match message.event.and_then(|event| event.event) {
            Some(Event::LevelSettled(level)) => settled = settled.min(level.level),
            Some(Event::Step(step)) => {
                if let Some(estimate) = step.estimate {
                    assert!(estimate.level < settled, "{} after {settled}", estimate.level);
                    seen += 1;
                }
            }
            _ => {}
        }
    }
    assert!(seen > 0 && settled == 0, "{seen} {settled}");
}
