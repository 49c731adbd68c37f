//! Reductions over the pixels of a picture, in chunks of pixels whose order is fixed.

use super::{
    Gpu, Tensor, WORKGROUP,
    pipelines::{Operator, operator, params},
    queue::Call,
    to_u32,
};
use crate::{
    error::Result,
    ops::{GroupNorm, Op, Shape, global_avg_pool, group_norm},
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
    GLOBAL_AVG_POOL, "global_avg_pool" from ["shared/invocation", "global_avg_pool"],
    GlobalAvgPoolParams, [Read, ReadWrite, ReadWrite],
    "partial": [1, 2],
    "combine": [2, 3]
);
operator!(
    GROUP_NORM, "group_norm" from ["shared/invocation", "shared/activation", "group_norm"],
    GroupNormParams, [Read, ReadWrite, ReadWrite, Read, Read, ReadWrite],
    "partial": [1, 2],
    "combine": [1, 2, 3],
    "apply": [1, 3, 4, 5, 6]
);

/// The operators of this module.
pub(super) static OPERATORS: &[&Operator] = &[&GLOBAL_AVG_POOL, &GROUP_NORM];

/// Runs `op`, if it is one of this module.
pub(super) fn run(gpu: &mut Gpu, op: &Op, inputs: &[Tensor]) -> Option<Result<Tensor>> {
    Some(match (op, inputs) {
        (Op::GlobalAvgPool, [x]) => global_avg_pool(gpu, x),
        (Op::GroupNorm(p), [x]) => group_norm(gpu, x, p),
        _ => return None,
    })
}

/// Pixels of an invocation of `apply`, `RUN` in group_norm.wgsl.
const RUN: usize = 8;

/// Pixels of a chunk and number of chunks: sums of at least 32 terms, at most 512 chunks.
fn chunks(shape: Shape) -> (usize, usize) {
    let chunk = shape.pixels().div_ceil(512).max(32);
    (chunk, shape.pixels().div_ceil(chunk))
}

/// Mean over all pixels, x [n, h, w, c] -> [n, 1, 1, c].
///
/// Two kernels: `partial` writes sums [n][chunk][c], `combine` adds the chunks and divides.
fn global_avg_pool(gpu: &mut Gpu, x: &Tensor) -> Result<Tensor> {
    let shape = global_avg_pool::output_shape(x.shape)?;
    let (chunk, chunks) = chunks(x.shape);
    let count = shape.n * chunks * shape.c;
    let params = GlobalAvgPoolParams {
        count: to_u32(count),
        channels: to_u32(shape.c),
        pixels: to_u32(x.shape.pixels()),
        chunk: to_u32(chunk),
        chunks: to_u32(chunks),
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
        params: GlobalAvgPoolParams { count: to_u32(shape.len()), ..params },
        buffers: &[sums.binding(bytes), y.binding()],
        workgroups: shape.len().div_ceil(WORKGROUP) as u64,
    })?;
    Ok(y)
}

/// GroupNorm, then SiLU if `p.silu`, x [n, h, w, c] -> [n, h, w, c].
///
/// Three kernels: `partial` writes (mean, sum of squared deviations) [n][chunk][c] relative to the group's first
/// element, `combine` merges them to (first element, mean, 1 / standard deviation) [n][group], one workgroup per group,
/// `apply` normalises.
fn group_norm(gpu: &mut Gpu, x: &Tensor, p: &GroupNorm) -> Result<Tensor> {
    let shape = group_norm::output_shape(x.shape, p)?;
    let [weight, bias] = p.params().map(|(name, _)| name);
    let weight = gpu.parameter(&weight, |w| Ok(p.load(w)?.0.to_vec()))?;
    let bias = gpu.parameter(&bias, |w| Ok(p.load(w)?.1.to_vec()))?;
    let (chunk, chunks) = chunks(shape);
    let entries = shape.n * chunks * shape.c;
    let groups = shape.n * p.groups;
    let params = GroupNormParams {
        count: to_u32(entries),
        channels: to_u32(shape.c),
        groups: to_u32(p.groups),
        pixels: to_u32(shape.pixels()),
        chunk: to_u32(chunk),
        chunks: to_u32(chunks),
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
        params: GroupNormParams { count: to_u32(groups), ..params },
        buffers: &[x.binding(), moments.binding(moment_bytes), statistics.binding(statistic_bytes)],
        workgroups: groups as u64,
    })?;
    let runs = shape.n * shape.pixels().div_ceil(RUN) * shape.c;
    gpu.dispatch(Call {
        operator: &GROUP_NORM,
        kernel: 2,
        constants: &[],
        params: GroupNormParams { count: to_u32(runs), ..params },
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
