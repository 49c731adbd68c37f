// x * (1 + scale) + shift, then SiLU if params.silu; one invocation per element. pair is [n or 1, 1, 1, 2C]: scale,
// then shift.

struct Params {
    count: u32,
    channels: u32,
    // Elements of one picture, or count if all pictures share one pair.
    picture: u32,
    silu: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> pair: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

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
    let scale = (i / params.picture) * 2u * params.channels + i % params.channels;
    let v = fma(x[i], 1.0 + pair[scale], pair[scale + params.channels]);
    if (params.silu != 0u) {
        y[i] = silu(v);
    } else {
        y[i] = v;
    }
}
