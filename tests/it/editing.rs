//! What the service promises to those who send a picture to be edited.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use tessera::api::{self, JobSpec, edit_picture_request::Part, job_event::Event};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::common::server::{Server, create, noise, order, picture, spec, watch};

/// The messages that order the editing of the picture in `file`.
fn sending(spec: JobSpec, file: &[u8]) -> Vec<api::EditPictureRequest> {
    let message = |part| api::EditPictureRequest { part: Some(part) };
    let data = file.chunks(1000).map(|bytes| message(Part::Data(bytes.to_vec())));
    std::iter::once(message(Part::Job(order(spec)))).chain(data).collect()
}

fn png(seed: u64, width: u32, height: u32) -> Vec<u8> {
    let mut file = std::io::Cursor::new(Vec::new());
    noise(seed, width, height).write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

/// What lies among the jobs besides them.
fn strangers(jobs: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(jobs).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("upload")).collect()
}

/// Strength 0 gives the picture as the AutoEncoder keeps it, whatever the seed; more strength, more of it is new. A server that
/// is killed meanwhile goes on to the same end.
#[tokio::test]
async fn edit_strength_decides_how_much_changes() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), &[]);
    let file = png(3, 149, 67);
    let mut made = Vec::new();
    for (seed, strength) in [(1, 0.0), (2, 0.0), (1, 0.3), (2, 0.3), (1, 1.0)] {
        let mut client = server.client().await;
        let spec = JobSpec { strength: Some(strength), ..spec(seed, 0, 0, 10) };
        let stream = tokio_stream::iter(sending(spec, &file));
        let job = client.edit_picture(stream).await.unwrap().into_inner().job.unwrap();
        let asked = job.spec.unwrap();
        assert_eq!((asked.width, asked.height, asked.strength), (149, 67, Some(strength)));
        let events = watch(&mut client, &job.name, 0).await.unwrap();
        let steps: Vec<_> = (events.iter())
            .filter_map(|event| match &event.event {
                Some(Event::Step(step)) => Some(step.step),
                _ => None,
            })
            .collect();
        let first = 10 - (10.0 * strength) as u32;
        assert_eq!(steps.last(), (first < 10).then_some(&10));
        assert!(steps.iter().all(|&step| step > first), "{strength}: {steps:?}");
        made.push(picture(&events, 149, 67));
    }
    let distance = |a: &[u8], b: &[u8]| -> u64 {
        a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b)).pow(2)).sum()
    };
    assert!(made[0] == made[1] && made[2] != made[3]);
    assert!(0 < distance(&made[0], &made[2]));
    assert!(distance(&made[0], &made[2]) < distance(&made[0], &made[4]));

    let spec = JobSpec { strength: Some(0.9), ..spec(5, 0, 0, 1000) };
    let mut client = server.client().await;
    let send = || tokio_stream::iter(sending(spec.clone(), &file));
    let job = client.edit_picture(send()).await.unwrap().into_inner().job.unwrap();
    let undisturbed = watch(&mut client, &job.name, 0).await.unwrap();
    let job = client.edit_picture(send()).await.unwrap().into_inner().job.unwrap();
    for _ in 0..3 {
        server.kill();
        server = Server::start(dir.path(), &[]);
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    let events = watch(&mut server.client().await, &job.name, 0).await.unwrap();
    assert!(picture(&events, 149, 67) == picture(&undisturbed, 149, 67));
    assert_eq!(strangers(dir.path()), [""; 0]);
}

/// The field that `BadRequest` names.
fn violation(status: &Status) -> String {
    let details = status.get_error_details();
    details.bad_request().unwrap().field_violations[0].field.clone()
}

#[tokio::test]
async fn edit_refuses_bad_pictures_and_leaves_no_upload() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    let file = png(3, 64, 48);
    let plain = spec(1, 0, 0, 2);
    let message = |part| api::EditPictureRequest { part };
    let with = |strength| JobSpec { strength: Some(strength), ..plain.clone() };
    let whole = sending(plain.clone(), &file);
    let cases = [
        (vec![], "job"),
        (whole[1..].to_vec(), "job"),
        ([&whole[..1], &whole[..]].concat(), "data"),
        (vec![whole[0].clone(), message(None)], "data"),
        (whole[..1].to_vec(), "data"),
        (whole[..whole.len() - 1].to_vec(), "data"),
        (sending(plain.clone(), b"no picture at all"), "data"),
        (sending(plain.clone(), &png(1, 16385, 1)), "data"),
        (sending(JobSpec { width: 63, ..plain.clone() }, &file), "job.spec.width"),
        (sending(JobSpec { steps: 1001, ..plain.clone() }, &file), "job.spec.steps"),
        (sending(with(1.5), &file), "job.spec.strength"),
        (sending(with(-0.1), &file), "job.spec.strength"),
        (sending(with(f64::NAN), &file), "job.spec.strength"),
    ];
    for (messages, field) in cases {
        let status = client.edit_picture(tokio_stream::iter(messages)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert_eq!(violation(&status), field, "{status}");
        assert!(!status.message().contains('/'), "{status}");
    }
    let flood = std::iter::once(whole[0].clone())
        .chain(std::iter::repeat_n(message(Some(Part::Data(vec![0; 60 << 10]))), 1200));
    let status = client.edit_picture(tokio_stream::iter(flood)).await.unwrap_err();
    assert_eq!(violation(&status), "data");
    assert!(status.message().contains("67108864"), "{status}");
    // A strength without a picture, and the other way in.
    let status = create(&mut client, with(0.5)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(violation(&status), "spec.strength");
    for (path, kind, body, wanted) in [
        ("/jobs?seed=1&steps=2", "image/png", &file[..], "201"),
        ("/jobs?seed=1&steps=2", "text/plain", &file[..], "400"),
        ("/jobs?steps=2&colour=red", "image/png", &file[..], "400"),
        ("/jobs", "image/png", &file[..40], "400"),
    ] {
        let address = server.url.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-Prefix: /pictures\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {wanted}")), "{path} {kind}: {answer}");
        // As behind a proxy that offers the server under a path.
        assert_eq!(answer.contains("location: /pictures/jobs/"), wanted == "201", "{answer}");
    }
    let jobs = client.list_jobs(api::ListJobsRequest::default()).await.unwrap().into_inner().jobs;
    assert_eq!(jobs.len(), 1);
    watch(&mut client, &jobs[0].name, 0).await.unwrap();
    assert_eq!(strangers(dir.path()), [""; 0]);
}
