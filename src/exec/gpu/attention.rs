//! The two halves of spatial-channel attention.

use super::{
    Gpu, Tensor, WORKGROUP,
    pipelines::{operator, params},
    queue::Call,
    word,
};
use crate::{
    error::Result,
    ops::{channel_attention, spatial_attention},
};

params! {
    struct SpatialParams {
        count: u32,
        pixels: u32,
        channels: u32,
        first_key: u32,
        first_query: u32,
        queries: u32,
        scale: f32,
        pad0: u32,
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
    SPATIAL_ATTENTION, "spatial_attention", SpatialParams, [Read, Read, Read, ReadWrite, ReadWrite],
    "scores": [1, 2, 4],
    "softmax": [4],
    "apply": [3, 4, 5]
);
operator!(
    CHANNEL_ATTENTION, "channel_attention", ChannelParams,
    [Read, Read, Read, ReadWrite, ReadWrite, ReadWrite],
    "scores": [1, 2, 4],
    "softmax": [4, 5],
    "apply": [3, 5, 6]
);

/// Largest number of scores that exist at a time (but one query has all of its own).
const MAX_SCORES: usize = 1 << 22;

pub(super) fn spatial_attention(
    gpu: &mut Gpu,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
) -> Result<Tensor> {
    let shape = spatial_attention::output_shape(q.shape, k.shape, v.shape)?;
    let (pixels, channels) = (shape.pixels(), shape.c);
    let strip = (MAX_SCORES / pixels).clamp(1, pixels);
    let y = gpu.tensor(shape, "spatial_attention")?;
    let bytes = 4 * (strip * pixels) as u64;
    let scores = gpu.scratch(bytes, "spatial_attention: scores")?;
    for n in 0..shape.n {
        for first in (0..pixels).step_by(strip) {
            let queries = strip.min(pixels - first);
            let tiles = queries.div_ceil(4) * pixels.div_ceil(4);
            let params = SpatialParams {
                count: word(tiles),
                pixels: word(pixels),
                channels: word(channels),
                first_key: word(n * pixels),
                first_query: word(n * pixels + first),
                queries: word(queries),
                scale: 1.0 / (channels as f32).sqrt(),
                pad0: 0,
            };
            gpu.dispatch(Call {
                operator: &SPATIAL_ATTENTION,
                kernel: 0,
                constants: &[],
                params,
                buffers: &[q.binding(), k.binding(), scores.binding(bytes)],
                workgroups: tiles.div_ceil(WORKGROUP) as u64,
            })?;
            gpu.dispatch(Call {
                operator: &SPATIAL_ATTENTION,
                kernel: 1,
                constants: &[],
                params: SpatialParams { count: word(queries), ..params },
                buffers: &[scores.binding(bytes)],
                workgroups: queries as u64,
            })?;
            let sums = queries.div_ceil(4) * channels;
            gpu.dispatch(Call {
                operator: &SPATIAL_ATTENTION,
                kernel: 2,
                constants: &[],
                params: SpatialParams { count: word(sums), ..params },
                buffers: &[v.binding(), scores.binding(bytes), y.binding()],
                workgroups: sums.div_ceil(WORKGROUP) as u64,
            })?;
        }
    }
    Ok(y)
}

pub(super) fn channel_attention(
    gpu: &mut Gpu,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
) -> Result<Tensor> {
    let shape = channel_attention::output_shape(q.shape, k.shape, v.shape)?;
    let (pixels, channels) = (shape.pixels(), shape.c);
    // Chunks keep sums short and give work to many invocations; their products are bounded like scores.
    let most = (MAX_SCORES / (channels * channels)).clamp(1, 64);
    let chunk = pixels.div_ceil(most).max(32);
    let chunks = pixels.div_ceil(chunk);
    let y = gpu.tensor(shape, "channel_attention")?;
    let square = 4 * (shape.n * channels * channels) as u64;
    let products = gpu.scratch(square * chunks as u64, "channel_attention: products")?;
    let weights = gpu.scratch(square, "channel_attention: weights")?;
    let tiles = shape.n * chunks * channels.div_ceil(4) * channels.div_ceil(4);
    let params = ChannelParams {
        count: word(tiles),
        pixels: word(pixels),
        channels: word(channels),
        chunk: word(chunk),
        chunks: word(chunks),
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
        params: ChannelParams { count: word(rows), ..params },
        buffers: &[products.binding(square * chunks as u64), weights.binding(square)],
        workgroups: rows as u64,
    })?;
    let sums = shape.n * pixels.div_ceil(4) * channels;
    gpu.dispatch(Call {
        operator: &CHANNEL_ATTENTION,
        kernel: 2,
        constants: &[],
        params: ChannelParams { count: word(sums), ..params },
        buffers: &[v.binding(), weights.binding(square), y.binding()],
        workgroups: sums.div_ceil(WORKGROUP) as u64,
    })?;
    Ok(y)
}
