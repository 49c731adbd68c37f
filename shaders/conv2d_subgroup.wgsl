// Convolution, stride 1, zero padding that keeps the grid, for input channels in fours. A workgroup computes 32 pixels
// times 4 LANES output channels, an invocation 4 of these channels for all of the pixels, in registers. Eight lanes of a
// subgroup read 4 input channels of 8 pixels at once and hand them round, so that memory is read once for 8 uses.
//
// The sum of one result runs over rows of taps, columns of taps, input channels, in this order, wherever it lies.

// 4 output channels of 32 pixels.
struct Sums {
    a: Eight,
    b: Eight,
    c: Eight,
    d: Eight,
}

// Where a workgroup's results lie.
struct Place {
    // First pixel.
    first: u32,
    // The invocation's output channels, in fours.
    quad: u32,
}

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
// [block][tap][in][LANES fours of the block's output channels]
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
// Output channels in fours, for `main`, or any, for `narrow`.
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y_narrow: array<f32>;
@group(0) @binding(5) var<storage, read> addend: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> addend_narrow: array<f32>;

// Where the input channels of a pixel lie.
struct Source {
    // In fours.
    at: u32,
    inside: bool,
}

// Of the tap (dy - 1, dx - 1) of `pixel`. Addresses outside of the picture may wrap around; what is read there is not used.
fn source(pixel: u32, dy: u32, dx: u32) -> Source {
    let row = pixel / params.width % params.height + dy;
    let column = pixel % params.width + dx;
    let inside = pixel < params.pixels && row >= 1u && row <= params.height && column >= 1u && column <= params.width;
    let neighbour = pixel + dy * params.width + dx - params.width - 1u;
    return Source((params.first + origin(neighbour, UP)) * quads(), inside);
}

fn take(s: Source, quad: u32) -> vec4<f32> {
    return select(vec4<f32>(0.0), x[s.at + quad], s.inside);
}

fn quads() -> u32 {
    return params.in_channels / 4u;
}

fn place(i: u32, lane: u32) -> Place {
    return Place(i % params.tiles * 32u, i / params.tiles * LANES + lane);
}

fn compute(i: u32, lane: u32, subgroup_lane: u32) -> Sums {
    let p = place(i, lane);
    let pixel = p.first + subgroup_lane % 8u;
    let initial = bias[p.quad];
    var a = start(initial);
    var b = start(initial);
    var c = start(initial);
    var d = start(initial);
    var at = i / params.tiles * params.taps * quads() * 4u * LANES + lane;
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
            gain8(&a, take(from_a, quad), w);
            gain8(&b, take(from_b, quad), w);
            gain8(&c, take(from_c, quad), w);
            gain8(&d, take(from_d, quad), w);
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
            y[at] = sum(v, addend[origin(pixel, ADDEND_UP) * (params.out_channels / 4u) + quad]);
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

fn store_narrow(v: vec4<f32>, pixel: u32, quad: u32) {
    if (pixel < params.pixels) {
        for (var j = 4u * quad; j < min(4u * quad + 4u, params.out_channels); j++) {
            let at = (params.first_result + pixel) * params.out_channels + j;
            if (SUM == 0u) {
                y_narrow[at] = v[j % 4u];
            } else {
                y_narrow[at] = sum(v, vec4(addend_narrow[origin(pixel, ADDEND_UP) * params.out_channels + j]))[j % 4u];
            }
        }
    }
}

fn store8_narrow(v: Eight, pixel: u32, quad: u32) {
    store_narrow(v.p0, pixel, quad);
    store_narrow(v.p1, pixel + 1u, quad);
    store_narrow(v.p2, pixel + 2u, quad);
    store_narrow(v.p3, pixel + 3u, quad);
    store_narrow(v.p4, pixel + 4u, quad);
    store_narrow(v.p5, pixel + 5u, quad);
    store_narrow(v.p6, pixel + 6u, quad);
    store_narrow(v.p7, pixel + 7u, quad);
}

@compute @workgroup_size(LANES)
fn narrow(
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
    store8_narrow(sums.a, p.first, p.quad);
    store8_narrow(sums.b, p.first + 8u, p.quad);
    store8_narrow(sums.c, p.first + 16u, p.quad);
    store8_narrow(sums.d, p.first + 24u, p.quad);
}
