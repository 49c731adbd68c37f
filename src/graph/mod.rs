//! Graphs of operators: a network for inputs of given shapes, before a backend runs it.
//!
//! A [`GraphBuilder`] checks every operator's shape rule as it is added. The passes compute what is known before
//! anything runs: [`Graph::cost`] (operations, bytes, parameters, peak memory), [`Graph::radius`] (receptive field),
//! [`Fused`] (lifetimes, and operators that others apply as they load and store). A [`Backend`] runs
//! a graph; [`Graph::table`] and [`Graph::dot`] print it.
//!
//! ```
//! use tessera::{exec::reference::Reference, graph::{Backend, GraphBuilder}, ops::Shape};
//!
//! let mut g = GraphBuilder::new();
//! let x = g.input(Shape::new(1, 2, 2, 1))?;
//! let mean = g.avg_pool2(x)?;
//! let graph = g.finish([mean]);
//! assert_eq!(graph.radius(mean), Some(0));
//!
//! let mut backend = Reference::new(Default::default());
//! let x = backend.upload(Shape::new(1, 2, 2, 1), &[1.0, 2.0, 3.0, 4.0])?;
//! let results = backend.run(&graph, vec![x])?;
//! assert_eq!(backend.download(&results[0])?, [2.5]);
//! # Ok::<(), tessera::error::Error>(())
//! ```

mod backend;
mod cost;
mod fuse;
mod print;
#[doc(hidden)]
pub mod testing;

pub(crate) use self::backend::{check_inputs, check_upload};
pub use self::{
    backend::{Backend, Download, Input},
    cost::{BackendMemory, Cost},
    fuse::{Fused, Fusion, Load, Place},
};

use crate::{
    error::{Error, Result},
    ops::{Conv2d, Factors, GroupNorm, Op, PixelNorm, Rect, Shape, elements},
};

/// Largest tensor in bytes: sums of a few of them fit in 64 bits.
const MAX_TENSOR: u64 = 1 << 52;

/// A tensor of a graph: an input, or the result of an operator. It belongs to the builder that returned it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Value(usize);

impl Value {
    /// Its index in [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// Origin of a [`Value`].
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// An input of the graph.
    Input,
    /// The result of an operator.
    Operator {
        /// The operator.
        op: Op,
        /// Its inputs, all of them earlier nodes.
        inputs: Vec<Value>,
    },
}

/// A value of a graph with its shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Origin.
    pub source: Source,
    /// Shape, NHWC.
    pub shape: Shape,
}

/// Operators in the order in which they run. Every value is computed before it is read.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    nodes: Vec<Node>,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
}

impl Graph {
    /// Inputs and operators, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The inputs, in the order of their creation.
    pub fn inputs(&self) -> &[Value] {
        &self.inputs
    }

    /// The results.
    pub fn outputs(&self) -> &[Value] {
        &self.outputs
    }

    /// The node of `value`.
    pub fn node(&self, value: Value) -> &Node {
        &self.nodes[value.0]
    }

    /// Shape of `value`.
    pub fn shape(&self, value: Value) -> Shape {
        self.nodes[value.0].shape
    }

    /// Floating-point operations of the node `value`, by its operator's cost rule; 0 for an input.
    pub fn flops(&self, value: Value) -> u64 {
        match &self.nodes[value.0].source {
            Source::Operator { op, inputs } => {
                op.flops(inputs.first().map_or(self.shape(value), |&x| self.shape(x)))
            }
            Source::Input => 0,
        }
    }

    /// All values, in order.
    pub fn values(&self) -> impl Iterator<Item = Value> {
        (0..self.nodes.len()).map(Value)
    }

    /// Radius of the receptive field of `value` in its pixels: the width of the border, along a cut edge of the inputs,
    /// whose values depend on the part that was cut off. `None`: unbounded.
    pub fn radius(&self, value: Value) -> Option<usize> {
        let mut radii: Vec<Option<usize>> = Vec::with_capacity(value.0 + 1);
        for node in &self.nodes[..=value.0] {
            radii.push(match &node.source {
                Source::Input => Some(0),
                Source::Operator { op, inputs } => (inputs.iter())
                    .try_fold(0, |most, input| Some(radii[input.0]?.max(most)))
                    .and_then(|radius| op.radius(radius)),
            });
        }
        radii[value.0]
    }
}

/// A graph under construction. Its methods add operators.
///
/// # Errors
/// The methods return [`crate::error::Kind::InvalidArgument`] if shapes do not fit the operator or a tensor is empty or
/// has more than 2^52 bytes.
#[derive(Clone, Debug, Default)]
pub struct GraphBuilder {
    nodes: Vec<Node>,
    inputs: Vec<Value>,
}

impl GraphBuilder {
    /// A graph without values.
    pub fn new() -> Self {
        Self::default()
    }

    /// Shape of `value`.
    pub fn shape(&self, value: Value) -> Shape {
        self.nodes[value.0].shape
    }

    /// The graph with these results.
    pub fn finish(self, outputs: impl IntoIterator<Item = Value>) -> Graph {
        let Self { nodes, inputs } = self;
        Graph { nodes, inputs, outputs: outputs.into_iter().collect() }
    }

    /// An input of `shape`.
    pub fn input(&mut self, shape: Shape) -> Result<Value> {
        let value = self.push(Source::Input, shape)?;
        self.inputs.push(value);
        Ok(value)
    }

    /// Inputs of the shapes `shapes`.
    pub fn inputs(&mut self, shapes: &[Shape]) -> Result<Vec<Value>> {
        shapes.iter().map(|&shape| self.input(shape)).collect()
    }

    /// The result of `op` with `inputs`.
    pub fn operator(&mut self, op: Op, inputs: &[Value]) -> Result<Value> {
        let shapes: Vec<_> = inputs.iter().map(|&input| self.shape(input)).collect();
        let shape = op.output_shape(&shapes)?;
        self.push(Source::Operator { op, inputs: inputs.to_vec() }, shape)
    }

    fn push(&mut self, source: Source, shape: Shape) -> Result<Value> {
        let bytes = tensor_bytes(shape);
        if bytes == 0 || bytes > MAX_TENSOR {
            let field = format!("bytes of tensor {shape:?}");
            return Err(Error::invalid(field, bytes, format!("from 1 to {MAX_TENSOR}")));
        }
        self.nodes.push(Node { source, shape });
        Ok(Value(self.nodes.len() - 1))
    }

    /// [`Op::Conv2d`].
    pub fn conv2d(&mut self, x: Value, p: Conv2d) -> Result<Value> {
        self.operator(Op::Conv2d(p), &[x])
    }

    /// [`Op::GroupNorm`].
    pub fn group_norm(&mut self, x: Value, p: GroupNorm) -> Result<Value> {
        self.operator(Op::GroupNorm(p), &[x])
    }

    /// [`Op::PixelNorm`].
    pub fn pixel_norm(&mut self, x: Value, p: PixelNorm) -> Result<Value> {
        self.operator(Op::PixelNorm(p), &[x])
    }

    /// [`Op::Silu`].
    pub fn silu(&mut self, x: Value) -> Result<Value> {
        self.operator(Op::Silu, &[x])
    }

    /// [`Op::ScaleShift`].
    pub fn scale_shift(&mut self, x: Value, pair: Value, silu: bool) -> Result<Value> {
        self.operator(Op::ScaleShift(silu), &[x, pair])
    }

    /// [`Op::WeightedAdd`].
    pub fn weighted_add(&mut self, a: Value, b: Value, factors: Factors) -> Result<Value> {
        self.operator(Op::WeightedAdd(factors), &[a, b])
    }

    /// a + b, a, b `[n, h, w, c]` -> `[n, h, w, c]`.
    pub fn add(&mut self, a: Value, b: Value) -> Result<Value> {
        self.weighted_add(a, b, Factors::Fixed(1.0, 1.0))
    }

    /// [`Op::Concat`].
    pub fn concat(&mut self, a: Value, b: Value) -> Result<Value> {
        self.operator(Op::Concat, &[a, b])
    }

    /// [`Op::AvgPool2`].
    pub fn avg_pool2(&mut self, x: Value) -> Result<Value> {
        self.operator(Op::AvgPool2, &[x])
    }

    /// [`Op::GlobalAvgPool`].
    pub fn global_avg_pool(&mut self, x: Value) -> Result<Value> {
        self.operator(Op::GlobalAvgPool, &[x])
    }

    /// [`Op::UpsampleNearest2`].
    pub fn upsample_nearest2(&mut self, x: Value) -> Result<Value> {
        self.operator(Op::UpsampleNearest2, &[x])
    }

    /// [`Op::FirDown2`].
    pub fn fir_down2(&mut self, x: Value) -> Result<Value> {
        self.operator(Op::FirDown2, &[x])
    }

    /// [`Op::FirUp2`].
    pub fn fir_up2(&mut self, x: Value) -> Result<Value> {
        self.operator(Op::FirUp2, &[x])
    }

    /// [`Op::PixelUnshuffle`].
    pub fn pixel_unshuffle(&mut self, x: Value, r: usize) -> Result<Value> {
        self.operator(Op::PixelUnshuffle(r), &[x])
    }

    /// [`Op::PixelShuffle`].
    pub fn pixel_shuffle(&mut self, x: Value, r: usize) -> Result<Value> {
        self.operator(Op::PixelShuffle(r), &[x])
    }

    /// [`Op::SpatialAttention`].
    pub fn spatial_attention(&mut self, q: Value, k: Value, v: Value) -> Result<Value> {
        self.operator(Op::SpatialAttention, &[q, k, v])
    }

    /// [`Op::Crop`].
    pub fn crop(&mut self, x: Value, window: Rect) -> Result<Value> {
        self.operator(Op::Crop(window), &[x])
    }

    /// [`Op::ChannelAttention`].
    pub fn channel_attention(&mut self, q: Value, k: Value, v: Value) -> Result<Value> {
        self.operator(Op::ChannelAttention, &[q, k, v])
    }
}

/// Bytes of a tensor of `shape`, saturating.
fn tensor_bytes(shape: Shape) -> u64 {
    elements(shape).saturating_mul(4)
}
