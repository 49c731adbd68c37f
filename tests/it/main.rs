//! The integration tests that need neither a GPU (`tests/gpu`) nor a server that is killed (`tests/faults`), one module a
//! subject; `tests/common` holds their helpers. A test's name begins with its subject and says what it promises.
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used, reason = "a failed test panics")]

#[allow(dead_code, reason = "not all helpers are for these tests")]
#[path = "../common/mod.rs"]
mod common;

mod access;
mod checkpoint;
mod cli;
mod client;
mod cpu;
mod devices;
mod differential;
mod editing;
mod engine;
mod files;
mod fuzz;
mod graph;
mod groups;
mod http;
mod labels;
mod layering;
mod network;
mod observation;
mod parity;
mod pictures_in;
mod recorded;
mod requests;
mod sampler;
mod scheduling;
mod service;
mod shaders;
