//! The process environment: variables that have no flag, and what `main` needs before it starts threads.

use std::{
    ffi::OsString,
    fmt,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use crate::error::{Error, Result};

/// A text that `Debug` does not show, such as a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Settings that have no flag. Flags that can also be set by a variable are declared in the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The user's cache directory for compiled and measured GPU kernels.
    pub gpu_cache: Option<PathBuf>,
    /// `SOURCE_DATE_EPOCH`: creation time that files state, in seconds since 1970. Without it they state none, so that equal
    /// pictures are equal files.
    pub created: Option<SystemTime>,
    /// `TESSERA_LOG`: filter of the log, such as `info` or `tessera=debug`.
    pub log: Option<String>,
}

impl Config {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] naming the variable whose value is not accepted.
    pub fn from_env() -> Result<Self> {
        Self::from_vars(|name| std::env::var_os(name))
    }

    /// Reads variables through `var`; an empty one counts as absent.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] naming the variable whose value is not accepted.
    pub fn from_vars(var: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let set = |name: &str| var(name).filter(|value| !value.is_empty());
        let text = |name: &'static str| match set(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(value)) => Err(Error::invalid(name, format!("{value:?}"), "UTF-8 text")),
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
        let gpu_cache = user_cache(|name| set(name).map(PathBuf::from));
        Ok(Self { created, gpu_cache, log: text("TESSERA_LOG")? })
    }
}

/// The arguments of this process as text, without its name.
pub fn arguments() -> Vec<String> {
    std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect()
}

/// Names of this program's variables that are empty, which counts as absent.
pub fn empty_variables() -> Vec<OsString> {
    let ours = |name: &OsString| name.to_string_lossy().starts_with("TESSERA_");
    std::env::vars_os()
        .filter(|(name, value)| ours(name) && value.is_empty())
        .map(|(name, _)| name)
        .collect()
}

/// True if this process has no desktop session and `NODEVICE_SELECT` is not set. Mesa's device-select layer for Vulkan asks
/// the session for its device; without one it prints an error whenever devices are listed.
pub fn is_without_session() -> bool {
    ["XDG_RUNTIME_DIR", "NODEVICE_SELECT"].iter().all(|name| std::env::var_os(name).is_none())
}

/// The platform's cache directory for this program; `None` if no variable names it.
fn user_cache(var: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    // The XDG base directory specification ignores relative paths.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn config(vars: &[(&str, &str)]) -> Result<Config> {
        Config::from_vars(|name| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn variables_reach_their_settings() {
        let vars = [("SOURCE_DATE_EPOCH", "86400"), ("TESSERA_LOG", "info")];
        let created = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(86400));
        let expected = Config { created, log: Some("info".into()), gpu_cache: None };
        assert_eq!(config(&vars).ok(), Some(expected));
        let error = config(&[("SOURCE_DATE_EPOCH", "today")]).err();
        assert_eq!(error.as_ref().and_then(Error::field), Some("SOURCE_DATE_EPOCH"));
    }

    #[test]
    fn secrets_are_not_shown() {
        assert!(!format!("{:?}", Secret::new("open sesame")).contains("sesame"));
    }

    #[test]
    fn empty_variables_are_absent() {
        let vars = [("SOURCE_DATE_EPOCH", ""), ("TESSERA_LOG", "")];
        assert_eq!(config(&vars).ok(), Some(Config::default()));
    }

    #[test]
    fn the_cache_is_the_users() {
        let cache = |vars: &[(&str, &str)]| config(vars).ok().and_then(|config| config.gpu_cache);
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
}
