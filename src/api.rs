//! Messages and services generated from `proto/tessera/v1`, where they are documented.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    reason = "generated; documented in proto/"
)]

tonic::include_proto!("tessera.v1");

/// Domain of the reasons in `google.rpc.ErrorInfo`: a reason is the name of a [`Kind`](crate::error::Kind) in capitals,
/// the metadata are the fields of a [`Detail`](crate::error::Detail).
pub const ERROR_DOMAIN: &str = "tessera";

/// The compiled proto files, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
