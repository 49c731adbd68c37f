//! Command lines that would lose something, and what is said of files that are not what they seem.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;
use tessera::api;

use super::small;
use crate::common::{
    command::{Dir, events},
    fixture,
    server::Server,
};

/// A directory with a picture of 64x48, `photo.png`.
fn with_photo() -> Dir {
    let dir = Dir::new();
    dir.succeeds(&small(&["--out", "photo.png"]));
    dir
}

#[test]
fn an_output_that_is_an_input_is_refused_and_the_input_is_kept() {
    let dir = with_photo();
    fs::copy(fixture("net-a.safetensors"), dir.join("model.safetensors")).unwrap();
    dir.succeeds(&["encode", "photo.png", "photo.safetensors"]);
    let bytes = |name: &str| fs::read(dir.join(name)).unwrap();
    let inputs = ["photo.png", "photo.safetensors", "model.safetensors"];
    let before = inputs.map(bytes);
    let quick = ["--steps", "1"];
    for args in [
        &["edit", "photo.png", "photo.png", quick[0], quick[1]][..],
        &["edit", "photo.png", "./photo.png", quick[0], quick[1]],
        &["reconstruct", "photo.png", "photo.png"],
        &["encode", "photo.png", "model.safetensors", "--model", "model.safetensors"],
    ] {
        dir.refused(args, &["out is", "another file than the input"]);
    }
    // Any other ending than that of latents, the input's with it.
    dir.refused(&["encode", "photo.png", "photo.png"], &["out is photo.png", ".safetensors"]);
    dir.refused(&["encode", "photo.png", "latents"], &["out is latents", ".safetensors"]);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("photo.png", dir.join("link.png")).unwrap();
        dir.refused(&["edit", "photo.png", "link.png"], &["another file than the input"]);
        std::os::unix::fs::symlink("photo.safetensors", dir.join("latents.png")).unwrap();
        dir.refused(&["decode", "photo.safetensors", "latents.png"], &["another file"]);
    }
    assert!(before == inputs.map(bytes));
}

/// A random seed is stated, and gives the same picture when it is given again.
#[test]
fn a_random_seed_is_stated() {
    let dir = Dir::new();
    let args = small(&["--seed", "random", "--out", "a.png", "--json"]);
    let started = |args: &[&str]| events(&dir.succeeds(args)).remove(0);
    let seed = started(&args)["seed_text"].as_str().unwrap().to_owned();
    dir.succeeds(&small(&["--seed", &seed, "--out", "b.png"]));
    let bytes = |name: &str| fs::read(dir.join(name)).unwrap();
    assert!(bytes("a.png") == bytes("b.png"));
    assert_ne!(seed, started(&args)["seed_text"].as_str().unwrap());
}

#[test]
fn numbers_that_cannot_be_read_are_refused_with_what_is_expected() {
    let dir = Dir::new();
    for (flag, value, expected) in [
        ("--seed", "-1", "not a whole number from 0 to 18446744073709551615, nor random"),
        ("--seed", "1.5", "not a whole number"),
        ("--guidance", "strong", "\"strong\" is not a number"),
    ] {
        dir.refused(&small(&[flag, value, "--out", "a.png"]), &[flag, expected]);
    }
}

#[cfg(unix)]
#[test]
fn a_signal_that_is_ignored_at_the_start_stays_ignored() {
    let dir = Dir::new();
    for signal in ["HUP", "INT", "TERM"] {
        // The work is under way when its first step is said; `exec` hands the ignored signal on.
        let out = format!("{signal}.png");
        let work = format!(
            "trap '' {signal}; exec \"$0\" generate --size 64x48 --steps 200 --json --out {out}"
        );
        let mut command = dir.command_by(&["sh", "-c", &work]);
        let mut child =
            command.arg(env!("CARGO_BIN_EXE_tessera")).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines =
            std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        assert!(lines.any(|line| line.unwrap().contains("\"step\"")), "{signal}");
        let kill =
            Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status();
        assert!(kill.unwrap().success());
        lines.for_each(drop);
        assert!(child.wait().unwrap().success(), "SIG{signal} ended the work");
        assert!(dir.join(&out).exists());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn events_of_a_path_that_is_not_utf8_are_written_and_lost_ones_are_a_failure() {
    use std::os::unix::ffi::OsStrExt as _;
    let dir = Dir::new();
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9.png");
    let ran = dir.command().args(small(&["--json", "--out"])).arg(name).output().unwrap();
    assert!(ran.status.success());
    let events = events(&String::from_utf8(ran.stdout).unwrap());
    let sequence: Vec<_> = events.iter().map(|event| event["sequence"].as_u64()).collect();
    assert_eq!(sequence, (1..=events.len() as u64).map(Some).collect::<Vec<_>>());
    assert_eq!(events[0]["event"], "started");
    assert_eq!(events.last().unwrap()["out"], "caf\u{FFFD}.png");
    let full = fs::File::create("/dev/full").unwrap();
    let ran =
        dir.command().args(small(&["--json", "--out", "a.png"])).stdout(full).output().unwrap();
    assert_eq!(ran.status.code(), Some(1));
    assert!(String::from_utf8(ran.stderr).unwrap().contains("standard output"));
}

#[test]
fn seeds_are_text_beside_the_number() {
    let dir = Dir::new();
    let seed = u64::MAX.to_string();
    let events = events(&dir.succeeds(&small(&["--seed", &seed, "--json", "--out", "a.png"])));
    for event in [&events[0], events.last().unwrap()] {
        assert_eq!(event["seed_text"], Value::from(seed.as_str()));
        assert_eq!(event["seed"], u64::MAX);
    }
    let file = fs::read(dir.join("a.png")).unwrap();
    let text = String::from_utf8_lossy(&file);
    assert!(text.contains(&format!("\"seed_text\":\"{seed}\"")));
}

#[test]
fn a_path_that_can_not_be_the_file_is_refused_before_the_work() {
    let dir = Dir::new();
    dir.refused(&small(&["--out", "x.png/"]), &["x.png/"]);
    dir.refused(&small(&["--out", "x.png/."]), &["x.png/."]);
    let long = format!("{}.png", "n".repeat(252));
    dir.refused(&small(&["--out", &long]), &["too long"]);
    // The longest name that file systems hold.
    let longest = format!("{}.png", "n".repeat(251));
    dir.succeeds(&small(&["--out", &longest]));
    assert_eq!(dir.names(), [longest]);
}

#[cfg(unix)]
#[test]
fn permissions_are_kept_and_links_followed_whether_they_lead_anywhere_or_not() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let dir = Dir::new();
    let mode = |name: &str| fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777;
    fs::write(dir.join("private.png"), "old").unwrap();
    fs::set_permissions(dir.join("private.png"), fs::Permissions::from_mode(0o600)).unwrap();
    dir.succeeds(&small(&["--out", "private.png"]));
    assert_eq!(mode("private.png"), 0o600);
    assert!(fs::read(dir.join("private.png")).unwrap().starts_with(b"\x89PNG"));
    fs::create_dir(dir.join("elsewhere")).unwrap();
    symlink("elsewhere/b.png", dir.join("a.png")).unwrap();
    symlink("a.png", dir.join("link.png")).unwrap();
    dir.succeeds(&small(&["--out", "link.png"]));
    assert!(dir.join("elsewhere/b.png").is_file());
    for link in ["a.png", "link.png"] {
        assert!(fs::symlink_metadata(dir.join(link)).unwrap().is_symlink(), "{link}");
    }
    symlink("round.png", dir.join("round.png")).unwrap();
    dir.refused(&small(&["--out", "round.png"]), &["round.png"]);
}

#[test]
fn files_that_are_no_models_are_called_what_they_are() {
    let dir = Dir::new();
    for (start, says) in [
        (
            &b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"[..],
            "Git LFS pointer",
        ),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"PK\x03\x04 and so on", "PyTorch"),
        (b"\x80\x02}q\x00. and so on", "pickle"),
    ] {
        fs::write(dir.join("model.safetensors"), start).unwrap();
        let ran = dir.run(&["inspect", "model.safetensors"]);
        ran.ended(2, &["model.safetensors", says]);
        // The file's name once.
        assert_eq!(ran.stderr.matches("model.safetensors").count(), 1, "{ran}");
    }
    fs::write(dir.join("model.safetensors"), with_tensor("counts", "I64")).unwrap();
    dir.refused(&["inspect", "model.safetensors"], &["counts", "I64", "F32"]);
    fs::write(dir.join("photo.png"), "no picture").unwrap();
    let ran = dir.run(&["reconstruct", "photo.png", "out.png"]);
    ran.ended(2, &["picture photo.png is", "expected a JPEG, PNG, TIFF or WebP"]);
    assert_eq!(ran.stderr.matches("photo.png").count(), 1, "{ran}");
}

/// A file of one tensor of eight bytes.
fn with_tensor(name: &str, dtype: &str) -> Vec<u8> {
    let header =
        format!("{{\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":[1],\"data_offsets\":[0,8]}}}}");
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend([0; 8]);
    file
}

#[test]
fn names_in_files_do_not_command_the_terminal() {
    let dir = Dir::new();
    let model = super::changed("net-a.safetensors", |header| {
        let arch = &mut header["__metadata__"]["arch"];
        let mut named: Value = serde_json::from_str(arch.as_str().unwrap()).unwrap();
        named["name"] = "\u{1b}[31mred\u{7}".into();
        *arch = named.to_string().into();
    });
    fs::write(dir.join("model.safetensors"), model).unwrap();
    let args = small(&["--model", "model.safetensors", "--out", "a.png"]);
    let ran = dir.run(&args);
    assert!(ran.status.success(), "{ran}");
    let inspected = dir.run(&["inspect", "model.safetensors"]);
    for text in [&ran.stdout, &ran.stderr, &inspected.stdout, &inspected.stderr] {
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    }
    assert!(ran.stderr.contains("[31mred"), "{ran}");
}

#[test]
fn help_fits_a_terminal_and_an_address_has_an_example() {
    let dir = Dir::new();
    for command in [
        "generate",
        "edit",
        "reconstruct",
        "encode",
        "decode",
        "inspect",
        "devices",
        "serve",
        "submit",
        "fetch",
        "prune",
    ] {
        let help = dir.succeeds(&[command, "--help"]);
        let widest = help.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(100), "{command}: {widest:?} columns\n{help}");
    }
    dir.refused(&["serve", "--listen", "localhost:0"], &["localhost:0", "127.0.0.1:0"]);
}

#[test]
fn an_edited_photograph_keeps_its_author_rights_date_and_resolution() {
    let dir = Dir::new();
    let photo =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pictures/photograph.jpg");
    fs::copy(photo, dir.join("photo.jpg")).unwrap();
    for (command, out) in [("edit", "a.png"), ("edit", "a.tiff"), ("reconstruct", "b.png")] {
        let mut args = vec![command, "photo.jpg", out];
        if command == "edit" {
            args.extend(["--steps", "1"]);
        }
        dir.succeeds(&args);
        let photo = tessera::image_in::read(&dir.join(out), Default::default()).unwrap();
        // It stood on its side; now it is upright, and says nothing of an orientation.
        assert_eq!((photo.picture.width, photo.picture.height), (64, 96), "{out}");
        assert_eq!(photo.attribution.artist.as_deref(), Some("Ada Lovelace"), "{out}");
        assert_eq!(photo.attribution.copyright.as_deref(), Some("(c) Ada Lovelace"), "{out}");
        let [x, y] = photo.attribution.resolution.unwrap();
        assert!((x - 300.0).abs() < 0.05 && (y - 150.0).abs() < 0.05, "{out}: {x} {y}");
        let bytes = fs::read(dir.join(out)).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(
            text.contains("<exif:DateTimeOriginal>2024-02-29T12:34:56</exif:DateTimeOriginal>")
        );
        assert!(text.contains("Ada Lovelace</rdf:li></rdf:Seq></dc:creator>"), "{out}");
    }
}

#[test]
fn a_picture_of_16_bits_that_is_written_with_8_is_a_notice() {
    let dir = Dir::new();
    dir.succeeds(&small(&["--bits", "16", "--out", "16.png"]));
    for (bits, says) in [("8", true), ("16", false)] {
        let ran = dir.run(&["reconstruct", "16.png", "out.png", "--bits", bits]);
        assert!(ran.status.success(), "{ran}");
        assert_eq!(ran.stderr.contains("16 bits a sample"), says, "{ran}");
    }
    // A server says so with the job, also after a restart.
    let jobs = tempfile::tempdir().unwrap();
    let server = Server::start(jobs.path(), &[]);
    let dir = dir.with_server(&server.url);
    for (bits, says) in [("8", true), ("16", false)] {
        let words = ["submit", "--edit", "16.png", "--steps", "1", "--bits", bits];
        let ran = dir.run(&words);
        assert!(ran.status.success(), "{ran}");
        assert_eq!(ran.stderr.contains("16 bits a sample"), says, "{ran}");
    }
    drop(server);
    let server = Server::start(jobs.path(), &[]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listed = runtime.block_on(async {
        let request = api::ListJobsRequest::default();
        server.client().await.list_jobs(request).await.unwrap().into_inner().jobs
    });
    let said = |job: &api::Job| {
        let notices = &job.quote.as_ref().unwrap().notices;
        notices.iter().any(|notice| notice.contains("16 bits a sample"))
    };
    assert_eq!(listed.iter().map(said).collect::<Vec<_>>(), [true, false]);
}
