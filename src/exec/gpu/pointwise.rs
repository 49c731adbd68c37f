//! Pointwise operators: a pixel's result depends on that pixel alone.

use super::{
    Gpu, Tensor, WORKGROUP,
    pipelines::{Operator, Params, operator, params},
    queue::Call,
    to_u32,
};
use crate::{
    error::Result,
    ops::{
        AddNoise, Op, PixelNorm, Shape, add_noise, concat, pixel_norm, scale_shift, silu,
        weighted_add,
    },
};

params! { struct SiluParams { count: u32, pad0: u32, pad1: u32, pad2: u32, } }
params! { struct WeightedAddParams { count: u32, wa: f32, wb: f32, pad0: u32, } }
params! { struct ScaleShiftParams { count: u32, channels: u32, picture: u32, silu: u32, } }
params! { struct PixelNormParams { count: u32, channels: u32, silu: u32, eps: f32, } }
params! { struct AddNoiseParams { count: u32, channels: u32, pad0: u32, pad1: u32, } }
params! { struct ConcatParams { count: u32, a_channels: u32, b_channels: u32, pad0: u32, } }

operator!(
    SILU, "silu" from ["shared/invocation", "shared/activation", "silu"],
    SiluParams, [Read, ReadWrite],
    "main": [1, 2]
);
operator!(
    WEIGHTED_ADD, "weighted_add" from ["shared/invocation", "weighted_add"],
    WeightedAddParams, [Read, Read, ReadWrite],
    "main": [1, 2, 3]
);
operator!(
    SCALE_SHIFT, "scale_shift" from ["shared/invocation", "shared/activation", "scale_shift"],
    ScaleShiftParams, [Read, Read, ReadWrite],
    "main": [1, 2, 3]
);
operator!(
    PIXEL_NORM, "pixel_norm" from ["shared/invocation", "shared/activation", "pixel_norm"],
    PixelNormParams, [Read, Read, ReadWrite],
    "main": [1, 2, 3]
);
operator!(
    ADD_NOISE, "add_noise" from ["shared/invocation", "add_noise"],
    AddNoiseParams, [Read, Read, Read, ReadWrite],
    "main": [1, 2, 3, 4]
);
operator!(
    CONCAT, "concat" from ["shared/invocation", "concat"],
    ConcatParams, [Read, Read, ReadWrite],
    "main": [1, 2, 3]
);

/// The operators of this module.
pub(super) static OPERATORS: &[&Operator] =
    &[&ADD_NOISE, &CONCAT, &PIXEL_NORM, &SCALE_SHIFT, &SILU, &WEIGHTED_ADD];

/// Runs `op`, if it is one of this module.
pub(super) fn run(gpu: &mut Gpu, op: &Op, inputs: &[Tensor]) -> Option<Result<Tensor>> {
    Some(match (op, inputs) {
        (Op::AddNoise(p), [x, noise]) => add_noise(gpu, x, noise, p),
        (Op::Concat, [a, b]) => concat(gpu, a, b),
        (Op::PixelNorm(p), [x]) => pixel_norm(gpu, x, p),
        (Op::ScaleShift(silu), [x, pair]) => scale_shift(gpu, x, pair, *silu),
        (Op::Silu, [x]) => silu(gpu, x),
        _ => return None,
    })
}

/// Dispatches the only kernel of `operator` with `count` invocations; its bindings are `inputs` and the result of
/// `shape`.
pub(super) fn map<P: Params>(
    gpu: &mut Gpu,
    operator: &'static Operator,
    params: P,
    count: usize,
    inputs: &[wgpu::BindingResource<'_>],
    shape: Shape,
) -> Result<Tensor> {
    let y = gpu.tensor(shape, operator.name)?;
    let buffers: Vec<_> = inputs.iter().cloned().chain([y.binding()]).collect();
    gpu.dispatch(Call {
        operator,
        kernel: 0,
        constants: &[],
        params,
        buffers: &buffers,
        workgroups: count.div_ceil(WORKGROUP) as u64,
    })?;
    Ok(y)
}

/// x sigmoid(x), x [n, h, w, c] -> [n, h, w, c].
fn silu(gpu: &mut Gpu, x: &Tensor) -> Result<Tensor> {
    let shape = silu::output_shape(x.shape)?;
    let params = SiluParams { count: to_u32(shape.len()), ..SiluParams::default() };
    map(gpu, &SILU, params, shape.len(), &[x.binding()], shape)
}

/// wa a + wb b, a, b [n, h, w, c] -> [n, h, w, c].
pub(super) fn weighted_add(
    gpu: &mut Gpu,
    a: &Tensor,
    b: &Tensor,
    wa: f32,
    wb: f32,
) -> Result<Tensor> {
    let shape = weighted_add::output_shape(a.shape, b.shape)?;
    let params = WeightedAddParams { count: to_u32(shape.len()), wa, wb, pad0: 0 };
    map(gpu, &WEIGHTED_ADD, params, shape.len(), &[a.binding(), b.binding()], shape)
}

/// x (1 + scale) + shift, x [n, h, w, c], pair [n or 1, 1, 1, 2 c] -> [n, h, w, c].
fn scale_shift(gpu: &mut Gpu, x: &Tensor, pair: &Tensor, silu: bool) -> Result<Tensor> {
    let shape = scale_shift::output_shape(x.shape, pair.shape)?;
    let count = shape.len();
    let params = ScaleShiftParams {
        count: to_u32(count),
        channels: to_u32(shape.c),
        picture: to_u32(if pair.shape.n == 1 { count } else { count / shape.n }),
        silu: silu.into(),
    };
    map(gpu, &SCALE_SHIFT, params, count, &[x.binding(), pair.binding()], shape)
}

/// RMS norm, x [n, h, w, c] -> [n, h, w, c]; one invocation per pixel.
fn pixel_norm(gpu: &mut Gpu, x: &Tensor, p: &PixelNorm) -> Result<Tensor> {
    let shape = pixel_norm::output_shape(x.shape, p)?;
    let [(name, _)] = p.params();
    let gain = gpu.parameter(&name, |w| Ok(p.load(w)?.to_vec()))?;
    let pixels = shape.n * shape.pixels();
    let params = PixelNormParams {
        count: to_u32(pixels),
        channels: to_u32(shape.c),
        silu: p.silu.into(),
        eps: pixel_norm::EPS,
    };
    map(gpu, &PIXEL_NORM, params, pixels, &[x.binding(), gain.as_entire_binding()], shape)
}

/// x + gain noise, x [n, h, w, c], noise [n, h, w, 1] -> [n, h, w, c].
fn add_noise(gpu: &mut Gpu, x: &Tensor, noise: &Tensor, p: &AddNoise) -> Result<Tensor> {
    let shape = add_noise::output_shape(x.shape, noise.shape, p)?;
    let gain = gpu.parameter(&p.name, |w| Ok(p.load(w)?.to_vec()))?;
    let count = shape.len();
    let params = AddNoiseParams {
        count: to_u32(count),
        channels: to_u32(shape.c),
        ..AddNoiseParams::default()
    };
    let inputs = [x.binding(), noise.binding(), gain.as_entire_binding()];
    map(gpu, &ADD_NOISE, params, count, &inputs, shape)
}

/// a [n, h, w, ca], b [n, h, w, cb] -> [n, h, w, ca + cb].
fn concat(gpu: &mut Gpu, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let shape = concat::output_shape(a.shape, b.shape)?;
    let params = ConcatParams {
        count: to_u32(shape.len()),
        a_channels: to_u32(a.shape.c),
        b_channels: to_u32(b.shape.c),
        pad0: 0,
    };
    map(gpu, &CONCAT, params, shape.len(), &[a.binding(), b.binding()], shape)
}
