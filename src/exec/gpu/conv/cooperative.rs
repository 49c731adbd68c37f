//! f16 factors and f32 sums on cooperative matrices.

use super::{ConvAlgorithm, Exactness, Tile, Work, ahead, packed};
use crate::{
    error::Result,
    exec::gpu::{
        Gpu,
        conv::ConvParams,
        device::Device,
        pipelines::{Operator, Wanted, operator},
    },
    ops::{Conv2d, weights::Weights},
};

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

/// The shader for the size of the device's matrices.
fn operator(device: &Device) -> &'static Operator {
    match device.matrix {
        Some(16) => &CONV2D_COOPERATIVE16,
        _ => &CONV2D_COOPERATIVE8,
    }
}

/// A workgroup of four subgroups, `across` of them adjacent in channels and the others in pixels.
fn tile(device: &Device, across: usize) -> Tile {
    let lanes = f64::from(device.subgroup_max_size);
    let constants = vec![("LANES", lanes), ("ACROSS", across as f64)];
    Tile { pixels: 128 / across, channels: 32 * across, constants }
}

/// [`super::ConvVariant::Cooperative`].
pub(super) struct Cooperative;

impl ConvAlgorithm for Cooperative {
    fn exactness(&self) -> Exactness {
        Exactness::Half
    }

    /// With fewer than 16 channels most of a matrix would be zeros.
    fn supports(&self, device: &Device, p: &Conv2d) -> bool {
        device.matrix.is_some() && p.in_channels.min(p.out_channels) >= 16
    }

    /// All subgroups in pixels if that pads fewer channels.
    fn tile(&self, device: &Device, p: &Conv2d) -> Tile {
        let [two, one] = [64, 32].map(|block| p.out_channels.next_multiple_of(block));
        tile(device, if two > one { 1 } else { 2 })
    }

    fn step(&self) -> usize {
        16
    }

    fn pack(&self, weights: &Weights, p: &Conv2d, block: usize) -> Result<Vec<u8>> {
        let values = packed(p.load(weights)?.0, p, block, self.step(), self.elements(p));
        let halves: Vec<_> = values.into_iter().map(half::f16::from_f32).collect();
        Ok(bytemuck::cast_slice(&halves).into())
    }

    fn dispatch(&self, gpu: &mut Gpu, work: Work<'_>) -> Result<()> {
        let unaligned = !work.p.in_channels.is_multiple_of(4);
        let operator = operator(&gpu.device);
        work.dispatch(gpu, operator, unaligned)
    }

    fn ahead(&self, device: &Device) -> Vec<Wanted> {
        let across: &[usize] = if device.matrix.is_some() { &[1, 2] } else { &[] };
        across.iter().flat_map(|&across| ahead(operator(device), &tile(device, across))).collect()
    }
}
