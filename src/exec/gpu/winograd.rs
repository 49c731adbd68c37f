//! 3x3 convolutions of whole grids by Winograd's F(4x4, 3x3).

use super::{
    Gpu, WORKGROUP,
    conv2d::{ConvParams, Fusion, subgroup_tile},
    pipelines::{Kernel, operator},
    queue::Call,
    word,
};
use crate::{
    error::Result,
    exec::winograd::{POSITIONS, SQUARE},
    ops::{Conv2d, Shape, product},
};

operator!(
    CONV2D_WINOGRAD, "conv2d_winograd" from ["conv2d", "subgroup_sums", "conv2d_winograd"], ConvParams,
    [Read, Read, Read, ReadWrite, Read, ReadWrite, ReadWrite],
    "enter": [1, 6],
    "multiply": [2, 6, 7],
    "leave": [3, 4, 5, 7]
);

/// Most squares of a workgroup of `multiply`.
const RUN: usize = 32;

/// Eights of squares of a workgroup that has a share of `squares`: of a longer run many would be idle.
fn eights(squares: usize) -> usize {
    squares.div_ceil(8).next_power_of_two().min(RUN / 8)
}

/// The constants of `kernel` beside the tile's.
fn constants(kernel: &Kernel, fusion: Fusion, eights: usize) -> Vec<(&'static str, f64)> {
    let own = (kernel.entry == "multiply").then_some(("EIGHTS", eights as f64));
    fusion.constants().into_iter().chain(own).collect()
}

/// Those that the networks have with large pictures: many squares or few; sums, as results leave.
pub(super) fn usual(kernel: &Kernel) -> Vec<Vec<(&'static str, f64)>> {
    let sum = Fusion { sum: 2, ..Fusion::NONE };
    let more = match kernel.entry {
        "multiply" => Some((Fusion::NONE, 1)),
        "leave" => Some((sum, RUN / 8)),
        _ => None,
    };
    let all = [(Fusion::NONE, RUN / 8)].into_iter().chain(more);
    all.map(|(fusion, eights)| constants(kernel, fusion, eights)).collect()
}

/// Dispatches `p` with a result of `shape`: input, packed weight, packed bias, result and addend are `buffers`; `params` are those
/// of any convolution.
pub(super) fn run(
    gpu: &mut Gpu,
    p: &Conv2d,
    shape: Shape,
    params: ConvParams,
    buffers: [wgpu::BindingResource<'_>; 5],
    fusion: Fusion,
) -> Result<()> {
    let [x, weight, bias, y, addend] = buffers;
    let squares = shape.n * shape.h.div_ceil(SQUARE) * shape.w.div_ceil(SQUARE);
    let square_bytes = POSITIONS * (p.in_channels + p.out_channels) * 4;
    let at_once = (gpu.squares_bytes / square_bytes / RUN * RUN).clamp(RUN, squares.max(RUN));
    let bytes = |channels| product(&[POSITIONS, at_once.min(squares), channels, 4]);
    let (in_bytes, out_bytes) = (bytes(p.in_channels), bytes(p.out_channels));
    let what = |part| format!("{}: {part} of Winograd's squares", p.name);
    let inputs = gpu.scratch(in_bytes, &what("inputs"))?;
    let products = gpu.scratch(out_bytes, &what("products"))?;
    let tile = subgroup_tile(&gpu.device);
    let (inputs, products) = (inputs.binding(in_bytes), products.binding(out_bytes));
    for first in (0..squares).step_by(at_once) {
        let squares = at_once.min(squares - first);
        let eights = eights(squares);
        let runs = squares.div_ceil(8 * eights);
        let multiplied = runs * POSITIONS * p.out_channels.div_ceil(tile.channels);
        let params = ConvParams {
            count: word(multiplied),
            tiles: word(runs),
            first_square: word(first),
            squares: word(squares),
            ..params
        };
        let transforms = |channels: usize| (squares * channels / 4).div_ceil(WORKGROUP) as u64;
        let mut dispatch = |kernel, buffers: &[_], fusion: Fusion, workgroups| {
            let own = constants(&CONV2D_WINOGRAD.kernels[kernel], fusion, eights);
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        exec::gpu::{ConvVariant, tests::gpu},
        ops::{
            Ops as _,
            cases::Random,
            weights::{Param, Weights},
        },
    };

    /// Most relative L2 error beside sums in one order: F(4x4) multiplies by up to 8 and divides by up to 24.
    const TOLERANCE: f64 = 1e-5;

    fn layer(whole: bool) -> (Conv2d, Arc<Weights>) {
        let (in_channels, out_channels) = (36, 40);
        let layer = Conv2d { name: "layer".into(), in_channels, out_channels, kernel: 3, whole };
        let (mut weights, mut random) = (Weights::default(), Random::new(31));
        for (name, shape) in layer.params() {
            let data = random.values(shape.iter().product(), 0.0, 0.1);
            weights.insert(name, Param { shape, data });
        }
        (layer, Arc::new(weights))
    }

    /// The layer for `n` pictures, by itself and in a sum with itself.
    fn run(gpu: &mut Gpu, layer: &Conv2d, n: usize) -> [Vec<f32>; 2] {
        let shape = Shape::new(n, 19, 30, layer.in_channels);
        // The first picture has the same values however many there are.
        let x = gpu.upload(shape, &Random::new(32).values(shape.len(), 0.5, 1.5)).unwrap();
        let [alone, first, second] = [0; 3].map(|_| gpu.conv2d(&x, layer).unwrap());
        let other = gpu.silu(&first).unwrap();
        let sum = gpu.weighted_add(&second, &other, 0.75, -1.25).unwrap();
        [alone, sum].map(|y| gpu.download(&y).unwrap())
    }

    /// By rule it computes what sees whole grids, all but as the others do, a picture of a batch as one alone; and never what
    /// may see a window.
    #[test]
    fn it_computes_what_sees_whole_grids_and_nothing_else() {
        let (layer_whole, weights) = layer(true);
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
        for squares_bytes in [usize::MAX, 0] {
            // 40 squares a picture, at most 32 at a time: runs of 32, 16 and 8.
            ours.squares_bytes = squares_bytes;
            assert!(run(&mut ours, &layer_whole, 2) == two);
            for (one, two) in run(&mut ours, &layer_whole, 1).iter().zip(&two) {
                assert!(one[..] == two[..one.len()]);
            }
        }
        let (windowed, _) = layer(false);
        assert!(run(&mut ours, &windowed, 2) == wanted);
        let mut asked = gpu(weights).unwrap().with_convolutions(ConvVariant::Winograd);
        let window = run(&mut asked, &windowed, 2);
        assert!(window == wanted);
    }
}
