// 3x3 convolution, stride 1, zero padding that keeps the grid, by Winograd's F(4x4, 3x3) (Lavin and Gray 2015, arXiv
// 1509.09308): a square of 4x4 results takes 36 products of a pair of channels in place of 144. `enter` transforms the 6x6
// inputs of each square (B^T d B), `multiply` sums the products over input channels for each of the 36 positions, `leave`
// transforms the sums (A^T m A). Channels in fours.
//
// What a result is rounded to depends on its place in its square and on all 36 inputs, so that a window of a grid would not
// give the bits of the whole grid.

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
// G g G^T: [block][position][in][LANES fours of the block's output channels]
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> addend: array<vec4<f32>>;
// [position][square of this pass][in]
@group(0) @binding(6) var<storage, read_write> inputs: array<vec4<f32>>;
// [position][square of this pass][out]
@group(0) @binding(7) var<storage, read_write> products: array<vec4<f32>>;

alias Six = array<vec4<f32>, 6>;

// A square of results and four of its channels.
struct Place {
    quad: u32,
    picture: u32,
    // Of its first result.
    row: u32,
    column: u32,
}

fn columns() -> u32 {
    return (params.width + 3u) / 4u;
}

// Of one picture.
fn squares() -> u32 {
    return (params.height + 3u) / 4u * columns();
}

fn place(item: u32, channels: u32) -> Place {
    let quads = channels / 4u;
    let square = params.first_square + item / quads;
    let own = square % squares();
    return Place(item % quads, square / squares(), own / columns() * 4u, own % columns() * 4u);
}

// A column of B^T d.
fn enter6(d: Six) -> Six {
    return Six(
        4.0 * d[0] - 5.0 * d[2] + d[4],
        (d[4] - 4.0 * d[2]) + (d[3] - 4.0 * d[1]),
        (d[4] - 4.0 * d[2]) - (d[3] - 4.0 * d[1]),
        (d[4] - d[2]) + 2.0 * (d[3] - d[1]),
        (d[4] - d[2]) - 2.0 * (d[3] - d[1]),
        4.0 * d[1] - 5.0 * d[3] + d[5],
    );
}

// A column of A^T m.
fn leave6(m: Six) -> array<vec4<f32>, 4> {
    let sum = m[1] + m[2];
    let difference = m[1] - m[2];
    let sum2 = m[3] + m[4];
    let difference2 = m[3] - m[4];
    return array<vec4<f32>, 4>(
        m[0] + sum + sum2,
        difference + 2.0 * difference2,
        sum + 4.0 * sum2,
        difference + 8.0 * difference2 + m[5],
    );
}

// The input at a row and a column that count from 1, so that 0 is in the padding.
fn take(p: Place, row: u32, column: u32) -> vec4<f32> {
    if (row == 0u || row > params.height || column == 0u || column > params.width) {
        return vec4(0.0);
    }
    let pixel = (p.picture * params.height + row - 1u) * params.width + column - 1u;
    return x[origin(pixel, UP) * (params.in_channels / 4u) + p.quad];
}

fn take6(p: Place, column: u32) -> Six {
    return enter6(Six(
        take(p, p.row, column),
        take(p, p.row + 1u, column),
        take(p, p.row + 2u, column),
        take(p, p.row + 3u, column),
        take(p, p.row + 4u, column),
        take(p, p.row + 5u, column),
    ));
}

// Transforms a row and stores it from `position` on.
fn put6(d: Six, position: u32, item: u32) {
    let out = enter6(d);
    let stride = params.squares * (params.in_channels / 4u);
    let at = position * stride + item;
    inputs[at] = out[0];
    inputs[at + stride] = out[1];
    inputs[at + 2u * stride] = out[2];
    inputs[at + 3u * stride] = out[3];
    inputs[at + 4u * stride] = out[4];
    inputs[at + 5u * stride] = out[5];
}

@compute @workgroup_size(64)
fn enter(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = (group.y * groups.x + group.x) * 64u + lane;
    let quads = params.in_channels / 4u;
    if (item >= params.squares * quads) {
        return;
    }
    let p = place(item, params.in_channels);
    let c0 = take6(p, p.column);
    let c1 = take6(p, p.column + 1u);
    let c2 = take6(p, p.column + 2u);
    let c3 = take6(p, p.column + 3u);
    let c4 = take6(p, p.column + 4u);
    let c5 = take6(p, p.column + 5u);
    put6(Six(c0[0], c1[0], c2[0], c3[0], c4[0], c5[0]), 0u, item);
    put6(Six(c0[1], c1[1], c2[1], c3[1], c4[1], c5[1]), 6u, item);
    put6(Six(c0[2], c1[2], c2[2], c3[2], c4[2], c5[2]), 12u, item);
    put6(Six(c0[3], c1[3], c2[3], c3[3], c4[3], c5[3]), 18u, item);
    put6(Six(c0[4], c1[4], c2[4], c3[4], c4[4], c5[4]), 24u, item);
    put6(Six(c0[5], c1[5], c2[5], c3[5], c4[5], c5[5]), 30u, item);
}

// Four channels of a square's transformed input; what lies beyond the last square is not used.
fn entered(position: u32, square: u32, quad: u32) -> vec4<f32> {
    let at = (position * params.squares + square) * (params.in_channels / 4u) + quad;
    return select(vec4<f32>(0.0), inputs[at], square < params.squares);
}

fn put(v: vec4<f32>, position: u32, square: u32, quad: u32) {
    if (square < params.squares && 4u * quad < params.out_channels) {
        products[(position * params.squares + square) * (params.out_channels / 4u) + quad] = v;
    }
}

fn put8(v: Eight, position: u32, square: u32, quad: u32) {
    put(v.p0, position, square, quad);
    put(v.p1, position, square + 1u, quad);
    put(v.p2, position, square + 2u, quad);
    put(v.p3, position, square + 3u, quad);
    put(v.p4, position, square + 4u, quad);
    put(v.p5, position, square + 5u, quad);
    put(v.p6, position, square + 6u, quad);
    put(v.p7, position, square + 7u, quad);
}

// Eights of squares of a workgroup of `multiply`: 1, 2 or 4.
override EIGHTS: u32 = 4u;

// A workgroup has a run of 8 EIGHTS squares at one position, times 4 LANES output channels.
@compute @workgroup_size(LANES)
fn multiply(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    let i = group.y * groups.x + group.x;
    if (i >= params.count) {
        return;
    }
    let first = i % params.tiles * 8u * EIGHTS;
    let position = i / params.tiles % 36u;
    let block = i / params.tiles / 36u;
    let square = first + subgroup_lane % 8u;
    var a = start(vec4(0.0));
    var b = a;
    var c = a;
    var d = a;
    var at = (block * 36u + position) * params.in_channels * LANES + lane;
    for (var quad = 0u; quad < params.in_channels / 4u; quad++) {
        let w = Weights(weight[at], weight[at + LANES], weight[at + 2u * LANES], weight[at + 3u * LANES]);
        gain8(&a, entered(position, square, quad), w);
        if (EIGHTS > 1u) {
            gain8(&b, entered(position, square + 8u, quad), w);
        }
        if (EIGHTS > 2u) {
            gain8(&c, entered(position, square + 16u, quad), w);
            gain8(&d, entered(position, square + 24u, quad), w);
        }
        at += 4u * LANES;
    }
    let own = block * LANES + lane;
    put8(a, position, first, own);
    if (EIGHTS > 1u) {
        put8(b, position, first + 8u, own);
    }
    if (EIGHTS > 2u) {
        put8(c, position, first + 16u, own);
        put8(d, position, first + 24u, own);
    }
}

// A row of the products at `position`, `stride` from one to the next.
fn product6(at: u32, stride: u32) -> Six {
    return Six(
        products[at],
        products[at + stride],
        products[at + 2u * stride],
        products[at + 3u * stride],
        products[at + 4u * stride],
        products[at + 5u * stride],
    );
}

fn store(v: vec4<f32>, p: Place, row: u32, column: u32) {
    if (row < params.height && column < params.width) {
        let pixel = (p.picture * params.height + row) * params.width + column;
        let quads = params.out_channels / 4u;
        let result = v + bias[p.quad];
        if (SUM == 0u) {
            y[pixel * quads + p.quad] = result;
        } else {
            y[pixel * quads + p.quad] = sum(result, addend[origin(pixel, ADDEND_UP) * quads + p.quad]);
        }
    }
}

fn store4(v: array<vec4<f32>, 4>, p: Place, column: u32) {
    store(v[0], p, p.row, column);
    store(v[1], p, p.row + 1u, column);
    store(v[2], p, p.row + 2u, column);
    store(v[3], p, p.row + 3u, column);
}

@compute @workgroup_size(64)
fn leave(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = (group.y * groups.x + group.x) * 64u + lane;
    let quads = params.out_channels / 4u;
    let stride = params.squares * quads;
    if (item >= stride) {
        return;
    }
    let p = place(item, params.out_channels);
    let r0 = leave6(product6(item, stride));
    let r1 = leave6(product6(item + 6u * stride, stride));
    let r2 = leave6(product6(item + 12u * stride, stride));
    let r3 = leave6(product6(item + 18u * stride, stride));
    let r4 = leave6(product6(item + 24u * stride, stride));
    let r5 = leave6(product6(item + 30u * stride, stride));
    store4(leave6(Six(r0[0], r1[0], r2[0], r3[0], r4[0], r5[0])), p, p.column);
    store4(leave6(Six(r0[1], r1[1], r2[1], r3[1], r4[1], r5[1])), p, p.column + 1u);
    store4(leave6(Six(r0[2], r1[2], r2[2], r3[2], r4[2], r5[2])), p, p.column + 2u);
    store4(leave6(Six(r0[3], r1[3], r2[3], r3[3], r4[3], r5[3])), p, p.column + 3u);
}
