// The weights of attention over channels: A = softmax over j of (sum over pixels q_i k_j / sqrt N). The products are
// summed over chunks of pixels (`scores`), the chunks added up and the softmax taken (`softmax`).

struct Params {
    // Invocations of `scores`, workgroups of `softmax`.
    count: u32,
    // Pixels of a picture.
    pixels: u32,
    channels: u32,
    // Pixels of a chunk.
    chunk: u32,
    chunks: u32,
    // 1 / sqrt(pixels)
    scale: f32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
// [picture][chunk][i][j]
@group(0) @binding(3) var<storage, read_write> products: array<f32>;
// [picture][j][i]
@group(0) @binding(4) var<storage, read_write> weights: array<f32>;

// One invocation per 4 x 4 products.
@compute @workgroup_size(64)
fn scores(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = invocation(group, groups, lane);
    if (i >= params.count) {
        return;
    }
    let columns = (params.channels + 3u) / 4u;
    let column = i % columns * 4u;
    let row = i / columns % columns * 4u;
    let chunk = i / columns / columns % params.chunks;
    let n = i / columns / columns / params.chunks;
    let four = vec4<u32>(0u, 1u, 2u, 3u);
    // Past the edge the last row or column is computed again and not stored.
    let last = vec4<u32>(params.channels - 1u);
    let rows = min(vec4<u32>(row) + four, last);
    let cols = min(vec4<u32>(column) + four, last);
    let first = chunk * params.chunk;
    let end = min(first + params.chunk, params.pixels);
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    for (var p = first; p < end; p++) {
        let base = (n * params.pixels + p) * params.channels;
        let key = vec4<f32>(k[base + cols.x], k[base + cols.y], k[base + cols.z], k[base + cols.w]);
        s0 = fma(vec4<f32>(q[base + rows.x]), key, s0);
        s1 = fma(vec4<f32>(q[base + rows.y]), key, s1);
        s2 = fma(vec4<f32>(q[base + rows.z]), key, s2);
        s3 = fma(vec4<f32>(q[base + rows.w]), key, s3);
    }
    var tile = array<vec4<f32>, 4>(s0, s1, s2, s3);
    let out = (n * params.chunks + chunk) * params.channels;
    for (var a = 0u; a < min(4u, params.channels - row); a++) {
        for (var b = 0u; b < min(4u, params.channels - column); b++) {
            products[(out + row + a) * params.channels + column + b] = tile[a][b];
        }
    }
}

// One workgroup per row of one picture.
@compute @workgroup_size(64)
fn softmax(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    // Workgroups past the last have no columns but must reach the barriers.
    let columns = select(0u, params.channels, row < params.count);
    let n = row / params.channels;
    let i = row % params.channels;
    var largest = -3.0e38;
    for (var j = lane; j < columns; j += 64u) {
        var sum = 0.0;
        for (var chunk = 0u; chunk < params.chunks; chunk++) {
            sum += products[((n * params.chunks + chunk) * params.channels + i) * params.channels + j];
        }
        let score = sum * params.scale;
        weights[(n * params.channels + j) * params.channels + i] = score;
        largest = max(largest, score);
    }
    largest = workgroup_max(largest, lane);
    var sum = 0.0;
    for (var j = lane; j < columns; j += 64u) {
        let at = (n * params.channels + j) * params.channels + i;
        let e = exp(weights[at] - largest);
        weights[at] = e;
        sum += e;
    }
    let share = 1.0 / workgroup_sum(sum, lane);
    for (var j = lane; j < columns; j += 64u) {
        weights[(n * params.channels + j) * params.channels + i] *= share;
    }
}
