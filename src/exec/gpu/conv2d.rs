//! Convolutions: two f32 variants that give the same bits, one with fewer products (Winograd), and one in f16.

use serde::{Deserialize, Serialize};

use super::{
    Gpu, Tensor,
    device::Device,
    pipelines::{Kernel, Operator, operator, params},
    queue::Call,
    run::Operand,
    to_u32, tune, winograd,
};
use crate::{
    error::Result,
    exec,
    ops::{Conv2d, Shape, conv2d},
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

operator!(
    CONV2D_COOPERATIVE16, "conv2d_cooperative16" from ["shared/matrix16", "shared/conv2d", "conv2d_cooperative"], ConvParams,
    [Read, Read, Read, ReadWrite, Read],
    "main": [1, 2, 3, 4, 5],
    "main_unaligned": [1, 2, 3, 4, 5]
);
operator!(
    CONV2D_COOPERATIVE8, "conv2d_cooperative8" from ["shared/matrix8", "shared/conv2d", "conv2d_cooperative"], ConvParams,
    [Read, Read, Read, ReadWrite, Read],
    "main": [1, 2, 3, 4, 5],
    "main_unaligned": [1, 2, 3, 4, 5]
);
operator!(
    CONV2D_SUBGROUP, "conv2d_subgroup" from ["shared/conv2d", "shared/subgroup_sums", "conv2d_subgroup"], ConvParams,
    [Read, Read, Read, ReadWrite, Read],
    "main": [1, 2, 3, 4, 5],
    "main_unaligned": [1, 2, 3, 4, 5]
);
operator!(
    CONV2D_TILED, "conv2d_tiled" from ["shared/conv2d", "conv2d_tiled"],
    ConvParams, [Read, Read, Read, ReadWrite, Read],
    "main": [1, 2, 3, 4, 5],
    "main_unaligned": [1, 2, 3, 4, 5]
);

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
    /// The f32 variants that give the same bits.
    pub const SAME_BITS: [Self; 2] = [Self::Subgroup, Self::Tiled];

    /// Input channels are padded to multiples of this in packed weights.
    const fn step(self) -> usize {
        match self {
            Self::Subgroup | Self::Tiled | Self::Winograd => 4,
            Self::Cooperative => 16,
        }
    }

    /// Its name: `subgroup`, `tiled`, `winograd`, `cooperative`.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Products of a pair of channels that are summed separately: taps, or elements of a transformed tile.
    const fn elements(self, p: &Conv2d) -> usize {
        match self {
            Self::Winograd => exec::winograd::TILE_ELEMENTS,
            _ => p.kernel * p.kernel,
        }
    }
}

/// Pixels and output channels of a workgroup, with the override constants of that size.
pub(super) struct Tile {
    pub(super) pixels: usize,
    pub(super) channels: usize,
    pub(super) constants: Vec<(&'static str, f64)>,
}

/// Fewest lanes of a subgroup for [`ConvVariant::Subgroup`] and [`ConvVariant::Winograd`].
const MIN_LANES: u32 = 8;

/// Workgroup of [`ConvVariant::Subgroup`] and of the GEMM of [`ConvVariant::Winograd`]: at most a subgroup, whose lanes
/// share their loads.
pub(super) fn subgroup_tile(device: &Device) -> Tile {
    let lanes = match device.subgroup_size {
        0..16 => 8,
        16..32 => 16,
        _ => 32,
    };
    Tile { pixels: 32, channels: 4 * lanes, constants: vec![("LANES", lanes as f64)] }
}

/// Workgroup of [`ConvVariant::Tiled`].
fn tiled_tile() -> Tile {
    Tile { pixels: 64, channels: 64, constants: Vec::new() }
}

/// Workgroup of [`ConvVariant::Cooperative`]: four subgroups, `across` of them adjacent in channels and the others in
/// pixels.
fn cooperative_tile(device: &Device, across: usize) -> Tile {
    let lanes = f64::from(device.subgroup_max_size);
    let constants = vec![("LANES", lanes), ("ACROSS", across as f64)];
    Tile { pixels: 128 / across, channels: 32 * across, constants }
}

/// The override constants to compile `kernel` of `operator` with ahead of use on `device`; none if it can't run there,
/// or only as a last resort.
pub(super) fn constants(
    device: &Device,
    operator: &Operator,
    kernel: &Kernel,
) -> Vec<Vec<(&'static str, f64)>> {
    let subgroups = device.subgroup_size >= MIN_LANES;
    let cooperative = |size| match device.matrix == Some(size) {
        true => [1, 2].map(|across| cooperative_tile(device, across)).into(),
        false => Vec::new(),
    };
    let tiles: Vec<Tile> = match operator.name {
        "conv2d_cooperative16" => cooperative(16),
        "conv2d_cooperative8" => cooperative(8),
        "conv2d_subgroup" | "conv2d_winograd" if subgroups => vec![subgroup_tile(device)],
        "conv2d_subgroup" | "conv2d_winograd" => Vec::new(),
        // Kernels are slow to compile for a software device, and this one is hardly used there.
        "conv2d_tiled" if subgroups && device.info.software => Vec::new(),
        "conv2d_tiled" => vec![tiled_tile()],
        "conv2d_pack16" if device.matrix.is_none() => return Vec::new(),
        _ => return vec![Vec::new()],
    };
    let fusions = match operator.name {
        "conv2d_winograd" => winograd::compiled_ahead(kernel),
        _ => COMPILED_AHEAD.map(|fusion| fusion.constants().into()).into(),
    };
    let with = |tile: Tile| {
        let all = |own: &Vec<_>| tile.constants.iter().chain(own).copied().collect();
        fusions.iter().map(all).collect::<Vec<_>>()
    };
    tiles.into_iter().flat_map(with).collect()
}

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

/// True if the device and the layer allow `variant`. It must not depend on the grid: a tile is computed as the whole
/// picture is.
fn is_supported(gpu: &Gpu, variant: ConvVariant, p: &Conv2d) -> bool {
    match variant {
        ConvVariant::Subgroup => {
            gpu.device.subgroup_size >= MIN_LANES && p.in_channels.is_multiple_of(4)
        }
        ConvVariant::Tiled => true,
        ConvVariant::Winograd => {
            gpu.device.subgroup_size >= MIN_LANES && exec::winograd::is_supported(p, 4)
        }
        // With fewer channels most of a matrix would be zeros.
        ConvVariant::Cooperative => {
            gpu.device.matrix.is_some() && p.in_channels.min(p.out_channels) >= 16
        }
    }
}

/// The f32 variant without a measurement: workgroup memory on a GPU, registers on a software device, where workgroup
/// memory is ordinary memory and its barriers are costly.
fn default_variant(device: &Device) -> ConvVariant {
    if device.info.software { ConvVariant::Subgroup } else { ConvVariant::Tiled }
}

/// Selects the variant for `p` with a result of `shape`, in this order: explicit request, cooperative f16, Winograd (by
/// rule, as it changes bits), autotuned, default.
fn choose(gpu: &mut Gpu, p: &Conv2d, shape: Shape) -> ConvVariant {
    let wanted = gpu.conv.or_else(|| {
        if is_supported(gpu, ConvVariant::Cooperative, p) {
            return Some(ConvVariant::Cooperative);
        }
        if is_supported(gpu, ConvVariant::Winograd, p) && exec::winograd::is_profitable(p, shape) {
            return Some(ConvVariant::Winograd);
        }
        let supported: Vec<_> =
            ConvVariant::SAME_BITS.into_iter().filter(|&v| is_supported(gpu, v, p)).collect();
        if supported.len() > 1 { tune::fastest(gpu, &supported, p, shape) } else { None }
    });
    resolve_variant(gpu, wanted, p)
}

/// Selects the variant for `p`, a product of two matrices on the device: as [`choose`] without Winograd and autotuning.
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
    tile(gpu, variant, p).channels
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
    let variant = choose(gpu, p, shape);
    let block = block(gpu, variant, p);
    let [_, length] = packed_lengths(gpu, variant, p);
    // Each variant has its own layout of a layer's parameters.
    let [weight, bias] =
        p.params().map(|(name, _)| format!("{name}, {} in {block}s", variant.name()));
    let weight = match variant {
        ConvVariant::Cooperative => gpu.parameter(&weight, |w| {
            let f16 = |value: &f32| half::f16::from_f32(*value);
            Ok(pack(p.load(w)?.0, p, block, variant).iter().map(f16).collect())
        }),
        ConvVariant::Winograd => gpu.parameter(&weight, |w| {
            let (pairs, _) = p.load(w)?.0.as_chunks();
            let weight: Vec<f32> = pairs.iter().flat_map(exec::winograd::transformed).collect();
            Ok(pack(&weight, p, block, variant))
        }),
        _ => gpu.parameter(&weight, |w| Ok(pack(p.load(w)?.0, p, block, variant))),
    }?;
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
    let mut tile = tile(gpu, variant, p);
    let work = Workload::new(shape, p, &tile);
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
    let params = ConvParams {
        count: to_u32(work.workgroups),
        pixel_blocks: to_u32(work.pixel_blocks),
        pixels: to_u32(work.pixels),
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
    let (operator, plain) = match variant {
        ConvVariant::Winograd => return winograd::run(gpu, p, shape, params, buffers, fusion),
        ConvVariant::Subgroup => (&CONV2D_SUBGROUP, p.out_channels.is_multiple_of(4)),
        ConvVariant::Tiled => (&CONV2D_TILED, p.in_channels.is_multiple_of(4)),
        ConvVariant::Cooperative => match gpu.device.matrix {
            Some(16) => (&CONV2D_COOPERATIVE16, p.in_channels.is_multiple_of(4)),
            _ => (&CONV2D_COOPERATIVE8, p.in_channels.is_multiple_of(4)),
        },
    };
    tile.constants.extend(fusion.constants());
    gpu.dispatch(Call {
        operator,
        kernel: usize::from(!plain),
        constants: &tile.constants,
        params,
        buffers: &buffers,
        workgroups: work.workgroups as u64,
    })
}

/// Workgroup of `variant` for `p`.
fn tile(gpu: &Gpu, variant: ConvVariant, p: &Conv2d) -> Tile {
    match variant {
        ConvVariant::Subgroup | ConvVariant::Winograd => subgroup_tile(&gpu.device),
        ConvVariant::Tiled => tiled_tile(),
        ConvVariant::Cooperative => {
            // All subgroups in pixels if that pads fewer channels.
            let [two, one] = [64, 32].map(|block| p.out_channels.next_multiple_of(block));
            cooperative_tile(&gpu.device, if two > one { 1 } else { 2 })
        }
    }
}

/// Number of values of the packed weight and of the packed bias of `p` for `variant`.
pub(super) fn packed_lengths(gpu: &Gpu, variant: ConvVariant, p: &Conv2d) -> [usize; 2] {
    let outputs = p.out_channels.next_multiple_of(tile(gpu, variant, p).channels);
    let inputs = p.in_channels.next_multiple_of(variant.step());
    [outputs * variant.elements(p) * inputs, outputs]
}

/// Number of workgroups of a convolution.
struct Workload {
    pixels: usize,
    pixel_blocks: usize,
    workgroups: usize,
}

impl Workload {
    fn new(shape: Shape, p: &Conv2d, tile: &Tile) -> Self {
        let pixels = shape.n * shape.pixels();
        let pixel_blocks = pixels.div_ceil(tile.pixels);
        Self {
            pixels,
            pixel_blocks,
            workgroups: pixel_blocks * p.out_channels.div_ceil(tile.channels),
        }
    }
}

/// [out, in, element] -> [block of output channels, element, in, channel of the block] for `variant`, padded with zeros
/// to multiples of its step in input channels and to whole blocks in output channels. Elements are taps, row by row, or
/// those of [`exec::winograd::transformed`].
fn pack(weight: &[f32], p: &Conv2d, block: usize, variant: ConvVariant) -> Vec<f32> {
    let (inputs, elements) = (p.in_channels.next_multiple_of(variant.step()), variant.elements(p));
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
