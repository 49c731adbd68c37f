//! Ended jobs are removed, oldest first: by `tessera prune`, and by a server with limits.

use std::{fs, path::Path, time::Duration};

use crate::common::{
    command::Dir,
    server::{Server, create, get, spec, watch},
};
use tessera::{api, ops::testing::Random};
use tonic::Code;

use super::{Client, directory, missing, names};

/// Bytes of all files of the job `name`.
fn bytes(jobs: &Path, name: &str) -> u64 {
    let files = fs::read_dir(directory(jobs, name)).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

/// A job that has ended.
async fn finished(client: &mut Client, seed: u64) -> String {
    let job = create(client, spec(seed, 64, 64, 2)).await.unwrap();
    watch(client, &job.name, 0).await.unwrap();
    job.name
}

/// The server's jobs, oldest first.
async fn all(client: &mut Client) -> Vec<api::Job> {
    client.list_jobs(api::ListJobsRequest::default()).await.unwrap().into_inner().jobs
}

/// Their names.
async fn listed(client: &mut Client) -> Vec<String> {
    all(client).await.into_iter().map(|job| job.name).collect()
}

#[tokio::test]
async fn prune_removes_the_oldest_ended_jobs_until_the_limit_and_no_other() {
    let dir = Dir::new();
    let jobs = dir.join("jobs");
    let mut server = Server::start(&jobs, &["--active", "1"]);
    let mut client = server.client().await;
    // The first one, which is larger, ends after others.
    let name = create(&mut client, spec(9, 512, 512, 100)).await.unwrap().name;
    for seed in 0..3 {
        finished(&mut client, seed).await;
    }
    client.cancel_job(api::CancelJobRequest { name }).await.unwrap();
    let mut ended = all(&mut client).await;
    let end = |job: &api::Job| job.end_time.map(|time| (time.seconds, time.nanos)).unwrap();
    ended.sort_by_key(end);
    let ended: Vec<_> = ended.into_iter().map(|job| job.name).collect();
    let running = create(&mut client, spec(4, 1024, 1024, 1000)).await.unwrap().name;
    let queued = create(&mut client, spec(5, 1024, 1024, 1000)).await.unwrap().name;
    let beside = ["prune", "--jobs", "jobs", "--older-than", "0s"];
    dir.refused(&beside, &["directory", "no other server is using"]);
    server.kill();

    fs::create_dir(dir.join("other")).unwrap();
    let other = ["prune", "--jobs", "other", "--keep-bytes", "0"];
    dir.refused(&other, &["directory", "other", "a server has used"]);
    assert_eq!(names(&dir.join("other")), Vec::<String>::new());
    dir.refused(&["prune", "--jobs", "jobs"], &["--older-than", "--keep-bytes"]);
    dir.refused(&["prune", "--jobs", "jobs", "--older-than", "30"], &["\"30\"", "such as 30d"]);

    // What a crash between the two parts of a deletion leaves.
    let half = jobs.join(format!(".{}.removed", "a".repeat(32)));
    fs::create_dir(&half).unwrap();
    fs::write(half.join("arena"), b"half").unwrap();
    let others = [&ended[1], &ended[2], &ended[3], &running, &queued];
    let keep: u64 = others.iter().map(|name| bytes(&jobs, name)).sum();
    let limit = keep.to_string();
    let before = names(&jobs);
    let dry = ["prune", "--jobs", "jobs", "--keep-bytes", &limit, "--dry-run"];
    let said = dir.succeeds(&dry);
    assert!(said.contains(&ended[0]) && said.contains("would remove 1 job,"), "{said}");
    assert_eq!(names(&jobs), before);
    let said = dir.succeeds(&dry[..5]);
    assert!(said.contains(&ended[0]) && said.contains("removed 1 job,"), "{said}");
    assert!(said.contains("5 jobs") && said.lines().count() == 2, "{said}");
    assert!(!directory(&jobs, &ended[0]).exists() && !half.exists());
    assert_eq!(names(&jobs).len(), others.len() + 1, "{:?}", names(&jobs));
    assert_eq!(dir.succeeds(&dry[..5]).lines().count(), 1, "within the limit nothing is removed");

    let all = ["prune", "--jobs", "jobs", "--older-than", "0s", "--keep-bytes", "0", "--json"];
    let said = dir.succeeds(&all);
    let events: Vec<serde_json::Value> =
        said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let removed: Vec<_> = events.iter().filter_map(|event| event["job"].as_str()).collect();
    assert_eq!(removed, ended[1..], "{said}");
    assert_eq!((&events[0]["event"], &events[0]["reason"]), (&"pruned".into(), &"age".into()));
    assert_eq!(events[3]["kept"], 2);

    let server = Server::start(&jobs, &[]);
    let mut client = server.client().await;
    assert_eq!(listed(&mut client).await, [running, queued]);
}

#[tokio::test]
async fn server_removes_the_oldest_jobs_when_one_ends_and_they_stay_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (jobs, log) = (dir.path().join("jobs"), dir.path().join("log"));
    let mut random = Random::new(77);
    let one = {
        let server = Server::start(&jobs, &[]);
        let name = finished(&mut server.client().await, random.bits()).await;
        bytes(&jobs, &name)
    };
    let script = format!("unset TESSERA_LOG; exec \"$@\" 2>{}", log.display());
    let limit = (2 * one + one / 2).to_string();
    let flags = ["--keep-bytes", limit.as_str(), "--log-format", "json"];
    let mut server = Server::start_by(&["sh", "-c", &script, "sh"], &jobs, &flags);
    let mut client = server.client().await;
    let mut all = listed(&mut client).await;
    for _ in 0..4 {
        all.push(finished(&mut client, random.bits()).await);
    }
    // A removal follows the end of a job; it is no part of it.
    let mut left = listed(&mut client).await;
    while left.len() > 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        left = listed(&mut client).await;
    }
    assert_eq!(left, all[3..], "the newest are kept");
    assert_eq!(missing(&mut client, &all[0]).await, Some(Code::NotFound));
    let watched = watch(&mut client, &all[0], 0).await;
    assert_eq!(watched.unwrap_err().code(), Code::NotFound);
    let (_, metrics) = get(&server, "/metrics");
    let metrics = String::from_utf8(metrics).unwrap();
    assert!(metrics.contains("tessera_jobs_pruned_total{reason=\"bytes\"} 3\n"), "{metrics}");
    server.kill();
    let text = fs::read_to_string(&log).unwrap();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("job pruned")).collect();
    assert_eq!(lines.len(), 3, "{text}");
    for (line, name) in lines.iter().zip(&all) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["id"], name.strip_prefix("jobs/").unwrap());
        assert_eq!((&line["level"], &line["reason"]), (&"INFO".into(), &"bytes".into()));
        assert_eq!(line["bytes"].as_u64().map(|bytes| bytes / 1000), Some(one / 1000));
    }

    let mut server = Server::start(&jobs, &[]);
    assert_eq!(listed(&mut server.client().await).await, left);
    server.kill();
    // At its start, too.
    let server = Server::start(&jobs, &["--prune-older-than", "0s"]);
    let mut client = server.client().await;
    while !listed(&mut client).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
