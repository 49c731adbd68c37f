//! Metrics and log of the service.

use std::{collections::BTreeMap, time::Duration};

use tessera::api::job_event::Event;

use crate::common::server::{Server, answer, create, order, spec, watch};

/// The metrics in the manual are those of the server, with their types.
#[tokio::test]
async fn metrics_are_those_of_the_manual() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    let job = create(&mut client, spec(1, 64, 64, 3)).await.unwrap();
    watch(&mut client, &job.name, 0).await.unwrap();
    let text = answer(&server, "localhost", "/metrics");
    let served = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let served = served.map(|line| match line.split_once(' ').unwrap() {
        (name, "counter") => (format!("{name}_total"), "counter"),
        (name, "info") => (format!("{name}_info"), "info"),
        (name, kind) => (name.to_owned(), kind),
    });
    let manual = include_str!("../../docs/src/serving.md");
    let rows = manual.lines().filter_map(|line| line.strip_prefix("| `"));
    // A row may have several names.
    let rows = rows.filter_map(|row| {
        let mut cells = row.split(" | ");
        let (names, kind) = (cells.next()?, cells.next()?);
        Some(names.trim_end_matches('`').split("`, `").map(move |name| (name.to_owned(), kind)))
    });
    let rows = rows.flatten();
    let described =
        rows.filter(|(name, _)| name.starts_with("tessera_") || name.starts_with("process_"));
    let (served, described): (BTreeMap<_, _>, BTreeMap<_, _>) =
        (served.collect(), described.collect());
    // Elsewhere there are none of the process.
    let expected = |name: &str| cfg!(target_os = "linux") || !name.starts_with("process_");
    let described: BTreeMap<_, _> =
        described.into_iter().filter(|(name, _)| expected(name)).collect();
    assert!(described.len() >= 13, "{described:?}");
    assert_eq!(served, described);
    for name in
        served.keys().filter(|name| !name.contains("seconds") || name.starts_with("process"))
    {
        let sample = text.lines().any(|line| {
            line.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with([' ', '{']))
        });
        assert!(sample, "{name} has no sample: {text}");
    }
}

/// A line for each queued, started and ended job, with times and without escape codes; what a client has brought about is no
/// error. As JSON it has the same fields. Failed jobs are counted by the kind of their error.
#[cfg(unix)]
#[tokio::test]
async fn log_has_a_line_for_each_change_of_a_job() {
    for json in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script = format!("unset TESSERA_LOG; exec \"$@\" 2>{}", log.display());
        let flags: &[&str] = if json { &["--log-format", "json"] } else { &[] };
        let server =
            Server::start_by(&["sh", "-c", &script, "sh"], &dir.path().join("jobs"), flags);
        let mut client = server.client().await;
        let job = create(&mut client, spec(1, 32, 32, 1)).await.unwrap();
        watch(&mut client, &job.name, 0).await.unwrap();
        let soon = std::time::SystemTime::now() + Duration::from_millis(500);
        let mut request = order(spec(2, 1024, 1024, 1000));
        request.deadline = Some(soon.into());
        let late = client.create_job(request).await.unwrap().into_inner().job.unwrap();
        let events = watch(&mut client, &late.name, 0).await.unwrap();
        assert!(matches!(events.last().unwrap().event, Some(Event::Failed(_))), "{events:?}");
        let metrics = answer(&server, "localhost", "/metrics");
        for labels in ["state=\"finished\",reason=\"\"", "state=\"failed\",reason=\"expired\""] {
            let line = format!("tessera_jobs_ended_total{{{labels}}} 1");
            assert!(metrics.contains(&line), "{line} is not in {metrics}");
        }
        assert!(server.stop().success());
        let text = std::fs::read_to_string(&log).unwrap();
        assert!(!text.contains('\x1b'), "{text:?}");
        let id = |name: &str| name.strip_prefix("jobs/").unwrap().to_owned();
        for (job, last) in [(&job, "job finished"), (&late, "job failed")] {
            let lines: Vec<_> = text.lines().filter(|line| line.contains(&id(&job.name))).collect();
            let of = |message: &str| {
                let found: Vec<_> = lines.iter().filter(|line| line.contains(message)).collect();
                assert_eq!(found.len(), 1, "{message}: {text}");
                (*found[0]).to_owned()
            };
            for message in ["job queued", "job started", last] {
                let line = of(message);
                if json {
                    let object: serde_json::Value = serde_json::from_str(&line).unwrap();
                    assert_eq!(
                        (&object["level"], &object["message"]),
                        (&"INFO".into(), &message.into())
                    );
                    assert_eq!(object["id"], id(&job.name).as_str());
                    assert!(object["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
                    let seconds = object["seconds"].as_f64();
                    assert!(message == "job queued" || seconds.is_some_and(|s| s >= 0.0), "{line}");
                } else {
                    let (time, rest) = line.split_once(' ').unwrap();
                    assert!(time.ends_with('Z') && time.contains('T'), "{line}");
                    assert!(rest.trim_start().starts_with("INFO"), "{line}");
                }
            }
        }
    }
}

/// `/metrics` is OpenMetrics text with a histogram of each duration; its labels are as many as there are routes.
#[tokio::test]
async fn metrics_have_histograms_of_requests_and_of_the_parts_of_jobs() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let mut client = server.client().await;
    let job = create(&mut client, spec(1, 64, 64, 3)).await.unwrap();
    watch(&mut client, &job.name, 0).await.unwrap();
    for path in ["/jobs/a/image.dzi", "/jobs/b/image.dzi", "/nothing/a", "/nothing/b"] {
        answer(&server, "localhost", path);
    }
    let metrics = answer(&server, "localhost", "/metrics");
    let count = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim().parse::<f64>().ok())
    };
    assert_eq!(count("tessera_queue_wait_seconds_count"), Some(1.0), "{metrics}");
    assert_eq!(count("tessera_step_seconds_count"), Some(3.0));
    assert_eq!(count("tessera_tile_seconds_count"), Some(1.0));
    assert!(count("tessera_commit_seconds_count") >= Some(2.0));
    assert!(count("tessera_fsync_seconds_count") >= Some(3.0));
    assert_eq!(count("tessera_jobs{state=\"finished\"}"), Some(1.0));
    let requests = |route: &str, status: u16| {
        count(&format!("tessera_request_seconds_count{{route=\"{route}\",status=\"{status}\"}}"))
    };
    assert_eq!(requests("/tessera.v1.JobService/CreateJob", 200), Some(1.0));
    assert_eq!(requests("/jobs/{id}/image.dzi", 404), Some(2.0));
    assert_eq!(requests("unmatched", 404), Some(2.0));
    assert!(metrics.trim_end().ends_with("# EOF"));
}
