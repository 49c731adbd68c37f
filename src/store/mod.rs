//! Memory-mapped files. Knows bytes, not networks.
//!
//! The guarantee: no map of this module can be pulled from under its reader. An [`Arena`] has no
//! name, so nobody else can shorten it, and all its blocks are on the disk before it is mapped.
//! (Access past the end of a shortened file ends the process with SIGBUS.)

mod arena;

pub use arena::{Arena, Rect};
