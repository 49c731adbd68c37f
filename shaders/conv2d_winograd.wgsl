// 3x3 convolution, stride 1, zero padding that keeps the grid, by Winograd's F(4x4, 3x3) (Lavin and Gray 2015, arXiv
// 1509.09308): an output tile of 4x4 takes 36 products of a pair of channels instead of 144. `input_transform` transforms the 6x6
// input tile of each output tile (B^T d B), `multiply` is a GEMM over input channels for each of the 36 tile elements,
// `output_transform` transforms the products (A^T m A). Multiples of 4 channels.
//
// The rounding of a result depends on its position in its tile and on all 36 inputs, so a window of a grid does not
// have the bits of the whole grid.

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
// G g G^T: [block][tile element][in][LANES quads of the block's output channels]
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> addend: array<vec4<f32>>;
// [tile element][output tile of this pass][in]
@group(0) @binding(6) var<storage, read_write> inputs: array<vec4<f32>>;
// [tile element][output tile of this pass][out]
@group(0) @binding(7) var<storage, read_write> products: array<vec4<f32>>;

alias Six = array<vec4<f32>, 6>;

// An output tile and a quad of its channels.
struct Place {
    quad: u32,
    picture: u32,
    // Of its first result in the picture.
    row: u32,
    column: u32,
}

fn columns() -> u32 {
    return (params.width + 3u) / 4u;
}

// Output tiles of one picture.
fn picture_tiles() -> u32 {
    return (params.height + 3u) / 4u * columns();
}

fn place(item: u32, channels: u32) -> Place {
    let quads = channels / 4u;
    let tile = params.first_tile + item / quads;
    let own = tile % picture_tiles();
    return Place(item % quads, tile / picture_tiles(), own / columns() * 4u, own % columns() * 4u);
}

// A column of B^T d.
fn input_transform6(d: Six) -> Six {
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
fn output_transform6(m: Six) -> array<vec4<f32>, 4> {
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
fn load(p: Place, row: u32, column: u32) -> vec4<f32> {
    if (row == 0u || row > params.height || column == 0u || column > params.width) {
        return vec4(0.0);
    }
    let pixel = (p.picture * params.height + row - 1u) * params.width + column - 1u;
    return x[source_pixel(pixel, UP) * (params.in_channels / 4u) + p.quad];
}

fn load_column(p: Place, column: u32) -> Six {
    return input_transform6(Six(
        load(p, p.row, column),
        load(p, p.row + 1u, column),
        load(p, p.row + 2u, column),
        load(p, p.row + 3u, column),
        load(p, p.row + 4u, column),
        load(p, p.row + 5u, column),
    ));
}

// Transforms a row of an input tile and stores it from tile element `element` on.
fn store_row(d: Six, element: u32, item: u32) {
    let out = input_transform6(d);
    let stride = params.tiles * (params.in_channels / 4u);
    let at = element * stride + item;
    inputs[at] = out[0];
    inputs[at + stride] = out[1];
    inputs[at + 2u * stride] = out[2];
    inputs[at + 3u * stride] = out[3];
    inputs[at + 4u * stride] = out[4];
    inputs[at + 5u * stride] = out[5];
}

@compute @workgroup_size(64)
fn input_transform(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = invocation(group, groups, lane);
    let quads = params.in_channels / 4u;
    if (item >= params.tiles * quads) {
        return;
    }
    let p = place(item, params.in_channels);
    let c0 = load_column(p, p.column);
    let c1 = load_column(p, p.column + 1u);
    let c2 = load_column(p, p.column + 2u);
    let c3 = load_column(p, p.column + 3u);
    let c4 = load_column(p, p.column + 4u);
    let c5 = load_column(p, p.column + 5u);
    store_row(Six(c0[0], c1[0], c2[0], c3[0], c4[0], c5[0]), 0u, item);
    store_row(Six(c0[1], c1[1], c2[1], c3[1], c4[1], c5[1]), 6u, item);
    store_row(Six(c0[2], c1[2], c2[2], c3[2], c4[2], c5[2]), 12u, item);
    store_row(Six(c0[3], c1[3], c2[3], c3[3], c4[3], c5[3]), 18u, item);
    store_row(Six(c0[4], c1[4], c2[4], c3[4], c4[4], c5[4]), 24u, item);
    store_row(Six(c0[5], c1[5], c2[5], c3[5], c4[5], c5[5]), 30u, item);
}

// A quad of channels of a tile's transformed input; values past the last tile are not used.
fn load_input(element: u32, tile: u32, quad: u32) -> vec4<f32> {
    let at = (element * params.tiles + tile) * (params.in_channels / 4u) + quad;
    return select(vec4<f32>(0.0), inputs[at], tile < params.tiles);
}

fn store_product(v: vec4<f32>, element: u32, tile: u32, quad: u32) {
    if (tile < params.tiles && 4u * quad < params.out_channels) {
        products[(element * params.tiles + tile) * (params.out_channels / 4u) + quad] = v;
    }
}

fn store_products8(v: Eight, element: u32, tile: u32, quad: u32) {
    store_product(v.p0, element, tile, quad);
    store_product(v.p1, element, tile + 1u, quad);
    store_product(v.p2, element, tile + 2u, quad);
    store_product(v.p3, element, tile + 3u, quad);
    store_product(v.p4, element, tile + 4u, quad);
    store_product(v.p5, element, tile + 5u, quad);
    store_product(v.p6, element, tile + 6u, quad);
    store_product(v.p7, element, tile + 7u, quad);
}

// Output tiles of a workgroup of `multiply` in units of 8: 1, 2 or 4.
override TILES_OF_8: u32 = 4u;

// A workgroup computes one tile element of 8 TILES_OF_8 output tiles, times 4 LANES output channels.
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
    let first = i % params.pixel_blocks * 8u * TILES_OF_8;
    let element = i / params.pixel_blocks % 36u;
    let block = i / params.pixel_blocks / 36u;
    let tile = first + subgroup_lane % 8u;
    var a = start(vec4(0.0));
    var b = a;
    var c = a;
    var d = a;
    var at = (block * 36u + element) * params.in_channels * LANES + lane;
    for (var quad = 0u; quad < params.in_channels / 4u; quad++) {
        let w = Weights(weight[at], weight[at + LANES], weight[at + 2u * LANES], weight[at + 3u * LANES]);
        accumulate8(&a, load_input(element, tile, quad), w);
        if (TILES_OF_8 > 1u) {
            accumulate8(&b, load_input(element, tile + 8u, quad), w);
        }
        if (TILES_OF_8 > 2u) {
            accumulate8(&c, load_input(element, tile + 16u, quad), w);
            accumulate8(&d, load_input(element, tile + 24u, quad), w);
        }
        at += 4u * LANES;
    }
    let own = block * LANES + lane;
    store_products8(a, element, first, own);
    if (TILES_OF_8 > 1u) {
        store_products8(b, element, first + 8u, own);
    }
    if (TILES_OF_8 > 2u) {
        store_products8(c, element, first + 16u, own);
        store_products8(d, element, first + 24u, own);
    }
}

// Six products from `at` on, `stride` apart.
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
            y[pixel * quads + p.quad] = weighted_sum(result, addend[source_pixel(pixel, ADDEND_UP) * quads + p.quad]);
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
fn output_transform(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = invocation(group, groups, lane);
    let quads = params.out_channels / 4u;
    let stride = params.tiles * quads;
    if (item >= stride) {
        return;
    }
    let p = place(item, params.out_channels);
    let r0 = output_transform6(product6(item, stride));
    let r1 = output_transform6(product6(item + 6u * stride, stride));
    let r2 = output_transform6(product6(item + 12u * stride, stride));
    let r3 = output_transform6(product6(item + 18u * stride, stride));
    let r4 = output_transform6(product6(item + 24u * stride, stride));
    let r5 = output_transform6(product6(item + 30u * stride, stride));
    store4(output_transform6(Six(r0[0], r1[0], r2[0], r3[0], r4[0], r5[0])), p, p.column);
    store4(output_transform6(Six(r0[1], r1[1], r2[1], r3[1], r4[1], r5[1])), p, p.column + 1u);
    store4(output_transform6(Six(r0[2], r1[2], r2[2], r3[2], r4[2], r5[2])), p, p.column + 2u);
    store4(output_transform6(Six(r0[3], r1[3], r2[3], r3[3], r4[3], r5[3])), p, p.column + 3u);
}
