//! Convolutions: one trait, a file for each algorithm, one selection.
//!
//! Two f32 algorithms give the same bits, so that only speed decides between them ([`tune`]). Winograd's has fewer products
//! and other bits, the cooperative one computes in f16; [`select`] takes them by rules that depend on layer and device.

mod cooperative;
mod subgroup;
mod tiled;
pub(super) mod tune;
mod winograd;

use serde::{Deserialize, Serialize};

use self::{
    cooperative::{CONV2D_COOPERATIVE8, CONV2D_COOPERATIVE16},
    subgroup::CONV2D_SUBGROUP,
    tiled::CONV2D_TILED,
    winograd::CONV2D_WINOGRAD,
};
use super::{
    Gpu, Tensor,
    device::Device,
    pipelines::{Kernel, Operator, Wanted, params},
    queue::Call,
    run::Operand,
    to_u32,
};
use crate::{
    error::Result,
    ops::{Conv2d, Domain, Shape, conv2d, weights::Weights},
};

params! {
    /// Parameters of all variants, as in `shaders/shared/conv2d.wgsl`.
    pub(super) struct ConvParams {
        /// Workgroups: `pixel_blocks` times blocks of output channels.
        count: u32,
        /// Blocks of consecutive pixels, each of which a workgroup computes.
        pixel_blocks: u32,
        /// Pixels of all pictures.
        pixels: u32,
        in_channels: u32,
        out_channels: u32,
        /// Rows of a picture.
        height: u32,
        /// Columns of a picture.
        width: u32,
        /// Taps of the kernel, 1 or 9.
        taps: u32,
        /// Factor of the convolution in a sum.
        scale: f32,
        /// Factor of the addend in a sum.
        addend_scale: f32,
        /// Winograd only: the first output tile of this pass.
        first_tile: u32,
        /// Winograd only: output tiles of this pass.
        tiles: u32,
        /// Offset of the input in its buffer, in pixels; only without Winograd, sums and upsampling.
        first: u32,
        /// Offset of the result in its buffer, in pixels; only without Winograd, sums and upsampling.
        first_result: u32,
        pad0: u32,
        pad1: u32,
    }
}

/// An algorithm for convolutions. Those of [`ConvVariant::SAME_BITS`] sum the products of a result in the same order
/// and give the same bits, so that only speed decides between them.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    strum::EnumString,
    strum::IntoStaticStr,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum ConvVariant {
    /// Register tiles, inputs broadcast within a subgroup of at least 8 lanes; multiples of 4 input channels.
    Subgroup,
    /// Tiles in workgroup memory; any device and any number of channels.
    Tiled,
    /// Winograd's F(4x4, 3x3) in f32 with a quarter of the products; subgroups of at least 8 lanes, 3x3 layers with
    /// multiples of 4 channels that never run on a tile ([`Conv2d::domain`]).
    Winograd,
    /// f16 factors and f32 sums on cooperative matrices; a device opened for f16, at least 16 input and output
    /// channels.
    Cooperative,
}

impl ConvVariant {
    /// The f32 algorithms that give the same bits.
    pub const SAME_BITS: [Self; 2] = [Self::Subgroup, Self::Tiled];

    /// Its name: `subgroup`, `tiled`, `winograd`, `cooperative`.
    pub fn name(self) -> &'static str {
        self.into()
    }

    fn algorithm(self) -> &'static dyn ConvAlgorithm {
        match self {
            Self::Subgroup => &subgroup::Subgroup,
            Self::Tiled => &tiled::Tiled,
            Self::Winograd => &winograd::Winograd,
            Self::Cooperative => &cooperative::Cooperative,
        }
    }
}

/// All algorithms.
const ALL: [ConvVariant; 4] =
    [ConvVariant::Subgroup, ConvVariant::Tiled, ConvVariant::Winograd, ConvVariant::Cooperative];

/// Bits of an algorithm's results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exactness {
    /// f32, all products of a result summed in one order: the same bits by all algorithms of this kind, wherever a pixel
    /// is.
    SameBits,
    /// f32 in another order, which depends on a pixel's place: for layers that never run on a window
    /// ([`Domain::Whole`]).
    WholeGrids,
    /// Factors in f16, for devices that were opened for it.
    Half,
}

/// An algorithm for convolutions.
trait ConvAlgorithm: Sync {
    /// The bits of its results.
    fn exactness(&self) -> Exactness;

    /// True if it can compute `p` on `device`. It must not depend on the grid: a tile is computed as the whole picture is.
    fn supports(&self, device: &Device, p: &Conv2d) -> bool;

    /// True if it is fast for `p` with a result of `shape`; asked of algorithms that are selected by rule.
    fn is_profitable(&self, _: &Conv2d, _: Shape) -> bool {
        true
    }

    /// Its workgroup for `p`.
    fn tile(&self, device: &Device, p: &Conv2d) -> Tile;

    /// Packed weights have input channels padded to multiples of this.
    fn step(&self) -> usize;

    /// Products of a pair of channels that are summed separately: taps, or elements of a transformed tile.
    fn elements(&self, p: &Conv2d) -> usize {
        p.kernel * p.kernel
    }

    /// The packed weight of `p`, as bytes.
    ///
    /// # Errors
    /// Those of [`Conv2d::load`].
    fn pack(&self, weights: &Weights, p: &Conv2d, block: usize) -> Result<Vec<u8>> {
        Ok(bytemuck::cast_slice(&packed(
            p.load(weights)?.0,
            p,
            block,
            self.step(),
            self.elements(p),
        ))
        .into())
    }

    /// Records the dispatches of `work`.
    ///
    /// # Errors
    /// [`crate::error::Kind::Device`].
    fn dispatch(&self, gpu: &mut Gpu, work: Work<'_>) -> Result<()>;

    /// The pipelines that occur in the networks on `device`, to compile ahead of use.
    fn ahead(&self, device: &Device) -> Vec<Wanted>;
}

/// A convolution to dispatch.
struct Work<'a> {
    p: &'a Conv2d,
    /// Shape of the result.
    shape: Shape,
    tile: Tile,
    params: ConvParams,
    /// Input, packed weight, packed bias, result, addend.
    buffers: [wgpu::BindingResource<'a>; 5],
    fusion: Fusion,
}

impl Work<'_> {
    /// Records one dispatch, of the first kernel of `operator`, or of the second one if channels are `unaligned`.
    fn dispatch(self, gpu: &mut Gpu, operator: &'static Operator, unaligned: bool) -> Result<()> {
        let Self { p, tile, params, buffers, fusion, .. } = self;
        let constants: Vec<_> = tile.constants.into_iter().chain(fusion.constants()).collect();
        let pixels = params.pixels as usize;
        let workgroups = pixels.div_ceil(tile.pixels) * p.out_channels.div_ceil(tile.channels);
        gpu.dispatch(Call {
            operator,
            kernel: usize::from(unaligned),
            constants: &constants,
            params,
            buffers: &buffers,
            workgroups: workgroups as u64,
        })
    }
}

/// Pixels and output channels of a workgroup, with the override constants of that size.
struct Tile {
    pixels: usize,
    channels: usize,
    constants: Vec<(&'static str, f64)>,
}

/// Fewest lanes of a subgroup for [`ConvVariant::Subgroup`] and [`ConvVariant::Winograd`].
const MIN_LANES: u32 = 8;

/// Operations fused into a convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fusion {
    /// 0: nothing is added. 1 or 2: the convolution is the first or the second term of a weighted sum.
    pub(super) sum: u8,
    /// True if the addend is nearest-upsampled as it is read.
    pub(super) addend_up: bool,
    /// True if the input is nearest-upsampled as it is read.
    pub(super) up: bool,
}

impl Fusion {
    /// No fused operation.
    pub(super) const NONE: Self = Self { sum: 0, addend_up: false, up: false };

    /// The override constants of the shaders.
    pub(super) fn constants(self) -> [(&'static str, f64); 3] {
        let Self { sum, addend_up, up } = self;
        [
            ("SUM", sum.into()),
            ("ADDEND_UP", u8::from(addend_up).into()),
            ("UP", u8::from(up).into()),
        ]
    }
}

/// Fusion patterns that occur in the networks; compiled ahead of time.
const COMPILED_AHEAD: [Fusion; 4] = {
    let plain = Fusion::NONE;
    let sum = Fusion { sum: 2, ..plain };
    [plain, Fusion { up: true, ..plain }, sum, Fusion { addend_up: true, ..sum }]
};

/// All kernels of `operator` with `tile` and the fusions that occur in the networks.
fn ahead(operator: &'static Operator, tile: &Tile) -> Vec<Wanted> {
    let with = |kernel: &'static Kernel| {
        COMPILED_AHEAD.iter().map(move |fusion| {
            let constants = tile.constants.iter().copied().chain(fusion.constants());
            (operator, kernel, constants.collect())
        })
    };
    operator.kernels.iter().flat_map(with).collect()
}

/// The pipelines of all convolutions on `device` to compile ahead of use.
pub(super) fn compiled_ahead(device: &Device) -> Vec<Wanted> {
    ALL.iter().flat_map(|variant| variant.algorithm().ahead(device)).collect()
}

/// The operators of all algorithms.
pub(super) static OPERATORS: &[&Operator] = &[
    &CONV2D_COOPERATIVE16,
    &CONV2D_COOPERATIVE8,
    &CONV2D_SUBGROUP,
    &CONV2D_TILED,
    &CONV2D_WINOGRAD,
];

/// True if the device can compute the layer `p` by `variant` and its bits may be those of `variant`.
fn is_supported(gpu: &Gpu, variant: ConvVariant, p: &Conv2d) -> bool {
    let algorithm = variant.algorithm();
    let allowed = match algorithm.exactness() {
        Exactness::SameBits => true,
        Exactness::WholeGrids => p.domain == Domain::Whole,
        Exactness::Half => gpu.is_f16(),
    };
    allowed && algorithm.supports(&gpu.device, p)
}

/// The f32 variant without a measurement: workgroup memory on a GPU, registers on a software device, where workgroup
/// memory is ordinary memory and its barriers are costly.
fn default_variant(device: &Device) -> ConvVariant {
    if device.info.software { ConvVariant::Subgroup } else { ConvVariant::Tiled }
}

/// Selects the variant for `p` with a result of `shape`, in this order: explicit request; those with bits of their own,
/// by rule; of those with the same bits the fastest by measurement; default.
fn select(gpu: &mut Gpu, p: &Conv2d, shape: Shape) -> ConvVariant {
    let wanted = gpu.conv.or_else(|| {
        let by_rule = [ConvVariant::Cooperative, ConvVariant::Winograd]
            .into_iter()
            .find(|&v| is_supported(gpu, v, p) && v.algorithm().is_profitable(p, shape));
        by_rule.or_else(|| {
            let supported: Vec<_> =
                ConvVariant::SAME_BITS.into_iter().filter(|&v| is_supported(gpu, v, p)).collect();
            if supported.len() > 1 { tune::fastest(gpu, &supported, p, shape) } else { None }
        })
    });
    resolve_variant(gpu, wanted, p)
}

/// Selects the variant for `p`, a product of two matrices on the device: as [`select`] without Winograd and autotuning.
pub(super) fn for_product(gpu: &Gpu, p: &Conv2d) -> ConvVariant {
    let matrices = Some(ConvVariant::Cooperative).filter(|&variant| is_supported(gpu, variant, p));
    resolve_variant(gpu, gpu.conv.or(matrices), p)
}

/// `wanted` or the default variant; [`ConvVariant::Tiled`] if that is not supported.
fn resolve_variant(gpu: &Gpu, wanted: Option<ConvVariant>, p: &Conv2d) -> ConvVariant {
    let wanted = wanted.unwrap_or_else(|| default_variant(&gpu.device));
    if is_supported(gpu, wanted, p) { wanted } else { ConvVariant::Tiled }
}

/// Output channels of a block of packed weights.
pub(super) fn block(gpu: &Gpu, variant: ConvVariant, p: &Conv2d) -> usize {
    variant.algorithm().tile(&gpu.device, p).channels
}

/// Position of a convolution's input and result in their buffers, in pixels.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// True if the input is nearest-upsampled.
    pub(super) up: bool,
    /// First pixel of the input.
    pub(super) first: usize,
    /// First pixel of the result.
    pub(super) first_result: usize,
}

/// A convolution that is ready to be dispatched: input, layer, variant and packed parameters.
#[derive(Clone, Debug)]
pub(super) struct Product {
    x: Operand,
    p: Conv2d,
    /// Shape of the result.
    pub(super) shape: Shape,
    variant: ConvVariant,
    weight: wgpu::Buffer,
    bias: wgpu::Buffer,
}

/// A weighted sum of a convolution and `addend`, a tensor of the same shape: `wa` times the first plus `wb` times the
/// second.
#[derive(Debug)]
pub(super) struct Sum<'a> {
    pub(super) addend: &'a Operand,
    pub(super) wa: f32,
    pub(super) wb: f32,
    /// True if the convolution is the first term.
    pub(super) first: bool,
}

/// The convolution `p` of `x`, not computed yet; uploads its packed parameters on first use.
pub(super) fn product(gpu: &mut Gpu, x: Operand, p: &Conv2d) -> Result<Product> {
    let shape = conv2d::output_shape(x.shape(), p)?;
    let variant = select(gpu, p, shape);
    let block = block(gpu, variant, p);
    let [_, length] = packed_lengths(gpu, variant, p);
    // Each variant has its own layout of a layer's parameters.
    let [weight, bias] =
        p.params().map(|(name, _)| format!("{name}, {} in {block}s", variant.name()));
    let weight = gpu.parameter(&weight, |w| variant.algorithm().pack(w, p, block))?;
    let bias = gpu.parameter(&bias, |w| {
        let mut bias = p.load(w)?.1.to_vec();
        bias.resize(length, 0.0);
        Ok(bias)
    })?;
    Ok(Product { x, p: p.clone(), shape, variant, weight, bias })
}

/// Dispatches `product`, fused with `sum` if there is one.
pub(super) fn compute(gpu: &mut Gpu, product: &Product, sum: Option<&Sum<'_>>) -> Result<Tensor> {
    let Product { x, p, shape, variant, weight, bias } = product;
    let y = gpu.tensor(*shape, &p.name)?;
    let (weight, bias) = (weight.as_entire_binding(), bias.as_entire_binding());
    let buffers = [x.tensor.binding(), weight, bias, y.binding()];
    let place = Place { up: x.upsampled, ..Place::default() };
    run(gpu, *variant, p, *shape, buffers, place, sum)?;
    Ok(y)
}

/// Dispatches `p` by `variant` with `buffers` = input, packed weight, packed bias, result of `shape`; `place` has the
/// offsets of input and result. With `sum` the result is that sum.
pub(super) fn run(
    gpu: &mut Gpu,
    variant: ConvVariant,
    p: &Conv2d,
    shape: Shape,
    buffers: [wgpu::BindingResource<'_>; 4],
    place: Place,
    sum: Option<&Sum<'_>>,
) -> Result<()> {
    let algorithm = variant.algorithm();
    let tile = algorithm.tile(&gpu.device, p);
    let [x, weight, bias, y] = buffers;
    // A binding can't be left empty.
    let addend = sum.map_or_else(|| x.clone(), |sum| sum.addend.tensor.binding());
    let buffers = [x, weight, bias, y, addend];
    let (kind, scale, addend_scale) = match sum {
        None => (0, 1.0, 0.0),
        Some(Sum { first: true, wa, wb, .. }) => (1, *wa, *wb),
        Some(Sum { first: false, wa, wb, .. }) => (2, *wb, *wa),
    };
    let addend_up = sum.is_some_and(|sum| sum.addend.upsampled);
    let fusion = Fusion { sum: kind, addend_up, up: place.up };
    let pixels = shape.n * shape.pixels();
    let pixel_blocks = pixels.div_ceil(tile.pixels);
    let params = ConvParams {
        count: to_u32(pixel_blocks * p.out_channels.div_ceil(tile.channels)),
        pixel_blocks: to_u32(pixel_blocks),
        pixels: to_u32(pixels),
        in_channels: to_u32(p.in_channels),
        out_channels: to_u32(p.out_channels),
        height: to_u32(shape.h),
        width: to_u32(shape.w),
        taps: to_u32(p.kernel * p.kernel),
        scale,
        addend_scale,
        first: to_u32(place.first),
        first_result: to_u32(place.first_result),
        ..ConvParams::default()
    };
    algorithm.dispatch(gpu, Work { p, shape, tile, params, buffers, fusion })
}

/// Number of values of the packed weight and of the packed bias of `p` for `variant`.
pub(super) fn packed_lengths(gpu: &Gpu, variant: ConvVariant, p: &Conv2d) -> [usize; 2] {
    let algorithm = variant.algorithm();
    let outputs = p.out_channels.next_multiple_of(algorithm.tile(&gpu.device, p).channels);
    let inputs = p.in_channels.next_multiple_of(algorithm.step());
    [outputs * algorithm.elements(p) * inputs, outputs]
}

/// [out, in, element] -> [block of output channels, element, in, channel of the block], padded with zeros to multiples of
/// `step` input channels and to whole blocks of output channels. Elements are taps, row by row, or those of
/// [`crate::exec::winograd::transformed`].
fn packed(weight: &[f32], p: &Conv2d, block: usize, step: usize, elements: usize) -> Vec<f32> {
    let inputs = p.in_channels.next_multiple_of(step);
    let blocks = p.out_channels.div_ceil(block);
    let mut packed = vec![0.0; blocks * elements * inputs * block];
    for (at, &value) in weight.iter().enumerate() {
        let (element, input, output) =
            (at % elements, at / elements % p.in_channels, at / elements / p.in_channels);
        let row = (output / block * elements + element) * inputs + input;
        packed[row * block + output % block] = value;
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        exec::gpu::tests::gpu,
        graph::testing::run_case,
        ops::{Op, testing},
    };

    #[test]
    fn conv2d_f32_variants_give_the_same_bits() {
        let mut table = testing::suite(7);
        table.cases.retain(|case| matches!(case.op, Op::Conv2d(_)));
        let Some(mut one) = gpu(table.weights.clone()) else { return };
        let Some(mut other) = gpu(table.weights.clone()) else { return };
        one.conv = Some(ConvVariant::Subgroup);
        other.conv = Some(ConvVariant::Tiled);
        for case in &table.cases {
            let (a, b) =
                (run_case(&mut one, case).unwrap().1, run_case(&mut other, case).unwrap().1);
            let same = a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && a.len() == b.len(), "{}", case.name);
        }
    }
}
