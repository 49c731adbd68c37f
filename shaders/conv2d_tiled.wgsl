// Convolution, stride 1, zero padding that keeps the grid, as an implicit GEMM in tiles: a workgroup computes 64 pixels
// times 64 output channels, an invocation 4 times 4 of them; 16 input channels at a time of the pixels and of the
// weights are in workgroup memory.
//
// The sum of one result runs over rows of taps, columns of taps and input channels in this order, independent of its
// position.

// Multiples of 4 input channels for `main`, any number for `main_unaligned`.
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> x_unaligned: array<f32>;
// [block][tap][in, padded to quads][16 quads of the block's output channels]
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<storage, read> addend: array<f32>;

// [quad of input channels][pixel]
var<workgroup> pixels: array<vec4<f32>, 256>;
// [input channel][quad of output channels]
var<workgroup> weights: array<vec4<f32>, 256>;

// 4 x 4 results: a pixel each.
struct Sums {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

// The pixel that an invocation loads for its workgroup, at one tap.
struct Source {
    // Index of the first channel, or of the first quad of channels.
    at: u32,
    inside: bool,
}

fn source(pixel: u32, t: u32, channels: u32) -> Source {
    // One tap is the middle of nine.
    let offset = select(t, 4u, params.taps == 1u);
    let row = pixel / params.width % params.height + offset / 3u;
    let column = pixel % params.width + offset % 3u;
    let inside = pixel < params.pixels && row >= 1u && row <= params.height && column >= 1u && column <= params.width;
    let neighbour = pixel + offset / 3u * params.width + offset % 3u - params.width - 1u;
    return Source((params.first + source_pixel(neighbour, UP)) * channels, inside);
}

fn quads() -> u32 {
    return (params.in_channels + 3u) / 4u;
}

fn accumulate(sum: vec4<f32>, v: vec4<f32>, w0: vec4<f32>, w1: vec4<f32>, w2: vec4<f32>, w3: vec4<f32>) -> vec4<f32> {
    return fma(vec4(v.w), w3, fma(vec4(v.z), w2, fma(vec4(v.y), w1, fma(vec4(v.x), w0, sum))));
}

// Accumulates up to 16 input channels from workgroup memory.
fn accumulate_all(sums: ptr<function, Sums>, lane: u32, count: u32) {
    for (var quad = 0u; quad < count; quad++) {
        let w = quad * 64u + lane % 16u;
        let w0 = weights[w];
        let w1 = weights[w + 16u];
        let w2 = weights[w + 32u];
        let w3 = weights[w + 48u];
        let p = quad * 64u + lane / 16u * 4u;
        (*sums).a = accumulate((*sums).a, pixels[p], w0, w1, w2, w3);
        (*sums).b = accumulate((*sums).b, pixels[p + 1u], w0, w1, w2, w3);
        (*sums).c = accumulate((*sums).c, pixels[p + 2u], w0, w1, w2, w3);
        (*sums).d = accumulate((*sums).d, pixels[p + 3u], w0, w1, w2, w3);
    }
}

// Loads an invocation's share of the weights of up to 16 input channels, from quad `first` on.
fn load_weights(i: u32, t: u32, first: u32, count: u32, lane: u32) {
    if (lane / 64u < count) {
        let row = (i / params.pixel_blocks * params.taps + t) * quads() + first;
        weights[lane] = weight[row * 64u + lane];
    }
}

fn begin(i: u32, lane: u32) -> Sums {
    let b = bias[i / params.pixel_blocks * 16u + lane % 16u];
    return Sums(b, b, b, b);
}

fn store_one(v: f32, pixel: u32, channel: u32) {
    let at = (params.first_result + pixel) * params.out_channels + channel;
    if (SUM == 0u) {
        y[at] = v;
    } else {
        y[at] = weighted_sum(vec4(v), vec4(addend[source_pixel(pixel, ADDEND_UP) * params.out_channels + channel])).x;
    }
}

fn store(v: vec4<f32>, pixel: u32, channel: u32) {
    if (pixel < params.pixels) {
        for (var j = 0u; j < 4u; j++) {
            if (channel + j < params.out_channels) {
                store_one(v[j], pixel, channel + j);
            }
        }
    }
}

fn finish(sums: Sums, i: u32, lane: u32) {
    let pixel = i % params.pixel_blocks * 64u + lane / 16u * 4u;
    let channel = i / params.pixel_blocks * 64u + lane % 16u * 4u;
    store(sums.a, pixel, channel);
    store(sums.b, pixel + 1u, channel);
    store(sums.c, pixel + 2u, channel);
    store(sums.d, pixel + 3u, channel);
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group.y * groups.x + group.x;
    if (i >= params.count) {
        return;
    }
    var sums = begin(i, lane);
    for (var t = 0u; t < params.taps; t++) {
        let s = source(i % params.pixel_blocks * 64u + lane / 4u, t, quads());
        for (var first = 0u; first < quads(); first += 4u) {
            let quad = first + lane % 4u;
            var v = vec4<f32>(0.0);
            if (s.inside && quad < quads()) {
                v = x[s.at + quad];
            }
            pixels[lane % 4u * 64u + lane / 4u] = v;
            let count = min(4u, quads() - first);
            load_weights(i, t, first, count, lane);
            workgroupBarrier();
            accumulate_all(&sums, lane, count);
            workgroupBarrier();
        }
    }
    finish(sums, i, lane);
}

@compute @workgroup_size(256)
fn main_unaligned(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group.y * groups.x + group.x;
    if (i >= params.count) {
        return;
    }
    var sums = begin(i, lane);
    for (var t = 0u; t < params.taps; t++) {
        let s = source(i % params.pixel_blocks * 64u + lane / 4u, t, params.in_channels);
        for (var first = 0u; first < quads(); first += 4u) {
            let channel = 4u * (first + lane % 4u);
            var v = vec4<f32>(0.0);
            for (var j = 0u; j < 4u; j++) {
                if (s.inside && channel + j < params.in_channels) {
                    v[j] = x_unaligned[s.at + channel + j];
                }
            }
            pixels[lane % 4u * 64u + lane / 4u] = v;
            let count = min(4u, quads() - first);
            load_weights(i, t, first, count, lane);
            workgroupBarrier();
            accumulate_all(&sums, lane, count);
            workgroupBarrier();
        }
    }
    finish(sums, i, lane);
}
