//! Operators that change the grid.

use super::{
    Gpu, Tensor,
    pipelines::{operator, params},
    pointwise::map,
    word,
};
use crate::{
    error::Result,
    ops::{
        Window, avg_pool2, crop, fir_down2, fir_up2, pixel_shuffle, pixel_unshuffle,
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

operator!(AVG_POOL2, "avg_pool2", WidthParams, [Read, ReadWrite], "main": [1, 2]);
operator!(UPSAMPLE_NEAREST2, "upsample_nearest2", WidthParams, [Read, ReadWrite], "main": [1, 2]);
operator!(FIR_DOWN2, "fir_down2", ExtentParams, [Read, ReadWrite], "main": [1, 2]);
operator!(FIR_UP2, "fir_up2", ExtentParams, [Read, ReadWrite], "main": [1, 2]);
operator!(PIXEL_UNSHUFFLE, "pixel_unshuffle", ShuffleParams, [Read, ReadWrite], "main": [1, 2]);
operator!(PIXEL_SHUFFLE, "pixel_shuffle", ShuffleParams, [Read, ReadWrite], "main": [1, 2]);
operator!(CROP, "crop", CropParams, [Read, ReadWrite], "main": [1, 2]);

pub(super) fn avg_pool2(gpu: &mut Gpu, x: &Tensor) -> Result<Tensor> {
    let shape = avg_pool2::output_shape(x.shape)?;
    let (count, channels, width) = (word(shape.len()), word(shape.c), word(shape.w));
    let params = WidthParams { count, channels, width, pad0: 0 };
    map(gpu, &AVG_POOL2, params, shape.len(), &[x.binding()], shape)
}

pub(super) fn upsample_nearest2(gpu: &mut Gpu, x: &Tensor) -> Result<Tensor> {
    let shape = upsample_nearest2::output_shape(x.shape)?;
    let (count, channels, width) = (x.shape.len(), word(shape.c), word(x.shape.w));
    let params = WidthParams { count: word(count), channels, width, pad0: 0 };
    map(gpu, &UPSAMPLE_NEAREST2, params, count, &[x.binding()], shape)
}

pub(super) fn fir_down2(gpu: &mut Gpu, x: &Tensor) -> Result<Tensor> {
    let shape = fir_down2::output_shape(x.shape)?;
    let (height, width) = (word(shape.h), word(shape.w));
    let params = ExtentParams { count: word(shape.len()), channels: word(shape.c), height, width };
    map(gpu, &FIR_DOWN2, params, shape.len(), &[x.binding()], shape)
}

pub(super) fn fir_up2(gpu: &mut Gpu, x: &Tensor) -> Result<Tensor> {
    let shape = fir_up2::output_shape(x.shape)?;
    let (height, width) = (word(x.shape.h), word(x.shape.w));
    let params = ExtentParams { count: word(shape.len()), channels: word(shape.c), height, width };
    map(gpu, &FIR_UP2, params, shape.len(), &[x.binding()], shape)
}

pub(super) fn pixel_unshuffle(gpu: &mut Gpu, x: &Tensor, r: usize) -> Result<Tensor> {
    let shape = pixel_unshuffle::output_shape(x.shape, r)?;
    let params = ShuffleParams {
        count: word(shape.len()),
        channels: word(x.shape.c),
        width: word(shape.w),
        r: word(r),
    };
    map(gpu, &PIXEL_UNSHUFFLE, params, shape.len(), &[x.binding()], shape)
}

pub(super) fn pixel_shuffle(gpu: &mut Gpu, x: &Tensor, r: usize) -> Result<Tensor> {
    let shape = pixel_shuffle::output_shape(x.shape, r)?;
    let params = ShuffleParams {
        count: word(shape.len()),
        channels: word(shape.c),
        width: word(x.shape.w),
        r: word(r),
    };
    map(gpu, &PIXEL_SHUFFLE, params, shape.len(), &[x.binding()], shape)
}

pub(super) fn crop(gpu: &mut Gpu, x: &Tensor, window: Window) -> Result<Tensor> {
    let shape = crop::output_shape(x.shape, window)?;
    let params = CropParams {
        count: word(shape.len()),
        channels: word(shape.c),
        source_height: word(x.shape.h),
        source_width: word(x.shape.w),
        height: word(shape.h),
        width: word(shape.w),
        top: word(window.y),
        left: word(window.x),
    };
    map(gpu, &CROP, params, shape.len(), &[x.binding()], shape)
}
