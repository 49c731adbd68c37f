//! The layering of ARCHITECTURE.md, as a test: a module imports from a lower rank or from itself; the device, the
//! terminal, the map and the environment are each named in one place only.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Modules by rank; the longest match counts.
const RANKS: &[(&str, usize)] = &[
    ("error", 0),
    ("attribution", 0),
    ("config", 0),
    ("geometry", 0),
    ("pem", 0),
    ("telemetry", 0),
    ("model::arch", 1),
    ("ops", 1),
    ("store", 1),
    ("graph", 2),
    ("image_out", 2),
    ("image_in", 2),
    ("model", 3),
    ("exec", 4),
    ("engine", 5),
    ("jobs", 6),
    ("api", 6),
    ("service", 7),
    ("client", 7),
    ("cli", 8),
];

/// Names that may be written only in the modules listed with them.
const CONFINED: &[(&str, &[&str])] = &[
    ("env", &["config", "main"]),
    (
        "unsafe",
        &[
            "cli::memory",
            "cli::signals",
            "store",
            "exec::cpu",
            "exec::gpu::cache",
            "exec::gpu::device",
            "main",
        ],
    ),
    ("memmap2", &["store"]),
    ("wgpu", &["exec::gpu"]),
    ("naga", &["exec::gpu"]),
    ("clap", &["cli"]),
    ("indicatif", &["cli"]),
    ("ctrlc", &["cli"]),
    ("tokio", &["jobs", "service", "client", "telemetry"]),
    ("opentelemetry", &["telemetry"]),
    ("tonic", &["api", "service", "client"]),
    ("tokio_rustls", &["pem", "service"]),
];

/// One source file without comments, literals and unit tests.
struct Source {
    path: PathBuf,
    /// `exec::gpu::device` of `src/exec/gpu/device.rs`.
    module: String,
    code: String,
}

fn sources() -> Vec<Source> {
    fn visit(root: &Path, dir: &Path, out: &mut Vec<Source>) {
        let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                visit(root, &path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let parts = path.strip_prefix(root).unwrap().with_extension("");
                let parts: Vec<_> = parts.iter().map(|p| p.to_str().unwrap()).collect();
                let parts = parts.strip_suffix(&["mod"]).unwrap_or(&parts);
                let code = bare(&fs::read_to_string(&path).unwrap());
                out.push(Source { module: parts.join("::"), path, code });
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut out = Vec::new();
    visit(&root, &root, &mut out);
    out
}

/// The code up to the unit tests, with comments and the contents of literals blanked.
fn bare(text: &str) -> String {
    let mark = "\n#[cfg(test)]\n";
    let is_tests = |&(at, _): &(usize, &str)| {
        let mut lines = text[at + mark.len()..].lines();
        lines.find(|line| line.starts_with("mod ")) == Some("mod tests {")
    };
    let end = text.match_indices(mark).find(is_tests).map_or(text.len(), |(at, _)| at);
    let text = &text[..end];
    let bytes = text.as_bytes();
    let mut out = String::new();
    let mut i = 0;
    while i < bytes.len() {
        let rest = &text[i..];
        if rest.starts_with("//") {
            i += rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with("/*") {
            i += rest.find("*/").map_or(rest.len(), |end| end + 2);
        } else if let Some(raw) = rest.strip_prefix("r#\"") {
            i += 3 + raw.find("\"#").map_or(raw.len(), |end| end + 2);
        } else if rest.starts_with('"') {
            i += 1;
            while i < bytes.len() && bytes[i] != b'"' {
                i += if bytes[i] == b'\\' { 2 } else { 1 };
            }
            i += 1;
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            i += if rest.starts_with("'\"'") { 3 } else { 4 };
        } else {
            let c = rest.chars().next().unwrap();
            out.push(c);
            i += c.len_utf8();
        }
    }
    out
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Every path below the crate's root that `code` of `module` names: `crate::a::b`, `crate::{a, b::c}`, and `super::`
/// chains long enough to reach the root.
fn crate_paths(code: &str, module: &str) -> Vec<String> {
    let mut out = paths_of("crate", code);
    let to_root = "super::".repeat(module.split("::").count());
    for (at, _) in code.match_indices(&to_root) {
        let mut found = Vec::new();
        tree(&code[at + to_root.len()..], "", &mut found);
        out.extend(found.into_iter().filter(|path| rank(path).is_some()));
    }
    out
}

/// Every path that begins with `root::`, without it.
fn paths_of(root: &str, code: &str) -> Vec<String> {
    let mut out = Vec::new();
    for (at, found) in code.match_indices(&format!("{root}::")) {
        if !code[..at].chars().next_back().is_some_and(is_name) {
            tree(&code[at + found.len()..], "", &mut out);
        }
    }
    out
}

/// Collects the paths of a use tree such as `a::{b, c::d}`; returns what follows it.
fn tree<'a>(text: &'a str, prefix: &str, out: &mut Vec<String>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start();
            if let Some(end) = rest.strip_prefix('}') {
                return end;
            }
            let before = rest.len();
            rest = tree(rest, prefix, out).trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest);
            assert!(rest.len() < before, "a use tree that this test can't read: {text:.60}");
        }
    }
    let end = text.find(|c| !is_name(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}::{name}") };
    if let Some(rest) = rest.strip_prefix("::") {
        return tree(rest, &path, out);
    }
    out.push(path);
    match rest.trim_start().strip_prefix("as ") {
        Some(alias) => alias.trim_start().trim_start_matches(is_name),
        None => rest.strip_prefix('*').unwrap_or(rest),
    }
}

/// The ranked module that `path` is in, and its rank.
fn rank(path: &str) -> Option<(&'static str, usize)> {
    let within = |module: &str| path == module || path.starts_with(&format!("{module}::"));
    let matches = RANKS.iter().filter(|(module, _)| within(module));
    matches.max_by_key(|(module, _)| module.len()).copied()
}

/// Every module may name `error`, which names none.
#[test]
fn modules_import_only_from_lower_ranks_or_themselves() {
    let mut broken = Vec::new();
    for source in sources() {
        if source.module == "lib" || source.module == "main" {
            continue;
        }
        let (module, own) = rank(&source.module)
            .unwrap_or_else(|| panic!("{} has no rank in this test", source.module));
        for path in crate_paths(&source.code, &source.module) {
            let Some((target, other)) = rank(&path) else { continue };
            if target != module && target != "error" && other >= own {
                broken.push(format!(
                    "{} (rank {own}) names crate::{path} (rank {other})",
                    source.path.display()
                ));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn confined_names_stay_in_their_modules() {
    let mut broken = Vec::new();
    for source in sources() {
        for (name, rooms) in CONFINED {
            let at = |i: usize| source.code.as_bytes().get(i).map_or(' ', |&b| b as char);
            let word = source.code.match_indices(name).any(|(i, _)| {
                let before = source.code[..i].chars().next_back().unwrap_or(' ');
                !is_name(before) && before != ':' && !is_name(at(i + name.len()))
            });
            let environment = paths_of("std", &source.code).iter().any(|p| p.starts_with("env"));
            let named = if *name == "env" { environment } else { word };
            let inside = rooms.iter().any(|room| {
                source.module == *room || source.module.starts_with(&format!("{room}::"))
            });
            if named && !inside {
                broken.push(format!("{} names {name}", source.path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Unsafe code is in the store, in two files of the command line, in one of the CPU path and in one of the GPU's. Two single calls are beside: the leave to
/// use what wgpu calls experimental, and a variable that is set before there are threads.
#[test]
fn unsafe_code_stays_in_its_modules_except_two_calls() {
    let rooms = ["store", "cli::memory", "cli::signals", "exec::cpu::kernels", "exec::gpu::cache"];
    let calls = [
        ("exec::gpu::device", "unsafe{wgpu::ExperimentalFeatures::enabled()}"),
        ("main", "unsafe{std::env::set_var("),
        ("main", "unsafe{std::env::remove_var("),
    ];
    let outside = |source: &Source| !rooms.iter().any(|room| source.module.starts_with(room));
    for source in sources().into_iter().filter(outside) {
        let code: String = source.code.split_whitespace().collect();
        let allowed = calls.iter().filter(|(module, _)| source.module == *module);
        let found = allowed.map(|(_, call)| code.matches(call).count()).collect::<Vec<_>>();
        let blocks = code.matches("unsafe{").count();
        assert!(found.iter().all(|&n| n == 1), "{}", source.path.display());
        assert_eq!(blocks, found.len(), "{}", source.path.display());
    }
}

#[test]
fn parser_sees_grouped_nested_and_relative_imports() {
    let code = bare(
        "// crate::comment\nuse crate::{error::{Error, Result as R}, ops};\nlet x = crate::exec::cpu::Cpu;\n\
         \"crate::text\"; use super::super::engine::plan; use crate::model::*;\n",
    );
    let found = crate_paths(&code, "store::arena");
    let expected =
        ["error::Error", "error::Result", "ops", "exec::cpu::Cpu", "model::", "engine::plan"];
    assert_eq!(found, expected);
    assert_eq!(rank("model::arch::Arch"), Some(("model::arch", 1)));
    assert_eq!(rank("model::unet"), Some(("model", 3)));
}
