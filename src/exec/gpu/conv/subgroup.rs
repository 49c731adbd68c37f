//! Register tiles, with inputs broadcast within a subgroup.

use super::{ConvAlgorithm, Exactness, MIN_LANES, Tile, Work, ahead};
use crate::{
    error::Result,
    exec::gpu::{
        Gpu,
        conv::ConvParams,
        device::Device,
        pipelines::{Wanted, operator},
    },
    ops::Conv2d,
};

operator!(
    CONV2D_SUBGROUP, "conv2d_subgroup" from ["shared/conv2d", "shared/subgroup_sums", "conv2d_subgroup"], ConvParams,
    [Read, Read, Read, ReadWrite, Read],
    "main": [1, 2, 3, 4, 5],
    "main_unaligned": [1, 2, 3, 4, 5]
);

/// Workgroup of [`Subgroup`] and of the GEMM of Winograd: at most a subgroup, whose lanes share their loads.
pub(super) fn tile(device: &Device) -> Tile {
    let lanes = match device.subgroup_size {
        0..16 => 8,
        16..32 => 16,
        _ => 32,
    };
    Tile { pixels: 32, channels: 4 * lanes, constants: vec![("LANES", lanes as f64)] }
}

/// [`super::ConvVariant::Subgroup`].
pub(super) struct Subgroup;

impl ConvAlgorithm for Subgroup {
    fn exactness(&self) -> Exactness {
        Exactness::SameBits
    }

    fn supports(&self, device: &Device, p: &Conv2d) -> bool {
        device.subgroup_size >= MIN_LANES && p.in_channels.is_multiple_of(4)
    }

    fn tile(&self, device: &Device, _: &Conv2d) -> Tile {
        tile(device)
    }

    fn step(&self) -> usize {
        4
    }

    fn dispatch(&self, gpu: &mut Gpu, work: Work<'_>) -> Result<()> {
        let unaligned = !work.p.out_channels.is_multiple_of(4);
        work.dispatch(gpu, &CONV2D_SUBGROUP, unaligned)
    }

    fn ahead(&self, device: &Device) -> Vec<Wanted> {
        match device.subgroup_size >= MIN_LANES {
            true => ahead(&CONV2D_SUBGROUP, &tile(device)),
            false => Vec::new(),
        }
    }
}
