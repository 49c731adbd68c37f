//! The native CPU interpreter: all cores through rayon's current pool, SIMD and AMX chosen at run time.
//!
//! Guarantee: a pixel's bits depend on the inputs within the operator's reach alone, not on the tensor's extent, the
//! pixel's position, or the number of threads.

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

use conv::{Add, Mode, Packed};
use input::{Input, Load};
use kernels::Wide;
use norm::Channels;
use pool::{Buffer, Pool};
use pulp::Arch;
use winograd::Squares;

use crate::{
    error::{Error, Result},
    exec,
    ops::{self, Conv2d, GroupNorm, Ops, PixelNorm, Shape, Window, weights::Weights},
};

/// Instructions for the arithmetic. Those that end in bf16 multiply in bf16 and sum in f32, in convolutions and
/// attention; all else is f32 with all, and so is what [`ConvVariant::Winograd`] computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// What every machine has.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512.
    Avx512,
    /// Aarch64's vectors.
    Neon,
    /// AVX512-BF16.
    Avx512Bf16,
    /// AMX-BF16.
    AmxBf16,
}

impl Kernels {
    /// All of them, better ones of a precision later.
    pub const ALL: [Self; 6] =
        [Self::Portable, Self::Avx2, Self::Avx512, Self::Neon, Self::Avx512Bf16, Self::AmxBf16];

    /// How they are called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::AmxBf16 => "amx-bf16",
        }
    }

    /// Whether products are in bf16.
    pub fn is_bf16(self) -> bool {
        matches!(self, Self::Avx512Bf16 | Self::AmxBf16)
    }

    /// Whether this machine has them.
    pub fn available(self) -> bool {
        self.mode().is_some()
    }

    /// The best that this machine has, in bf16 or f32; `None` if it has none in bf16.
    pub fn best(bf16: bool) -> Option<Self> {
        Self::ALL.into_iter().rfind(|kernels| kernels.is_bf16() == bf16 && kernels.available())
    }

    /// The best of bf16 if it is faster than the best of f32, as a small product tells, which is timed once in a process: some
    /// CPUs multiply in bf16 at half their rate of f32.
    pub fn faster_bf16() -> Option<Self> {
        static FASTER: OnceLock<Option<Kernels>> = OnceLock::new();
        *FASTER.get_or_init(|| {
            let (bf16, f32) = (Self::best(true)?, Self::best(false)?);
            let [fast, slow] = conv::shortest([bf16.mode()?, f32.mode()?]);
            (fast < slow).then_some(bf16)
        })
    }

    fn mode(self) -> Option<Mode> {
        let wide = |wide: Wide| {
            let arch = Self::Avx512.mode()?.arch;
            wide.available().then_some(Mode { arch, wide: Some(wide) })
        };
        let arch = match self {
            Self::Portable => Arch::Scalar,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Arch::V3(pulp::x86::V3::try_new()?),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Arch::V4(pulp::x86::V4::try_new()?),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => Arch::Neon(pulp::aarch64::Neon::try_new()?),
            Self::Avx512Bf16 => return wide(Wide::Avx512),
            Self::AmxBf16 => return wide(Wide::Amx),
            _ => return None,
        };
        Some(Mode { arch, wide: None })
    }
}

/// A way to compute convolutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvVariant {
    /// Sums of all products; any layer, in the precision of the [`Kernels`].
    Direct,
    /// Winograd's F(4x4, 3x3), f32: a quarter of the products; 3x3 layers with channels in sixteens that see whole grids
    /// ([`Conv2d::whole`]), since a window of a grid would not give the bits of the whole.
    Winograd,
}

/// A tensor in memory, or what will be one when it is asked for; cloning shares it.
///
/// Norms, SiLU and enlarging wait for the operator that reads them, which applies them on its way; a convolution waits
/// for a sum that it may be part of.
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

/// What is done to `source`, a tensor of `shape` that is in memory.
#[derive(Clone)]
struct Map {
    source: Arc<Buffer>,
    shape: Shape,
    load: Arc<Load>,
    silu: bool,
    up: bool,
}

impl Map {
    fn plain(source: Arc<Buffer>, shape: Shape) -> Self {
        Self { source, shape, load: Arc::new(Load::Plain), silu: false, up: false }
    }

    fn input(&self) -> Input<'_> {
        let Self { source, shape, load, silu, up } = self;
        Input { shape: *shape, data: source, load, silu: *silu, up: *up }
    }
}

/// A convolution with its parameters as its variant reads them.
#[derive(Clone)]
enum Layer {
    Direct(Arc<Packed>),
    Winograd(Arc<Squares>),
}

impl Layer {
    /// Taps, inputs, outputs.
    fn extent(&self) -> (usize, usize, usize) {
        match self {
            Self::Direct(packed) => packed.extent(),
            Self::Winograd(squares) => squares.extent(),
        }
    }
}

/// A convolution of `input`.
#[derive(Clone)]
struct Product {
    layer: Layer,
    input: Map,
}

/// The native CPU as an interpreter of [`Ops`].
pub struct Cpu {
    weights: Arc<Weights>,
    kernels: Kernels,
    mode: Mode,
    /// Convolutions by layer name, direct and by Winograd, packed on first use.
    layers: HashMap<String, [Option<Layer>; 2]>,
    /// The convolutions that were asked for.
    conv: Option<ConvVariant>,
    pool: Arc<Pool>,
}

impl Cpu {
    /// An interpreter with these parameters, f32 with the best instructions of this machine.
    pub fn new(weights: Arc<Weights>) -> Self {
        let kernels = Kernels::best(false).unwrap_or(Kernels::Portable);
        let mode = Mode { arch: Arch::new(), wide: None };
        Self { weights, kernels, mode, layers: HashMap::new(), conv: None, pool: Arc::default() }
    }

    /// The same with the instructions `kernels`.
    ///
    /// # Errors
    /// [`Kind::Device`](crate::error::Kind) when this machine does not have them.
    pub fn with_kernels(weights: Arc<Weights>, kernels: Kernels) -> Result<Self> {
        let mode = kernels
            .mode()
            .ok_or_else(|| Error::device("cpu", format!("no {} instructions", kernels.name())))?;
        Ok(Self { kernels, mode, ..Self::new(weights) })
    }

    /// Computes convolutions by `variant` wherever the layer allows it.
    #[must_use]
    pub fn with_convolutions(self, variant: ConvVariant) -> Self {
        Self { conv: Some(variant), ..self }
    }

    /// The instructions that it uses.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// The buffer of `shape` that `fill` writes, every element of it.
    fn fill(&self, shape: Shape, fill: impl FnOnce(&mut [f32])) -> Arc<Buffer> {
        let mut data = self.pool.take(shape.len());
        if !shape.is_empty() {
            fill(&mut data);
        }
        Arc::new(data)
    }

    /// The same as a tensor.
    fn make(&self, shape: Shape, fill: impl FnOnce(&mut [f32])) -> Tensor {
        tensor(shape, State::Ready(self.fill(shape, fill)))
    }

    /// The tensor in memory.
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

    /// The result of `shape` of a convolution, or its sum with `add`.
    fn compute(&self, product: &Product, shape: Shape, add: Option<&Add>) -> Arc<Buffer> {
        let Product { layer, input } = product;
        self.fill(shape, |out| match layer {
            Layer::Direct(packed) => packed.run(&input.input(), add, out),
            Layer::Winograd(squares) => squares.run(&input.input(), add, out, &self.pool),
        })
    }

    fn write(&self, map: &Map) -> Arc<Buffer> {
        let (input, arch) = (map.input(), self.mode.arch);
        let plain = matches!(input.load, Load::Plain) && !input.silu;
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

    /// What is pending on `x`, or nothing; a convolution is computed.
    fn pending(&self, x: &Tensor) -> Map {
        if let State::Map(map) = &*x.state.lock().unwrap_or_else(PoisonError::into_inner) {
            return map.clone();
        }
        Map::plain(self.force(x), x.shape)
    }

    /// The same if nothing but affine maps is pending, else the tensor in memory.
    fn affine(&self, x: &Tensor) -> Map {
        let map = self.pending(x);
        match map.silu || map.up || matches!(*map.load, Load::Pixel(_)) {
            true => Map::plain(self.force(x), x.shape),
            false => map,
        }
    }

    /// The convolution that `x` waits for.
    fn product(&self, x: &Tensor) -> Option<Product> {
        match &*x.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Product(product) => Some(product.clone()),
            _ => None,
        }
    }

    /// Whether `p` with a result of `shape` is computed by [`ConvVariant::Winograd`]: as it was asked for, else where it pays, but
    /// for AMX, whose products cost less than the transforms.
    fn by_winograd(&self, p: &Conv2d, shape: Shape) -> bool {
        let wanted = match self.conv {
            Some(variant) => variant == ConvVariant::Winograd,
            None => self.mode.wide != Some(Wide::Amx) && exec::winograd::pays(p, shape),
        };
        wanted && Squares::fit(p)
    }

    /// The convolution `p` with a result of `shape`.
    fn layer(&mut self, p: &Conv2d, shape: Shape) -> Result<Layer> {
        let winograd = self.by_winograd(p, shape);
        let extent = (p.kernel * p.kernel, p.in_channels, p.out_channels);
        let known = self.layers.get(&p.name).and_then(|known| known[usize::from(winograd)].clone());
        if let Some(layer) = known.filter(|layer| layer.extent() == extent) {
            return Ok(layer);
        }
        let (weight, bias) = p.load(&self.weights)?;
        let layer = match winograd {
            true => Layer::Winograd(Arc::new(Squares::new(self.mode, p, weight, bias))),
            false => {
                let (taps, ..) = extent;
                let at = |tap, i, o| weight[(o * p.in_channels + i) * taps + tap];
                Layer::Direct(Arc::new(Packed::new(self.mode, extent, at, |o| bias[o])))
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

    fn together<R: Send>(&mut self, work: impl FnOnce(&mut Self) -> R + Send) -> R {
        rayon::scope(|_| work(self))
    }

    fn scalar(&mut self, name: &str) -> Result<f32> {
        Ok(self.weights.get(name, &[1])?.data[0])
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
        let load = Load::Affine(norm::group_norm(self.mode.arch, &source, shape, p.groups, params));
        let map = Map { load: Arc::new(load), silu: p.silu, ..Map::plain(source, shape) };
        Ok(tensor(shape, State::Map(map)))
    }

    fn pixel_norm(&mut self, x: &Tensor, p: &PixelNorm) -> Result<Tensor> {
        let shape = ops::pixel_norm::output_shape(x.shape, p)?;
        let weight = p.load(&self.weights)?;
        let load = Arc::new(Load::Pixel(Channels::new(shape.c, |c| weight[c])));
        let map = Map { load, silu: p.silu, ..Map::plain(self.force(x), shape) };
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
        let maps = match &*map.load {
            Load::Affine(maps) => (0..maps.len().max(next.len()))
                .map(|n| maps[n % maps.len()].then(&next[n % next.len()], shape.c))
                .collect(),
            _ => next,
        };
        let map = Map { load: Arc::new(Load::Affine(maps)), silu, ..map };
        Ok(tensor(shape, State::Map(map)))
    }

    fn weighted_add(&mut self, a: &Tensor, b: &Tensor, wa: f32, wb: f32) -> Result<Tensor> {
        let shape = ops::weighted_add::output_shape(a.shape, b.shape)?;
        // A convolution adds the other one on its way out; addition commutes to the bit.
        let fused = match (self.product(a), self.product(b)) {
            (_, Some(product)) => Some((product, a, wa, wb)),
            (Some(product), None) => Some((product, b, wb, wa)),
            (None, None) => None,
        };
        if let Some((product, other, wa, wb)) = fused {
            let map = self.pending(other);
            let up = map.up && !map.silu && matches!(*map.load, Load::Plain);
            let data = if up { map.source } else { self.force(other) };
            let add = Add { data: &data, up, wa, wb };
            return Ok(tensor(shape, State::Ready(self.compute(&product, shape, Some(&add)))));
        }
        let (arch, a, b) = (self.mode.arch, self.force(a), self.force(b));
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
        Ok(self.make(shape, |out| resample::concat(self.mode.arch, out, a, b)))
    }

    fn avg_pool2(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = ops::avg_pool2::output_shape(x.shape)?;
        let data = self.force(x);
        Ok(self.make(shape, |out| resample::avg_pool2(self.mode.arch, out, &data, x.shape)))
    }

    fn global_avg_pool(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = ops::global_avg_pool::output_shape(x.shape)?;
        let data = self.force(x);
        Ok(self.make(shape, |out| norm::global_avg_pool(self.mode.arch, out, &data, x.shape)))
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
        Ok(self.make(shape, |out| resample::fir_down2(self.mode.arch, out, &data, x.shape)))
    }

    fn fir_up2(&mut self, x: &Tensor) -> Result<Tensor> {
        let shape = ops::fir_up2::output_shape(x.shape)?;
        let data = self.force(x);
        Ok(self.make(shape, |out| resample::fir_up2(self.mode.arch, out, &data, x.shape)))
    }

    fn pixel_unshuffle(&mut self, x: &Tensor, r: usize) -> Result<Tensor> {
        let shape = ops::pixel_unshuffle::output_shape(x.shape, r)?;
        let data = self.force(x);
        Ok(self
            .make(shape, |out| resample::pixel_unshuffle(self.mode.arch, out, &data, x.shape, r)))
    }

    fn pixel_shuffle(&mut self, x: &Tensor, r: usize) -> Result<Tensor> {
        let shape = ops::pixel_shuffle::output_shape(x.shape, r)?;
        let data = self.force(x);
        Ok(self.make(shape, |out| resample::pixel_shuffle(self.mode.arch, out, &data, x.shape, r)))
    }

    fn spatial_attention(&mut self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let shape = ops::spatial_attention::output_shape(q.shape, k.shape, v.shape)?;
        let [q, k, v] = [q, k, v].map(|x| self.force(x));
        let inputs: [&[f32]; 3] = [&q, &k, &v];
        Ok(self.make(shape, |out| attention::spatial(self.mode, out, inputs, shape, &self.pool)))
    }

    fn channel_attention(&mut self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let shape = ops::channel_attention::output_shape(q.shape, k.shape, v.shape)?;
        let [q, k, v] = [q, k, v].map(|x| self.force(x));
        let inputs: [&[f32]; 3] = [&q, &k, &v];
        Ok(self.make(shape, |out| attention::channel(self.mode, out, inputs, shape, &self.pool)))
    }

    fn crop(&mut self, x: &Tensor, window: Window) -> Result<Tensor> {
        let shape = ops::crop::output_shape(x.shape, window)?;
        let data = self.force(x);
        Ok(self.make(shape, |out| resample::crop(self.mode.arch, out, &data, x.shape, window)))
    }
}
