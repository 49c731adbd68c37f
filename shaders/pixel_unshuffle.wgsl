// Space to depth: channel c r^2 + dy r + dx of the result is channel c at (y r + dy, x r + dx) of the source.
// One invocation per element of the result.

struct Params {
    count: u32,
    // Channels of the source.
    channels: u32,
    // Columns of the result.
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
    let square = params.r * params.r;
    let depth = i % (params.channels * square);
    let pixel = i / (params.channels * square);
    let c = depth / square;
    // Rows of all pictures in one count: the source's heights are multiples of r.
    let row = pixel / params.width * params.r + depth % square / params.r;
    let column = pixel % params.width * params.r + depth % params.r;
    y[i] = x[(row * params.width * params.r + column) * params.channels + c];
}
