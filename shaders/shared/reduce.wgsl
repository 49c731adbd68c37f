// Reductions over the 64 invocations of a workgroup in a fixed order of pairs. All invocations must call them; each
// gets the result.

var<workgroup> shared_values: array<f32, 64>;

fn workgroup_max(value: f32, lane: u32) -> f32 {
    shared_values[lane] = value;
    workgroupBarrier();
    for (var step = 32u; step > 0u; step /= 2u) {
        if (lane < step) {
            shared_values[lane] = max(shared_values[lane], shared_values[lane + step]);
        }
        workgroupBarrier();
    }
    let largest = shared_values[0];
    workgroupBarrier();
    return largest;
}

fn workgroup_sum(value: f32, lane: u32) -> f32 {
    shared_values[lane] = value;
    workgroupBarrier();
    for (var step = 32u; step > 0u; step /= 2u) {
        if (lane < step) {
            shared_values[lane] += shared_values[lane + step];
        }
        workgroupBarrier();
    }
    let sum = shared_values[0];
    workgroupBarrier();
    return sum;
}

