//! Messages and services generated from `proto/tessera/v1`, where they are documented.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    reason = "generated; documented in proto/"
)]

pub mod codec;
pub mod descriptors;

tonic::include_proto!("tessera.v1");

pub use descriptors::DESCRIPTORS;

/// Domain of the reasons in `google.rpc.ErrorInfo`: a reason is the name of a [`Kind`](crate::error::Kind) in capitals,
/// the metadata are the fields of a [`Detail`](crate::error::Detail).
pub const ERROR_DOMAIN: &str = "tessera";
