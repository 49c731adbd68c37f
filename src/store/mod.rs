//! Memory-mapped files. Knows bytes, not networks.
