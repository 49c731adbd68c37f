//! `tessera fetch` ends with the bytes of a local `tessera generate`, whatever becomes of the server meanwhile.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a failed test panics")]

#[path = "common/server.rs"]
mod server;

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use server::{Server, model_path};

/// The built program with `args`; its standard output.
fn tessera(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_tessera")).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn generate(out: &Path, picture: &[&str]) -> Vec<u8> {
    let (model, out) = (model_path(), out.to_str().unwrap());
    let own = ["generate", "--device", "cpu", "--threads", "1", "--tile", "64"];
    let own = [&own[..], &["--model", model.to_str().unwrap(), "--out", out]].concat();
    tessera(&[&own, picture].concat());
    fs::read(out).unwrap()
}

#[test]
fn a_fetched_file_has_the_bytes_of_one_made_here() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("jobs"), &[]);
    for (bits, ending) in [("8", "tiff"), ("16", "tiff"), ("8", "png")] {
        let picture = ["--seed", "7", "--size", "304x208", "--steps", "3", "--bits", bits];
        let expected = generate(&dir.path().join("local").with_extension(ending), &picture);
        let at = ["--server", &server.url];
        let own = [&["submit", "--tile", "64", "--request-id", bits], &at[..]].concat();
        let job = tessera(&[&own, &picture[..]].concat());
        let job = job.split_whitespace().find(|word| word.starts_with("jobs/")).unwrap();
        let out = dir.path().join("fetched").with_extension(ending);
        tessera(&[&["fetch", job, "--out", out.to_str().unwrap()], &at[..]].concat());
        assert!(fs::read(out).unwrap() == expected, "{bits} bits, {ending}");
    }
    let listed = tessera(&["jobs", "--server", &server.url]);
    assert_eq!(listed.matches("finished").count(), 2, "one request id is one job: {listed}");
}

#[test]
fn a_fetch_outlives_kills_of_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = dir.path().join("jobs");
    let picture = ["--seed", "9", "--size", "512x512", "--steps", "60"];
    let expected = generate(&dir.path().join("local.tiff"), &picture);
    let mut server = Server::start(&jobs, &[]);
    let url = server.url.clone();
    let own = ["submit", "--tile", "64", "--server", &url];
    let job = tessera(&[&own, &picture[..]].concat());
    let job = job.split_whitespace().find(|word| word.starts_with("jobs/")).unwrap();
    let out = dir.path().join("fetched.tiff");
    let mut fetch = Command::new(env!("CARGO_BIN_EXE_tessera"))
        .args(["fetch", job, "--server", &url, "--out"])
        .arg(&out)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..3 {
        std::thread::sleep(std::time::Duration::from_millis(150));
        server.kill();
        server = Server::start_at(url.strip_prefix("http://").unwrap(), &jobs);
    }
    assert!(fetch.wait().unwrap().success());
    assert!(fs::read(out).unwrap() == expected);
}
