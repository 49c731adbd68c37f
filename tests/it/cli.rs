//! The command line as a user meets it: results, progress, exit codes, and what every bad input is told.

mod stdout;
mod traps;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;
use tessera::exec::cpu::Kernels;

use crate::common::{
    command::{Dir, events},
    fixture,
    gpu::any_adapter,
};

fn of_kind<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|e| e["event"] == kind).collect()
}

fn pixels(path: &Path) -> image::RgbImage {
    image::open(path).unwrap().into_rgb8()
}

const SMALL: [&str; 5] = ["generate", "--size", "64x48", "--steps", "3"];

fn small<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&SMALL[..], more].concat()
}

/// Every shell's completions know the commands and their flags.
#[test]
fn completions_name_commands_and_flags() {
    let dir = Dir::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = dir.succeeds(&["completions", shell]);
        for word in ["tessera", "generate", "serve", "guidance"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    dir.refused(&["completions", "tcl"], &["tcl", "bash"]);
}

/// A page for the program and one for each command; nothing is written into a folder that is not there.
#[test]
fn manual_has_a_page_for_every_command() {
    let dir = Dir::new();
    std::fs::create_dir(dir.join("man")).unwrap();
    let stdout = dir.succeeds(&["manual", "man"]);
    let help = dir.succeeds(&["--help"]);
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.map_while(|line| line.split_whitespace().next());
    let commands: Vec<_> = listed.filter(|command| *command != "help").collect();
    assert!(commands.len() > 10 && stdout.contains(&format!("{} pages", commands.len() + 1)));
    for command in commands {
        let page = dir.join("man").join(format!("tessera-{command}.1"));
        let page = std::fs::read_to_string(page).unwrap_or_else(|e| panic!("{command}: {e}"));
        assert!(page.contains(".SH OPTIONS"), "{command}");
    }
    assert!(
        std::fs::read_to_string(dir.join("man/tessera.1")).unwrap().contains("tessera\\-generate")
    );
    dir.fails(&["manual", "nowhere"], 2, &["nowhere", "existing directory"]);
}

#[test]
fn generate_writes_the_size_asked_for_and_prints_it() {
    let dir = Dir::new();
    let stdout = dir.succeeds(&small(&["--seed", "7", "--out", "a.tiff"]));
    assert!(stdout.contains("a.tiff") && stdout.contains("64 x 48"), "{stdout}");
    assert_eq!(pixels(&dir.join("a.tiff")).dimensions(), (64, 48));
    assert_eq!(dir.names(), ["a.tiff"]);
}

#[test]
fn out_defaults_to_a_file_named_after_the_seed() {
    let dir = Dir::new();
    dir.succeeds(&small(&["--seed", "12"]));
    assert_eq!(dir.names(), ["tessera-12.tiff"]);
}

#[test]
fn seed_decides_the_picture() {
    let dir = Dir::new();
    let picture = |name: &str, args: &[&str]| {
        dir.succeeds(&small(&[args, &["--out", name]].concat()));
        pixels(&dir.join(name))
    };
    let first = picture("a.png", &["--seed", "7", "--threads", "1"]);
    assert!(first == picture("b.tiff", &["--seed", "7", "--threads", "2"]));
    assert!(first != picture("c.png", &["--seed", "8"]));
    assert!(first != picture("d.png", &["--seed", "7", "--sampler", "heun"]));
}

#[test]
fn threads_do_not_change_the_file() {
    let dir = Dir::new();
    for name in ["a.tiff", "a.png"] {
        let file = |threads: &str| {
            let args = ["--seed", "7", "--threads", threads, "--out", name, "--json"];
            let started = dir.succeeds(&small(&args));
            assert!(started.contains(&format!("CPU, {threads} thread")), "{started}");
            fs::read(dir.join(name)).unwrap()
        };
        assert!(file("1") == file("2"), "{name}");
    }
}

#[test]
fn bits_16_agree_with_bits_8() {
    let dir = Dir::new();
    for (bits, name) in [("8", "8.png"), ("16", "16.png"), ("16", "16.tiff")] {
        dir.succeeds(&small(&["--bits", bits, "--out", name]));
    }
    let eight = pixels(&dir.join("8.png"));
    for name in ["16.png", "16.tiff"] {
        let sixteen = image::open(dir.join(name)).unwrap();
        assert_eq!(sixteen.color(), image::ColorType::Rgb16);
        for (a, b) in eight.iter().zip(sixteen.into_rgb16().iter()) {
            assert!((f64::from(*a) - f64::from(*b) / 257.0).abs() <= 0.5 + 1e-6);
        }
    }
}

#[test]
fn count_numbers_files_and_seeds() {
    let dir = Dir::new();
    dir.succeeds(&small(&["--seed", "5", "--count", "3", "--out", "out.png"]));
    assert_eq!(dir.names(), ["out-0001.png", "out-0002.png", "out-0003.png"]);
    dir.succeeds(&small(&["--seed", "7", "--out", "single.png"]));
    assert!(pixels(&dir.join("out-0003.png")) == pixels(&dir.join("single.png")));
}

#[test]
fn json_events_are_complete_numbered_and_alone_on_standard_output() {
    let dir = Dir::new();
    let args = small(&["--tile", "64", "--seed", "9", "--json", "--out", "a.tiff"]);
    let events = events(&dir.succeeds(&args));
    for (i, event) in events.iter().enumerate() {
        assert_eq!(event["sequence"], i + 1);
    }
    assert_eq!(events[0]["event"], "started");
    assert_eq!(events[0]["seed"], 9);
    assert_eq!(events[0]["model_sha256"].as_str().unwrap().len(), 64);
    // Another size than the trained one works, and is said.
    assert!(of_kind(&events, "notice")[0]["message"].as_str().unwrap().contains("96x64"));
    let steps: Vec<_> = of_kind(&events, "step").iter().map(|e| e["step"].as_u64()).collect();
    assert_eq!(steps, [Some(1), Some(2), Some(3)]);
    let mut levels: Vec<_> =
        of_kind(&events, "settled").iter().map(|e| e["level"].as_u64().unwrap()).collect();
    levels.sort_unstable();
    assert_eq!(levels, [0, 1, 2]);
    let tiles = of_kind(&events, "tile");
    assert_eq!(tiles.len(), 1);
    assert_eq!((&tiles[0]["width"], &tiles[0]["height"]), (&64.into(), &48.into()));
    let last = events.last().unwrap();
    assert_eq!(last["event"], "finished");
    assert_eq!(last["bytes"], fs::metadata(dir.join("a.tiff")).unwrap().len());
}

#[test]
fn metadata_names_model_seed_and_sampler() {
    let dir = Dir::new();
    let args = small(&["--seed", "41", "--sampler", "ddim", "--json", "--out", "a.tiff"]);
    let events = events(&dir.succeeds(&args));
    let file = fs::read(dir.join("a.tiff")).unwrap();
    let file = String::from_utf8_lossy(&file);
    let hash = events[0]["model_sha256"].as_str().unwrap();
    for entry in ["<t:seed>41<", "<t:steps>3<", "<t:sampler>ddim<", hash, env!("CARGO_PKG_VERSION")]
    {
        assert!(file.contains(entry), "{entry}");
    }
}

#[test]
fn progress_without_a_terminal_is_plain_lines_on_standard_error() {
    let dir = Dir::new();
    let ran = dir.run(&small(&["--out", "a.tiff"]));
    let (stdout, stderr) = (&ran.stdout, &ran.stderr);
    assert!(!stderr.contains(['\x1b', '\r']) && !stdout.contains(['\x1b', '\r']), "{stderr}");
    assert!(stderr.contains("denoise") && stderr.contains("decode"), "{stderr}");
    assert!(stderr.lines().count() < 10, "{stderr}");
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
}

#[test]
fn flags_take_precedence_over_the_environment() {
    let dir = Dir::new();
    let mut command = dir.command();
    command.env("TESSERA_MODEL", "missing").env("TESSERA_DEVICE", "none");
    command.args(["generate", "--steps", "1", "--size", "32x32", "--device", "cpu", "--model"]);
    dir.finish(command.arg(fixture("net-c.safetensors"))).ended(0, &[]);
    for (name, value) in [
        ("TESSERA_DEVICE", "none"),
        ("TESSERA_PRECISION", "none"),
        ("TESSERA_THREADS", "0"),
        ("TESSERA_LOG", "a=b=c"),
    ] {
        dir.finish(dir.command().env(name, value).args(small(&[]))).ended(2, &[name]);
    }
}

#[test]
fn flags_out_of_range_are_refused_with_field_value_limit_and_nearest() {
    let dir = Dir::new();
    let largest_seed = u64::MAX.to_string();
    let cases: &[(&[&str], &[&str])] = &[
        (&["--size", "0x64"], &["width", "0", "16384", "nearest: 16"]),
        (&["--size", "64x0"], &["height", "0", "16384", "nearest: 16"]),
        (&["--size", "100x64"], &["width", "100", "multiple of 16", "nearest: 96"]),
        (&["--size", "64x16400"], &["height", "16400", "16384", "nearest: 16384"]),
        (&["--size", "18446744073709551615x16"], &["width", "16384"]),
        (&["--size", "64"], &["64", "2048x1024"]),
        (&["--size", "-64x64"], &["64"]),
        (&["--steps", "0"], &["steps", "0", "1000", "nearest: 1"]),
        (&["--steps", "1001"], &["steps", "1001", "nearest: 1000"]),
        (&["--steps", "many"], &["steps", "many"]),
        (&["--tile", "0"], &["tile", "0", "64", "1024", "nearest: 64"]),
        (&["--tile", "63"], &["tile", "63", "64", "1024", "nearest: 64"]),
        (&["--tile", "1025"], &["tile", "1025", "nearest: 1024"]),
        (&["--tile", "half"], &["tile", "half", "whole"]),
        (&["--bits", "12"], &["bits", "12", "8 or 16"]),
        (&["--count", "0"], &["count", "0", "9999"]),
        (&["--count", "10000"], &["count", "10000", "9999"]),
        (&["--seed", &largest_seed, "--count", "2"], &["seed", &largest_seed]),
        (&["--seed", "-1"], &["seed"]),
        (&["--sampler", "euler"], &["sampler", "euler", "heun", "dpmpp", "ddim"]),
        (&["--device", "gpu:x"], &["device", "gpu:x", "gpu:N"]),
        (&["--threads", "0"], &["threads", "0", "1024"]),
        (&["--precision", "f8"], &["precision", "f8", "f32, bf16, f16, auto"]),
    ];
    for (args, words) in cases {
        dir.refused(&[&["generate", "--out", "a.tiff"], *args].concat(), words);
    }
}

#[test]
fn output_that_can_not_be_written_is_refused_before_the_work() {
    let dir = Dir::new();
    fs::write(dir.join("file"), "").unwrap();
    fs::create_dir(dir.join("directory.tiff")).unwrap();
    let mut cases = vec![
        ("a.jpeg", "a.jpeg"),
        ("a", ".tiff, .tif or .png"),
        ("missing/a.tiff", "existing directory"),
        ("file/a.tiff", "out"),
        ("directory.tiff", "is a directory"),
    ];
    if cfg!(target_os = "linux") {
        // Nobody, root included, can make a file here.
        cases.push(("/proc/a.tiff", "/proc"));
    }
    for (out, word) in cases {
        dir.refused(&small(&["--out", out]), &[word]);
        dir.refused(&["reconstruct", "file", out], &[word]);
    }
}

#[test]
fn count_checks_every_output_before_the_first_picture() {
    let dir = Dir::new();
    fs::create_dir(dir.join("a-0002.tiff")).unwrap();
    dir.refused(&small(&["--count", "2", "--out", "a.tiff"]), &["a-0002.tiff"]);
}

#[cfg(unix)]
#[test]
fn disk_full_is_an_error_that_leaves_no_file() {
    let dir = Dir::new();
    // 64 x 48 pixels need 9216 bytes of working space, more than the first limit; 16 x 16 need 768, which fits the
    // second, but the file with its profile and its metadata does not.
    for (blocks, size) in [(8, "64x48"), (2, "16x16")] {
        for out in ["a.tiff", "a.png"] {
            let args = ["generate", "--steps", "1", "--size", size, "--out", out];
            // No file can grow past that many blocks of 512 bytes, as on a disk that is full.
            let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
            let words = ["/bin/sh", "-c", &script, env!("CARGO_BIN_EXE_tessera")];
            let ran = dir.finish(dir.command_by(&words).args(args));
            ran.ended(1, &["can't"]);
            assert_eq!(ran.names, [""; 0], "{ran}");
        }
    }
}

#[test]
fn out_that_exists_survives_a_failure_and_is_replaced_by_a_success() {
    let dir = Dir::new();
    let path = dir.join("a.png");
    fs::write(&path, "before").unwrap();
    dir.refused(&small(&["--tile", "1", "--out", "a.png"]), &["tile"]);
    assert_eq!(fs::read(&path).unwrap(), b"before");
    dir.succeeds(&small(&["--out", "a.png"]));
    assert_eq!(pixels(&path).dimensions(), (64, 48));
}

/// A checkpoint with its header changed.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let file = fs::read(fixture(name)).unwrap();
    let end = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&file[8..end]).unwrap();
    change(&mut header);
    let mut header = header.to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &file[end..]].concat()
}

#[test]
fn model_missing_truncated_or_mismatched_is_refused() {
    let dir = Dir::new();
    let whole = fs::read(fixture("net-a.safetensors")).unwrap();
    let rename = |header: &mut Value| {
        let header = header.as_object_mut().unwrap();
        let tensor = header.remove("unet.enter.weight").unwrap();
        header.insert("unet.entry.weight".into(), tensor);
    };
    let widen = |header: &mut Value| {
        let arch = header["__metadata__"]["arch"].as_str().unwrap();
        let arch = arch.replace("\"embedding\":8", "\"embedding\":10");
        header["__metadata__"]["arch"] = arch.into();
    };
    let mut lying = whole.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut nan = whole.clone();
    let last = nan.len() - 4;
    nan[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    let cases: [(&str, Vec<u8>, &str); 7] = [
        ("empty", Vec::new(), "empty"),
        ("truncated", whole[..whole.len() / 2].to_vec(), "truncated"),
        ("picture", b"\x89PNG\r\n\x1a\n a picture, not weights".to_vec(), "picture"),
        ("lying", lying, "18446744073709551615"),
        ("renamed", changed("net-a.safetensors", rename), "unet.ent"),
        ("widened", changed("net-a.safetensors", widen), "shape"),
        ("nan", nan, "NaN"),
    ];
    for (name, bytes, word) in cases {
        fs::write(dir.join(name), bytes).unwrap();
        dir.refused(&small(&["--model", name]), &[word]);
        dir.refused(&["inspect", name], &[word]);
    }
    dir.refused(&small(&["--model", "missing"]), &["model", "missing"]);
    dir.refused(&small(&["--model", "."]), &["model"]);
}

#[test]
fn input_that_can_not_be_read_is_refused() {
    let dir = Dir::new();
    dir.succeeds(&small(&["--out", "whole.png"]));
    let whole = fs::read(dir.join("whole.png")).unwrap();
    fs::write(dir.join("half.png"), &whole[..whole.len() / 2]).unwrap();
    fs::write(dir.join("words.jpg"), "not a picture").unwrap();
    fs::write(dir.join("empty.tiff"), "").unwrap();
    for name in ["half.png", "words.jpg", "empty.tiff", "missing.png", "."] {
        dir.refused(&["reconstruct", name, "out.png"], &[name]);
        dir.refused(&["encode", name, "out.safetensors"], &[name]);
    }
}

#[test]
fn reconstruct_keeps_odd_sizes_and_prints_the_psnr() {
    let dir = Dir::new();
    let picture =
        image::RgbImage::from_fn(53, 37, |x, y| image::Rgb([(x * 4) as u8, (y * 6) as u8, 99]));
    picture.save(dir.join("in.png")).unwrap();
    let stdout = dir.succeeds(&["reconstruct", "in.png", "out.png"]);
    let out = pixels(&dir.join("out.png"));
    assert_eq!(out.dimensions(), (53, 37));
    let error: f64 =
        picture.iter().zip(out.iter()).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    let psnr = 10.0 * (255.0 * 255.0 * picture.len() as f64 / error).log10();
    assert!(stdout.contains(&format!("PSNR {psnr:.2} dB")), "{psnr}: {stdout}");
}

#[test]
fn edit_keeps_the_size_and_says_what_it_changed_and_how_much() {
    let dir = Dir::new();
    let picture = image::RgbImage::from_fn(53, 31, |x, y| image::Rgb([x as u8, y as u8, 90]));
    picture.save(dir.join("in.png")).unwrap();
    let flags = ["--seed", "3", "--steps", "4", "--json"];
    for (strength, steps) in [("0", 0), ("0.5", 2), ("1", 4)] {
        let args = [&["edit", "in.png", "out.png", "--strength", strength], &flags[..]].concat();
        let events = events(&dir.succeeds(&args));
        assert_eq!(of_kind(&events, "step").len(), steps, "{strength}");
        let strength: f64 = strength.parse().unwrap();
        assert_eq!(of_kind(&events, "started")[0]["strength"], strength);
        assert_eq!(pixels(&dir.join("out.png")).dimensions(), (53, 31));
    }
    for (strength, words) in [("1.01", ["strength", "1.01"]), ("-1", ["strength", "-1"])] {
        let args = ["edit", "in.png", "new.png", "--strength", strength];
        dir.refused(&args, &words);
    }
    dir.refused(&["edit", "gone.png", "new.png"], &["gone.png"]);
}

#[test]
fn encode_then_decode_is_reconstruct() {
    let dir = Dir::new();
    let picture =
        image::RgbImage::from_fn(70, 45, |x, y| image::Rgb([(x * 3) as u8, 7, (y * 5) as u8]));
    picture.save(dir.join("in.png")).unwrap();
    dir.succeeds(&["reconstruct", "in.png", "one.png"]);
    dir.succeeds(&["encode", "in.png", "latents.safetensors"]);
    dir.succeeds(&["decode", "latents.safetensors", "two.png", "--tile", "64"]);
    assert!(pixels(&dir.join("one.png")) == pixels(&dir.join("two.png")));
    // Latents of one model do not fit another.
    let other = fixture("net-b.safetensors");
    let args = ["decode", "latents.safetensors", "b.png", "--model", other.to_str().unwrap()];
    dir.refused(&args, &["latent"]);
    dir.refused(&["decode", "in.png", "c.png"], &["in.png"]);
    dir.refused(&["decode", "missing", "c.png"], &["missing"]);
    let weights = fixture("net-a.safetensors");
    dir.refused(&["decode", weights.to_str().unwrap(), "c.png"], &["latents"]);
}

#[test]
fn inspect_counts_what_the_file_holds() {
    let dir = Dir::new();
    let path = fixture("net-a.safetensors");
    let path = path.to_str().unwrap();
    let report = events(&dir.succeeds(&["inspect", path, "--json"])).remove(0);
    let file = fs::read(path).unwrap();
    let data = file.len() - 8 - u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    assert_eq!(report["parameters"], data / 4, "the fixture is f32");
    assert_eq!(report["levels"].as_array().unwrap().len(), 3);
    assert!(report["step_flops"].as_u64().unwrap() > 0 && report["halo"].as_u64().unwrap() > 0);
    let table = dir.succeeds(&["inspect", path]);
    assert!(table.contains(report["sha256"].as_str().unwrap()), "{table}");
}

#[test]
fn devices_lists_the_cpu_and_marks_one_device() {
    let dir = Dir::new();
    let report = events(&dir.succeeds(&["devices", "--json"])).remove(0);
    let devices = report["devices"].as_array().unwrap();
    assert!(devices.iter().any(|d| d["selector"] == "cpu"));
    assert_eq!(devices.iter().filter(|d| d["auto"] == true).count(), 1);
    // A software GPU is never the one.
    assert!(devices.iter().all(|d| d["auto"] == false || d["software"] == false));
    assert!(dir.succeeds(&["devices"]).contains("cpu"));
}

/// On a machine without a desktop no driver's complaint about that is in what is printed.
#[test]
fn devices_prints_no_driver_warning_without_a_desktop() {
    let dir = Dir::new();
    let mut command = dir.command();
    command.arg("devices").env_remove("XDG_RUNTIME_DIR").env_remove("NODEVICE_SELECT");
    let ran = dir.finish(&mut command);
    assert_eq!(ran.stderr, "", "{ran}");
    assert!(ran.status.success(), "{ran}");
}

#[test]
fn gpu_index_out_of_range_lists_the_adapters() {
    let dir = Dir::new();
    dir.fails(&small(&["--device", "gpu:99"]), 1, &["99", "found"]);
}

/// What was compiled for a GPU lies in the folder that was asked for, nowhere with "none", else in the user's cache folder; a
/// damaged file changes no pixel and is replaced.
#[test]
fn gpu_cache_lies_in_the_folder_asked_for() {
    let Some((adapter, _turn)) = any_adapter() else { return };
    if adapter.backend != "Vulkan" {
        return println!("skipped: only Vulkan drivers let out what they compiled");
    }
    let dir = Dir::new();
    let picture = |flags: &[&str]| {
        let arguments = [&["--device", "gpu", "--out", "a.png"], flags].concat();
        let mut command = dir.command();
        command.args(small(&arguments)).env("XDG_CACHE_HOME", dir.join("user"));
        dir.finish(&mut command).ended(0, &[]);
        fs::read(dir.join("a.png")).unwrap()
    };
    let kept = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.to_string_lossy().ends_with("-pipelines")).collect()
    };
    let wanted = picture(&["--gpu-cache", "none"]);
    // The driver may keep files of its own there.
    assert!(!dir.join("user/tessera").exists());
    assert!(picture(&[]) == wanted);
    assert_eq!(kept(&dir.join("user/tessera")).len(), 1);
    let folder = dir.join("kernels");
    assert!(picture(&["--gpu-cache", "kernels"]) == wanted);
    let [file] = &kept(&folder)[..] else { panic!("{:?}", kept(&folder)) };
    let whole = fs::read(file).unwrap();
    fs::write(file, &whole[..whole.len() / 2]).unwrap();
    assert!(picture(&["--gpu-cache", "kernels"]) == wanted);
    assert_eq!(fs::read(file).unwrap().len(), whole.len());
}

/// bf16 is used when asked for and there, said in the picture's receipt, and refused where it is not there; `auto` takes what is
/// faster; f16 is not for the CPU.
#[test]
fn precision_is_named_in_the_metadata() {
    let dir = Dir::new();
    let picture = |precision: &str| {
        let flags = ["--device", "cpu", "--precision", precision, "--out", "a.tiff"];
        let ran = dir.run(&small(&flags));
        ran.status.success().then(|| fs::read(dir.join("a.tiff")).unwrap())
    };
    let names = |file: &[u8], text: &str| file.windows(text.len()).any(|w| w == text.as_bytes());
    let exact = picture("f32").unwrap();
    assert!(!names(&exact, "bf16"));
    assert!(picture("f16").is_none());
    let Some(kernels) = Kernels::best(true) else {
        assert!(picture("bf16").is_none());
        assert!(picture("auto").unwrap() == exact);
        return;
    };
    let short = picture("bf16").unwrap();
    assert!(names(&short, kernels.name()));
    let auto = picture("auto").unwrap();
    assert!(auto == short || auto == exact);
}

#[test]
fn json_has_an_event_for_failures() {
    let dir = Dir::new();
    let events = events(&dir.run(&small(&["--tile", "1", "--json"])).stdout);
    let last = events.last().unwrap();
    assert_eq!((&last["event"], &last["kind"]), (&"failed".into(), &"invalid_argument".into()));
    assert!(last["message"].as_str().unwrap().contains("tile"));
}

#[cfg(unix)]
#[test]
fn signals_end_with_exit_code_130_and_leave_no_file() {
    for signal in ["-INT", "-TERM"] {
        let dir = Dir::new();
        let mut command = dir.command();
        command.args(["generate", "--json", "--steps", "1000"]);
        command.args(["--size", "512x512", "--out", "a.tiff"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let step = lines.by_ref().find(|line| line.as_ref().unwrap().contains("\"step\""));
        assert!(step.is_some(), "it ended before its first step");
        let id = child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        let last = lines.last().unwrap().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert!(last.contains("\"cancelled\""), "{last}");
        assert_eq!(dir.names(), [""; 0]);
    }
}
