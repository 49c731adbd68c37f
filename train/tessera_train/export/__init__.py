"""Exported model files: writing, reading, test vectors for the Rust crate."""
