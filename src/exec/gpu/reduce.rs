//! Operators that reduce over the grid.

use super::{
    Gpu, Tensor, WORKGROUP,
    pipelines::{operator, params},
    queue::Call,
    word,
};
use crate::{
    error::Result,
    ops::{GroupNorm, Shape, global_avg_pool, group_norm},
};

params! {
    struct GlobalAvgPoolParams {
        count: u32,
        channels: u32,
        pixels: u32,
        chunk: u32,
        chunks: u32,
        pad0: u32,
        pad1: u32,
        pad2: u32,
    }
}
params! {
    struct GroupNormParams {
        count: u32,
        channels: u32,
        groups: u32,
        pixels: u32,
        chunk: u32,
        chunks: u32,
        silu: u32,
        eps: f32,
    }
}

operator!(
    GLOBAL_AVG_POOL, "global_avg_pool", GlobalAvgPoolParams, [Read, ReadWrite, ReadWrite],
    "partial": [1, 2],
    "combine": [2, 3]
);
operator!(
    GROUP_NORM, "group_norm", GroupNormParams, [Read, ReadWrite, ReadWrite, Read, Read, ReadWrite],
    "partial": [1, 2],
    "combine": [1, 2, 3],
    "apply": [1, 3, 4, 5, 6]
);

/// Pixels of an invocation that normalises, `RUN` of group_norm.wgsl.
const RUN: usize = 8;

/// Pixels of a chunk and number of chunks: sums of few terms, and few of them.
fn chunks(shape: Shape) -> (usize, usize) {
    let chunk = shape.pixels().div_ceil(512).max(32);
    (chunk, shape.pixels().div_ceil(chunk))
}

pub(super) fn global_avg_pool(gpu: &mut Gpu, x: &Tensor) -> Result<Tensor> {
    let shape = global_avg_pool::output_shape(x.shape)?;
    let (chunk, chunks) = chunks(x.shape);
    let count = shape.n * chunks * shape.c;
    let params = GlobalAvgPoolParams {
        count: word(count),
        channels: word(shape.c),
        pixels: word(x.shape.pixels()),
        chunk: word(chunk),
        chunks: word(chunks),
        ..GlobalAvgPoolParams::default()
    };
    let y = gpu.tensor(shape, "global_avg_pool")?;
    let bytes = 4 * count as u64;
    let sums = gpu.scratch(bytes, "global_avg_pool: sums")?;
    gpu.dispatch(Call {
        operator: &GLOBAL_AVG_POOL,
        kernel: 0,
        constants: &[],
        params,
        buffers: &[x.binding(), sums.binding(bytes)],
        workgroups: count.div_ceil(WORKGROUP) as u64,
    })?;
    gpu.dispatch(Call {
        operator: &GLOBAL_AVG_POOL,
        kernel: 1,
        constants: &[],
        params: GlobalAvgPoolParams { count: word(shape.len()), ..params },
        buffers: &[sums.binding(bytes), y.binding()],
        workgroups: shape.len().div_ceil(WORKGROUP) as u64,
    })?;
    Ok(y)
}

pub(super) fn group_norm(gpu: &mut Gpu, x: &Tensor, p: &GroupNorm) -> Result<Tensor> {
    let shape = group_norm::output_shape(x.shape, p)?;
    let [weight, bias] = p.params().map(|(name, _)| name);
    let weight = gpu.parameter(&weight, |w| Ok(p.load(w)?.0.to_vec()))?;
    let bias = gpu.parameter(&bias, |w| Ok(p.load(w)?.1.to_vec()))?;
    let (chunk, chunks) = chunks(shape);
    let entries = shape.n * chunks * shape.c;
    let groups = shape.n * p.groups;
    let params = GroupNormParams {
        count: word(entries),
        channels: word(shape.c),
        groups: word(p.groups),
        pixels: word(shape.pixels()),
        chunk: word(chunk),
        chunks: word(chunks),
        silu: p.silu.into(),
        eps: group_norm::EPS,
    };
    let y = gpu.tensor(shape, &p.name)?;
    let (moment_bytes, statistic_bytes) = (8 * entries as u64, 16 * groups as u64);
    let moments = gpu.scratch(moment_bytes, "group_norm: moments")?;
    let statistics = gpu.scratch(statistic_bytes, "group_norm: statistics")?;
    gpu.dispatch(Call {
        operator: &GROUP_NORM,
        kernel: 0,
        constants: &[],
        params,
        buffers: &[x.binding(), moments.binding(moment_bytes)],
        workgroups: entries.div_ceil(WORKGROUP) as u64,
    })?;
    gpu.dispatch(Call {
        operator: &GROUP_NORM,
        kernel: 1,
        constants: &[],
        params: GroupNormParams { count: word(groups), ..params },
        buffers: &[x.binding(), moments.binding(moment_bytes), statistics.binding(statistic_bytes)],
        workgroups: groups as u64,
    })?;
    let runs = shape.n * shape.pixels().div_ceil(RUN) * shape.c;
    gpu.dispatch(Call {
        operator: &GROUP_NORM,
        kernel: 2,
        constants: &[],
        params: GroupNormParams { count: word(runs), ..params },
        buffers: &[
            x.binding(),
            statistics.binding(statistic_bytes),
            weight.as_entire_binding(),
            bias.as_entire_binding(),
            y.binding(),
        ],
        workgroups: runs.div_ceil(WORKGROUP) as u64,
    })?;
    Ok(y)
}
