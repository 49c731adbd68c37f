// What the variants of the convolution have in common; it stands before each of them.

// Whether the result is the convolution (0), or its weighted sum with a tensor of the same shape, as the first (1) or the second
// term (2).
override SUM: u32 = 0u;
// Whether the input or the addend has half the rows and columns, each of its pixels for 2x2 (1), or not (0).
override UP: u32 = 0u;
override ADDEND_UP: u32 = 0u;

struct Params {
    // Workgroups: tiles * blocks of output channels.
    count: u32,
    // Runs of pixels, as many as a workgroup computes.
    tiles: u32,
    // Pixels of all pictures.
    pixels: u32,
    in_channels: u32,
    out_channels: u32,
    // Extent of a picture.
    height: u32,
    width: u32,
    // 1 or 9
    taps: u32,
    // What the convolution and what the addend counts in the sum of both.
    scale: f32,
    addend_scale: f32,
    // Of Winograd's squares: the first that this pass computes, and how many.
    first_square: u32,
    squares: u32,
    // The first pixels of the input and of the result in their buffers; not for Winograd's, sums or what is enlarged.
    first: u32,
    first_result: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;

// Where `pixel` of the result lies in a tensor that is enlarged (`up` 1) or not (0). Heights that are enlarged are even, so the rows
// of all pictures are one count.
fn origin(pixel: u32, up: u32) -> u32 {
    if (up == 0u) {
        return pixel;
    }
    return pixel / params.width / 2u * (params.width / 2u) + pixel % params.width / 2u;
}

// What weighted_add.wgsl computes of the convolution `v` and another.
fn sum(v: vec4<f32>, other: vec4<f32>) -> vec4<f32> {
    if (SUM == 1u) {
        return fma(vec4(params.scale), v, params.addend_scale * other);
    }
    return fma(vec4(params.addend_scale), other, params.scale * v);
}

