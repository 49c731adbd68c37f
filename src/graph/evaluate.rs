//! Evaluation of a graph: its operators one after the other on a backend.

use super::{Graph, Source};
use crate::{
    error::{Error, Result},
    ops::Ops,
};

/// Runs the operators of `graph` on the backend `ops`; returns its results in their order. A tensor is dropped after the
/// last operator that reads it.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if number or shapes of the inputs are not the graph's; the backend's.
pub fn evaluate<O: Ops>(
    ops: &mut O,
    graph: &Graph,
    inputs: Vec<O::Tensor>,
) -> Result<Vec<O::Tensor>> {
    let found: Vec<_> = inputs.iter().map(|input| ops.shape(input)).collect();
    let wanted: Vec<_> = graph.inputs().iter().map(|&input| graph.shape(input)).collect();
    if found != wanted {
        return Err(Error::invalid(
            "inputs of the graph",
            format!("{found:?}"),
            format!("{wanted:?}"),
        ));
    }
    ops.install(|ops| run(ops, graph, inputs))
}

fn run<O: Ops>(ops: &mut O, graph: &Graph, inputs: Vec<O::Tensor>) -> Result<Vec<O::Tensor>> {
    let last = graph.last_uses();
    let mut values: Vec<Option<O::Tensor>> = vec![None; graph.nodes().len()];
    for (value, tensor) in graph.inputs().iter().zip(inputs) {
        values[value.index()] = Some(tensor);
    }
    let missing = || Error::internal("a value of a graph is read before it is computed");
    for (i, node) in graph.nodes().iter().enumerate() {
        if let Source::Operator { op, inputs } = &node.source {
            let read = inputs.iter().map(|input| values[input.index()].clone().ok_or_else(missing));
            let result = op.apply(ops, &read.collect::<Result<Vec<_>>>()?)?;
            values[i] = Some(result);
        }
        for dropped in graph.freed_after(i, &last) {
            values[dropped] = None;
        }
    }
    let results = graph.outputs().iter();
    results.map(|output| values[output.index()].clone().ok_or_else(missing)).collect()
}
