// Every pixel becomes 2x2; one invocation per element of the result.

struct Params {
    count: u32,
    channels: u32,
    // Columns of the result; the source has half as many.
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
    let i = (group.y * groups.x + group.x) * 64u + lane;
    if (i >= params.count) {
        return;
    }
    let c = i % params.channels;
    let pixel = i / params.channels;
    // Rows of all pictures in one count: the result's heights are even.
    let row = pixel / params.width / 2u;
    let column = pixel % params.width / 2u;
    y[i] = x[(row * (params.width / 2u) + column) * params.channels + c];
}
