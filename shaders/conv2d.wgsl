// Convolution, stride 1, zero padding that keeps the grid. A workgroup computes 4 x 8 results (kernel 3) or a run of 32
// (kernel 1) times 2 LANES output channels; an invocation two of these channels, for all of the pixels. So every
// invocation of a workgroup reads the same inputs, and neighbours read neighbouring weights.
//
// The sum of one result runs over rows of taps, input channels, columns of taps, in this order, wherever it lies.

override LANES: u32 = 16u;

struct Params {
    // Tiles along a row, down a picture, and over all pictures; kernel 1: runs of 32 pixels in the last.
    tiles_across: u32,
    tiles_down: u32,
    tiles: u32,
    // Workgroups: tiles * blocks of 2 LANES output channels.
    count: u32,
    in_channels: u32,
    out_channels: u32,
    // Extent of a picture; kernel 1: height 1 and the pixels of all pictures.
    height: u32,
    width: u32,
}

// 8 results side by side, channel `lane` and channel `lane + LANES` of a block.
struct Row {
    left0: vec4<f32>,
    right0: vec4<f32>,
    left1: vec4<f32>,
    right1: vec4<f32>,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
// [block][row of taps][in][column of taps][channel of the block]
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

fn begin(o: u32) -> Row {
    let b0 = vec4<f32>(bias[o]);
    let b1 = vec4<f32>(bias[o + LANES]);
    return Row(b0, b0, b1, b1);
}

fn gain(sum: ptr<function, Row>, left: vec4<f32>, right: vec4<f32>, w0: f32, w1: f32) {
    (*sum).left0 = fma(left, vec4<f32>(w0), (*sum).left0);
    (*sum).right0 = fma(right, vec4<f32>(w0), (*sum).right0);
    (*sum).left1 = fma(left, vec4<f32>(w1), (*sum).left1);
    (*sum).right1 = fma(right, vec4<f32>(w1), (*sum).right1);
}

fn store(v: f32, at: u32, ok: bool) {
    if (ok) {
        y[at] = v;
    }
}

fn store4(v: vec4<f32>, at: u32, column: u32, ok: bool) {
    let step = params.out_channels;
    store(v.x, at, ok && column < params.width);
    store(v.y, at + step, ok && column + 1u < params.width);
    store(v.z, at + 2u * step, ok && column + 2u < params.width);
    store(v.w, at + 3u * step, ok && column + 3u < params.width);
}

// `row` counts over all pictures.
fn finish(sum: Row, row: u32, column: u32, o: u32, ok: bool) {
    let at = (row * params.width + column) * params.out_channels + o;
    let right = at + 4u * params.out_channels;
    store4(sum.left0, at, column, ok && o < params.out_channels);
    store4(sum.right0, right, column + 4u, ok && o < params.out_channels);
    store4(sum.left1, at + LANES, column, ok && o + LANES < params.out_channels);
    store4(sum.right1, right + LANES, column + 4u, ok && o + LANES < params.out_channels);
}

@compute @workgroup_size(LANES)
fn kernel1(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group.y * groups.x + group.x;
    if (i >= params.count) {
        return;
    }
    let block = i / params.tiles;
    let column = i % params.tiles * 32u;
    let o = block * 2u * LANES + lane;
    let step = params.in_channels;
    var s0 = begin(o);
    var s1 = s0;
    var s2 = s0;
    var s3 = s0;
    var w = block * params.in_channels * 2u * LANES + lane;
    // Pixels past the last one are read as whatever lies there, and not stored.
    let first = column * step;
    for (var c = 0u; c < params.in_channels; c++) {
        let w0 = weight[w];
        let w1 = weight[w + LANES];
        w += 2u * LANES;
        var at = first + c;
        gain(&s0, vec4(x[at], x[at + step], x[at + 2u * step], x[at + 3u * step]),
             vec4(x[at + 4u * step], x[at + 5u * step], x[at + 6u * step], x[at + 7u * step]), w0, w1);
        at += 8u * step;
        gain(&s1, vec4(x[at], x[at + step], x[at + 2u * step], x[at + 3u * step]),
             vec4(x[at + 4u * step], x[at + 5u * step], x[at + 6u * step], x[at + 7u * step]), w0, w1);
        at += 8u * step;
        gain(&s2, vec4(x[at], x[at + step], x[at + 2u * step], x[at + 3u * step]),
             vec4(x[at + 4u * step], x[at + 5u * step], x[at + 6u * step], x[at + 7u * step]), w0, w1);
        at += 8u * step;
        gain(&s3, vec4(x[at], x[at + step], x[at + 2u * step], x[at + 3u * step]),
             vec4(x[at + 4u * step], x[at + 5u * step], x[at + 6u * step], x[at + 7u * step]), w0, w1);
    }
    finish(s0, 0u, column, o, true);
    finish(s1, 0u, column + 8u, o, true);
    finish(s2, 0u, column + 16u, o, true);
    finish(s3, 0u, column + 24u, o, true);
}

// Weights of three taps side by side for the two channels of an invocation.
struct Taps {
    a0: f32,
    a1: f32,
    b0: f32,
    b1: f32,
    c0: f32,
    c1: f32,
}

// The reader's window is 10 pixels wide; `inside` has bit j set where pixel j is in the picture.
fn pixel(at: u32, inside: u32, j: u32) -> f32 {
    return select(0.0, x[at + j * params.in_channels], (inside & (1u << j)) != 0u);
}

fn gain3(sum: ptr<function, Row>, at: u32, inside: u32, taps: Taps) {
    let x0 = pixel(at, inside, 0u);
    let x1 = pixel(at, inside, 1u);
    let x2 = pixel(at, inside, 2u);
    let x3 = pixel(at, inside, 3u);
    let x4 = pixel(at, inside, 4u);
    let x5 = pixel(at, inside, 5u);
    let x6 = pixel(at, inside, 6u);
    let x7 = pixel(at, inside, 7u);
    let x8 = pixel(at, inside, 8u);
    let x9 = pixel(at, inside, 9u);
    gain(sum, vec4(x0, x1, x2, x3), vec4(x4, x5, x6, x7), taps.a0, taps.a1);
    gain(sum, vec4(x1, x2, x3, x4), vec4(x5, x6, x7, x8), taps.b0, taps.b1);
    gain(sum, vec4(x2, x3, x4, x5), vec4(x6, x7, x8, x9), taps.c0, taps.c1);
}

@compute @workgroup_size(LANES)
fn kernel3(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group.y * groups.x + group.x;
    if (i >= params.count) {
        return;
    }
    let block = i / params.tiles;
    let tile = i % params.tiles;
    let column = tile % params.tiles_across * 8u;
    let row = tile / params.tiles_across % params.tiles_down * 4u;
    let first_row = tile / params.tiles_across / params.tiles_down * params.height;
    let o = block * 2u * LANES + lane;
    var s0 = begin(o);
    var s1 = s0;
    var s2 = s0;
    var s3 = s0;
    var inside = 0u;
    for (var j = 0u; j < 10u; j++) {
        if (column + j >= 1u && column + j <= params.width) {
            inside |= 1u << j;
        }
    }
    let line = params.width * params.in_channels;
    var w = block * params.in_channels * 18u * LANES + lane;
    for (var dy = 0u; dy < 3u; dy++) {
        // Rows of taps above and below the picture add nothing. The address may wrap where nothing is read.
        let r0 = row + dy >= 1u && row + dy <= params.height;
        let r1 = row + dy <= params.height - 1u;
        let r2 = row + dy + 1u <= params.height - 1u;
        let r3 = row + dy + 2u <= params.height - 1u;
        let first = ((first_row + row + dy - 1u) * params.width + column - 1u) * params.in_channels;
        for (var c = 0u; c < params.in_channels; c++) {
            let taps = Taps(weight[w], weight[w + LANES], weight[w + 2u * LANES], weight[w + 3u * LANES],
                            weight[w + 4u * LANES], weight[w + 5u * LANES]);
            w += 6u * LANES;
            let at = first + c;
            gain3(&s0, at, select(0u, inside, r0), taps);
            gain3(&s1, at + line, select(0u, inside, r1), taps);
            gain3(&s2, at + 2u * line, select(0u, inside, r2), taps);
            gain3(&s3, at + 3u * line, select(0u, inside, r3), taps);
        }
    }
    let down = first_row + row;
    finish(s0, down, column, o, true);
    finish(s1, down + 1u, column, o, row + 1u < params.height);
    finish(s2, down + 2u, column, o, row + 2u < params.height);
    finish(s3, down + 3u, column, o, row + 3u < params.height);
}
