//! Size of file systems.

use std::path::Path;

/// Bytes of the file system that holds `path`, used ones included; `None` if the system does not tell.
pub fn capacity(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let sizes = rustix::fs::statvfs(path).ok()?;
        sizes.f_blocks.checked_mul(sizes.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_is_known_for_directories_that_exist() {
        let dir = tempfile::tempdir().unwrap();
        if cfg!(unix) {
            assert!(capacity(dir.path()).is_some_and(|bytes| bytes > 0));
        }
        assert_eq!(capacity(&dir.path().join("missing")), None);
    }
}
