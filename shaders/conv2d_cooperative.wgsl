// Convolution, stride 1, zero padding that keeps the grid, as an implicit GEMM on the device's matrix units: f16
// factors, f32 sums. It is written in blocks of 16x16, which `shared/matrix16.wgsl` or `shared/matrix8.wgsl`, before
// it, defines.
//
// Four subgroups of a workgroup compute 32 pixels times 32 output channels each, ACROSS of them adjacent in channels
// and the others in pixels; 32 input channels at a time of the pixels, rounded to f16, and of the weights are in
// workgroup memory. There are LANES * 4 invocations, LANES being the largest size of a subgroup on the device. If the
// driver chooses smaller subgroups there are more than four: the others only load and store workgroup memory.
//
// The sum of one result runs over rows of taps, columns of taps and blocks of input channels in this order, independent
// of its position; the order within a block is the device's. The bias comes last.

override LANES: u32 = 32u;
override ACROSS: u32 = 2u;

const SUBGROUPS: u32 = 4u;
// Strides in values of pixels, and of input channels of the weights, in workgroup memory: multiples of 16 bytes, as
// matrices require, that do not start every row in the same bank.
const PIXEL_STRIDE: u32 = 40u;
const WEIGHT_STRIDE: u32 = 72u;
// Largest finite f16.
const F16_MAX: f32 = 65504.0;

// Multiples of 4 input channels for `main`, any number for `main_unaligned`.
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> x_unaligned: array<f32>;
// [block][tap][in, padded to sixteens][8 ACROSS quads of the block's output channels]
@group(0) @binding(2) var<storage, read> weight: array<vec4<f16>>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<storage, read> addend: array<f32>;

// [pixel of the run][input channel]
var<workgroup> pixels: array<f16, 5120>;
// [input channel][output channel of the block]
var<workgroup> weights: array<f16, 2304>;
// One block per subgroup, and one for all subgroups that have nothing to compute.
var<workgroup> results: array<f32, 1280>;
// Rows and columns of the run's pixels in their pictures.
var<workgroup> positions: array<vec2<u32>, 128>;

// A subgroup's 32 x 32 results, named by their blocks of pixels and of output channels.
struct Tile {
    s00: Sums,
    s01: Sums,
    s10: Sums,
    s11: Sums,
}

fn run_length() -> u32 {
    return 32u * SUBGROUPS / ACROSS;
}

fn first_pixel(i: u32) -> u32 {
    return i % params.pixel_blocks * run_length();
}

// Sixteens of input channels.
fn sixteens() -> u32 {
    return (params.in_channels + 15u) / 16u;
}

fn store_positions(i: u32, lane: u32) {
    for (var j = lane; j < run_length(); j += SUBGROUPS * LANES) {
        let pixel = first_pixel(i) + j;
        // A row outside of the picture for every tap.
        let row = select(2u * params.height, pixel / params.width % params.height, pixel < params.pixels);
        positions[j] = vec2(row, pixel % params.width);
    }
}

// The source of a pixel at one tap.
struct Source {
    pixel: u32,
    inside: bool,
}

fn source(i: u32, j: u32, t: u32) -> Source {
    // One tap is the middle of nine.
    let offset = select(t, 4u, params.taps == 1u);
    let at = positions[j] + vec2(offset / 3u, offset % 3u);
    let inside = all(at >= vec2(1u)) && all(at <= vec2(params.height, params.width));
    let neighbour = first_pixel(i) + j + offset / 3u * params.width + offset % 3u - params.width - 1u;
    return Source(params.first + source_pixel(neighbour, UP), inside);
}

fn store_pixels(v: vec4<f32>, at: u32) {
    let h = vec4<f16>(clamp(v, vec4(-F16_MAX), vec4(F16_MAX)));
    pixels[at] = h.x;
    pixels[at + 1u] = h.y;
    pixels[at + 2u] = h.z;
    pixels[at + 3u] = h.w;
}

// Weights of `count` sixteens of input channels from sixteen `first` on.
fn fetch_weights(i: u32, t: u32, first: u32, count: u32, lane: u32) {
    let quads = 8u * ACROSS;
    let row = 16u * ((i / params.pixel_blocks * params.taps + t) * sixteens() + first);
    for (var j = lane; j < 16u * count * quads; j += SUBGROUPS * LANES) {
        let w = weight[row * quads + j];
        let at = j / quads * WEIGHT_STRIDE + j % quads * 4u;
        weights[at] = w.x;
        weights[at + 1u] = w.y;
        weights[at + 2u] = w.z;
        weights[at + 3u] = w.w;
    }
}

// Accumulates `count` sixteens of input channels from workgroup memory, 0 for a subgroup that has nothing to compute. A
// loop instead of a condition, since matrix operations must be in uniform control flow.
fn multiply(tile: ptr<function, Tile>, subgroup: u32, count: u32) {
    let pixel = subgroup / ACROSS * 32u * PIXEL_STRIDE;
    let channel = subgroup % ACROSS * 32u;
    for (var k = 0u; k < count; k++) {
        let p0 = load_pixels(pixel + 16u * k);
        let p1 = load_pixels(pixel + 16u * (k + PIXEL_STRIDE));
        let w0 = load_weights(channel + 16u * k * WEIGHT_STRIDE);
        let w1 = load_weights(channel + 16u * k * WEIGHT_STRIDE + 16u);
        (*tile).s00 = accumulate((*tile).s00, p0, w0);
        (*tile).s01 = accumulate((*tile).s01, p0, w1);
        (*tile).s10 = accumulate((*tile).s10, p1, w0);
        (*tile).s11 = accumulate((*tile).s11, p1, w1);
    }
}

fn store_one(v: f32, pixel: u32, channel: u32) {
    let at = (params.first_result + pixel) * params.out_channels + channel;
    if (SUM == 0u) {
        y[at] = v;
    } else {
        y[at] = weighted_sum(vec4(v), vec4(addend[source_pixel(pixel, ADDEND_UP) * params.out_channels + channel])).x;
    }
}

// Stores one block of each subgroup's tile, the one at (row, column).
fn finish(sums: Sums, row: u32, column: u32, i: u32, subgroup: u32, lane: u32) {
    store_sums(sums, 256u * min(subgroup, SUBGROUPS));
    workgroupBarrier();
    for (var j = lane; j < 256u * SUBGROUPS; j += SUBGROUPS * LANES) {
        let owner = j / 256u;
        let pixel = first_pixel(i) + owner / ACROSS * 32u + 16u * row + j / 16u % 16u;
        let channel = (i / params.pixel_blocks * ACROSS + owner % ACROSS) * 32u + 16u * column + j % 16u;
        if (pixel < params.pixels && channel < params.out_channels) {
            store_one(results[j] + bias[channel], pixel, channel);
        }
    }
    workgroupBarrier();
}

fn finish_all(tile: Tile, i: u32, subgroup: u32, lane: u32) {
    finish(tile.s00, 0u, 0u, i, subgroup, lane);
    finish(tile.s01, 0u, 1u, i, subgroup, lane);
    finish(tile.s10, 1u, 0u, i, subgroup, lane);
    finish(tile.s11, 1u, 1u, i, subgroup, lane);
}

@compute @workgroup_size(LANES * SUBGROUPS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let i = group.y * groups.x + group.x;
    if (i >= params.count) {
        return;
    }
    store_positions(i, lane);
    workgroupBarrier();
    let quads = params.in_channels / 4u;
    var tile: Tile;
    for (var t = 0u; t < params.taps; t++) {
        for (var first = 0u; first < sixteens(); first += 2u) {
            let count = min(2u, sixteens() - first);
            for (var j = lane; j < run_length() * 8u; j += SUBGROUPS * LANES) {
                let s = source(i, j / 8u, t);
                let quad = 4u * first + j % 8u;
                var v = vec4<f32>(0.0);
                if (s.inside && quad < quads) {
                    v = x[s.pixel * quads + quad];
                }
                store_pixels(v, j / 8u * PIXEL_STRIDE + j % 8u * 4u);
            }
            fetch_weights(i, t, first, count, lane);
            workgroupBarrier();
            multiply(&tile, subgroup, select(0u, count, subgroup < SUBGROUPS));
            workgroupBarrier();
        }
    }
    finish_all(tile, i, subgroup, lane);
}

@compute @workgroup_size(LANES * SUBGROUPS)
fn main_unaligned(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let i = group.y * groups.x + group.x;
    if (i >= params.count) {
        return;
    }
    store_positions(i, lane);
    workgroupBarrier();
    var tile: Tile;
    for (var t = 0u; t < params.taps; t++) {
        for (var first = 0u; first < sixteens(); first += 2u) {
            let count = min(2u, sixteens() - first);
            for (var j = lane; j < run_length() * 8u; j += SUBGROUPS * LANES) {
                let s = source(i, j / 8u, t);
                let channel = 16u * first + j % 8u * 4u;
                var v = vec4<f32>(0.0);
                for (var c = 0u; c < 4u; c++) {
                    if (s.inside && channel + c < params.in_channels) {
                        v[c] = x_unaligned[s.pixel * params.in_channels + channel + c];
                    }
                }
                store_pixels(v, j / 8u * PIXEL_STRIDE + j % 8u * 4u);
            }
            fetch_weights(i, t, first, count, lane);
            workgroupBarrier();
            multiply(&tile, subgroup, select(0u, count, subgroup < SUBGROUPS));
            workgroupBarrier();
        }
    }
    finish_all(tile, i, subgroup, lane);
}
