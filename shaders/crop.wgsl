// The rectangle of height x width pixels at (top, left) of every picture; one invocation per element of the result.

struct Params {
    count: u32,
    channels: u32,
    // Extent of the source.
    source_height: u32,
    source_width: u32,
    // Extent of the result.
    height: u32,
    width: u32,
    top: u32,
    left: u32,
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
    let column = pixel % params.width + params.left;
    let row = pixel / params.width % params.height + params.top;
    let n = pixel / params.width / params.height;
    y[i] = x[((n * params.source_height + row) * params.source_width + column) * params.channels + c];
}
