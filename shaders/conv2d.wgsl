// Convolution, stride 1, zero padding that keeps the grid. A workgroup computes 4 x 8 results (kernel 3) or a run of 32
// (kernel 1) times 2 LANES output channels; an invocation two of these channels, for all of the pixels. So every
// invocation of a workgroup reads the same inputs, and neighbours read neighbouring weights.
//
// The sum of one result runs over input channels, rows of taps, columns of taps, in this order, wherever it lies.

override LANES: u32 = 8u;

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
// [block][in][row of taps][column of taps][channel of the block]
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

// Weights of a row of taps for the two channels of an invocation.
struct Taps {
    a0: f32,
    b0: f32,
    c0: f32,
    a1: f32,
    b1: f32,
    c1: f32,
}

// 10 inputs side by side.
struct Line {
    x0: f32,
    x1: f32,
    x2: f32,
    x3: f32,
    x4: f32,
    x5: f32,
    x6: f32,
    x7: f32,
    x8: f32,
    x9: f32,
}

fn taps(w: u32) -> Taps {
    return Taps(weight[w], weight[w + 2u * LANES], weight[w + 4u * LANES],
                weight[w + LANES], weight[w + 3u * LANES], weight[w + 5u * LANES]);
}

// Input j of a line, 0 where bit j of `inside` says that it is not in the picture.
fn pixel(at: u32, inside: u32, j: u32) -> f32 {
    return select(0.0, x[at + j * params.in_channels], (inside & (1u << j)) != 0u);
}

fn line(at: u32, inside: u32) -> Line {
    return Line(pixel(at, inside, 0u), pixel(at, inside, 1u), pixel(at, inside, 2u), pixel(at, inside, 3u),
                pixel(at, inside, 4u), pixel(at, inside, 5u), pixel(at, inside, 6u), pixel(at, inside, 7u),
                pixel(at, inside, 8u), pixel(at, inside, 9u));
}

fn gain3(sum: ptr<function, Row>, l: Line, t: Taps) {
    gain(sum, vec4(l.x0, l.x1, l.x2, l.x3), vec4(l.x4, l.x5, l.x6, l.x7), t.a0, t.a1);
    gain(sum, vec4(l.x1, l.x2, l.x3, l.x4), vec4(l.x5, l.x6, l.x7, l.x8), t.b0, t.b1);
    gain(sum, vec4(l.x2, l.x3, l.x4, l.x5), vec4(l.x6, l.x7, l.x8, l.x9), t.c0, t.c1);
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
    let down = tile / params.tiles_across / params.tiles_down * params.height + row;
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
    // Rows above and below the picture are 0 altogether.
    let in0 = select(0u, inside, row >= 1u);
    let in2 = select(0u, inside, row + 1u < params.height);
    let in3 = select(0u, inside, row + 2u < params.height);
    let in4 = select(0u, inside, row + 3u < params.height);
    let in5 = select(0u, inside, row + 4u < params.height);
    let step = params.width * params.in_channels;
    var w = block * params.in_channels * 18u * LANES + lane;
    // Addresses outside of the picture may wrap around; what is read there is not used.
    var at = ((down - 1u) * params.width + column - 1u) * params.in_channels;
    for (var c = 0u; c < params.in_channels; c++) {
        let above = taps(w);
        let middle = taps(w + 6u * LANES);
        let below = taps(w + 12u * LANES);
        w += 18u * LANES;
        let l0 = line(at, in0);
        gain3(&s0, l0, above);
        let l1 = line(at + step, inside);
        gain3(&s0, l1, middle);
        gain3(&s1, l1, above);
        let l2 = line(at + 2u * step, in2);
        gain3(&s0, l2, below);
        gain3(&s1, l2, middle);
        gain3(&s2, l2, above);
        let l3 = line(at + 3u * step, in3);
        gain3(&s1, l3, below);
        gain3(&s2, l3, middle);
        gain3(&s3, l3, above);
        let l4 = line(at + 4u * step, in4);
        gain3(&s2, l4, below);
        gain3(&s3, l4, middle);
        let l5 = line(at + 5u * step, in5);
        gain3(&s3, l5, below);
        at += 1u;
    }
    finish(s0, down, column, o, true);
    finish(s1, down + 1u, column, o, row + 1u < params.height);
    finish(s2, down + 2u, column, o, row + 2u < params.height);
    finish(s3, down + 3u, column, o, row + 3u < params.height);
}
