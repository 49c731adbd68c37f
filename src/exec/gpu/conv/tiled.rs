//! Tiles in workgroup memory: any device, any number of channels.

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
    CONV2D_TILED, "conv2d_tiled" from ["shared/conv2d", "conv2d_tiled"],
    ConvParams, [Read, Read, Read, ReadWrite, Read],
    "main": [1, 2, 3, 4, 5],
    "main_unaligned": [1, 2, 3, 4, 5]
);

fn tile() -> Tile {
    Tile { pixels: 64, channels: 64, constants: Vec::new() }
}

/// [`super::ConvVariant::Tiled`].
pub(super) struct Tiled;

impl ConvAlgorithm for Tiled {
    fn exactness(&self) -> Exactness {
        Exactness::SameBits
    }

    fn supports(&self, _: &Device, _: &Conv2d) -> bool {
        true
    }

    fn tile(&self, _: &Device, _: &Conv2d) -> Tile {
        tile()
    }

    fn step(&self) -> usize {
        4
    }

    fn dispatch(&self, gpu: &mut Gpu, work: Work<'_>) -> Result<()> {
        let unaligned = !work.p.in_channels.is_multiple_of(4);
        work.dispatch(gpu, &CONV2D_TILED, unaligned)
    }

    fn ahead(&self, device: &Device) -> Vec<Wanted> {
        // Kernels are slow to compile for a software device, and this one is hardly used there.
        match device.subgroup_size >= MIN_LANES && device.info.software {
            true => Vec::new(),
            false => ahead(&CONV2D_TILED, &tile()),
        }
    }
}
