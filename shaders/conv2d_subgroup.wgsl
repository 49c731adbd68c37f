// Convolution, stride 1, zero padding that keeps the grid, for multiples of 4 input channels. A workgroup computes 32
// pixels times 4 LANES output channels, an invocation 4 of these channels for all of the pixels, in registers. Eight
// lanes of a subgroup load 4 input channels of 8 pixels at once and broadcast them, so that each load serves 8 uses.
//
// The sum of one result runs over rows of taps, columns of taps and input channels in this order, independent of its
// position.

// 4 output channels of 32 pixels.
struct Sums {
    a: Eight,
    b: Eight,
    c: Eight,
    d: Eight,
}

// Position of a workgroup's results.
struct Place {
    // First pixel.
    first: u32,
    // The invocation's output channels, a quad of 4.
    quad: u32,
}

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
// [block][tap][in][LANES quads of the block's output channels]
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
// Multiples of 4 output channels for `main`, any number for `main_unaligned`.
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y_unaligned: array<f32>;
@group(0) @binding(5) var<storage, read> addend: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> addend_unaligned: array<f32>;

// Position of the input channels of a pixel.
struct Source {
    // Index of the first quad.
    at: u32,
    inside: bool,
}

// The source of tap (dy - 1, dx - 1) of `pixel`. Indices outside of the picture may wrap; values read there are not
// used.
fn source(pixel: u32, dy: u32, dx: u32) -> Source {
    let row = pixel / params.width % params.height + dy;
    let column = pixel % params.width + dx;
    let inside = pixel < params.pixels && row >= 1u && row <= params.height && column >= 1u && column <= params.width;
    let neighbour = pixel + dy * params.width + dx - params.width - 1u;
    return Source((params.first + source_pixel(neighbour, UP)) * quads(), inside);
}

fn load(s: Source, quad: u32) -> vec4<f32> {
    return select(vec4<f32>(0.0), x[s.at + quad], s.inside);
}

fn quads() -> u32 {
    return params.in_channels / 4u;
}

fn place(i: u32, lane: u32) -> Place {
    return Place(i % params.pixel_blocks * 32u, i / params.pixel_blocks * LANES + lane);
}

fn compute(i: u32, lane: u32, subgroup_lane: u32) -> Sums {
    let p = place(i, lane);
    let pixel = p.first + subgroup_lane % 8u;
    let initial = bias[p.quad];
    var a = start(initial);
    var b = start(initial);
    var c = start(initial);
    var d = start(initial);
    var at = i / params.pixel_blocks * params.taps * quads() * 4u * LANES + lane;
    for (var t = 0u; t < params.taps; t++) {
        // One tap is the middle of nine.
        let offset = select(t, 4u, params.taps == 1u);
        let dy = offset / 3u;
        let dx = offset % 3u;
        let from_a = source(pixel, dy, dx);
        let from_b = source(pixel + 8u, dy, dx);
        let from_c = source(pixel + 16u, dy, dx);
        let from_d = source(pixel + 24u, dy, dx);
        for (var quad = 0u; quad < quads(); quad++) {
            let w = Weights(weight[at], weight[at + LANES], weight[at + 2u * LANES], weight[at + 3u * LANES]);
            accumulate8(&a, load(from_a, quad), w);
            accumulate8(&b, load(from_b, quad), w);
            accumulate8(&c, load(from_c, quad), w);
            accumulate8(&d, load(from_d, quad), w);
            at += 4u * LANES;
        }
    }
    return Sums(a, b, c, d);
}

fn store(v: vec4<f32>, pixel: u32, quad: u32) {
    if (pixel < params.pixels && 4u * quad < params.out_channels) {
        let at = (params.first_result + pixel) * (params.out_channels / 4u) + quad;
        if (SUM == 0u) {
            y[at] = v;
        } else {
            y[at] = weighted_sum(v, addend[source_pixel(pixel, ADDEND_UP) * (params.out_channels / 4u) + quad]);
        }
    }
}

fn store8(v: Eight, pixel: u32, quad: u32) {
    store(v.p0, pixel, quad);
    store(v.p1, pixel + 1u, quad);
    store(v.p2, pixel + 2u, quad);
    store(v.p3, pixel + 3u, quad);
    store(v.p4, pixel + 4u, quad);
    store(v.p5, pixel + 5u, quad);
    store(v.p6, pixel + 6u, quad);
    store(v.p7, pixel + 7u, quad);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    let i = group.y * groups.x + group.x;
    if (i >= params.count) {
        return;
    }
    let sums = compute(i, lane, subgroup_lane);
    let p = place(i, lane);
    store8(sums.a, p.first, p.quad);
    store8(sums.b, p.first + 8u, p.quad);
    store8(sums.c, p.first + 16u, p.quad);
    store8(sums.d, p.first + 24u, p.quad);
}

fn store_unaligned(v: vec4<f32>, pixel: u32, quad: u32) {
    if (pixel < params.pixels) {
        for (var j = 4u * quad; j < min(4u * quad + 4u, params.out_channels); j++) {
            let at = (params.first_result + pixel) * params.out_channels + j;
            if (SUM == 0u) {
                y_unaligned[at] = v[j % 4u];
            } else {
                y_unaligned[at] = weighted_sum(v, vec4(addend_unaligned[source_pixel(pixel, ADDEND_UP) * params.out_channels + j]))[j % 4u];
            }
        }
    }
}

fn store8_unaligned(v: Eight, pixel: u32, quad: u32) {
    store_unaligned(v.p0, pixel, quad);
    store_unaligned(v.p1, pixel + 1u, quad);
    store_unaligned(v.p2, pixel + 2u, quad);
    store_unaligned(v.p3, pixel + 3u, quad);
    store_unaligned(v.p4, pixel + 4u, quad);
    store_unaligned(v.p5, pixel + 5u, quad);
    store_unaligned(v.p6, pixel + 6u, quad);
    store_unaligned(v.p7, pixel + 7u, quad);
}

@compute @workgroup_size(LANES)
fn main_unaligned(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    let i = group.y * groups.x + group.x;
    if (i >= params.count) {
        return;
    }
    let sums = compute(i, lane, subgroup_lane);
    let p = place(i, lane);
    store8_unaligned(sums.a, p.first, p.quad);
    store8_unaligned(sums.b, p.first + 8u, p.quad);
    store8_unaligned(sums.c, p.first + 16u, p.quad);
    store8_unaligned(sums.d, p.first + 24u, p.quad);
}
