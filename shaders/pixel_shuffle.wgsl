// Depth to space: channel c at (y r + dy, x r + dx) of the result is channel c r^2 + dy r + dx of the source.
// One invocation per element of the result.

struct Params {
    count: u32,
    // Channels of the result.
    channels: u32,
    // Columns of the source.
    width: u32,
    r: u32,
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
    let width = params.width * params.r;
    // Rows of all pictures in one count: the result's heights are multiples of r.
    let row = pixel / width;
    let column = pixel % width;
    let depth = (c * params.r + row % params.r) * params.r + column % params.r;
    let square = params.r * params.r;
    y[i] = x[(row / params.r * params.width + column / params.r) * params.channels * square + depth];
}
