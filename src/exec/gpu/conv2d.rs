//! Convolutions.

use super::{
    Gpu, Tensor,
    pipelines::{operator, params},
    queue::Call,
    word,
};
use crate::{
    error::Result,
    ops::{Conv2d, conv2d},
};

params! {
    struct ConvParams {
        count: u32,
        in_channels: u32,
        out_channels: u32,
        height: u32,
        width: u32,
        kernel: u32,
        pad0: u32,
        pad1: u32,
    }
}

operator!(CONV2D, "conv2d", ConvParams, [Read, Read, Read, ReadWrite], "main": [1, 2, 3, 4]);

pub(super) fn conv2d(gpu: &mut Gpu, x: &Tensor, p: &Conv2d) -> Result<Tensor> {
    let shape = conv2d::output_shape(x.shape, p)?;
    let y = gpu.tensor(shape, &p.name)?;
    let [weight, bias] = p.params().map(|(name, _)| name);
    let weight = gpu.parameter(&weight, |w| Ok(pack(p.load(w)?.0, p)))?;
    let bias = gpu.parameter(&bias, |w| Ok(p.load(w)?.1.to_vec()))?;
    let params = ConvParams {
        count: word(shape.len()),
        in_channels: word(p.in_channels),
        out_channels: word(p.out_channels),
        height: word(shape.h),
        width: word(shape.w),
        kernel: word(p.kernel),
        ..ConvParams::default()
    };
    gpu.dispatch(Call {
        operator: &CONV2D,
        kernel: 0,
        constants: &[],
        params,
        buffers: &[x.binding(), weight.as_entire_binding(), bias.as_entire_binding(), y.binding()],
        workgroups: shape.len().div_ceil(64) as u64,
    })?;
    Ok(y)
}

/// [out, in, row, column] to [row, column, in, out].
fn pack(weight: &[f32], p: &Conv2d) -> Vec<f32> {
    let (taps, inputs, outputs) = (p.kernel * p.kernel, p.in_channels, p.out_channels);
    let mut packed = Vec::with_capacity(weight.len());
    for tap in 0..taps {
        for c in 0..inputs {
            packed.extend((0..outputs).map(|o| weight[(o * inputs + c) * taps + tap]));
        }
    }
    packed
}
