//! The tracer: a backend without arithmetic. It follows shapes and collects the parameters, FLOPs, bytes moved and peak
//! memory of a network, and the receptive field of its results.
//!
//! It only needs the operators' shape and cost rules, so it belongs to this module and not to the backends: the
//! checkpoint loader gets the list of parameters from it.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{Conv2d, GroupNorm, Ops, PixelNorm, Rect, Shape, elements};
use crate::error::{Error, Result};

/// Cost of a traced network. Numbers saturate.
///
/// ```
/// use tessera::ops::{Ops, Shape, tracer::Tracer};
///
/// let mut tracer = Tracer::new();
/// let x = tracer.input(Shape::new(1, 8, 8, 4))?;
/// let y = tracer.silu(&x)?;
/// let cost = tracer.finish();
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
        let count = |(_, shape): &(String, Vec<usize>)| super::product(shape);
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

/// The tracing backend.
#[derive(Debug, Default)]
pub struct Tracer {
    /// Counted in [`Cost::packed_bytes`] and [`Cost::peak_bytes`]; None: a backend that allocates nothing.
    backend: Option<&'static dyn BackendMemory>,
    cost: Cost,
    known: HashMap<String, usize>,
    memory: Arc<Memory>,
}

/// A tensor of [`Tracer`]: a shape and a receptive-field radius.
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: Shape,
    radius: Option<usize>,
    _allocation: Arc<Allocation>,
}

impl Tensor {
    /// Receptive-field radius in this tensor's pixels: the width of the border, along a cut edge of the input, whose
    /// values depend on the part that was cut off. None: unbounded.
    pub fn radius(&self) -> Option<usize> {
        self.radius
    }
}

/// Bytes alive and their peak. Tracing has one thread; atomics make the tensors `Send`.
#[derive(Debug, Default)]
struct Memory {
    alive: AtomicU64,
    peak: AtomicU64,
}

/// The memory of a tensor and its clones.
#[derive(Debug)]
struct Allocation {
    bytes: u64,
    memory: Arc<Memory>,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.memory.alive.fetch_sub(self.bytes, Relaxed);
    }
}

fn bytes_of(shape: Shape) -> u64 {
    elements(shape).saturating_mul(4)
}

fn farthest(a: &Tensor, b: &Tensor) -> Option<usize> {
    Some(a.radius?.max(b.radius?))
}

impl Tracer {
    /// A tracer with zero cost, for a backend without memory of its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// A tracer with zero cost that counts the memory of `backend`.
    pub fn with_memory(backend: &'static dyn BackendMemory) -> Self {
        Self { backend: Some(backend), ..Self::default() }
    }

    /// An input of `shape`, with a receptive-field radius of 0.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] when it is empty or has more than 2^52 bytes.
    pub fn input(&self, shape: Shape) -> Result<Tensor> {
        self.tensor(shape, Some(0))
    }

    /// The cost of everything that was traced.
    pub fn finish(self) -> Cost {
        Cost { peak_bytes: self.memory.peak.load(Relaxed), ..self.cost }
    }

    fn tensor(&self, shape: Shape, radius: Option<usize>) -> Result<Tensor> {
        let bytes = bytes_of(shape);
        if bytes == 0 || bytes > 1 << 52 {
            return Err(Error::invalid(
                format!("bytes of tensor {shape:?}"),
                bytes,
                format!("from 1 to {}", 1u64 << 52),
            ));
        }
        let alive = self.memory.alive.fetch_add(bytes, Relaxed).saturating_add(bytes);
        self.memory.peak.fetch_max(alive, Relaxed);
        let allocation = Arc::new(Allocation { bytes, memory: self.memory.clone() });
        Ok(Tensor { shape, radius, _allocation: allocation })
    }

    /// Counts an operator's scratch memory in addition to everything alive.
    fn scratch(&self, bytes: impl FnOnce(&dyn BackendMemory) -> u64) {
        let bytes = self.backend.map_or(0, bytes);
        let alive = self.memory.alive.load(Relaxed);
        self.memory.peak.fetch_max(alive.saturating_add(bytes), Relaxed);
    }

    /// The result of an operator with `inputs`; counts its cost.
    fn result(
        &mut self,
        inputs: &[&Tensor],
        shape: Result<Shape>,
        flops: u64,
        radius: Option<usize>,
    ) -> Result<Tensor> {
        let out = self.tensor(shape?, radius)?;
        let tensors = inputs.iter().map(|x| x.shape).chain([out.shape]);
        let bytes = tensors.map(bytes_of).fold(0, u64::saturating_add);
        self.cost.bytes = self.cost.bytes.saturating_add(bytes);
        self.cost.flops = self.cost.flops.saturating_add(flops);
        Ok(out)
    }

    fn param(&mut self, (name, shape): (String, Vec<usize>)) -> Result<()> {
        let bytes = super::product(&shape).saturating_mul(4);
        self.cost.bytes = self.cost.bytes.saturating_add(bytes);
        match self.known.get(&name) {
            Some(&at) if self.cost.params[at].1 == shape => Ok(()),
            Some(_) => {
                Err(Error::model(format!("parameter {name}"), "used with two shapes", "one shape"))
            }
            None => {
                self.known.insert(name.clone(), self.cost.params.len());
                self.cost.params.push((name, shape));
                Ok(())
            }
        }
    }
}

impl Ops for Tracer {
    type Tensor = Tensor;

    fn shape(&self, x: &Tensor) -> Shape {
        x.shape
    }

    fn upload(&mut self, shape: Shape, data: &[f32]) -> Result<Tensor> {
        super::check_upload(shape, data.len())?;
        self.input(shape)
    }

    /// Always fails: there are no values.
    fn download(&mut self, _: &Tensor) -> Result<Vec<f32>> {
        Err(Error::internal("a traced tensor has no values to download"))
    }

    fn scalar(&mut self, name: &str) -> Result<f32> {
        self.param((name.into(), vec![1]))?;
        Ok(0.0)
    }

    fn conv2d(&mut self, x: &Tensor, p: &Conv2d) -> Result<Tensor> {
        let shape = super::conv2d::output_shape(x.shape, p)?;
        if !self.known.contains_key(&p.params()[0].0) {
            let bytes = self.backend.map_or(0, |backend| backend.packed_weights(p));
            self.cost.packed_bytes = self.cost.packed_bytes.saturating_add(bytes);
        }
        p.params().into_iter().try_for_each(|param| self.param(param))?;
        let radius = x.radius.map(|radius| radius + p.kernel / 2);
        let out = self.result(&[x], Ok(shape), super::conv2d::flops(x.shape, p), radius)?;
        self.scratch(|backend| backend.conv2d_scratch(x.shape, p));
        Ok(out)
    }

    fn group_norm(&mut self, x: &Tensor, p: &GroupNorm) -> Result<Tensor> {
        let shape = super::group_norm::output_shape(x.shape, p)?;
        p.params().into_iter().try_for_each(|param| self.param(param))?;
        self.result(&[x], Ok(shape), super::group_norm::flops(x.shape, p), None)
    }

    fn pixel_norm(&mut self, x: &Tensor, p: &PixelNorm) -> Result<Tensor> {
        let shape = super::pixel_norm::output_shape(x.shape, p)?;
        p.params().into_iter().try_for_each(|param| self.param(param))?;
        self.result(&[x], Ok(shape), super::pixel_norm::flops(x.shape, p), x.radius)
    }

    fn silu(&mut self, x: &Tensor) -> Result<Tensor> {
        let flops = super::silu::flops(x.shape);
        self.result(&[x], super::silu::output_shape(x.shape), flops, x.radius)
    }

    fn scale_shift(&mut self, x: &Tensor, pair: &Tensor, silu: bool) -> Result<Tensor> {
        let shape = super::scale_shift::output_shape(x.shape, pair.shape);
        self.result(&[x, pair], shape, super::scale_shift::flops(x.shape, silu), farthest(x, pair))
    }

    fn weighted_add(&mut self, a: &Tensor, b: &Tensor, _wa: f32, _wb: f32) -> Result<Tensor> {
        let shape = super::weighted_add::output_shape(a.shape, b.shape);
        self.result(&[a, b], shape, super::weighted_add::flops(a.shape), farthest(a, b))
    }

    fn concat(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let shape = super::concat::output_shape(a.shape, b.shape);
        self.result(&[a, b], shape, 0, farthest(a, b))
    }

    fn avg_pool2(&mut self, x: &Tensor) -> Result<Tensor> {
        let flops = super::avg_pool2::flops(x.shape);
        let radius = x.radius.map(|radius| radius.div_ceil(2));
        self.result(&[x], super::avg_pool2::output_shape(x.shape), flops, radius)
    }

    fn global_avg_pool(&mut self, x: &Tensor) -> Result<Tensor> {
        let flops = super::global_avg_pool::flops(x.shape);
        self.result(&[x], super::global_avg_pool::output_shape(x.shape), flops, None)
    }

    fn upsample_nearest2(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = super::upsample_nearest2::output_shape(x.shape);
        self.result(&[x], shape, 0, x.radius.map(|radius| 2 * radius))
    }

    fn fir_down2(&mut self, x: &Tensor) -> Result<Tensor> {
        let flops = super::fir_down2::flops(x.shape);
        let radius = x.radius.map(|radius| (radius + 1).div_ceil(2));
        self.result(&[x], super::fir_down2::output_shape(x.shape), flops, radius)
    }

    fn fir_up2(&mut self, x: &Tensor) -> Result<Tensor> {
        let flops = super::fir_up2::flops(x.shape);
        let radius = x.radius.map(|radius| 2 * radius + 1);
        self.result(&[x], super::fir_up2::output_shape(x.shape), flops, radius)
    }

    fn pixel_unshuffle(&mut self, x: &Tensor, r: usize) -> Result<Tensor> {
        let shape = super::pixel_unshuffle::output_shape(x.shape, r)?;
        self.result(&[x], Ok(shape), 0, x.radius.map(|radius| radius.div_ceil(r)))
    }

    fn pixel_shuffle(&mut self, x: &Tensor, r: usize) -> Result<Tensor> {
        let shape = super::pixel_shuffle::output_shape(x.shape, r)?;
        self.result(&[x], Ok(shape), 0, x.radius.map(|radius| radius * r))
    }

    fn spatial_attention(&mut self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let shape = super::spatial_attention::output_shape(q.shape, k.shape, v.shape);
        let out = self.result(&[q, k, v], shape, super::spatial_attention::flops(q.shape), None)?;
        self.scratch(|backend| backend.attention_scratch(q.shape));
        Ok(out)
    }

    fn channel_attention(&mut self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let shape = super::channel_attention::output_shape(q.shape, k.shape, v.shape);
        let out = self.result(&[q, k, v], shape, super::channel_attention::flops(q.shape), None)?;
        self.scratch(|backend| backend.attention_scratch(q.shape));
        Ok(out)
    }

    fn crop(&mut self, x: &Tensor, window: Rect) -> Result<Tensor> {
        let shape = super::crop::output_shape(x.shape, window);
        self.result(&[x], shape, 0, x.radius)
    }
}
