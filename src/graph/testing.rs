//! Evaluation of graphs and single operators, for the tests and benches of all backends.

use super::{Backend, Graph, GraphBuilder};
use crate::{
    error::{Error, Result},
    ops::{
        Op, Shape,
        testing::{Random, TestCase},
    },
};

/// Values for the inputs of `graph`, in [-1, 1).
pub fn random_inputs(graph: &Graph, random: &mut Random) -> Vec<(Shape, Vec<f32>)> {
    let shapes = graph.inputs().iter().map(|&input| graph.shape(input));
    shapes.map(|shape| (shape, random.values(shape.len(), 0.0, 1.0))).collect()
}

/// The results of `graph` on `backend` for `inputs`, upload and download included.
///
/// # Errors
/// The backend's.
pub fn results<B: Backend>(
    backend: &mut B,
    graph: &Graph,
    inputs: &[(Shape, Vec<f32>)],
) -> Result<Vec<Vec<f32>>> {
    let inputs = inputs.iter().map(|(shape, data)| backend.upload(*shape, data));
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    backend.run(graph, inputs)?.iter().map(|result| backend.download(result)).collect()
}

/// The result of the single operator `op` on `backend`.
///
/// # Errors
/// The operator's; the backend's.
pub fn apply<B: Backend>(backend: &mut B, op: &Op, inputs: &[B::Tensor]) -> Result<B::Tensor> {
    let mut g = GraphBuilder::new();
    let values = inputs.iter().map(|input| g.input(backend.shape(input)));
    let values = values.collect::<Result<Vec<_>>>()?;
    let result = g.operator(op.clone(), &values)?;
    let mut results = backend.run(&g.finish([result]), inputs.to_vec())?;
    results.pop().ok_or_else(|| Error::internal("a graph has no result"))
}

/// Shape and values of the result of `case` on `backend`.
///
/// # Errors
/// The operator's; the backend's.
pub fn run_case<B: Backend>(backend: &mut B, case: &TestCase) -> Result<(Shape, Vec<f32>)> {
    let inputs = case.inputs.iter().map(|(shape, data)| backend.upload(*shape, data));
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    let result = apply(backend, &case.op, &inputs)?;
    Ok((backend.shape(&result), backend.download(&result)?))
}
