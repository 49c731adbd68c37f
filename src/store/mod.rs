//! Storage: memory-mapped files, journals, directory locks. It handles bytes and does not know networks.
//!
//! Guarantee: no mapped file is shortened while it is mapped (reading past its end would end the process with SIGBUS).
//! An [`BackingFile`] has no name or is in a directory that this process holds by a [`DirectoryLock`], and all its
//! blocks are allocated before it is mapped. A journal returns every record whose append succeeded.

mod atomic;
mod backing_file;
#[cfg(feature = "service")]
mod capacity;
#[cfg(feature = "service")]
pub mod disk;
pub mod hash;
#[cfg(feature = "service")]
pub mod journal;
mod lock;

pub use atomic::{AtomicFile, preflight, sync_directory};
pub use backing_file::{BackingFile, RowSpan, read_rows, write_rows};
#[cfg(feature = "service")]
pub use capacity::capacity;
#[cfg(feature = "service")]
pub use disk::Disk;
#[cfg(feature = "service")]
pub use journal::Journal;
pub use lock::DirectoryLock;
