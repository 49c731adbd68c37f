// Mean over all pixels of a picture: `partial` sums chunks of pixels, `combine` the chunks, both in a fixed order.

struct Params {
    // Invocations: pictures * chunks * channels in `partial`, pictures * channels in `combine`.
    count: u32,
    channels: u32,
    pixels: u32,
    // Pixels of a chunk.
    chunk: u32,
    chunks: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
// [picture][chunk][channel]
@group(0) @binding(2) var<storage, read_write> sums: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn partial(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = invocation(group, groups, lane);
    if (i >= params.count) {
        return;
    }
    let c = i % params.channels;
    let chunk = i / params.channels % params.chunks;
    let n = i / params.channels / params.chunks;
    let first = chunk * params.chunk;
    let end = min(first + params.chunk, params.pixels);
    var sum = 0.0;
    for (var p = first; p < end; p++) {
        sum += x[(n * params.pixels + p) * params.channels + c];
    }
    sums[i] = sum;
}

@compute @workgroup_size(64)
fn combine(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = invocation(group, groups, lane);
    if (i >= params.count) {
        return;
    }
    let c = i % params.channels;
    let n = i / params.channels;
    var sum = 0.0;
    for (var chunk = 0u; chunk < params.chunks; chunk++) {
        sum += sums[(n * params.chunks + chunk) * params.channels + c];
    }
    y[i] = sum / f32(params.pixels);
}
