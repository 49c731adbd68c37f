//! Convolutions.

use super::{
    Gpu, Tensor,
    pipelines::{Constants, operator, params},
    queue::Call,
    word,
};
use crate::{
    error::Result,
    ops::{Conv2d, conv2d},
};

params! {
    struct ConvParams {
        tiles_across: u32,
        tiles_down: u32,
        tiles: u32,
        count: u32,
        in_channels: u32,
        out_channels: u32,
        height: u32,
        width: u32,
    }
}

operator!(
    CONV2D, "conv2d", ConvParams, [Read, Read, Read, ReadWrite],
    "kernel1": [1, 2, 3, 4],
    "kernel3": [1, 2, 3, 4]
);

/// Invocations of a workgroup; each computes two output channels, so that layers are filled up to a multiple of twice as
/// many. Sums do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lanes {
    /// The vectors of software devices have 8 elements or 16: few lanes, little filling.
    Software,
    /// What GPUs run in step: 32, half or twice as many.
    Real,
}

impl Lanes {
    fn count(self) -> usize {
        match self {
            Self::Software => 8,
            Self::Real => 32,
        }
    }

    fn constants(self) -> Constants {
        match self {
            Self::Software => &[("LANES", 8.0)],
            Self::Real => &[("LANES", 32.0)],
        }
    }
}

pub(super) fn conv2d(gpu: &mut Gpu, x: &Tensor, p: &Conv2d) -> Result<Tensor> {
    let shape = conv2d::output_shape(x.shape, p)?;
    let y = gpu.tensor(shape, &p.name)?;
    let block = 2 * gpu.lanes.count();
    let blocks = p.out_channels.div_ceil(block);
    let [weight, bias] = p.params().map(|(name, _)| name);
    let weight = gpu.parameter(&weight, |w| Ok(pack(p.load(w)?.0, p, block)))?;
    let bias = gpu.parameter(&bias, |w| {
        let mut bias = p.load(w)?.1.to_vec();
        bias.resize(blocks * block, 0.0);
        Ok(bias)
    })?;
    let (height, width, across, down, pictures) = match p.kernel {
        1 => (1, shape.n * shape.pixels(), (shape.n * shape.pixels()).div_ceil(32), 1, 1),
        _ => (shape.h, shape.w, shape.w.div_ceil(8), shape.h.div_ceil(4), shape.n),
    };
    let tiles = across * down * pictures;
    let params = ConvParams {
        tiles_across: word(across),
        tiles_down: word(down),
        tiles: word(tiles),
        count: word(tiles * blocks),
        in_channels: word(p.in_channels),
        out_channels: word(p.out_channels),
        height: word(height),
        width: word(width),
    };
    gpu.dispatch(Call {
        operator: &CONV2D,
        kernel: usize::from(p.kernel == 3),
        constants: gpu.lanes.constants(),
        params,
        buffers: &[x.binding(), weight.as_entire_binding(), bias.as_entire_binding(), y.binding()],
        workgroups: (tiles * blocks) as u64,
    })?;
    Ok(y)
}

/// [out, in, row, column] to [block of output channels, in, row, column, channel of the block], filled up with zeros.
fn pack(weight: &[f32], p: &Conv2d, block: usize) -> Vec<f32> {
    let (each, outputs) = (p.in_channels * p.kernel * p.kernel, p.out_channels);
    let mut packed = Vec::with_capacity(outputs.next_multiple_of(block) * each);
    for first in (0..outputs).step_by(block) {
        for i in 0..each {
            let weights = (first..first + block).map(|o| weight.get(o * each + i));
            packed.extend(weights.map(|w| w.copied().unwrap_or(0.0)));
        }
    }
    packed
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use super::*;
    use crate::{
        exec::gpu::tests::gpu,
        ops::cases::{self, OpCall},
    };

    /// The number of lanes is a matter of speed: both give the same bits.
    #[test]
    fn lanes_do_not_change_results() {
        let mut table = cases::table(7);
        table.cases.retain(|case| matches!(case.op, OpCall::Conv2d(_)));
        let Some(mut few) = gpu(table.weights.clone()) else { return };
        let Some(mut many) = gpu(table.weights.clone()) else { return };
        (few.lanes, many.lanes) = (Lanes::Software, Lanes::Real);
        for case in &table.cases {
            let (a, b) = (case.run(&mut few).unwrap().1, case.run(&mut many).unwrap().1);
            let same = a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && a.len() == b.len(), "{}", case.name);
        }
    }
}
