//! Settings of the process: defaults < environment < flags. The environment is read here, once, and nowhere else.

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::error::{Error, Result};

/// Most threads that `TESSERA_THREADS` and `--threads` accept.
pub const MAX_THREADS: usize = 1024;

/// A text that is shown nowhere, such as a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes `text` into hiding.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What the environment says; flags take precedence over it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `TESSERA_MODEL`: checkpoint to use in place of the embedded one.
    pub model: Option<PathBuf>,
    /// `TESSERA_DEVICE`: `auto`, `cpu`, `gpu` or `gpu:N`.
    pub device: Option<String>,
    /// `TESSERA_PRECISION`: `f32`, `bf16`, `f16` or `auto`.
    pub precision: Option<String>,
    /// `TESSERA_THREADS`: threads of the native CPU path.
    pub threads: Option<usize>,
    /// `TESSERA_GPU_CACHE`: folder for what was compiled and measured on GPUs; `none` for none. The user's cache folder
    /// without it.
    pub gpu_cache: Option<PathBuf>,
    /// `SOURCE_DATE_EPOCH`: seconds since 1970 that pictures state as their time of making; without it they state none,
    /// so that the same picture is always the same file.
    pub created: Option<SystemTime>,
    /// `TESSERA_LOG`: filter of the log, such as `info` or `tessera=debug`.
    pub log: Option<String>,
    /// `TESSERA_SERVER`: address of the service that client commands call.
    pub server: Option<String>,
    /// `TESSERA_TOKEN`: what client commands show to the service as bearer token.
    pub token: Option<Secret>,
}

impl Config {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] naming the variable whose value can't be used.
    pub fn from_env() -> Result<Self> {
        Self::from_vars(|name| std::env::var_os(name))
    }

    /// Reads variables through `var`; an empty one counts as absent.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] naming the variable whose value can't be used.
    pub fn from_vars(var: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let set = |name: &str| var(name).filter(|value| !value.is_empty());
        let text = |name: &str| match set(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(value)) => {
                Err(Error::invalid(name.to_owned(), format!("{value:?}"), "UTF-8 text"))
            }
        };
        let secret = |name: &str| match set(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(Secret::new(value))),
            Some(Err(_)) => Err(Error::invalid(name.to_owned(), "(secret)", "UTF-8 text")),
        };
        let threads = match text("TESSERA_THREADS")? {
            None => None,
            Some(value) => Some(
                parse_threads(&value)
                    .map_err(|expected| Error::invalid("TESSERA_THREADS", &value, expected))?,
            ),
        };
        let created = match text("SOURCE_DATE_EPOCH")? {
            None => None,
            Some(value) => {
                let seconds = value.parse().map_err(|_| {
                    Error::invalid("SOURCE_DATE_EPOCH", format!("{value:?}"), "a number of seconds")
                })?;
                SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
            }
        };
        let gpu_cache = match set("TESSERA_GPU_CACHE").map(PathBuf::from) {
            Some(folder) => folder_or_none(folder),
            None => user_cache(|name| set(name).map(PathBuf::from)),
        };
        Ok(Self {
            created,
            gpu_cache,
            model: set("TESSERA_MODEL").map(PathBuf::from),
            device: text("TESSERA_DEVICE")?,
            precision: text("TESSERA_PRECISION")?,
            threads,
            log: text("TESSERA_LOG")?,
            server: text("TESSERA_SERVER")?,
            token: secret("TESSERA_TOKEN")?,
        })
    }
}

/// Whether this process has no desktop session, and nobody has decided on Mesa's layer that sorts Vulkan devices
/// (`NODEVICE_SELECT`). It asks the session for its device and, without one, prints an error at every look at the devices.
pub fn is_without_session() -> bool {
    ["XDG_RUNTIME_DIR", "NODEVICE_SELECT"].iter().all(|name| std::env::var_os(name).is_none())
}

/// The folder that is meant: None for `none`.
pub fn folder_or_none(folder: PathBuf) -> Option<PathBuf> {
    Some(folder).filter(|folder| folder != Path::new("none"))
}

/// Where the platform wants caches of this program; None where nothing says it.
fn user_cache(var: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    // The XDG base directory specification has relative ones ignored.
    let absolute = |name| var(name).filter(|folder| folder.is_absolute());
    let folder = if cfg!(target_os = "windows") {
        absolute("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        absolute("HOME").map(|home| home.join("Library/Caches"))
    } else {
        absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))
    };
    Some(folder?.join("tessera"))
}

/// A number of threads, from 1 to [`MAX_THREADS`].
///
/// # Errors
/// What is wrong with the text.
pub fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if (1..=MAX_THREADS).contains(&threads) => Ok(threads),
        _ => Err(format!("a number of threads from 1 to {MAX_THREADS}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(vars: &[(&str, &str)]) -> Result<Config> {
        Config::from_vars(|name| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn every_variable_reaches_its_setting() {
        let vars = [
            ("TESSERA_MODEL", "a.safetensors"),
            ("TESSERA_DEVICE", "cpu"),
            ("TESSERA_PRECISION", "auto"),
            ("TESSERA_THREADS", "3"),
            ("TESSERA_GPU_CACHE", "kernels"),
            ("SOURCE_DATE_EPOCH", "86400"),
            ("TESSERA_LOG", "info"),
            ("TESSERA_SERVER", "https://pictures.example"),
            ("TESSERA_TOKEN", "open sesame"),
        ];
        let expected = Config {
            model: Some("a.safetensors".into()),
            device: Some("cpu".into()),
            precision: Some("auto".into()),
            threads: Some(3),
            gpu_cache: Some("kernels".into()),
            created: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(86400)),
            log: Some("info".into()),
            server: Some("https://pictures.example".into()),
            token: Some(Secret::new("open sesame")),
        };
        assert_eq!(config(&vars).ok(), Some(expected));
    }

    #[test]
    fn a_token_is_not_shown() {
        let shown = format!("{:?}", config(&[("TESSERA_TOKEN", "open sesame")]));
        assert!(!shown.contains("sesame"), "{shown}");
    }

    #[test]
    fn an_empty_variable_is_an_absent_one() {
        let vars = [("TESSERA_MODEL", ""), ("TESSERA_THREADS", "")];
        assert_eq!(config(&vars).ok(), Some(Config::default()));
    }

    #[test]
    fn the_cache_is_the_users_unless_a_folder_or_none_is_given() {
        let cache = |vars: &[(&str, &str)]| config(vars).ok().and_then(|config| config.gpu_cache);
        let off = [("HOME", "/home/a"), ("TESSERA_GPU_CACHE", "none")];
        assert_eq!(cache(&off), None);
        assert_eq!(cache(&[]), None);
        if cfg!(target_os = "linux") {
            let home = ("HOME", "/home/a");
            assert_eq!(cache(&[home]), Some("/home/a/.cache/tessera".into()));
            let set = ("XDG_CACHE_HOME", "/var/cache/a");
            assert_eq!(cache(&[home, set]), Some("/var/cache/a/tessera".into()));
            let relative = ("XDG_CACHE_HOME", "cache");
            assert_eq!(cache(&[home, relative]), Some("/home/a/.cache/tessera".into()));
        }
    }

    #[test]
    fn a_bad_number_of_threads_is_named_with_its_limit() {
        for value in ["0", "1025", "two", "-1"] {
            let error = config(&[("TESSERA_THREADS", value)]).err();
            assert_eq!(error.as_ref().and_then(Error::field), Some("TESSERA_THREADS"));
        }
    }
}
