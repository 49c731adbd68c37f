//! Attention over pixels and over channels. Matrix products run on the kernels of convolutions (`matrix.rs`), except
//! the scores of attention over channels: they are few and each is a sum over all pixels, computed in chunks. They are
//! f32, as they grow with the number of pixels.

use super::{
    Gpu, Tensor, WORKGROUP,
    matrix::{Layout, Matrix},
    pipelines::{Operator, operator, params},
    queue::Call,
    to_u32,
};
use crate::{
    error::Result,
    ops::{Op, channel_attention, spatial_attention},
};

params! {
    struct SpatialParams {
        count: u32,
        pixels: u32,
        pad0: u32,
        pad1: u32,
    }
}
params! {
    struct ChannelParams {
        count: u32,
        pixels: u32,
        channels: u32,
        chunk: u32,
        chunks: u32,
        scale: f32,
        pad0: u32,
        pad1: u32,
    }
}

operator!(
    SPATIAL_ATTENTION, "spatial_attention" from ["shared/reduce", "spatial_attention"],
    SpatialParams, [ReadWrite],
    "softmax": [1]
);
operator!(
    CHANNEL_ATTENTION, "channel_attention" from ["shared/invocation", "shared/reduce", "channel_attention"],
    ChannelParams, [Read, Read, ReadWrite, ReadWrite],
    "scores": [1, 2, 3],
    "softmax": [3, 4]
);

/// The operators of this module.
pub(super) static OPERATORS: &[&Operator] = &[&CHANNEL_ATTENTION, &SPATIAL_ATTENTION];

/// Runs `op`, if it is one of this module.
pub(super) fn run(gpu: &mut Gpu, op: &Op, inputs: &[Tensor]) -> Option<Result<Tensor>> {
    Some(match (op, inputs) {
        (Op::ChannelAttention, [q, k, v]) => channel_attention(gpu, q, k, v),
        (Op::SpatialAttention, [q, k, v]) => spatial_attention(gpu, q, k, v),
        _ => return None,
    })
}

/// Most scores of attention over pixels, and most partial products of attention over channels, at a time.
pub(super) const SCORES: usize = 1 << 22;

/// Attention over pixels, q, k, v [n, h, w, c] -> [n, h, w, c].
///
/// Per picture of N pixels and strip of S queries: scores [S][N] = q (k^T / sqrt c), softmax of every row in place,
/// scores v. S is bounded by `gpu.scores` / N.
fn spatial_attention(gpu: &mut Gpu, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let shape = spatial_attention::output_shape(q.shape, k.shape, v.shape)?;
    let (pixels, channels) = (shape.pixels(), shape.c);
    let strip = (gpu.scores / pixels).clamp(1, pixels);
    let y = gpu.tensor(shape, "spatial_attention")?;
    let bytes = 4 * (strip * pixels) as u64;
    let scores = gpu.scratch(bytes, "spatial_attention: scores")?;
    let scale = 1.0 / (channels as f32).sqrt();
    for n in 0..shape.n {
        let (picture, first) = (n * pixels, n * pixels * channels);
        let keys = Layout { inputs: channels, outputs: pixels, first, strides: [1, channels] };
        let values = Layout { inputs: pixels, outputs: channels, first, strides: [channels, 1] };
        let keys = Matrix::new(gpu, "spatial_attention: keys", k.binding(), keys, scale)?;
        let values = Matrix::new(gpu, "spatial_attention: values", v.binding(), values, 1.0)?;
        for first in (0..pixels).step_by(strip) {
            let queries = strip.min(pixels - first);
            let (own, scores) = (picture + first, || scores.binding(bytes));
            keys.product(gpu, (q.binding(), own), queries, (scores(), 0))?;
            let params = SpatialParams {
                count: to_u32(queries),
                pixels: to_u32(pixels),
                ..SpatialParams::default()
            };
            gpu.dispatch(Call {
                operator: &SPATIAL_ATTENTION,
                kernel: 0,
                constants: &[],
                params,
                buffers: &[scores()],
                workgroups: queries as u64,
            })?;
            values.product(gpu, (scores(), 0), queries, (y.binding(), own))?;
        }
    }
    Ok(y)
}

/// Attention over channels, q, k, v [n, h, w, c] -> [n, h, w, c].
///
/// Two kernels: `scores` writes partial products q^T k [n][chunk][i][j] over chunks of pixels, `softmax` adds the
/// chunks and writes weights [n][j][i]. The result is v times the weights.
fn channel_attention(gpu: &mut Gpu, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let shape = channel_attention::output_shape(q.shape, k.shape, v.shape)?;
    let (pixels, channels) = (shape.pixels(), shape.c);
    // Chunks keep sums short and occupy many invocations; their number is bounded by SCORES.
    let most = (SCORES / (channels * channels)).clamp(1, 64);
    let chunk = pixels.div_ceil(most).max(32);
    let chunks = pixels.div_ceil(chunk);
    let y = gpu.tensor(shape, "channel_attention")?;
    let square = 4 * (shape.n * channels * channels) as u64;
    let products = gpu.scratch(square * chunks as u64, "channel_attention: products")?;
    let weights = gpu.scratch(square, "channel_attention: weights")?;
    let tiles = shape.n * chunks * channels.div_ceil(4) * channels.div_ceil(4);
    let params = ChannelParams {
        count: to_u32(tiles),
        pixels: to_u32(pixels),
        channels: to_u32(channels),
        chunk: to_u32(chunk),
        chunks: to_u32(chunks),
        scale: 1.0 / (pixels as f32).sqrt(),
        pad0: 0,
        pad1: 0,
    };
    gpu.dispatch(Call {
        operator: &CHANNEL_ATTENTION,
        kernel: 0,
        constants: &[],
        params,
        buffers: &[q.binding(), k.binding(), products.binding(square * chunks as u64)],
        workgroups: tiles.div_ceil(WORKGROUP) as u64,
    })?;
    let rows = shape.n * channels;
    gpu.dispatch(Call {
        operator: &CHANNEL_ATTENTION,
        kernel: 1,
        constants: &[],
        params: ChannelParams { count: to_u32(rows), ..params },
        buffers: &[products.binding(square * chunks as u64), weights.binding(square)],
        workgroups: rows as u64,
    })?;
    for n in 0..shape.n {
        // weights [j][i], v_j to y_i
        let (inputs, outputs) = (channels, channels);
        let layout =
            Layout { inputs, outputs, first: n * channels * channels, strides: [channels, 1] };
        let what = "channel_attention: weights";
        let mix = Matrix::new(gpu, what, weights.binding(square), layout, 1.0)?;
        mix.product(gpu, (v.binding(), n * pixels), pixels, (y.binding(), n * pixels))?;
    }
    Ok(y)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::{
        exec::gpu::{ConvVariant, tests::gpu},
        graph::{Backend as _, testing::apply},
        ops::{Op, Shape, testing::Random},
    };

    /// Strips of queries, variants of the products and other pictures of a batch do not change a bit, including numbers
    /// of pixels or channels that do not fill a kernel's blocks.
    #[test]
    fn attention_has_the_same_bits_for_all_strips_variants_and_batches() {
        let mut random = Random::new(51);
        for shape in [Shape::new(2, 5, 7, 22), Shape::new(2, 4, 9, 20), Shape::new(2, 8, 16, 96)] {
            let data = [(); 3].map(|()| random.values(shape.len(), 0.0, 1.5));
            let mut all = Vec::new();
            for variant in ConvVariant::SAME_BITS {
                let Some(gpu) = gpu(Arc::default()) else { return };
                let mut gpu = gpu.with_convolutions(variant);
                let one = Shape { n: 1, ..shape };
                for (scores, shape) in [(gpu.scores, shape), (3 * shape.pixels(), shape), (0, one)]
                {
                    gpu.scores = scores;
                    let [q, k, v] =
                        data.each_ref().map(|d| gpu.upload(shape, &d[..shape.len()]).unwrap());
                    let inputs = [q, k, v];
                    all.push([Op::SpatialAttention, Op::ChannelAttention].map(|op| {
                        let y = apply(&mut gpu, &op, &inputs).unwrap();
                        gpu.download(&y).unwrap()
                    }));
                }
            }
            for other in &all[1..] {
                for (a, b) in all[0].iter().zip(other) {
                    assert!(a[..b.len()] == b[..], "{shape:?}");
                }
            }
        }
    }
}
