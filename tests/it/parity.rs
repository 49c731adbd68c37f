//! The interpreters against the networks' definition in PyTorch: the fixtures hold inputs and outputs of every operator,
//! block and net, computed there in f64.

use tessera::{exec::reference::Reference, graph::testing::run_case, ops::testing};

use crate::common::parity;

/// Largest relative L2 error of the reference: its sums are f64, its results f32.
const REFERENCE: f64 = 1e-5;

#[test]
fn reference_operators_match_pytorch() {
    parity::operators(Reference::new, REFERENCE);
}

#[test]
fn reference_blocks_match_pytorch() {
    parity::blocks(Reference::new, REFERENCE);
}

#[test]
fn reference_networks_match_pytorch() {
    parity::networks(Reference::new, REFERENCE);
}

/// Every case of the table runs, gives finite values, and is the same again from the same seed.
#[test]
fn reference_runs_every_case() {
    let table = testing::suite(1);
    let mut reference = Reference::new(table.weights.clone());
    for case in &table.cases {
        let (shape, out) =
            run_case(&mut reference, case).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert_eq!(shape.len(), out.len(), "{}", case.name);
        assert!(out.iter().all(|v| v.is_finite()), "{}", case.name);
    }
    assert_eq!(table.cases[9].inputs, testing::suite(1).cases[9].inputs);
}
