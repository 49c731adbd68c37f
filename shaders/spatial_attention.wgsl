// Softmax of attention over pixels, in place: one row of scores per query of a strip.

struct Params {
    // Queries of the strip.
    count: u32,
    // Keys: pixels of a picture.
    pixels: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// [query of the strip][key]
@group(0) @binding(1) var<storage, read_write> weights: array<f32>;

// One workgroup per query.
@compute @workgroup_size(64)
fn softmax(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    // Workgroups past the last have no keys but must reach the barriers.
    let keys = select(0u, params.pixels, row < params.count);
    let base = row * params.pixels;
    var largest = -3.0e38;
    for (var j = lane; j < keys; j += 64u) {
        largest = max(largest, weights[base + j]);
    }
    largest = workgroup_max(largest, lane);
    var sum = 0.0;
    for (var j = lane; j < keys; j += 64u) {
        let e = exp(weights[base + j] - largest);
        weights[base + j] = e;
        sum += e;
    }
    let share = 1.0 / workgroup_sum(sum, lane);
    for (var j = lane; j < keys; j += 64u) {
        weights[base + j] *= share;
    }
}
