//! Cost of a graph before it runs: operations, bytes, parameters and peak memory.

use std::{collections::HashMap, fmt};

use super::{Fused, Fusion, Graph, Source, tensor_bytes};
use crate::{
    error::{Error, Result},
    ops::{Conv2d, Op, Shape, product},
};

/// Cost of a graph. Numbers saturate.
///
/// ```
/// use tessera::{graph::GraphBuilder, ops::Shape};
///
/// let mut g = GraphBuilder::new();
/// let x = g.input(Shape::new(1, 8, 8, 4))?;
/// let y = g.silu(x)?;
/// let cost = g.finish([y]).cost(None)?;
/// assert_eq!((cost.flops, cost.peak_bytes), (3 * 256, 2 * 4 * 256));
/// # Ok::<(), tessera::error::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations, by the operators' cost rules.
    pub flops: u64,
    /// Bytes read and written by the operators, parameters included, without caches.
    pub bytes: u64,
    /// Names and shapes of the parameters in the order of first use.
    pub params: Vec<(String, Vec<usize>)>,
    /// Peak memory in bytes: tensors alive at one time, with inputs and the operators' scratch memory, without
    /// parameters.
    pub peak_bytes: u64,
    /// Upper bound in bytes of a backend's packed weights, which it keeps in addition to the parameters.
    pub packed_bytes: u64,
}

impl Cost {
    /// Number of values of all parameters.
    pub fn parameter_count(&self) -> u64 {
        let count = |(_, shape): &(String, Vec<usize>)| product(shape);
        self.params.iter().map(count).fold(0, u64::saturating_add)
    }
}

/// Memory rules of a backend: upper bounds in bytes of what it allocates in addition to tensors and parameters.
pub trait BackendMemory: fmt::Debug + Send + Sync {
    /// Packed weights of a layer.
    fn packed_weights(&self, p: &Conv2d) -> u64;

    /// Scratch memory of a convolution with an input of shape `x`.
    fn conv2d_scratch(&self, x: Shape, p: &Conv2d) -> u64;

    /// Scratch memory of attention over pixels or over channels with queries of shape `q`.
    fn attention_scratch(&self, q: Shape) -> u64;
}

/// Scratch memory of `op` with a first input of shape `x`.
fn scratch(backend: &dyn BackendMemory, op: &Op, x: Shape) -> u64 {
    match op {
        Op::Conv2d(p) => backend.conv2d_scratch(x, p),
        Op::SpatialAttention | Op::ChannelAttention => backend.attention_scratch(x),
        _ => 0,
    }
}

impl Graph {
    /// Its cost on `backend`; `None`: on one that allocates nothing but tensors. A tensor lives until the last operator
    /// that reads it has run, and a result to the end.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidModel`] if a parameter is used with two shapes.
    pub fn cost(&self, backend: Option<&dyn BackendMemory>) -> Result<Cost> {
        let (mut cost, mut known) = (Cost::default(), HashMap::new());
        let unfused = Fused::new(self, Fusion::NONE);
        let bytes: Vec<_> = self.nodes.iter().map(|node| tensor_bytes(node.shape)).collect();
        let sum = |values: &mut dyn Iterator<Item = u64>| values.fold(0, u64::saturating_add);
        // The inputs exist before the first operator runs.
        let mut alive = sum(&mut self.inputs.iter().map(|input| bytes[input.0]));
        cost.peak_bytes = alive;
        for (value, node) in self.values().zip(&self.nodes) {
            let Source::Operator { op, inputs } = &node.source else { continue };
            let x = inputs.first().map_or(node.shape, |&x| self.shape(x));
            if let (Op::Conv2d(p), Some(backend)) = (op, backend)
                && op.params().first().is_some_and(|(name, _)| !known.contains_key(name))
            {
                cost.packed_bytes = cost.packed_bytes.saturating_add(backend.packed_weights(p));
            }
            for (name, shape) in op.params() {
                cost.bytes = cost.bytes.saturating_add(product(&shape).saturating_mul(4));
                match known.get(&name) {
                    Some(known) if *known == shape => {}
                    Some(_) => {
                        let field = format!("parameter {name}");
                        return Err(Error::model(field, "used with two shapes", "one shape"));
                    }
                    None => {
                        known.insert(name.clone(), shape.clone());
                        cost.params.push((name, shape));
                    }
                }
            }
            cost.flops = cost.flops.saturating_add(self.flops(value));
            let read = sum(&mut inputs.iter().map(|input| bytes[input.0]));
            cost.bytes = cost.bytes.saturating_add(read).saturating_add(bytes[value.0]);
            alive = alive.saturating_add(bytes[value.0]);
            let scratch = backend.map_or(0, |backend| scratch(backend, op, x));
            cost.peak_bytes = cost.peak_bytes.max(alive.saturating_add(scratch));
            alive -= unfused.freed_after(value).iter().map(|freed| bytes[freed.0]).sum::<u64>();
        }
        Ok(cost)
    }
}
