//! The CPU backend: all cores through rayon's current pool, SIMD and AMX selected at run time.
//!
//! Guarantee: a pixel's bits depend only on the inputs in the operator's receptive field, not on the tensor's extents
//! or the number of threads, nor on the pixel's position except in layers that never run on a tile
//! ([`Conv2d::domain`]).

mod attention;
mod conv;
mod input;
mod kernels;
mod math;
mod norm;
mod pool;
mod resample;
mod winograd;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use conv::{KernelConfig, Packed, Residual};
use input::{Input, Prologue};
use kernels::Bf16Isa;
use norm::Channels;
use pool::{Buffer, Pool};
use pulp::Arch;
use strum::{IntoStaticStr, VariantArray};
use winograd::Winograd;

use crate::{
    error::{Error, Result},
    exec,
    ops::{self, Conv2d, GroupNorm, Ops, PixelNorm, Rect, Shape, weights::Weights},
};

/// Instruction sets. Those named bf16 multiply in bf16 and sum in f32 in convolutions and attention; everything else is
/// f32, including [`ConvVariant::Winograd`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum Kernels {
    /// Scalar instructions, available everywhere.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512.
    Avx512,
    /// NEON on aarch64.
    Neon,
    /// AVX512-BF16.
    #[strum(serialize = "avx512-bf16")]
    Avx512Bf16,
    /// AMX-BF16.
    #[strum(serialize = "amx-bf16")]
    AmxBf16,
}

impl Kernels {
    /// All instruction sets; of those of one precision, better ones come later.
    pub const ALL: &[Self] = <Self as VariantArray>::VARIANTS;

    /// The name in files and messages: `portable`, `avx2`, `avx512`, `neon`, `avx512-bf16`, `amx-bf16`.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// True if products are in bf16.
    pub fn is_bf16(self) -> bool {
        matches!(self, Self::Avx512Bf16 | Self::AmxBf16)
    }

    /// True if this machine has the instructions.
    pub fn available(self) -> bool {
        self.config().is_some()
    }

    /// The best instructions of this machine in bf16 or f32; `None` if it has none in bf16.
    pub fn best(bf16: bool) -> Option<Self> {
        let all = Self::ALL.iter().copied();
        all.rev().find(|kernels| kernels.is_bf16() == bf16 && kernels.available())
    }

    /// The best bf16 instructions if they are faster than the best f32 ones; some CPUs multiply bf16 at half their f32
    /// rate. Times a small product, once per process.
    pub fn faster_bf16() -> Option<Self> {
        static FASTER: OnceLock<Option<Kernels>> = OnceLock::new();
        *FASTER.get_or_init(|| {
            let (bf16, f32) = (Self::best(true)?, Self::best(false)?);
            let [fast, slow] = conv::shortest([bf16.config()?, f32.config()?]);
            (fast < slow).then_some(bf16)
        })
    }

    fn config(self) -> Option<KernelConfig> {
        let bf16 = |isa: Bf16Isa| {
            let arch = Self::Avx512.config()?.arch;
            isa.available().then_some(KernelConfig { arch, bf16: Some(isa) })
        };
        let arch = match self {
            Self::Portable => Arch::Scalar,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Arch::V3(pulp::x86::V3::try_new()?),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Arch::V4(pulp::x86::V4::try_new()?),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => Arch::Neon(pulp::aarch64::Neon::try_new()?),
            Self::Avx512Bf16 => return bf16(Bf16Isa::Avx512),
            Self::AmxBf16 => return bf16(Bf16Isa::Amx),
            _ => return None,
        };
        Some(KernelConfig { arch, bf16: None })
    }
}

/// An algorithm for convolutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvVariant {
    /// Sums of all products, in the precision of the [`Kernels`]; any layer.
    Direct,
    /// Winograd's F(4x4, 3x3) in f32 with a quarter of the products; 3x3 layers with multiples of 16 channels that
    /// never run on a tile ([`Conv2d::domain`]).
    Winograd,
}

/// A tensor in memory or a deferred operator; clones share it.
///
/// Norms, SiLU and nearest-neighbour upsampling are deferred to the operator that reads them, which applies them as it
/// loads. A convolution is deferred so that a weighted sum can be fused into its stores.
#[derive(Clone)]
pub struct Tensor {
    shape: Shape,
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tensor").field("shape", &self.shape).finish_non_exhaustive()
    }
}

#[derive(Clone)]
enum State {
    Ready(Arc<Buffer>),
    Map(Map),
    Product(Product),
}

/// Deferred operators on `source`, a tensor of `shape` in memory.
#[derive(Clone)]
struct Map {
    source: Arc<Buffer>,
    shape: Shape,
    prologue: Arc<Prologue>,
    silu: bool,
    up: bool,
}

impl Map {
    fn plain(source: Arc<Buffer>, shape: Shape) -> Self {
        Self { source, shape, prologue: Arc::new(Prologue::Plain), silu: false, up: false }
    }

    fn input(&self) -> Input<'_> {
        let Self { source, shape, prologue, silu, up } = self;
        Input { shape: *shape, data: source, prologue, silu: *silu, up: *up }
    }
}

/// A layer with its parameters packed for its variant.
#[derive(Clone)]
enum Layer {
    Direct(Arc<Packed>),
    Winograd(Arc<Winograd>),
}

impl Layer {
    /// Taps, input channels, output channels.
    fn extent(&self) -> (usize, usize, usize) {
        match self {
            Self::Direct(packed) => packed.extent(),
            Self::Winograd(winograd) => winograd.extent(),
        }
    }
}

/// A deferred convolution of `input`.
#[derive(Clone)]
struct Product {
    layer: Layer,
    input: Map,
}

/// The CPU backend with a model's weights.
///
/// ```
/// use tessera::{exec::cpu::{Cpu, Kernels}, ops::{Ops, Shape}};
///
/// let mut ops = Cpu::with_kernels(Default::default(), Kernels::Portable)?;
/// let x = ops.upload(Shape::new(1, 1, 1, 2), &[0.0, 1.0])?;
/// let y = ops.weighted_add(&x, &x, 0.5, 2.0)?;
/// assert_eq!(ops.download(&y)?, [0.0, 2.5]);
/// # Ok::<(), tessera::error::Error>(())
/// ```
pub struct Cpu {
    weights: Arc<Weights>,
    kernels: Kernels,
    config: KernelConfig,
    /// Packed layers by name, direct and Winograd; packed on first use.
    layers: HashMap<String, [Option<Layer>; 2]>,
    /// The requested convolution variant.
    conv: Option<ConvVariant>,
    pool: Arc<Pool>,
}

impl Cpu {
    /// A backend with the parameters `weights`, f32 with the best instructions of this machine.
    pub fn new(weights: Arc<Weights>) -> Self {
        let kernels = Kernels::best(false).unwrap_or(Kernels::Portable);
        let config = KernelConfig { arch: Arch::new(), bf16: None };
        Self { weights, kernels, config, layers: HashMap::new(), conv: None, pool: Arc::default() }
    }

    /// As [`Cpu::new`] with the instructions `kernels`.
    ///
    /// # Errors
    /// [`Kind::Device`](crate::error::Kind) when this machine does not have them.
    pub fn with_kernels(weights: Arc<Weights>, kernels: Kernels) -> Result<Self> {
        let config = kernels
            .config()
            .ok_or_else(|| Error::device("cpu", format!("no {} instructions", kernels.name())))?;
        Ok(Self { kernels, config, ..Self::new(weights) })
    }

    /// Uses `variant` for all convolutions that the layer allows it for.
    #[must_use]
    pub fn with_convolutions(self, variant: ConvVariant) -> Self {
        Self { conv: Some(variant), ..self }
    }

    /// The instructions of this backend.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// A buffer of `shape`; `fill` must write every element.
    fn fill(&self, shape: Shape, fill: impl FnOnce(&mut [f32])) -> Arc<Buffer> {
        let mut data = self.pool.take(shape.len());
        if !shape.is_empty() {
            fill(&mut data);
        }
        Arc::new(data)
    }

    /// As [`Cpu::fill`], as a tensor.
    fn make(&self, shape: Shape, fill: impl FnOnce(&mut [f32])) -> Tensor {
        tensor(shape, State::Ready(self.fill(shape, fill)))
    }

    /// The tensor in memory; computes it if it is deferred.
    fn force(&self, x: &Tensor) -> Arc<Buffer> {
        let mut state = x.state.lock().unwrap_or_else(PoisonError::into_inner);
        let data = match &*state {
            State::Ready(data) => return Arc::clone(data),
            State::Map(map) => self.write(map),
            State::Product(product) => self.compute(product, x.shape, None),
        };
        *state = State::Ready(Arc::clone(&data));
        data
    }

    /// The result of `product`, of `shape`, or its weighted sum with `residual`.
    fn compute(&self, product: &Product, shape: Shape, residual: Option<&Residual>) -> Arc<Buffer> {
        let Product { layer, input } = product;
        self.fill(shape, |out| match layer {
            Layer::Direct(packed) => packed.run(&input.input(), residual, out),
            Layer::Winograd(winograd) => winograd.run(&input.input(), residual, out, &self.pool),
        })
    }

    fn write(&self, map: &Map) -> Arc<Buffer> {
        let (input, arch) = (map.input(), self.config.arch);
        let plain = matches!(input.prologue, Prologue::Plain) && !input.silu;
        let source = match plain {
            true => Arc::clone(&map.source),
            false => self.fill(map.shape, |out| input.write(arch, out)),
        };
        match map.up {
            true => self.fill(input.grid(), |out| {
                resample::upsample_nearest2(arch, out, &source, map.shape)
            }),
            false => source,
        }
    }

    /// The operators that are deferred on `x`; a deferred convolution is computed.
    fn pending(&self, x: &Tensor) -> Map {
        if let State::Map(map) = &*x.state.lock().unwrap_or_else(PoisonError::into_inner) {
            return map.clone();
        }
        Map::plain(self.force(x), x.shape)
    }

    /// As [`Cpu::pending`] if only affine maps are deferred, else the tensor in memory.
    fn affine(&self, x: &Tensor) -> Map {
        let map = self.pending(x);
        match map.silu || map.up || matches!(*map.prologue, Prologue::Pixel(_)) {
            true => Map::plain(self.force(x), x.shape),
            false => map,
        }
    }

    /// The convolution of `x` if it is deferred.
    fn product(&self, x: &Tensor) -> Option<Product> {
        match &*x.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Product(product) => Some(product.clone()),
            _ => None,
        }
    }

    /// True if `p` with a result of `shape` is computed by [`ConvVariant::Winograd`]: by request, else if it is
    /// profitable, but not with AMX, whose products cost less than the transforms.
    fn selects_winograd(&self, p: &Conv2d, shape: Shape) -> bool {
        let wanted = match self.conv {
            Some(variant) => variant == ConvVariant::Winograd,
            None => {
                self.config.bf16 != Some(Bf16Isa::Amx) && exec::winograd::is_profitable(p, shape)
            }
        };
        wanted && Winograd::is_supported(p)
    }

    /// The packed layer `p` for a result of `shape`.
    fn layer(&mut self, p: &Conv2d, shape: Shape) -> Result<Layer> {
        let winograd = self.selects_winograd(p, shape);
        let extent = (p.kernel * p.kernel, p.in_channels, p.out_channels);
        let known = self.layers.get(&p.name).and_then(|known| known[usize::from(winograd)].clone());
        if let Some(layer) = known.filter(|layer| layer.extent() == extent) {
            return Ok(layer);
        }
        let (weight, bias) = p.load(&self.weights)?;
        let layer = match winograd {
            true => Layer::Winograd(Arc::new(Winograd::new(self.config, p, weight, bias))),
            false => {
                let (taps, ..) = extent;
                let at = |tap, i, o| weight[(o * p.in_channels + i) * taps + tap];
                Layer::Direct(Arc::new(Packed::new(self.config, extent, at, |o| bias[o])))
            }
        };
        let known = self.layers.entry(p.name.clone()).or_default();
        known[usize::from(winograd)] = Some(layer.clone());
        Ok(layer)
    }
}

fn tensor(shape: Shape, state: State) -> Tensor {
    Tensor { shape, state: Arc::new(Mutex::new(state)) }
}

impl Ops for Cpu {
    type Tensor = Tensor;

    fn shape(&self, x: &Tensor) -> Shape {
        x.shape
    }

    fn upload(&mut self, shape: Shape, data: &[f32]) -> Result<Tensor> {
        ops::check_upload(shape, data.len())?;
        Ok(self.make(shape, |out| out.copy_from_slice(data)))
    }

    fn download(&mut self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(self.force(x).to_vec())
    }

    fn install<R: Send>(&mut self, work: impl FnOnce(&mut Self) -> R + Send) -> R {
        rayon::scope(|_| work(self))
    }

    fn weights(&self) -> &Weights {
        &self.weights
    }

    fn conv2d(&mut self, x: &Tensor, p: &Conv2d) -> Result<Tensor> {
        let shape = ops::conv2d::output_shape(x.shape, p)?;
        let layer = self.layer(p, shape)?;
        Ok(tensor(shape, State::Product(Product { layer, input: self.pending(x) })))
    }

    fn group_norm(&mut self, x: &Tensor, p: &GroupNorm) -> Result<Tensor> {
        let shape = ops::group_norm::output_shape(x.shape, p)?;
        let params = p.load(&self.weights)?;
        let source = self.force(x);
        let prologue =
            Prologue::Affine(norm::group_norm(self.config.arch, &source, shape, p.groups, params));
        let map = Map { prologue: Arc::new(prologue), silu: p.silu, ..Map::plain(source, shape) };
        Ok(tensor(shape, State::Map(map)))
    }

    fn pixel_norm(&mut self, x: &Tensor, p: &PixelNorm) -> Result<Tensor> {
        let shape = ops::pixel_norm::output_shape(x.shape, p)?;
        let weight = p.load(&self.weights)?;
        let prologue = Arc::new(Prologue::Pixel(Channels::new(shape.c, |c| weight[c])));
        let map = Map { prologue, silu: p.silu, ..Map::plain(self.force(x), shape) };
        Ok(tensor(shape, State::Map(map)))
    }

    fn silu(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = ops::silu::output_shape(x.shape)?;
        let map = Map { silu: true, ..self.affine(x) };
        Ok(tensor(shape, State::Map(map)))
    }

    fn scale_shift(&mut self, x: &Tensor, pair: &Tensor, silu: bool) -> Result<Tensor> {
        let shape = ops::scale_shift::output_shape(x.shape, pair.shape)?;
        let next = norm::scale_shift(&self.force(pair), shape.c);
        let map = self.affine(x);
        let maps = match &*map.prologue {
            Prologue::Affine(maps) => (0..maps.len().max(next.len()))
                .map(|n| maps[n % maps.len()].then(&next[n % next.len()], shape.c))
                .collect(),
            _ => next,
        };
        let map = Map { prologue: Arc::new(Prologue::Affine(maps)), silu, ..map };
        Ok(tensor(shape, State::Map(map)))
    }

    fn weighted_add(&mut self, a: &Tensor, b: &Tensor, wa: f32, wb: f32) -> Result<Tensor> {
        let shape = ops::weighted_add::output_shape(a.shape, b.shape)?;
        // Fused into the stores of a deferred convolution. Addition commutes to the bit.
        let fused = match (self.product(a), self.product(b)) {
            (_, Some(product)) => Some((product, a, wa, wb)),
            (Some(product), None) => Some((product, b, wb, wa)),
            (None, None) => None,
        };
        if let Some((product, other, wa, wb)) = fused {
            let map = self.pending(other);
            let up = map.up && !map.silu && matches!(*map.prologue, Prologue::Plain);
            let data = if up { map.source } else { self.force(other) };
            let residual = Residual { data: &data, up, wa, wb };
            let sum = self.compute(&product, shape, Some(&residual));
            return Ok(tensor(shape, State::Ready(sum)));
        }
        let (arch, a, b) = (self.config.arch, self.force(a), self.force(b));
        Ok(self.make(shape, |out| {
            math::zip(
                arch,
                out,
                &a,
                &b,
                #[inline(always)]
                |a, b| wa * a + wb * b,
            )
        }))
    }

    fn concat(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let shape = ops::concat::output_shape(a.shape, b.shape)?;
        let (left, right) = (self.force(a), self.force(b));
        let (a, b) = ((&left[..], a.shape.c), (&right[..], b.shape.c));
        Ok(self.make(shape, |out| resample::concat(self.config.arch, out, a, b)))
    }

    fn avg_pool2(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = ops::avg_pool2::output_shape(x.shape)?;
        let data = self.force(x);
        Ok(self.make(shape, |out| resample::avg_pool2(self.config.arch, out, &data, x.shape)))
    }

    fn global_avg_pool(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = ops::global_avg_pool::output_shape(x.shape)?;
        let data = self.force(x);
        Ok(self.make(shape, |out| norm::global_avg_pool(self.config.arch, out, &data, x.shape)))
    }

    fn upsample_nearest2(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = ops::upsample_nearest2::output_shape(x.shape)?;
        let map = self.pending(x);
        let map = match map.up {
            true => Map::plain(self.force(x), x.shape),
            false => map,
        };
        Ok(tensor(shape, State::Map(Map { up: true, ..map })))
    }

    fn fir_down2(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = ops::fir_down2::output_shape(x.shape)?;
        let data = self.force(x);
        Ok(self.make(shape, |out| resample::fir_down2(self.config.arch, out, &data, x.shape)))
    }

    fn fir_up2(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = ops::fir_up2::output_shape(x.shape)?;
        let data = self.force(x);
        Ok(self.make(shape, |out| resample::fir_up2(self.config.arch, out, &data, x.shape)))
    }

    fn pixel_unshuffle(&mut self, x: &Tensor, r: usize) -> Result<Tensor> {
        let shape = ops::pixel_unshuffle::output_shape(x.shape, r)?;
        let data = self.force(x);
        Ok(self
            .make(shape, |out| resample::pixel_unshuffle(self.config.arch, out, &data, x.shape, r)))
    }

    fn pixel_shuffle(&mut self, x: &Tensor, r: usize) -> Result<Tensor> {
        let shape = ops::pixel_shuffle::output_shape(x.shape, r)?;
        let data = self.force(x);
        Ok(self
            .make(shape, |out| resample::pixel_shuffle(self.config.arch, out, &data, x.shape, r)))
    }

    fn spatial_attention(&mut self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let shape = ops::spatial_attention::output_shape(q.shape, k.shape, v.shape)?;
        let [q, k, v] = [q, k, v].map(|x| self.force(x));
        let inputs: [&[f32]; 3] = [&q, &k, &v];
        Ok(self.make(shape, |out| attention::spatial(self.config, out, inputs, shape, &self.pool)))
    }

    fn channel_attention(&mut self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let shape = ops::channel_attention::output_shape(q.shape, k.shape, v.shape)?;
        let [q, k, v] = [q, k, v].map(|x| self.force(x));
        let inputs: [&[f32]; 3] = [&q, &k, &v];
        Ok(self.make(shape, |out| attention::channel(self.config, out, inputs, shape, &self.pool)))
    }

    fn crop(&mut self, x: &Tensor, window: Rect) -> Result<Tensor> {
        let shape = ops::crop::output_shape(x.shape, window)?;
        let data = self.force(x);
        Ok(self.make(shape, |out| resample::crop(self.config.arch, out, &data, x.shape, window)))
    }
}
