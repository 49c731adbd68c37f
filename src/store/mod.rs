//! Memory-mapped files. Knows bytes, not networks.
//!
//! The guarantee: no map of this module can be pulled from under its reader. An [`Arena`] has no
//! name, so nobody else can shorten it, and all its blocks are on the disk before it is mapped; a
//! [`FileBytes`] is mapped only where no other user can shorten it, and is read into memory
//! elsewhere. (Access past the end of a shortened file ends the process with SIGBUS.)

mod arena;
mod mapped;

pub use arena::{Arena, Rect};
pub use mapped::FileBytes;
