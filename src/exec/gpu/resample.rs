//! Operators that change the grid; one dispatch each.

use super::{
    Gpu, Tensor,
    pipelines::{Operator, operator, params},
    pointwise::map,
    to_u32,
};
use crate::{
    error::Result,
    ops::{
        Op, Rect, avg_pool2, crop, fir_down2, fir_up2, pixel_shuffle, pixel_unshuffle,
        upsample_nearest2,
    },
};

params! { struct WidthParams { count: u32, channels: u32, width: u32, pad0: u32, } }
params! { struct ExtentParams { count: u32, channels: u32, height: u32, width: u32, } }
params! { struct ShuffleParams { count: u32, channels: u32, width: u32, r: u32, } }
params! {
    struct CropParams {
        count: u32,
        channels: u32,
        source_height: u32,
        source_width: u32,
        height: u32,
        width: u32,
        top: u32,
        left: u32,
    }
}

operator!(
    AVG_POOL2, "avg_pool2" from ["shared/invocation", "avg_pool2"],
    WidthParams, [Read, ReadWrite],
    "main": [1, 2]
);
operator!(
    UPSAMPLE_NEAREST2, "upsample_nearest2" from ["shared/invocation", "upsample_nearest2"],
    WidthParams, [Read, ReadWrite],
    "main": [1, 2]
);
operator!(
    FIR_DOWN2, "fir_down2" from ["shared/invocation", "fir_down2"],
    ExtentParams, [Read, ReadWrite],
    "main": [1, 2]
);
operator!(
    FIR_UP2, "fir_up2" from ["shared/invocation", "fir_up2"],
    ExtentParams, [Read, ReadWrite],
    "main": [1, 2]
);
operator!(
    PIXEL_UNSHUFFLE, "pixel_unshuffle" from ["shared/invocation", "pixel_unshuffle"],
    ShuffleParams, [Read, ReadWrite],
    "main": [1, 2]
);
operator!(
    PIXEL_SHUFFLE, "pixel_shuffle" from ["shared/invocation", "pixel_shuffle"],
    ShuffleParams, [Read, ReadWrite],
    "main": [1, 2]
);
operator!(CROP, "crop" from ["shared/invocation", "crop"], CropParams, [Read, ReadWrite], "main": [1, 2]);

/// The operators of this module.
pub(super) static OPERATORS: &[&Operator] = &[
    &AVG_POOL2,
    &CROP,
    &FIR_DOWN2,
    &FIR_UP2,
    &PIXEL_SHUFFLE,
    &PIXEL_UNSHUFFLE,
    &UPSAMPLE_NEAREST2,
];

/// Runs `op`, if it is one of this module.
pub(super) fn run(gpu: &mut Gpu, op: &Op, inputs: &[Tensor]) -> Option<Result<Tensor>> {
    Some(match (op, inputs) {
        (Op::AvgPool2, [x]) => avg_pool2(gpu, x),
        (Op::Crop(window), [x]) => crop(gpu, x, *window),
        (Op::FirDown2, [x]) => fir_down2(gpu, x),
        (Op::FirUp2, [x]) => fir_up2(gpu, x),
        (Op::PixelShuffle(r), [x]) => pixel_shuffle(gpu, x, *r),
        (Op::PixelUnshuffle(r), [x]) => pixel_unshuffle(gpu, x, *r),
        (Op::UpsampleNearest2, [x]) => upsample_nearest2(gpu, x),
        _ => return None,
    })
}

/// Mean of every 2x2 pixels, x [n, h, w, c] -> [n, h/2, w/2, c].
fn avg_pool2(gpu: &mut Gpu, x: &Tensor) -> Result<Tensor> {
    let shape = avg_pool2::output_shape(x.shape)?;
    let (count, channels, width) = (to_u32(shape.len()), to_u32(shape.c), to_u32(shape.w));
    let params = WidthParams { count, channels, width, pad0: 0 };
    map(gpu, &AVG_POOL2, params, shape.len(), &[x.binding()], shape)
}

/// Nearest-neighbour upsampling, x [n, h, w, c] -> [n, 2h, 2w, c]; one invocation per element of x.
fn upsample_nearest2(gpu: &mut Gpu, x: &Tensor) -> Result<Tensor> {
    let shape = upsample_nearest2::output_shape(x.shape)?;
    let (count, channels, width) = (x.shape.len(), to_u32(shape.c), to_u32(x.shape.w));
    let params = WidthParams { count: to_u32(count), channels, width, pad0: 0 };
    map(gpu, &UPSAMPLE_NEAREST2, params, count, &[x.binding()], shape)
}

/// FIR [1,3,3,1]/8 per axis with stride 2, x [n, h, w, c] -> [n, h/2, w/2, c].
fn fir_down2(gpu: &mut Gpu, x: &Tensor) -> Result<Tensor> {
    let shape = fir_down2::output_shape(x.shape)?;
    let (height, width) = (to_u32(shape.h), to_u32(shape.w));
    let params =
        ExtentParams { count: to_u32(shape.len()), channels: to_u32(shape.c), height, width };
    map(gpu, &FIR_DOWN2, params, shape.len(), &[x.binding()], shape)
}

/// FIR [1,3,3,1]/4 per axis to twice the size, x [n, h, w, c] -> [n, 2h, 2w, c].
fn fir_up2(gpu: &mut Gpu, x: &Tensor) -> Result<Tensor> {
    let shape = fir_up2::output_shape(x.shape)?;
    let (height, width) = (to_u32(x.shape.h), to_u32(x.shape.w));
    let params =
        ExtentParams { count: to_u32(shape.len()), channels: to_u32(shape.c), height, width };
    map(gpu, &FIR_UP2, params, shape.len(), &[x.binding()], shape)
}

/// Space to depth, x [n, h, w, c] -> [n, h/r, w/r, c r^2].
fn pixel_unshuffle(gpu: &mut Gpu, x: &Tensor, r: usize) -> Result<Tensor> {
    let shape = pixel_unshuffle::output_shape(x.shape, r)?;
    let params = ShuffleParams {
        count: to_u32(shape.len()),
        channels: to_u32(x.shape.c),
        width: to_u32(shape.w),
        r: to_u32(r),
    };
    map(gpu, &PIXEL_UNSHUFFLE, params, shape.len(), &[x.binding()], shape)
}

/// Depth to space, x [n, h, w, c] -> [n, h r, w r, c / r^2].
fn pixel_shuffle(gpu: &mut Gpu, x: &Tensor, r: usize) -> Result<Tensor> {
    let shape = pixel_shuffle::output_shape(x.shape, r)?;
    let params = ShuffleParams {
        count: to_u32(shape.len()),
        channels: to_u32(shape.c),
        width: to_u32(x.shape.w),
        r: to_u32(r),
    };
    map(gpu, &PIXEL_SHUFFLE, params, shape.len(), &[x.binding()], shape)
}

/// A rectangle of the grid, x [n, h, w, c] -> [n, window.height, window.width, c].
fn crop(gpu: &mut Gpu, x: &Tensor, window: Rect) -> Result<Tensor> {
    let shape = crop::output_shape(x.shape, window)?;
    let params = CropParams {
        count: to_u32(shape.len()),
        channels: to_u32(shape.c),
        source_height: to_u32(x.shape.h),
        source_width: to_u32(x.shape.w),
        height: to_u32(shape.h),
        width: to_u32(shape.w),
        top: to_u32(window.y),
        left: to_u32(window.x),
    };
    map(gpu, &CROP, params, shape.len(), &[x.binding()], shape)
}
