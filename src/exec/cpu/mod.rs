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
mod run;
mod winograd;

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use conv::{KernelConfig, Packed};
use kernels::Bf16Isa;
use pool::{Buffer, Pool};
use pulp::Arch;
use run::Run;
use strum::{IntoStaticStr, VariantArray};
use winograd::Winograd;

use crate::{
    error::{Error, Result},
    exec,
    graph::{Backend, Download, Fused, Fusion, Graph, check_inputs, check_upload},
    ops::{Conv2d, Shape, weights::Weights},
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

/// A tensor in memory; clones share it.
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: Shape,
    data: Arc<Buffer>,
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

/// The CPU backend with a model's weights.
///
/// ```
/// use tessera::{exec::cpu::{Cpu, Kernels}, graph::{Backend, GraphBuilder}, ops::Shape};
///
/// let shape = Shape::new(1, 1, 1, 2);
/// let mut g = GraphBuilder::new();
/// let x = g.input(shape)?;
/// let sum = g.add(x, x)?;
/// let graph = g.finish([sum]);
///
/// let mut cpu = Cpu::with_kernels(Default::default(), Kernels::Portable)?;
/// let x = cpu.upload(shape, &[0.0, 1.5])?;
/// let results = cpu.run(&graph, vec![x])?;
/// assert_eq!(cpu.download(&results[0])?, [0.0, 3.0]);
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
    fusion: Fusion,
    pool: Arc<Pool>,
}

impl Cpu {
    /// A backend with the parameters `weights`, f32 with the best instructions of this machine.
    pub fn new(weights: Arc<Weights>) -> Self {
        let kernels = Kernels::best(false).unwrap_or(Kernels::Portable);
        let config = KernelConfig { arch: Arch::new(), bf16: None };
        let (layers, fusion) = (HashMap::new(), Fusion::ALL);
        Self { weights, kernels, config, layers, conv: None, fusion, pool: Arc::default() }
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

    /// A backend like this one with the parameters `weights`; both recycle the same memory.
    #[must_use]
    pub fn with_weights(&self, weights: Arc<Weights>) -> Self {
        Self { weights, layers: HashMap::new(), pool: self.pool.clone(), ..*self }
    }

    /// Uses `variant` for all convolutions that the layer allows it for.
    #[must_use]
    pub fn with_convolutions(self, variant: ConvVariant) -> Self {
        Self { conv: Some(variant), ..self }
    }

    /// Fuses what `fusion` allows; [`Fusion::ALL`] if not set.
    #[must_use]
    pub fn with_fusion(self, fusion: Fusion) -> Self {
        Self { fusion, ..self }
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

impl Backend for Cpu {
    type Tensor = Tensor;

    fn shape(&self, x: &Tensor) -> Shape {
        x.shape
    }

    fn upload(&mut self, shape: Shape, data: &[f32]) -> Result<Tensor> {
        check_upload(shape, data.len())?;
        Ok(Tensor { shape, data: self.fill(shape, |out| out.copy_from_slice(data)) })
    }

    fn download_later(&mut self, x: &Tensor) -> Result<Download> {
        Ok(x.data.to_vec().into())
    }

    fn run(&mut self, graph: &Graph, inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        check_inputs(graph, inputs.iter().map(|input| input.shape))?;
        let fused = Fused::new(graph, self.fusion);
        // Entering the pool of threads once costs less than once per operator.
        rayon::scope(|_| Run::new(self, &fused, inputs).finish())
    }
}
