#![allow(clippy::panic, reason = "a failed test panics")]
//! The interpreters against each other and against the networks' definition in PyTorch.

use tessera::{exec::reference::Reference, ops::cases};

/// Every case of the table runs, gives finite values, and is the same again from the same seed.
#[test]
fn reference_runs_every_case() {
    let table = cases::table(1);
    let mut reference = Reference::new(table.weights.clone());
    for case in &table.cases {
        let (shape, out) =
            case.run(&mut reference).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert_eq!(shape.len(), out.len(), "{}", case.name);
        assert!(out.iter().all(|v| v.is_finite()), "{}", case.name);
    }
    assert_eq!(table.cases[9].inputs, cases::table(1).cases[9].inputs);
}
