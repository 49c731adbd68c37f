// Nearest-neighbour upsampling, each pixel to 2x2; one invocation per element of the source.

struct Params {
    count: u32,
    channels: u32,
    // Columns of the source; the result has twice as many.
    width: u32,
    pad0: u32,
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
    // Rows of all pictures in one count: the result's heights are even.
    let column = pixel % params.width;
    let top = (pixel / params.width * 4u * params.width + 2u * column) * params.channels + c;
    let bottom = top + 2u * params.width * params.channels;
    let v = x[i];
    y[top] = v;
    y[top + params.channels] = v;
    y[bottom] = v;
    y[bottom + params.channels] = v;
}
