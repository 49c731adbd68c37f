// FIR [1,3,3,1]/8 per axis at every second pixel, zero-padded; one invocation per element of the result.

struct Params {
    count: u32,
    channels: u32,
    // Extent of the result; the source's is twice as large.
    height: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = invocation(group, groups, lane);
    if (i >= params.count) {
        return;
    }
    let c = i % params.channels;
    let pixel = i / params.channels;
    let column = pixel % params.width;
    let row = pixel / params.width % params.height;
    let first_row = pixel / params.width / params.height * 2u * params.height;
    var taps = array<f32, 4>(0.125, 0.375, 0.375, 0.125);
    var sum = 0.0;
    for (var dy = 0u; dy < 4u; dy++) {
        // Counted from 1, so that the row above the first is 0 and no unsigned number wraps.
        let source_row = 2u * row + dy;
        if (source_row == 0u || source_row > 2u * params.height) {
            continue;
        }
        var line = 0.0;
        for (var dx = 0u; dx < 4u; dx++) {
            let source_column = 2u * column + dx;
            if (source_column == 0u || source_column > 2u * params.width) {
                continue;
            }
            let at = (first_row + source_row - 1u) * 2u * params.width + source_column - 1u;
            line = fma(taps[dx], x[at * params.channels + c], line);
        }
        sum = fma(taps[dy], line, sum);
    }
    y[i] = sum;
}
