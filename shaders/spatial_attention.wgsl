// softmax over pixels of (q k^T / sqrt C), applied to v, for a strip of queries of one picture: the strip's scores,
// their softmax in place, the weighted sums of v. Only a strip of the pixels x pixels matrix exists at a time.

struct Params {
    // Invocations of `scores` and `apply`, workgroups of `softmax`.
    count: u32,
    // Keys: pixels of a picture.
    pixels: u32,
    channels: u32,
    // First pixel of the picture and first query of the strip, counted over all pictures.
    first_key: u32,
    first_query: u32,
    // Queries of the strip.
    queries: u32,
    // 1 / sqrt(channels)
    scale: f32,
    pad0: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
// [query of the strip][key]
@group(0) @binding(4) var<storage, read_write> weights: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

var<workgroup> shared_values: array<f32, 64>;

// 4 queries x 4 keys an invocation.
@compute @workgroup_size(64)
fn scores(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + lane;
    if (i >= params.count) {
        return;
    }
    let columns = (params.pixels + 3u) / 4u;
    let row = i / columns * 4u;
    let column = i % columns * 4u;
    let four = vec4<u32>(0u, 1u, 2u, 3u);
    // Beyond the edge the last row or column is computed again and not stored.
    let qs = (min(vec4<u32>(row) + four, vec4<u32>(params.queries - 1u)) + params.first_query) * params.channels;
    let ks = (min(vec4<u32>(column) + four, vec4<u32>(params.pixels - 1u)) + params.first_key) * params.channels;
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    for (var c = 0u; c < params.channels; c++) {
        let key = vec4<f32>(k[ks.x + c], k[ks.y + c], k[ks.z + c], k[ks.w + c]);
        s0 = fma(vec4<f32>(q[qs.x + c]), key, s0);
        s1 = fma(vec4<f32>(q[qs.y + c]), key, s1);
        s2 = fma(vec4<f32>(q[qs.z + c]), key, s2);
        s3 = fma(vec4<f32>(q[qs.w + c]), key, s3);
    }
    var tile = array<vec4<f32>, 4>(s0, s1, s2, s3);
    for (var a = 0u; a < min(4u, params.queries - row); a++) {
        for (var b = 0u; b < min(4u, params.pixels - column); b++) {
            weights[(row + a) * params.pixels + column + b] = tile[a][b] * params.scale;
        }
    }
}

// One workgroup a query.
@compute @workgroup_size(64)
fn softmax(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    // Workgroups beyond the last have no keys, but meet the barriers all the same.
    let keys = select(0u, params.pixels, row < params.count);
    let base = row * params.pixels;
    var largest = -3.0e38;
    for (var j = lane; j < keys; j += 64u) {
        largest = max(largest, weights[base + j]);
    }
    shared_values[lane] = largest;
    workgroupBarrier();
    for (var step = 32u; step > 0u; step /= 2u) {
        if (lane < step) {
            shared_values[lane] = max(shared_values[lane], shared_values[lane + step]);
        }
        workgroupBarrier();
    }
    largest = shared_values[0];
    workgroupBarrier();
    var sum = 0.0;
    for (var j = lane; j < keys; j += 64u) {
        let e = exp(weights[base + j] - largest);
        weights[base + j] = e;
        sum += e;
    }
    shared_values[lane] = sum;
    workgroupBarrier();
    for (var step = 32u; step > 0u; step /= 2u) {
        if (lane < step) {
            shared_values[lane] += shared_values[lane + step];
        }
        workgroupBarrier();
    }
    let share = 1.0 / shared_values[0];
    for (var j = lane; j < keys; j += 64u) {
        weights[base + j] *= share;
    }
}

// 4 queries x 1 channel an invocation.
@compute @workgroup_size(64)
fn apply(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + lane;
    if (i >= params.count) {
        return;
    }
    let c = i % params.channels;
    let row = i / params.channels * 4u;
    let rows = min(vec4<u32>(row) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.queries - 1u)) * params.pixels;
    var sum = vec4<f32>(0.0);
    for (var j = 0u; j < params.pixels; j++) {
        let w = vec4<f32>(weights[rows.x + j], weights[rows.y + j], weights[rows.z + j], weights[rows.w + j]);
        sum = fma(w, vec4<f32>(v[(params.first_key + j) * params.channels + c]), sum);
    }
    for (var a = 0u; a < min(4u, params.queries - row); a++) {
        y[(params.first_query + row + a) * params.channels + c] = sum[a];
    }
}
