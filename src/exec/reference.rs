//! The naive backend: every operator by the reference in its own file. Tests compare the other backends with it.

use std::sync::Arc;

use crate::{
    error::{Error, Result},
    graph::{Backend, Download, Fused, Fusion, Graph, Source, check_inputs, check_upload},
    ops::{Shape, weights::Weights},
};

/// The reference backend. It fuses nothing.
///
/// ```
/// use tessera::{exec::reference::Reference, graph::Backend, ops::Shape};
///
/// let mut backend = Reference::new(Default::default());
/// let x = backend.upload(Shape::new(1, 1, 1, 2), &[1.0, 2.0])?;
/// assert_eq!(backend.download(&x)?, [1.0, 2.0]);
/// # Ok::<(), tessera::error::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Reference {
    weights: Arc<Weights>,
}

/// A tensor of [`Reference`].
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: Shape,
    data: Arc<[f32]>,
}

impl Reference {
    /// A backend with the parameters `weights`.
    pub fn new(weights: Arc<Weights>) -> Self {
        Self { weights }
    }
}

impl Backend for Reference {
    type Tensor = Tensor;

    fn shape(&self, x: &Tensor) -> Shape {
        x.shape
    }

    fn upload(&mut self, shape: Shape, data: &[f32]) -> Result<Tensor> {
        check_upload(shape, data.len())?;
        Ok(Tensor { shape, data: data.into() })
    }

    fn download_later(&mut self, x: &Tensor) -> Result<Download> {
        Ok(x.data.to_vec().into())
    }

    fn run(&mut self, graph: &Graph, inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        check_inputs(graph, inputs.iter().map(|input| input.shape))?;
        let mut inputs = inputs.into_iter();
        let unfused = Fused::new(graph, Fusion::NONE);
        let mut values: Vec<Option<Tensor>> = Vec::with_capacity(graph.nodes().len());
        let missing = || Error::internal("a value of a graph is read before it is computed");
        for (value, node) in graph.values().zip(graph.nodes()) {
            values.push(match &node.source {
                Source::Input => inputs.next(),
                Source::Operator { op, inputs } => {
                    let read = inputs.iter().map(|input| {
                        let x = values[input.index()].as_ref().ok_or_else(missing)?;
                        Ok((x.shape, &x.data[..]))
                    });
                    let data = op.reference(&read.collect::<Result<Vec<_>>>()?, &self.weights)?;
                    Some(Tensor { shape: node.shape, data: data.into() })
                }
            });
            unfused.freed_after(value).iter().for_each(|freed| values[freed.index()] = None);
        }
        let results = graph.outputs().iter();
        results.map(|output| values[output.index()].clone().ok_or_else(missing)).collect()
    }
}
