//! How it is computed: the implementations of [`crate::ops::Ops`].

pub mod reference;
pub mod trace;
