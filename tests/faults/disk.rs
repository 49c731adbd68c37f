//! Damaged files, a directory that disappears, a full disk.

use std::{fs, io::Write as _, path::Path, process::Command, time::Duration};

use crate::common::{
    command::Dir,
    server::{Server, create, get, picture, spec, wait, watch},
};
use tessera::api::{self, JobState, job_event::Event};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{Client, directory, missing, names};

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
