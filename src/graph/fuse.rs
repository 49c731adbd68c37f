//! Fusion: which results are written to memory, and which are computed by the operator that reads them.
//!
//! A convolution can apply norms, scale and shift, SiLU and nearest-neighbour upsampling to its input as it loads, and
//! can be one of the two terms of a weighted sum, which it adds as it stores. Fusion does not change a bit, except that
//! a scale and shift after a GroupNorm become one affine map with it.

use super::{Graph, Source, Value};
use crate::ops::Op;

/// Capabilities of a backend to fuse operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fusion {
    /// A convolution applies norms, scale and shift, and SiLU as it loads.
    pub norms: bool,
    /// A convolution nearest-upsamples its input as it loads, and the addend of a sum.
    pub upsampling: bool,
    /// A weighted sum is part of the convolution that computes one of its terms.
    pub sums: bool,
}

impl Fusion {
    /// Everything.
    pub const ALL: Self = Self { norms: true, upsampling: true, sums: true };
    /// Nothing: every result is written to memory.
    pub const NONE: Self = Self { norms: false, upsampling: false, sums: false };

    /// The capabilities that both have.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            norms: self.norms && other.norms,
            upsampling: self.upsampling && other.upsampling,
            sums: self.sums && other.sums,
        }
    }
}

/// Place of a value's computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is in memory: an input, or the result of an operator that is run by itself.
    Memory,
    /// The convolutions that read it apply its operator as they load; see [`Fused::load`].
    Load,
    /// It is a convolution that is computed by the weighted sum that reads it.
    Sum,
}

/// The load of a value: a value in memory, then the operators that are applied to it, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// A value in memory.
    pub source: Value,
    /// A GroupNorm, pixel norm or scale-shift that is applied first; with it, if it is a scale-shift of a value that is
    /// itself computed at loads, that one.
    pub norm: Option<Value>,
    /// True if SiLU is applied next.
    pub silu: bool,
    /// True if the result is then nearest-upsampled.
    pub up: bool,
}

impl Load {
    fn memory(source: Value) -> Self {
        Self { source, norm: None, silu: false, up: false }
    }

    /// True if nothing is applied, or upsampling alone.
    pub fn is_plain(&self) -> bool {
        self.norm.is_none() && !self.silu
    }
}

/// A graph with the places of its values.
#[derive(Clone, Debug)]
pub struct Fused<'a> {
    graph: &'a Graph,
    places: Vec<Place>,
    loads: Vec<Load>,
    freed: Vec<Vec<Value>>,
}

impl<'a> Fused<'a> {
    /// `graph` with everything fused that `fusion` allows.
    pub fn new(graph: &'a Graph, fusion: Fusion) -> Self {
        let mut pass = Pass::new(graph, fusion);
        while !pass.settle() {}
        let Pass { places, loads, .. } = pass;
        let mut fused = Self { graph, places, loads, freed: vec![Vec::new(); graph.nodes.len()] };
        for (value, last) in graph.values().zip(fused.last_reads()) {
            // Results are not freed.
            if let Some(freed) = fused.freed.get_mut(last) {
                freed.push(value);
            }
        }
        fused
    }

    /// The graph.
    pub fn graph(&self) -> &'a Graph {
        self.graph
    }

    /// Place of `value`.
    pub fn place(&self, value: Value) -> Place {
        self.places[value.0]
    }

    /// The load that ends with the operator of `value`. For a value in [`Place::Memory`] it is the computation of the value
    /// itself, if its operator can be part of a load; a value in [`Place::Sum`] has none.
    pub fn load(&self, value: Value) -> Load {
        self.loads[value.0]
    }

    /// The load by which an operator reads `value`.
    pub fn read(&self, value: Value) -> Load {
        match self.places[value.0] {
            Place::Memory => Load::memory(value),
            Place::Load | Place::Sum => self.loads[value.0],
        }
    }

    /// The convolution among the two terms of the sum `a` + `b` that the sum computes, and if it is the first one.
    pub fn term(&self, a: Value, b: Value) -> Option<(Value, bool)> {
        match (self.place(a), self.place(b)) {
            (_, Place::Sum) => Some((b, false)),
            (Place::Sum, _) => Some((a, true)),
            _ => None,
        }
    }

    /// The values whose tensors and tables nothing reads after the operator of `value` has run.
    pub fn freed_after(&self, value: Value) -> &[Value] {
        &self.freed[value.0]
    }

    /// For each node, the index of the last node that reads it when it runs, through values in other places; the number
    /// of nodes for a result.
    fn last_reads(&self) -> Vec<usize> {
        let nodes = &self.graph.nodes;
        let mut last: Vec<_> = (0..nodes.len()).collect();
        for (i, node) in nodes.iter().enumerate() {
            let Source::Operator { inputs, .. } = &node.source else { continue };
            // A term of a sum reads its inputs when the sum runs; a norm of a load, when it is prepared and at each load.
            if self.places[i] != Place::Sum {
                inputs.iter().for_each(|&input| self.note_read(&mut last, input, i));
            }
        }
        self.graph.outputs.iter().for_each(|output| last[output.0] = nodes.len());
        last
    }

    fn note_read(&self, last: &mut [usize], value: Value, reader: usize) {
        last[value.0] = last[value.0].max(reader);
        if let (Place::Load | Place::Sum, Source::Operator { inputs, .. }) =
            (self.places[value.0], &self.graph.nodes[value.0].source)
        {
            inputs.iter().for_each(|&input| self.note_read(last, input, reader));
        }
    }
}

/// The places so far. Values are only ever moved to memory, so the pass ends.
struct Pass<'a> {
    graph: &'a Graph,
    fusion: Fusion,
    places: Vec<Place>,
    loads: Vec<Load>,
}

impl<'a> Pass<'a> {
    fn new(graph: &'a Graph, fusion: Fusion) -> Self {
        let nodes = &graph.nodes;
        let mut places: Vec<_> = nodes
            .iter()
            .map(|node| match &node.source {
                Source::Operator { op, .. } if is_load(op, fusion) => Place::Load,
                _ => Place::Memory,
            })
            .collect();
        let mut reads = vec![0; nodes.len()];
        for node in nodes {
            if let Source::Operator { inputs, .. } = &node.source {
                inputs.iter().for_each(|input| reads[input.0] += 1);
            }
        }
        for output in &graph.outputs {
            (places[output.0], reads[output.0]) = (Place::Memory, reads[output.0] + 1);
        }
        for node in nodes.iter().filter(|_| fusion.sums) {
            let Source::Operator { op: Op::WeightedAdd(_), inputs } = &node.source else {
                continue;
            };
            // Of two convolutions the second one is fused: it is a block's last and largest.
            let term = inputs.iter().rev().find(|input| {
                let operator = &nodes[input.0].source;
                reads[input.0] == 1
                    && matches!(operator, Source::Operator { op: Op::Conv2d(_), .. })
            });
            if let Some(term) = term {
                places[term.0] = Place::Sum;
            }
        }
        let loads = (0..nodes.len()).map(|i| Load::memory(Value(i))).collect();
        Self { graph, fusion, places, loads }
    }

    /// Computes the loads for the present places, and moves values to memory that can't be read otherwise. True if there
    /// were none.
    fn settle(&mut self) -> bool {
        let mut settled = true;
        for (i, node) in self.graph.nodes.iter().enumerate() {
            let Source::Operator { op, inputs } = &node.source else { continue };
            let addend = match op {
                Op::WeightedAdd(_) => {
                    let fused = |input: &&Value| self.places[input.0] == Place::Sum;
                    let term = inputs.iter().find(fused);
                    term.and_then(|term| inputs.iter().find(|input| *input != term))
                }
                _ => None,
            };
            for (at, &input) in inputs.iter().enumerate() {
                if self.places[input.0] != Place::Load {
                    continue;
                }
                let load = self.loads[input.0];
                let readable = match op {
                    Op::Conv2d(_) => true,
                    Op::WeightedAdd(_) => addend == Some(&input) && load.is_plain(),
                    _ => at == 0 && self.extend(load, op, Value(i)).is_some(),
                };
                if !readable {
                    (self.places[input.0], settled) = (Place::Memory, false);
                }
            }
            if is_load(op, Fusion::ALL) {
                let x = inputs[0];
                let memory = Load::memory(x);
                let read = if self.places[x.0] == Place::Load { self.loads[x.0] } else { memory };
                let load = self.extend(read, op, Value(i)).or(self.extend(memory, op, Value(i)));
                self.loads[i] = load.unwrap_or(memory);
            }
        }
        settled
    }

    /// `read`, then the operator `op` of the node `value`; none if a load can't apply them in this order.
    fn extend(&self, read: Load, op: &Op, value: Value) -> Option<Load> {
        // What this backend does not apply at loads is applied to a value in memory only.
        let first = read.norm.is_none() && !read.silu && !read.up;
        if !is_load(op, self.fusion) && !first {
            return None;
        }
        let norm = Some(value);
        match op {
            Op::GroupNorm(p) if first => Some(Load { norm, silu: p.silu, ..read }),
            Op::PixelNorm(p) if first => Some(Load { norm, silu: p.silu, ..read }),
            Op::ScaleShift(silu) if !read.silu && !read.up && !self.is_pixel_norm(read.norm) => {
                Some(Load { norm, silu: *silu, ..read })
            }
            Op::Silu if !read.silu && !read.up => Some(Load { silu: true, ..read }),
            Op::UpsampleNearest2 if !read.up => Some(Load { up: true, ..read }),
            _ => None,
        }
    }

    fn is_pixel_norm(&self, norm: Option<Value>) -> bool {
        let source = norm.map(|norm| &self.graph.nodes[norm.0].source);
        matches!(source, Some(Source::Operator { op: Op::PixelNorm(_), .. }))
    }
}

/// True if a convolution may apply `op` as it loads.
fn is_load(op: &Op, fusion: Fusion) -> bool {
    match op {
        Op::GroupNorm(_) | Op::PixelNorm(_) | Op::ScaleShift(_) | Op::Silu => fusion.norms,
        Op::UpsampleNearest2 => fusion.upsampling,
        _ => false,
    }
}
