//! Memory-mapped files, and journals. Knows bytes, not networks.
//!
//! The guarantee: no map of this module can be pulled from under its reader. An [`Arena`] has no
//! name, or lies in a directory that this process holds by a [`DirectoryLock`], so nobody else
//! shortens it, and all its blocks are on the disk before it is mapped. (Access past the end of a
//! shortened file ends the process with SIGBUS.) A [`Journal`] gives back what it answered for.

mod arena;
#[cfg(feature = "service")]
pub mod journal;
mod lock;

pub use arena::{Arena, Rect, read_rect};
#[cfg(feature = "service")]
pub use journal::Journal;
pub use lock::DirectoryLock;
