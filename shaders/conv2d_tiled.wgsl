// Convolution, stride 1, zero padding that keeps the grid, as an implicit product of matrices in tiles: a workgroup
// computes 64 pixels times 64 output channels, an invocation 4 times 4 of them; 16 input channels at a time of the pixels
// and of the weights are in workgroup memory.
//
// The sum of one result runs over rows of taps, columns of taps, input channels, in this order, wherever it lies.

// Input channels in fours, for `main`, or any, for `odd`.
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> x_odd: array<f32>;
// [block][tap][in, filled up to fours][16 fours of the block's output channels]
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<storage, read> addend: array<f32>;

// [four of input channels][pixel]
var<workgroup> pixels: array<vec4<f32>, 256>;
// [input channel][four of output channels]
var<workgroup> weights: array<vec4<f32>, 256>;

// 4 x 4 results: a pixel each.
struct Sums {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

// The pixel that an invocation reads for all, at one tap.
struct Source {
    // Of its channels, in fours or single ones.
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
    return Source((params.first + origin(neighbour, UP)) * channels, inside);
}

fn fours() -> u32 {
    return (params.in_channels + 3u) / 4u;
}

fn gain(sum: vec4<f32>, v: vec4<f32>, w0: vec4<f32>, w1: vec4<f32>, w2: vec4<f32>, w3: vec4<f32>) -> vec4<f32> {
    return fma(vec4(v.w), w3, fma(vec4(v.z), w2, fma(vec4(v.y), w1, fma(vec4(v.x), w0, sum))));
}

// Adds up to 16 input channels, of which the workgroup holds pixels and weights.
fn gain_all(sums: ptr<function, Sums>, lane: u32, count: u32) {
    for (var quad = 0u; quad < count; quad++) {
        let w = quad * 64u + lane % 16u;
        let w0 = weights[w];
        let w1 = weights[w + 16u];
        let w2 = weights[w + 32u];
        let w3 = weights[w + 48u];
        let p = quad * 64u + lane / 16u * 4u;
        (*sums).a = gain((*sums).a, pixels[p], w0, w1, w2, w3);
        (*sums).b = gain((*sums).b, pixels[p + 1u], w0, w1, w2, w3);
        (*sums).c = gain((*sums).c, pixels[p + 2u], w0, w1, w2, w3);
        (*sums).d = gain((*sums).d, pixels[p + 3u], w0, w1, w2, w3);
    }
}

// Weights of up to 16 input channels from channel 4 `first` on, an invocation's share of them.
fn take_weights(i: u32, t: u32, first: u32, count: u32, lane: u32) {
    if (lane / 64u < count) {
        let row = (i / params.tiles * params.taps + t) * fours() + first;
        weights[lane] = weight[row * 64u + lane];
    }
}

fn begin(i: u32, lane: u32) -> Sums {
    let b = bias[i / params.tiles * 16u + lane % 16u];
    return Sums(b, b, b, b);
}

fn store_one(v: f32, pixel: u32, channel: u32) {
    let at = (params.first_result + pixel) * params.out_channels + channel;
    if (SUM == 0u) {
        y[at] = v;
    } else {
        y[at] = sum(vec4(v), vec4(addend[origin(pixel, ADDEND_UP) * params.out_channels + channel])).x;
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
    let pixel = i % params.tiles * 64u + lane / 16u * 4u;
    let channel = i / params.tiles * 64u + lane % 16u * 4u;
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
        let s = source(i % params.tiles * 64u + lane / 4u, t, fours());
        for (var first = 0u; first < fours(); first += 4u) {
            let quad = first + lane % 4u;
            var v = vec4<f32>(0.0);
            if (s.inside && quad < fours()) {
                v = x[s.at + quad];
            }
            pixels[lane % 4u * 64u + lane / 4u] = v;
            let count = min(4u, fours() - first);
            take_weights(i, t, first, count, lane);
            workgroupBarrier();
            gain_all(&sums, lane, count);
            workgroupBarrier();
        }
    }
    finish(sums, i, lane);
}

@compute @workgroup_size(256)
fn odd(
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
        let s = source(i % params.tiles * 64u + lane / 4u, t, params.in_channels);
        for (var first = 0u; first < fours(); first += 4u) {
            let channel = 4u * (first + lane % 4u);
            var v = vec4<f32>(0.0);
            for (var j = 0u; j < 4u; j++) {
                if (s.inside && channel + j < params.in_channels) {
                    v[j] = x_odd[s.at + channel + j];
                }
            }
            pixels[lane % 4u * 64u + lane / 4u] = v;
            let count = min(4u, fours() - first);
            take_weights(i, t, first, count, lane);
            workgroupBarrier();
            gain_all(&sums, lane, count);
            workgroupBarrier();
        }
    }
    finish(sums, i, lane);
}
