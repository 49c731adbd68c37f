//! 3x3 convolutions with a quarter of the products: Winograd's F(4x4, 3x3) (Lavin and Gray 2015, arXiv 1509.09308).

use super::{
    Gpu, WORKGROUP,
    conv2d::{ConvParams, Fusion, subgroup_tile},
    pipelines::operator,
    queue::Call,
    word,
};
use crate::{
    error::Result,
    ops::{Conv2d, Shape, product},
};

operator!(
    CONV2D_WINOGRAD, "conv2d_winograd" from ["conv2d", "subgroup_sums", "conv2d_winograd"], ConvParams,
    [Read, Read, Read, ReadWrite, Read, ReadWrite, ReadWrite],
    "enter": [1, 6],
    "multiply": [2, 6, 7],
    "leave": [3, 4, 5, 7]
);

/// Rows and columns of the square of results that is computed at once.
const SQUARE: usize = 4;

/// Rows and columns of what it is computed from.
const PATCH: usize = SQUARE + 2;

/// Products of a pair of channels for a square.
pub(super) const POSITIONS: usize = PATCH * PATCH;

/// Squares that a workgroup of `multiply` has.
const RUN: usize = 32;

/// Least channels, in and out, for which transforming costs less than it saves.
const MIN_CHANNELS: usize = 32;

/// Least pixels of a picture's grid: its squares fill a run.
const MIN_PIXELS: usize = RUN * SQUARE * SQUARE;

/// Transforms 3 weights of a row or column: G of the paper's F(4x4, 3x3).
const WEIGHTS: [[f64; 3]; PATCH] = [
    [1.0 / 4.0, 0.0, 0.0],
    [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
    [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
    [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
    [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
    [0.0, 0.0, 1.0],
];

/// Whether it is worth while for a result of `shape`, of which the number of pictures does not count: in a batch a picture has
/// the bits that it has alone.
pub(super) fn pays(p: &Conv2d, shape: Shape) -> bool {
    p.in_channels.min(p.out_channels) >= MIN_CHANNELS && shape.pixels() >= MIN_PIXELS
}

/// [out, in, 3, 3] to [out, in, [`POSITIONS`]]: G g G^T of each pair of channels, row by row.
pub(super) fn transformed(weight: &[f32]) -> Vec<f32> {
    let mut all = Vec::with_capacity(weight.len() / 9 * POSITIONS);
    for g in weight.chunks_exact(9) {
        for row in WEIGHTS {
            for column in WEIGHTS {
                let terms = (0..9).map(|tap| row[tap / 3] * f64::from(g[tap]) * column[tap % 3]);
                all.push(terms.sum::<f64>() as f32);
            }
        }
    }
    all
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
    let bytes = |channels| product(&[POSITIONS, squares, channels, 4]);
    let (in_bytes, out_bytes) = (bytes(p.in_channels), bytes(p.out_channels));
    let what = |part| format!("{}: {part} of Winograd's squares", p.name);
    let inputs = gpu.scratch(in_bytes, &what("inputs"))?;
    let products = gpu.scratch(out_bytes, &what("products"))?;
    let tile = subgroup_tile(&gpu.device);
    let runs = squares.div_ceil(RUN);
    let multiplied = runs * POSITIONS * p.out_channels.div_ceil(tile.channels);
    let params = ConvParams { count: word(multiplied), tiles: word(runs), ..params };
    let transforms = |channels: usize| (squares * channels / 4).div_ceil(WORKGROUP) as u64;
    let mut dispatch = |kernel, buffers: &[_], fusion: Fusion, workgroups| {
        let constants: Vec<_> =
            tile.constants.iter().copied().chain(fusion.constants()).collect();
        gpu.dispatch(Call {
            operator: &CONV2D_WINOGRAD,
            kernel,
            constants: &constants,
            params,
            buffers,
            workgroups,
        })
    };
    let (inputs, products) = (inputs.binding(in_bytes), products.binding(out_bytes));
    let entering = Fusion { up: fusion.up, ..Fusion::NONE };
    dispatch(0, &[x, inputs.clone()], entering, transforms(p.in_channels))?;
    dispatch(1, &[weight, inputs, products.clone()], Fusion::NONE, multiplied as u64)?;
    let leaving = Fusion { up: false, ..fusion };
    dispatch(2, &[bias, y, addend, products], leaving, transforms(p.out_channels))
}
