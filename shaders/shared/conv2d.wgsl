// Parameters and epilogue of all variants of the convolution; it comes before each of them.

// 0: the result is the convolution. Otherwise it is the weighted sum of the convolution and a tensor of the same shape,
// the addend; the convolution is the first (1) or the second term (2).
override SUM: u32 = 0u;
// 1: the input or the addend has half the rows and columns and is upsampled (nearest) as it is read. 0: it is read as
// it is.
override UP: u32 = 0u;
override ADDEND_UP: u32 = 0u;

struct Params {
    // Workgroups: pixel_blocks * blocks of output channels.
    count: u32,
    // Blocks of consecutive pixels, each of which a workgroup computes.
    pixel_blocks: u32,
    // Pixels of all pictures.
    pixels: u32,
    in_channels: u32,
    out_channels: u32,
    // Extents of a picture.
    height: u32,
    width: u32,
    // 1 or 9
    taps: u32,
    // Factors of the convolution and of the addend in their sum.
    scale: f32,
    addend_scale: f32,
    // Winograd only: the first output tile of this pass, and their number.
    first_tile: u32,
    tiles: u32,
    // Offsets in pixels of the input and of the result in their buffers; 0 with Winograd, sums and upsampling.
    first: u32,
    first_result: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;

// Index of `pixel` of the result in a tensor that is upsampled as it is read (`up` 1) or not (0). Upsampled heights are
// even, so rows can be counted over all pictures.
fn source_pixel(pixel: u32, up: u32) -> u32 {
    if (up == 0u) {
        return pixel;
    }
    return pixel / params.width / 2u * (params.width / 2u) + pixel % params.width / 2u;
}

// The weighted sum of the convolution `v` and the addend, as in weighted_add.wgsl.
fn weighted_sum(v: vec4<f32>, other: vec4<f32>) -> vec4<f32> {
    if (SUM == 1u) {
        return fma(vec4(params.scale), v, params.addend_scale * other);
    }
    return fma(vec4(params.addend_scale), other, params.scale * v);
}

