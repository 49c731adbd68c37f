//! Evaluation of graphs on seeded random inputs, for the tests and benches of all backends.

use super::{Graph, evaluate};
use crate::{
    error::Result,
    ops::{Ops, Shape, testing::Random},
};

/// Values for the inputs of `graph`, in [-1, 1).
pub fn random_inputs(graph: &Graph, random: &mut Random) -> Vec<(Shape, Vec<f32>)> {
    let shapes = graph.inputs().iter().map(|&input| graph.shape(input));
    shapes.map(|shape| (shape, random.values(shape.len(), 0.0, 1.0))).collect()
}

/// The results of `graph` on `ops` for `inputs`, upload and download included.
///
/// # Errors
/// The backend's.
pub fn results<O: Ops>(
    ops: &mut O,
    graph: &Graph,
    inputs: &[(Shape, Vec<f32>)],
) -> Result<Vec<Vec<f32>>> {
    let inputs = inputs.iter().map(|(shape, data)| ops.upload(*shape, data));
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    evaluate(ops, graph, inputs)?.iter().map(|result| ops.download(result)).collect()
}
