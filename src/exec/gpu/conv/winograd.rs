//! 3x3 convolutions by Winograd's F(4x4, 3x3): input transform, one GEMM per tile element, output transform.

use super::{ConvAlgorithm, Exactness, Fusion, MIN_LANES, Tile, Work, packed, subgroup};
use crate::{
    error::Result,
    exec::{
        self,
        gpu::{
            Gpu, WORKGROUP,
            conv::ConvParams,
            device::Device,
            pipelines::{Kernel, Wanted, operator},
            queue::Call,
            to_u32,
        },
        winograd::{OUTPUT_TILE, TILE_ELEMENTS},
    },
    ops::{Conv2d, Shape, product, weights::Weights},
};

operator!(
    CONV2D_WINOGRAD, "conv2d_winograd" from ["shared/invocation", "shared/conv2d", "shared/subgroup_sums", "conv2d_winograd"], ConvParams,
    [Read, Read, Read, ReadWrite, Read, ReadWrite, ReadWrite],
    "input_transform": [1, 6],
    "multiply": [2, 6, 7],
    "output_transform": [3, 4, 5, 7]
);

/// Most output tiles of a workgroup of `multiply`.
const RUN: usize = 32;

/// Output tiles of a workgroup of `multiply` in units of 8, for `tiles` in all: with more of them many lanes would be
/// idle.
fn tiles_of_8(tiles: usize) -> usize {
    tiles.div_ceil(8).next_power_of_two().min(RUN / 8)
}

/// The override constants of `kernel`, without those of the workgroup's size.
fn constants(kernel: &Kernel, fusion: Fusion, tiles_of_8: usize) -> Vec<(&'static str, f64)> {
    let own = (kernel.entry == "multiply").then_some(("TILES_OF_8", tiles_of_8 as f64));
    fusion.constants().into_iter().chain(own).collect()
}

/// [`super::ConvVariant::Winograd`].
pub(super) struct Winograd;

impl ConvAlgorithm for Winograd {
    fn exactness(&self) -> Exactness {
        Exactness::WholeGrids
    }

    fn supports(&self, device: &Device, p: &Conv2d) -> bool {
        device.subgroup_size >= MIN_LANES && exec::winograd::is_supported(p, 4)
    }

    fn is_profitable(&self, p: &Conv2d, shape: Shape) -> bool {
        exec::winograd::is_profitable(p, shape)
    }

    fn tile(&self, device: &Device, _: &Conv2d) -> Tile {
        subgroup::tile(device)
    }

    fn step(&self) -> usize {
        4
    }

    fn elements(&self, _: &Conv2d) -> usize {
        TILE_ELEMENTS
    }

    fn pack(&self, weights: &Weights, p: &Conv2d, block: usize) -> Result<Vec<u8>> {
        let (pairs, _) = p.load(weights)?.0.as_chunks();
        let weight: Vec<f32> = pairs.iter().flat_map(exec::winograd::transformed).collect();
        let values = packed(&weight, p, block, self.step(), self.elements(p));
        Ok(bytemuck::cast_slice(&values).into())
    }

    /// Scratch buffers: transformed inputs [tile element][tile][in] and products [tile element][tile][out], bounded by
    /// `gpu.winograd_bytes`; larger pictures take several passes.
    fn dispatch(&self, gpu: &mut Gpu, work: Work<'_>) -> Result<()> {
        let Work { p, shape, tile, params, buffers, fusion } = work;
        let [x, weight, bias, y, addend] = buffers;
        let tiles = shape.n * shape.h.div_ceil(OUTPUT_TILE) * shape.w.div_ceil(OUTPUT_TILE);
        let tile_bytes = TILE_ELEMENTS * (p.in_channels + p.out_channels) * 4;
        let at_once = (gpu.winograd_bytes / tile_bytes / RUN * RUN).clamp(RUN, tiles.max(RUN));
        let bytes = |channels| product(&[TILE_ELEMENTS, at_once.min(tiles), channels, 4]);
        let (in_bytes, out_bytes) = (bytes(p.in_channels), bytes(p.out_channels));
        let what = |part| format!("{}: {part} of Winograd's tiles", p.name);
        let inputs = gpu.scratch(in_bytes, &what("inputs"))?;
        let products = gpu.scratch(out_bytes, &what("products"))?;
        let (inputs, products) = (inputs.binding(in_bytes), products.binding(out_bytes));
        for first in (0..tiles).step_by(at_once) {
            let tiles = at_once.min(tiles - first);
            let per_workgroup = tiles_of_8(tiles);
            let blocks = tiles.div_ceil(8 * per_workgroup);
            let multiplied = blocks * TILE_ELEMENTS * p.out_channels.div_ceil(tile.channels);
            let params = ConvParams {
                count: to_u32(multiplied),
                pixel_blocks: to_u32(blocks),
                first_tile: to_u32(first),
                tiles: to_u32(tiles),
                ..params
            };
            let transforms = |channels: usize| (tiles * channels / 4).div_ceil(WORKGROUP) as u64;
            let mut dispatch = |kernel, buffers: &[_], fusion: Fusion, workgroups| {
                let own = constants(&CONV2D_WINOGRAD.kernels[kernel], fusion, per_workgroup);
                let constants: Vec<_> = tile.constants.iter().copied().chain(own).collect();
                gpu.dispatch(Call {
                    operator: &CONV2D_WINOGRAD,
                    kernel,
                    constants: &constants,
                    params,
                    buffers,
                    workgroups,
                })
            };
            let entering = Fusion { up: fusion.up, ..Fusion::NONE };
            dispatch(0, &[x.clone(), inputs.clone()], entering, transforms(p.in_channels))?;
            let multiplying = [weight.clone(), inputs.clone(), products.clone()];
            dispatch(1, &multiplying, Fusion::NONE, multiplied as u64)?;
            let leaving = Fusion { up: false, ..fusion };
            let results = [bias.clone(), y.clone(), addend.clone(), products.clone()];
            dispatch(2, &results, leaving, transforms(p.out_channels))?;
        }
        Ok(())
    }

    /// Many tiles or few, with and without a sum.
    fn ahead(&self, device: &Device) -> Vec<Wanted> {
        if device.subgroup_size < MIN_LANES {
            return Vec::new();
        }
        let sum = Fusion { sum: 2, ..Fusion::NONE };
        let with = |kernel: &'static Kernel| {
            let more = match kernel.entry {
                "multiply" => Some((Fusion::NONE, 1)),
                "output_transform" => Some((sum, RUN / 8)),
                _ => None,
            };
            let all = [(Fusion::NONE, RUN / 8)].into_iter().chain(more);
            all.map(move |(fusion, tiles)| {
                let own = constants(kernel, fusion, tiles);
                let constants = subgroup::tile(device).constants.into_iter().chain(own);
                (&CONV2D_WINOGRAD, kernel, constants.collect())
            })
        };
        CONV2D_WINOGRAD.kernels.iter().flat_map(with).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        exec::gpu::{ConvVariant, tests::gpu},
        graph::{GraphBuilder, testing::results},
        ops::{
            Domain, Factors,
            testing::Random,
            weights::{Param, Weights},
        },
    };

    /// Largest relative L2 error against sums in one order: F(4x4) multiplies by up to 8 and divides by up to 24.
    const TOLERANCE: f64 = 1e-5;

    fn layer(domain: Domain) -> (Conv2d, Arc<Weights>) {
        let (in_channels, out_channels) = (36, 40);
        let layer = Conv2d { name: "layer".into(), in_channels, out_channels, kernel: 3, domain };
        let (mut weights, mut random) = (Weights::default(), Random::new(31));
        for (name, shape) in layer.params() {
            let data = random.values(shape.iter().product(), 0.0, 0.1);
            weights.insert(name, Param { shape, data });
        }
        (layer, Arc::new(weights))
    }

    /// The layer's results for `n` pictures, alone and in a sum with itself.
    fn run(gpu: &mut Gpu, layer: &Conv2d, n: usize) -> [Vec<f32>; 2] {
        let shape = Shape::new(n, 19, 30, layer.in_channels);
        // The first picture has the same values however many there are.
        let values = Random::new(32).values(shape.len(), 0.5, 1.5);
        let mut g = GraphBuilder::new();
        let x = g.input(shape).unwrap();
        let [alone, term] = [0; 2].map(|_| g.conv2d(x, layer.clone()).unwrap());
        let other = g.silu(alone).unwrap();
        let sum = g.weighted_add(term, other, Factors::Fixed(0.75, -1.25)).unwrap();
        let [alone, sum] = &results(gpu, &g.finish([alone, sum]), &[(shape, values)]).unwrap()[..]
        else {
            panic!("two results")
        };
        [alone.clone(), sum.clone()]
    }

    /// It is selected for layers on whole grids, within the tolerance of the other variants and with the same bits for
    /// a picture of a batch as for one alone; never for layers that may run on a window, even if requested.
    #[test]
    fn winograd_runs_on_whole_grids_only() {
        let (layer_whole, weights) = layer(Domain::Whole);
        let Some(mut ours) = gpu(weights.clone()) else { return };
        let mut other = gpu(weights.clone()).unwrap().with_convolutions(ConvVariant::Subgroup);
        let (two, wanted) = (run(&mut ours, &layer_whole, 2), run(&mut other, &layer_whole, 2));
        for (found, wanted) in two.iter().zip(&wanted) {
            assert!(found != wanted);
            let square = |values: &mut dyn Iterator<Item = f32>| -> f64 {
                values.map(|v| f64::from(v).powi(2)).sum::<f64>()
            };
            let difference = square(&mut found.iter().zip(wanted).map(|(a, b)| a - b));
            let error = (difference / square(&mut wanted.iter().copied())).sqrt();
            assert!(error <= TOLERANCE, "{error:e}");
        }
        for winograd_bytes in [usize::MAX, 0] {
            // 40 tiles per picture, at most 32 at a time: workgroups of 32, 16 and 8.
            ours.winograd_bytes = winograd_bytes;
            assert!(run(&mut ours, &layer_whole, 2) == two);
            for (one, two) in run(&mut ours, &layer_whole, 1).iter().zip(&two) {
                assert!(one[..] == two[..one.len()]);
            }
        }
        let (windowed, _) = layer(Domain::Window);
        assert!(run(&mut ours, &windowed, 2) == wanted);
        let mut asked = gpu(weights).unwrap().with_convolutions(ConvVariant::Winograd);
        let window = run(&mut asked, &windowed, 2);
        assert!(window == wanted);
    }
}
