//! What is computed: the architecture and, generic over [`crate::ops::Ops`], the networks. Knows no device.

pub mod arch;
