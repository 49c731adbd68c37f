//! Convolutions: variants of f32, which give the same bits in different ways, one with fewer products, and one of f16.

use serde::{Deserialize, Serialize};

use super::{
    Gpu, Tensor,
    device::Device,
    lazy::Source,
    pipelines::{Kernel, Operator, operator, params},
    queue::Call,
    tune, winograd, word,
};
use crate::{
    error::{Error, Expected, Result},
    exec,
    ops::{Conv2d, Shape, conv2d},
};

params! {
    pub(super) struct ConvParams {
        count: u32,
        tiles: u32,
        pixels: u32,
        in_channels: u32,
        out_channels: u32,
        height: u32,
        width: u32,
        taps: u32,
        scale: f32,
        addend_scale: f32,
        first_square: u32,
        squares: u32,
        first: u32,
        first_result: u32,
        pad0: u32,
        pad1: u32,
    }
}

operator!(
    CONV2D_COOPERATIVE16, "conv2d_cooperative16" from ["matrix16", "conv2d", "conv2d_cooperative"], ConvParams,
    [Read, Read, Read, ReadWrite, Read],
    "main": [1, 2, 3, 4, 5],
    "odd": [1, 2, 3, 4, 5]
);
operator!(
    CONV2D_COOPERATIVE8, "conv2d_cooperative8" from ["matrix8", "conv2d", "conv2d_cooperative"], ConvParams,
    [Read, Read, Read, ReadWrite, Read],
    "main": [1, 2, 3, 4, 5],
    "odd": [1, 2, 3, 4, 5]
);
operator!(
    CONV2D_SUBGROUP, "conv2d_subgroup" from ["conv2d", "subgroup_sums", "conv2d_subgroup"], ConvParams,
    [Read, Read, Read, ReadWrite, Read],
    "main": [1, 2, 3, 4, 5],
    "narrow": [1, 2, 3, 4, 5]
);
operator!(
    CONV2D_TILED, "conv2d_tiled" from ["conv2d", "conv2d_tiled"], ConvParams, [Read, Read, Read, ReadWrite, Read],
    "main": [1, 2, 3, 4, 5],
    "odd": [1, 2, 3, 4, 5]
);

/// A way to compute convolutions. Those of [`ConvVariant::SAME_BITS`] add up the products of a result in the same order and give
/// the same bits, so that the choice among them is a matter of speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConvVariant {
    /// Sums in registers, inputs handed round among the lanes of a subgroup of 8 or more; input channels in fours.
    Subgroup,
    /// Tiles in workgroup memory; any device, any number of channels.
    Tiled,
    /// Winograd's F(4x4, 3x3), f32: a quarter of the products; subgroups of 8 or more, 3x3 layers with channels in fours that
    /// see whole grids ([`Conv2d::whole`]), since a window of a grid would not give the bits of the whole.
    Winograd,
    /// Factors of f16, sums of f32, on cooperative matrices: where the device was opened for f16, 16 channels or more.
    Cooperative,
}

impl ConvVariant {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Subgroup, Self::Tiled, Self::Winograd, Self::Cooperative];

    /// Those of f32 that give the same bits.
    pub const SAME_BITS: [Self; 2] = [Self::Subgroup, Self::Tiled];

    /// The number that input channels are filled up to multiples of in packed weights.
    const fn step(self) -> usize {
        match self {
            Self::Subgroup | Self::Tiled | Self::Winograd => 4,
            Self::Cooperative => 16,
        }
    }

    /// Its name: `subgroup`, `tiled`, `winograd`, `cooperative`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Subgroup => "subgroup",
            Self::Tiled => "tiled",
            Self::Winograd => "winograd",
            Self::Cooperative => "cooperative",
        }
    }

    /// Products of a pair of channels that are summed apart: taps, or the positions of a transformed square.
    const fn positions(self, p: &Conv2d) -> usize {
        match self {
            Self::Winograd => exec::winograd::POSITIONS,
            _ => p.kernel * p.kernel,
        }
    }

    /// The variant of this name.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] naming those that there are.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|variant| variant.name() == name).ok_or_else(|| {
            let names = Expected::one_of(Self::ALL.map(Self::name));
            Error::invalid("convolution", format!("{name:?}"), names)
        })
    }
}

/// Pixels and output channels of a workgroup, and the override constants that say so.
pub(super) struct Tile {
    pub(super) pixels: usize,
    pub(super) channels: usize,
    pub(super) constants: Vec<(&'static str, f64)>,
}

/// Least lanes of a subgroup that [`ConvVariant::Subgroup`] works with.
const MIN_LANES: u32 = 8;

/// A workgroup of [`ConvVariant::Subgroup`], and of the products of [`ConvVariant::Winograd`]: no more lanes than a subgroup
/// has, as its lanes share their reads.
pub(super) fn subgroup_tile(device: &Device) -> Tile {
    let lanes = match device.subgroup_size {
        0..16 => 8,
        16..32 => 16,
        _ => 32,
    };
    Tile { pixels: 32, channels: 4 * lanes, constants: vec![("LANES", lanes as f64)] }
}

/// A workgroup of [`ConvVariant::Tiled`].
fn tiled_tile() -> Tile {
    Tile { pixels: 64, channels: 64, constants: Vec::new() }
}

/// Four subgroups of [`ConvVariant::Cooperative`], `across` of them side by side in channels and the others in pixels.
fn cooperative_tile(device: &Device, across: usize) -> Tile {
    let lanes = f64::from(device.subgroup_max_size);
    let constants = vec![("LANES", lanes), ("ACROSS", across as f64)];
    Tile { pixels: 128 / across, channels: 32 * across, constants }
}

/// All constants that `kernel` of `operator`, a convolution or another, usually runs with on `device`; none where it can't run
/// there, or only if no other can.
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
        // Kernels of a software device are slow to compile, and this one is hardly used there.
        "conv2d_tiled" if subgroups && device.info.software => Vec::new(),
        "conv2d_tiled" => vec![tiled_tile()],
        "conv2d_pack16" if device.matrix.is_none() => return Vec::new(),
        _ => return vec![Vec::new()],
    };
    let usual = match operator.name {
        "conv2d_winograd" => winograd::usual(kernel),
        _ => USUAL.map(|fusion| fusion.constants().into()).into(),
    };
    let with = |tile: Tile| {
        let all = |own: &Vec<_>| tile.constants.iter().chain(own).copied().collect();
        usual.iter().map(all).collect::<Vec<_>>()
    };
    tiles.into_iter().flat_map(with).collect()
}

/// What a kernel does beside its convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fusion {
    /// 0 where nothing is added, 1 or 2 where the convolution is the first or the second term of a sum.
    pub(super) sum: u8,
    /// Whether the addend is enlarged.
    pub(super) addend_up: bool,
    /// Whether the input is.
    pub(super) up: bool,
}

impl Fusion {
    /// Nothing.
    pub(super) const NONE: Self = Self { sum: 0, addend_up: false, up: false };

    /// The shaders' override constants.
    pub(super) fn constants(self) -> [(&'static str, f64); 3] {
        let Self { sum, addend_up, up } = self;
        [
            ("SUM", sum.into()),
            ("ADDEND_UP", u8::from(addend_up).into()),
            ("UP", u8::from(up).into()),
        ]
    }
}

/// What the networks have of them.
const USUAL: [Fusion; 4] = {
    let plain = Fusion::NONE;
    let sum = Fusion { sum: 2, ..plain };
    [plain, Fusion { up: true, ..plain }, sum, Fusion { addend_up: true, ..sum }]
};

/// Whether the device and the layer allow `variant`. Of the layer its channels count and what it sees, never the grid: a
/// tile of a picture must be computed as the whole is.
fn fits(gpu: &Gpu, variant: ConvVariant, p: &Conv2d) -> bool {
    match variant {
        ConvVariant::Subgroup => {
            gpu.device.subgroup_size >= MIN_LANES && p.in_channels.is_multiple_of(4)
        }
        ConvVariant::Tiled => true,
        ConvVariant::Winograd => {
            gpu.device.subgroup_size >= MIN_LANES && exec::winograd::fits(p, 4)
        }
        // With fewer most of a matrix would be zeros.
        ConvVariant::Cooperative => {
            gpu.device.matrix.is_some() && p.in_channels.min(p.out_channels) >= 16
        }
    }
}

/// What is used of the variants of f32 where nothing was measured: workgroup memory where the device is a GPU; on a software
/// device that memory is ordinary memory and its barriers are costly, so that registers come first.
fn usual(device: &Device) -> ConvVariant {
    if device.info.software { ConvVariant::Subgroup } else { ConvVariant::Tiled }
}

/// What computes `p` with a result of `shape`, where it fits: what was asked for, matrices where the device was opened for
/// them, fewer products where that pays (a rule, as it changes bits), what was measured, what is usual.
fn choose(gpu: &mut Gpu, p: &Conv2d, shape: Shape) -> ConvVariant {
    let wanted = gpu.conv.or_else(|| {
        if fits(gpu, ConvVariant::Cooperative, p) {
            return Some(ConvVariant::Cooperative);
        }
        if fits(gpu, ConvVariant::Winograd, p) && exec::winograd::pays(p, shape) {
            return Some(ConvVariant::Winograd);
        }
        let fitting: Vec<_> =
            ConvVariant::SAME_BITS.into_iter().filter(|&v| fits(gpu, v, p)).collect();
        if fitting.len() > 1 { tune::fastest(gpu, &fitting, p, shape) } else { None }
    });
    wanted_or_fitting(gpu, wanted, p)
}

/// What computes `p`, a product of matrices that are both made on the device: as [`choose`], but that nothing is measured.
pub(super) fn for_product(gpu: &Gpu, p: &Conv2d) -> ConvVariant {
    let matrices = Some(ConvVariant::Cooperative).filter(|&variant| fits(gpu, variant, p));
    wanted_or_fitting(gpu, gpu.conv.or(matrices), p)
}

/// The variant that is `wanted`, or the usual one; where it does not fit, the one that always does.
fn wanted_or_fitting(gpu: &Gpu, wanted: Option<ConvVariant>, p: &Conv2d) -> ConvVariant {
    let wanted = wanted.unwrap_or_else(|| usual(&gpu.device));
    if fits(gpu, wanted, p) { wanted } else { ConvVariant::Tiled }
}

/// Output channels of a block of packed weights.
pub(super) fn block(gpu: &Gpu, variant: ConvVariant, p: &Conv2d) -> usize {
    tile(gpu, variant, p).channels
}

/// Where a convolution's input and result lie in their buffers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// Whether the input is enlarged.
    pub(super) up: bool,
    /// The input's first pixel.
    pub(super) first: usize,
    /// The result's.
    pub(super) first_result: usize,
}

/// A convolution with all that it takes to compute it.
#[derive(Clone, Debug)]
pub(super) struct Product {
    x: Source,
    p: Conv2d,
    /// Of the result.
    pub(super) shape: Shape,
    variant: ConvVariant,
    weight: wgpu::Buffer,
    bias: wgpu::Buffer,
}

/// A weighted sum of a convolution and `addend`, a tensor of the same shape: `wa` times the first plus `wb` times the second.
#[derive(Debug)]
pub(super) struct Sum<'a> {
    pub(super) addend: &'a Source,
    pub(super) wa: f32,
    pub(super) wb: f32,
    /// Whether the convolution is the first.
    pub(super) first: bool,
}

/// The convolution `p` of `x`, not yet computed; its parameters are on the device.
pub(super) fn product(gpu: &mut Gpu, x: Source, p: &Conv2d) -> Result<Product> {
    let shape = conv2d::output_shape(x.shape(), p)?;
    let variant = choose(gpu, p, shape);
    let block = block(gpu, variant, p);
    let [_, length] = packed_lengths(gpu, variant, p);
    // A layer may be computed by several variants, each with its own layout.
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

/// Dispatches `product`: its result, or the sum that it is part of.
pub(super) fn compute(gpu: &mut Gpu, product: &Product, sum: Option<&Sum<'_>>) -> Result<Tensor> {
    let Product { x, p, shape, variant, weight, bias } = product;
    let y = gpu.tensor(*shape, &p.name)?;
    let (weight, bias) = (weight.as_entire_binding(), bias.as_entire_binding());
    let buffers = [x.tensor.binding(), weight, bias, y.binding()];
    let place = Place { up: x.enlarged, ..Place::default() };
    run(gpu, *variant, p, *shape, buffers, place, sum)?;
    Ok(y)
}

/// Dispatches `p` by `variant`: input, packed weight, packed bias and result of `shape` are `buffers`, the first and the last as
/// `place` says; the result is `sum` where there is one.
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
    let work = Work::new(shape, p, &tile);
    let [x, weight, bias, y] = buffers;
    // Something has to be bound where nothing is added.
    let addend = sum.map_or_else(|| x.clone(), |sum| sum.addend.tensor.binding());
    let buffers = [x, weight, bias, y, addend];
    let (kind, scale, addend_scale) = match sum {
        None => (0, 1.0, 0.0),
        Some(Sum { first: true, wa, wb, .. }) => (1, *wa, *wb),
        Some(Sum { first: false, wa, wb, .. }) => (2, *wb, *wa),
    };
    let addend_up = sum.is_some_and(|sum| sum.addend.enlarged);
    let fusion = Fusion { sum: kind, addend_up, up: place.up };
    let params = ConvParams {
        count: word(work.workgroups),
        tiles: word(work.tiles),
        pixels: word(work.pixels),
        in_channels: word(p.in_channels),
        out_channels: word(p.out_channels),
        height: word(shape.h),
        width: word(shape.w),
        taps: word(p.kernel * p.kernel),
        scale,
        addend_scale,
        first: word(place.first),
        first_result: word(place.first_result),
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

/// How `variant` cuts up `p`.
fn tile(gpu: &Gpu, variant: ConvVariant, p: &Conv2d) -> Tile {
    match variant {
        ConvVariant::Subgroup | ConvVariant::Winograd => subgroup_tile(&gpu.device),
        ConvVariant::Tiled => tiled_tile(),
        ConvVariant::Cooperative => {
            // All in pixels where that leaves fewer channels idle.
            let [two, one] = [64, 32].map(|block| p.out_channels.next_multiple_of(block));
            cooperative_tile(&gpu.device, if two > one { 1 } else { 2 })
        }
    }
}

/// Values of the packed weight and bias of `p` for `variant`.
pub(super) fn packed_lengths(gpu: &Gpu, variant: ConvVariant, p: &Conv2d) -> [usize; 2] {
    let outputs = p.out_channels.next_multiple_of(tile(gpu, variant, p).channels);
    let inputs = p.in_channels.next_multiple_of(variant.step());
    [outputs * variant.positions(p) * inputs, outputs]
}

/// How a convolution is cut up.
struct Work {
    pixels: usize,
    tiles: usize,
    workgroups: usize,
}

impl Work {
    fn new(shape: Shape, p: &Conv2d, tile: &Tile) -> Self {
        let pixels = shape.n * shape.pixels();
        let tiles = pixels.div_ceil(tile.pixels);
        Self { pixels, tiles, workgroups: tiles * p.out_channels.div_ceil(tile.channels) }
    }
}

/// [out, in, position] to [block of output channels, position, in, channel of the block] for `variant`, input channels filled
/// up to multiples of its step and output channels to whole blocks with zeros. Positions are taps, row by row, or those of
/// [`exec::winograd::transformed`].
fn pack(weight: &[f32], p: &Conv2d, block: usize, variant: ConvVariant) -> Vec<f32> {
    let (inputs, positions) =
        (p.in_channels.next_multiple_of(variant.step()), variant.positions(p));
    let blocks = p.out_channels.div_ceil(block);
    let mut packed = vec![0.0; blocks * positions * inputs * block];
    for (at, &value) in weight.iter().enumerate() {
        let (position, input, output) =
            (at % positions, at / positions % p.in_channels, at / positions / p.in_channels);
        let row = (output / block * positions + position) * inputs + input;
        packed[row * block + output % block] = value;
    }
    packed
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use super::*;
    use crate::{
        exec::gpu::tests::gpu,
        ops::cases::{self, OpCall},
    };

    /// Among those of f32 the variant is a matter of speed: they give the same bits.
    #[test]
    fn variants_do_not_change_results() {
        let mut table = cases::table(7);
        table.cases.retain(|case| matches!(case.op, OpCall::Conv2d(_)));
        let Some(mut one) = gpu(table.weights.clone()) else { return };
        let Some(mut other) = gpu(table.weights.clone()) else { return };
        one.conv = Some(ConvVariant::Subgroup);
        other.conv = Some(ConvVariant::Tiled);
        for case in &table.cases {
            let (a, b) = (case.run(&mut one).unwrap().1, case.run(&mut other).unwrap().1);
            let same = a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && a.len() == b.len(), "{}", case.name);
        }
    }
}
