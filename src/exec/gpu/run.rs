//! Runs a fused graph: records the dispatches of its operators in order.

use super::{
    Gpu, attention,
    buffers::Tensor,
    conv::{self, Product, Sum},
    pointwise, reduce, resample,
};
use crate::{
    error::{Error, Result},
    graph::{Fused, Place, Source, Value},
    ops::{Op, Shape},
};

/// An input or addend of a convolution.
#[derive(Clone, Debug)]
pub(super) struct Operand {
    pub(super) tensor: Tensor,
    /// True if it is nearest-upsampled as it is read.
    pub(super) upsampled: bool,
}

impl Operand {
    /// The shape after upsampling.
    pub(super) fn shape(&self) -> Shape {
        let Shape { n, h, w, c } = self.tensor.shape();
        if self.upsampled { Shape { n, h: 2 * h, w: 2 * w, c } } else { self.tensor.shape() }
    }
}

/// Tensors of a graph that is being run, by value.
struct Values<'a> {
    fused: &'a Fused<'a>,
    tensors: Vec<Option<Tensor>>,
}

impl Values<'_> {
    /// The tensor `value` in memory.
    fn tensor(&self, value: Value) -> Result<Tensor> {
        let missing = || Error::internal("a value of a graph is read before it is computed");
        self.tensors[value.index()].clone().ok_or_else(missing)
    }

    /// The operand of a convolution that reads `value`.
    fn operand(&self, value: Value) -> Result<Operand> {
        let load = self.fused.read(value);
        Ok(Operand { tensor: self.tensor(load.source)?, upsampled: load.up })
    }

    /// The convolution `value`, not computed yet.
    fn product(&self, gpu: &mut Gpu, value: Value) -> Result<Product> {
        match &self.fused.graph().node(value).source {
            Source::Operator { op: Op::Conv2d(p), inputs } => {
                conv::product(gpu, self.operand(inputs[0])?, p)
            }
            _ => Err(Error::internal("a term of a sum is no convolution")),
        }
    }

    /// The result of `op`, the operator of `value`.
    fn compute(&self, gpu: &mut Gpu, value: Value, op: &Op, inputs: &[Value]) -> Result<Tensor> {
        match (op, inputs) {
            (Op::Conv2d(_), _) => {
                let product = self.product(gpu, value)?;
                return conv::compute(gpu, &product, None);
            }
            (Op::WeightedAdd(factors), &[a, b]) => {
                let (wa, wb) = factors.resolve(&gpu.weights)?;
                if let Some((term, first)) = self.fused.term(a, b) {
                    let addend = self.operand(if first { b } else { a })?;
                    let product = self.product(gpu, term)?;
                    let sum = Sum { addend: &addend, wa, wb, first };
                    return conv::compute(gpu, &product, Some(&sum));
                }
                let (a, b) = (self.tensor(a)?, self.tensor(b)?);
                return pointwise::weighted_add(gpu, &a, &b, wa, wb);
            }
            _ => {}
        }
        let read: Vec<_> = inputs.iter().map(|&input| self.tensor(input)).collect::<Result<_>>()?;
        let modules = [pointwise::run, reduce::run, resample::run, attention::run];
        let unknown = || Err(Error::internal(format!("the GPU has no operator {}", op.name())));
        modules.iter().find_map(|run| run(gpu, op, &read)).unwrap_or_else(unknown)
    }
}

/// Runs `fused` on `inputs`; returns its results.
pub(super) fn run(gpu: &mut Gpu, fused: &Fused<'_>, inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
    let graph = fused.graph();
    gpu.device.check()?;
    let mut values = Values { fused, tensors: vec![None; graph.nodes().len()] };
    for (value, input) in graph.inputs().iter().zip(inputs) {
        values.tensors[value.index()] = Some(input);
    }
    for (value, node) in graph.values().zip(graph.nodes()) {
        if let (Place::Memory, Source::Operator { op, inputs }) = (fused.place(value), &node.source)
        {
            values.tensors[value.index()] = Some(values.compute(gpu, value, op, inputs)?);
        }
        for &freed in fused.freed_after(value) {
            values.tensors[freed.index()] = None;
        }
    }
    graph.outputs().iter().map(|&output| values.tensor(output)).collect()
}
