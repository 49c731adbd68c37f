//! Convolutions: variants that give the same bits in different ways.

use serde::{Deserialize, Serialize};

use super::{
    Gpu, Tensor,
    device::Device,
    pipelines::{Constants, Operator, operator, params},
    queue::Call,
    tune, word,
};
use crate::{
    error::{Error, Result},
    ops::{Conv2d, Shape, conv2d},
};

params! {
    struct ConvParams {
        count: u32,
        tiles: u32,
        pixels: u32,
        in_channels: u32,
        out_channels: u32,
        height: u32,
        width: u32,
        taps: u32,
    }
}

operator!(
    CONV2D_SUBGROUP, "conv2d_subgroup", ConvParams, [Read, Read, Read, ReadWrite],
    "main": [1, 2, 3, 4],
    "narrow": [1, 2, 3, 4]
);
operator!(
    CONV2D_TILED, "conv2d_tiled", ConvParams, [Read, Read, Read, ReadWrite],
    "main": [1, 2, 3, 4],
    "odd": [1, 2, 3, 4]
);

/// A way to compute convolutions. All add up the products of a result in the same order and give the same bits, so that
/// the choice is a matter of speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConvVariant {
    /// Sums in registers, inputs handed round among the lanes of a subgroup of 8 or more; input channels in fours.
    Subgroup,
    /// Tiles in workgroup memory; any device, any number of channels.
    Tiled,
}

impl ConvVariant {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Subgroup, Self::Tiled];

    /// Its name: `subgroup`, `tiled`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Subgroup => "subgroup",
            Self::Tiled => "tiled",
        }
    }

    /// The variant of this name.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] naming those that there are.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|variant| variant.name() == name).ok_or_else(|| {
            let all = Self::ALL.map(Self::name).join(", ");
            Error::invalid(format!("convolution variant {name:?} is none of {all}"))
        })
    }
}

/// Pixels and output channels of a workgroup, and the override constants that say so.
struct Tile {
    pixels: usize,
    channels: usize,
    constants: Constants,
}

/// Least lanes of a subgroup that [`ConvVariant::Subgroup`] works with.
const MIN_LANES: u32 = 8;

/// Lanes of a workgroup of [`ConvVariant::Subgroup`]: no more than a subgroup has, as its lanes share their reads.
fn subgroup_tile(device: &Device) -> Tile {
    let (lanes, constants): (usize, Constants) = match device.subgroup_size {
        0..16 => (8, &[("LANES", 8.0)]),
        16..32 => (16, &[("LANES", 16.0)]),
        _ => (32, &[("LANES", 32.0)]),
    };
    Tile { pixels: 32, channels: 4 * lanes, constants }
}

/// The constants that `operator`, a convolution or another, runs with on `device`; None where it can't run there, or only
/// if no other can.
pub(super) fn constants(device: &Device, operator: &Operator) -> Option<Constants> {
    let subgroups = device.subgroup_size >= MIN_LANES;
    match operator.name {
        "conv2d_subgroup" => subgroups.then(|| subgroup_tile(device).constants),
        // Kernels of a software device are slow to compile, and this one is hardly used there.
        "conv2d_tiled" => (!subgroups || !device.info.software).then_some(&[]),
        _ => Some(&[]),
    }
}

/// Whether the device and the layer allow `variant`.
fn fits(gpu: &Gpu, variant: ConvVariant, p: &Conv2d) -> bool {
    match variant {
        ConvVariant::Subgroup => {
            gpu.device.subgroup_size >= MIN_LANES && p.in_channels.is_multiple_of(4)
        }
        ConvVariant::Tiled => true,
    }
}

/// What is used where nothing was measured: workgroup memory where the device is a GPU; on a software device that memory
/// is ordinary memory and its barriers are costly, so that registers come first.
fn usual(device: &Device) -> ConvVariant {
    if device.info.software { ConvVariant::Subgroup } else { ConvVariant::Tiled }
}

/// What computes `p` with a result of `shape`: what was asked for, else what was measured, else what is usual, where it
/// fits.
fn choose(gpu: &mut Gpu, p: &Conv2d, shape: Shape) -> ConvVariant {
    let wanted = gpu.conv.or_else(|| {
        let fitting: Vec<_> = ConvVariant::ALL.into_iter().filter(|&v| fits(gpu, v, p)).collect();
        if fitting.len() > 1 { tune::fastest(gpu, &fitting, p, shape) } else { None }
    });
    let wanted = wanted.unwrap_or_else(|| usual(&gpu.device));
    if fits(gpu, wanted, p) { wanted } else { ConvVariant::Tiled }
}

pub(super) fn conv2d(gpu: &mut Gpu, x: &Tensor, p: &Conv2d) -> Result<Tensor> {
    let shape = conv2d::output_shape(x.shape, p)?;
    let variant = choose(gpu, p, shape);
    let block = tile(gpu, variant).channels;
    let y = gpu.tensor(shape, &p.name)?;
    let [_, length] = packed_lengths(gpu, variant, p);
    // A layer may be computed by several variants, each with its own layout.
    let [weight, bias] = p.params().map(|(name, _)| format!("{name} in {block}s"));
    let weight = gpu.parameter(&weight, |w| Ok(pack(p.load(w)?.0, p, block)))?;
    let bias = gpu.parameter(&bias, |w| {
        let mut bias = p.load(w)?.1.to_vec();
        bias.resize(length, 0.0);
        Ok(bias)
    })?;
    let buffers = [x.binding(), weight.as_entire_binding(), bias.as_entire_binding(), y.binding()];
    run(gpu, variant, p, shape, &buffers)?;
    Ok(y)
}

/// Dispatches `p` by `variant`: input, packed weight, packed bias and result of `shape` are `buffers`.
pub(super) fn run(
    gpu: &mut Gpu,
    variant: ConvVariant,
    p: &Conv2d,
    shape: Shape,
    buffers: &[wgpu::BindingResource<'_>; 4],
) -> Result<()> {
    let tile = tile(gpu, variant);
    let work = Work::new(shape, p, &tile);
    let (operator, plain) = match variant {
        ConvVariant::Subgroup => (&CONV2D_SUBGROUP, p.out_channels.is_multiple_of(4)),
        ConvVariant::Tiled => (&CONV2D_TILED, p.in_channels.is_multiple_of(4)),
    };
    gpu.dispatch(Call {
        operator,
        kernel: usize::from(!plain),
        constants: tile.constants,
        params: ConvParams {
            count: word(work.workgroups),
            tiles: word(work.tiles),
            pixels: word(work.pixels),
            in_channels: word(p.in_channels),
            out_channels: word(p.out_channels),
            height: word(shape.h),
            width: word(shape.w),
            taps: word(p.kernel * p.kernel),
        },
        buffers,
        workgroups: work.workgroups as u64,
    })
}

/// How `variant` cuts up a convolution.
fn tile(gpu: &Gpu, variant: ConvVariant) -> Tile {
    match variant {
        ConvVariant::Subgroup => subgroup_tile(&gpu.device),
        ConvVariant::Tiled => Tile { pixels: 64, channels: 64, constants: &[] },
    }
}

/// Values of the packed weight and bias of `p` for `variant`.
pub(super) fn packed_lengths(gpu: &Gpu, variant: ConvVariant, p: &Conv2d) -> [usize; 2] {
    let outputs = p.out_channels.next_multiple_of(tile(gpu, variant).channels);
    [outputs * p.kernel * p.kernel * p.in_channels.next_multiple_of(4), outputs]
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

/// [out, in, row, column] to [block of output channels, row, column, in, channel of the block], input channels filled up
/// to fours and output channels to whole blocks with zeros.
fn pack(weight: &[f32], p: &Conv2d, block: usize) -> Vec<f32> {
    let (inputs, taps) = (p.in_channels.next_multiple_of(4), p.kernel * p.kernel);
    let blocks = p.out_channels.div_ceil(block);
    let mut packed = vec![0.0; blocks * taps * inputs * block];
    for (at, &value) in weight.iter().enumerate() {
        let (tap, input, output) =
            (at % taps, at / taps % p.in_channels, at / taps / p.in_channels);
        let row = (output / block * taps + tap) * inputs + input;
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

    /// The variant is a matter of speed: all give the same bits.
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
