// Mean of every 2x2 pixels; one invocation per element of the result.

struct Params {
    count: u32,
    channels: u32,
    // Columns of the result; the source has twice as many.
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
    // Rows of all pictures in one count: heights are even, so no pair of rows straddles two pictures.
    let top = (pixel / params.width * 2u * params.width + pixel % params.width) * 2u * params.channels + c;
    let bottom = top + 2u * params.width * params.channels;
    y[i] = 0.25 * ((x[top] + x[top + params.channels]) + (x[bottom] + x[bottom + params.channels]));
}
