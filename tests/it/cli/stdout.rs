//! Pictures that go to standard output, and the compression of TIFF files.

use std::{
    fs,
    io::Read as _,
    process::{Command, Stdio},
};

use super::{pixels, small};
use crate::common::{
    command::Dir,
    fixture,
    server::{Server, create, spec, watch},
};

/// Standard output of a command that must succeed, as bytes; its result for people is on standard error.
fn piped(dir: &Dir, args: &[&str]) -> Vec<u8> {
    let output = dir.command().args(args).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{args:?}: {stderr}");
    assert!(stderr.lines().any(|line| line.starts_with("-  ")), "{args:?}: {stderr}");
    output.stdout
}

/// Each command that writes a picture writes the bytes of its file to standard output, as PNG unless a format is given.
#[tokio::test]
async fn standard_output_has_the_bytes_of_the_file_and_nothing_else() {
    let dir = Dir::new();
    let (server, name) = {
        let server = Server::start(&dir.join("jobs"), &[]);
        let mut client = server.client().await;
        let job = create(&mut client, spec(1, 64, 48, 3)).await.unwrap();
        watch(&mut client, &job.name, 0).await.unwrap();
        (server, job.name)
    };
    let dir = dir.with_server(&server.url);
    dir.succeeds(&small(&["--out", "in.png"]));
    dir.succeeds(&["encode", "in.png", "in.safetensors"]);
    let before = dir.names();
    // The words before and after the output.
    let commands: [(&[&str], &[&str]); 5] = [
        (&["generate", "--size", "64x48", "--steps", "3", "--out"], &[]),
        (&["edit", "in.png"], &["--steps", "3"]),
        (&["reconstruct", "in.png"], &[]),
        (&["decode", "in.safetensors"], &[]),
        (&["fetch", &name, "--out"], &[]),
    ];
    for (command, more) in commands {
        let args = |out, format: &[&'static str]| [command, &[out], more, format].concat();
        let files = [("file.png", &[][..]), ("file.tiff", &["--format", "tiff"])];
        for (file, format) in files {
            dir.succeeds(&args(file, &[]));
            let written = fs::read(dir.join(file)).unwrap();
            fs::remove_file(dir.join(file)).unwrap();
            assert!(piped(&dir, &args("-", format)) == written, "{command:?}: {file}");
        }
    }
    assert_eq!(dir.names(), before);
}

#[test]
fn standard_output_is_refused_where_a_picture_can_not_go() {
    let dir = Dir::new();
    dir.refused(&small(&["--out", "-", "--count", "2"]), &["count", "standard output"]);
    let json = dir.run(&small(&["--out", "-", "--json"]));
    json.ended(2, &["out", "--json"]);
    assert!(json.stdout.lines().all(|line| line.starts_with('{')), "{json}");
    dir.refused(&small(&["--out", "a.png", "--format", "png"]), &["format", "extension"]);
    dir.refused(&small(&["--out", "a.png", "--compression", "zstd"]), &["compression", "PNG"]);
    dir.refused(&small(&["--out", "-", "--compression", "none"]), &["compression", "PNG"]);
    dir.refused(&small(&["--out", "a.png", "--cog"]), &["cog", "PNG"]);
    dir.refused(&small(&["--out", "a.tiff", "--compression", "lzw"]), &["lzw", "deflate"]);
    // A terminal: "script" runs the command in one.
    let program = env!("CARGO_BIN_EXE_tessera");
    let command = format!("{program} generate --size 64x48 --steps 3 --out -");
    let model = fixture("net-a.safetensors");
    let mut script = Command::new("script");
    script.args(["-qec", &command, "/dev/null"]).env("TESSERA_MODEL", model).stdin(Stdio::null());
    let ran = dir.finish(script.current_dir(dir.path()));
    assert_eq!(ran.status.code(), Some(2), "{ran}");
    assert!(ran.stdout.contains("terminal") && ran.stdout.lines().count() == 1, "{ran}");
}

/// The reader takes some bytes, or none, and closes.
#[test]
fn a_closed_pipe_is_no_failure() {
    let dir = Dir::new();
    for taken in [0, 100] {
        let args = ["generate", "--size", "256x192", "--steps", "1", "--format", "tiff"];
        let args = [&args[..], &["--compression", "none", "--out", "-"]].concat();
        let mut command = dir.command();
        let command = command.args(&args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        out.read_exact(&mut vec![0; taken]).unwrap();
        drop(out);
        let ended = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(0), "{stderr}");
        assert!(!stderr.contains("panicked") && stderr.contains("256 x 192"), "{stderr}");
    }
    assert_eq!(dir.names(), Vec::<String>::new());
}

#[test]
fn compression_changes_the_length_of_a_tiff_and_not_a_pixel() {
    let dir = Dir::new();
    let forms: [&[&str]; 4] = [
        &[],
        &["--compression", "deflate"],
        &["--compression", "zstd"],
        &["--compression", "none"],
    ];
    let [plain, deflate, zstd, none] = forms.map(|form| {
        dir.succeeds(&small(&[&["--out", "a.tiff"], form].concat()));
        // Read by the program itself.
        dir.succeeds(&["reconstruct", "a.tiff", "again.png"]);
        (fs::read(dir.join("a.tiff")).unwrap(), pixels(&dir.join("again.png")))
    });
    assert!(plain.0 == deflate.0, "the default is Deflate");
    assert!(deflate.1 == zstd.1 && deflate.1 == none.1);
    assert!(deflate.0.len() < none.0.len() && zstd.0.len() < none.0.len());
    assert!(deflate.0 != zstd.0);
}
