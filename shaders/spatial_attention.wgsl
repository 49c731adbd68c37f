// The softmax of attention over pixels, in place: a row of scores for each of a strip of queries.

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

var<workgroup> shared_values: array<f32, 64>;

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
