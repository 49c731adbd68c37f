//! The built program in a temporary directory; a command that ends otherwise than expected shows itself, its directory and
//! its output.

use std::{
    ffi::OsStr,
    fmt, fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use serde_json::Value;
use tempfile::TempDir;

use super::fixture;

/// A temporary directory that the program runs in.
pub(crate) struct Dir {
    dir: TempDir,
    server: Option<String>,
}

impl Dir {
    /// An empty directory.
    pub(crate) fn new() -> Self {
        Self { dir: TempDir::new().unwrap(), server: None }
    }

    /// The same directory; commands in it talk to the server at `url`.
    pub(crate) fn with_server(self, url: &str) -> Self {
        Self { server: Some(url.to_owned()), ..self }
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The path of `name` in it.
    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Names of all its entries in order, hidden ones too.
    pub(crate) fn names(&self) -> Vec<String> {
        names(self.path())
    }

    /// The program in it: on the CPU, with the model `net-a`, and without this process's settings.
    pub(crate) fn command(&self) -> Command {
        self.command_by(&[env!("CARGO_BIN_EXE_tessera")])
    }

    /// As [`Dir::command`], for words that end in running the program.
    pub(crate) fn command_by<S: AsRef<OsStr>>(&self, words: &[S]) -> Command {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(self.path());
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("TESSERA_")) {
                command.env_remove(name);
            }
        }
        command.env("TESSERA_MODEL", fixture("net-a.safetensors")).env("TESSERA_DEVICE", "cpu");
        if let Some(url) = &self.server {
            command.env("TESSERA_SERVER", url);
        }
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        self.finish(self.command().args(args))
    }

    /// Runs `command` to its end.
    pub(crate) fn finish(&self, command: &mut Command) -> Ran {
        let output = command.output().unwrap_or_else(|e| panic!("{command:?} does not start: {e}"));
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran {
            command: format!("{command:?}"),
            names: self.names(),
            status: output.status,
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Runs what must succeed; gives standard output.
    #[track_caller]
    pub(crate) fn succeeds(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert!(ran.status.success(), "it must succeed: {ran}");
        ran.stdout
    }

    /// Runs what must end with exit code `code`, every one of `words` in the message, and leave the directory as it was.
    #[track_caller]
    pub(crate) fn fails(&self, args: &[&str], code: i32, words: &[&str]) {
        let before = self.names();
        let ran = self.run(args);
        ran.ended(code, words);
        assert_eq!(ran.names, before, "entries changed: {ran}");
    }

    /// Runs what must be refused as bad input: [`Dir::fails`] with exit code 2.
    #[track_caller]
    pub(crate) fn refused(&self, args: &[&str], words: &[&str]) {
        self.fails(args, 2, words);
    }
}

/// A command that has ended.
pub(crate) struct Ran {
    command: String,
    /// Entries of the directory afterwards.
    pub(crate) names: Vec<String>,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Its exit code is `code`, and every one of `words` is in its standard error.
    #[track_caller]
    pub(crate) fn ended(&self, code: i32, words: &[&str]) {
        assert_eq!(self.status.code(), Some(code), "{self}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is missing: {self}");
        }
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, names, status, stdout, stderr } = self;
        write!(
            f,
            "\ncommand: {command}\n{status}\ndirectory: {names:?}\nstdout:\n{stdout}\nstderr:\n{stderr}"
        )
    }
}

/// Names of all entries of `dir` in order, hidden ones too.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The JSON events of `stdout`, one a line.
pub(crate) fn events(stdout: &str) -> Vec<Value> {
    let event = |line| {
        serde_json::from_str(line).unwrap_or_else(|e| panic!("{line:?} is not an event: {e}"))
    };
    stdout.lines().map(event).collect()
}
