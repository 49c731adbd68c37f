// x / sqrt(mean over channels of x^2 + eps) * gain, then SiLU if params.silu; one invocation per pixel.

struct Params {
    // Pixels of all pictures.
    count: u32,
    channels: u32,
    silu: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> gain: array<f32>;
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
    let base = i * params.channels;
    var power = 0.0;
    for (var c = 0u; c < params.channels; c++) {
        let v = x[base + c];
        power = fma(v, v, power);
    }
    let scale = 1.0 / sqrt(power / f32(params.channels) + params.eps);
    if (params.silu != 0u) {
        for (var c = 0u; c < params.channels; c++) {
            y[base + c] = silu(x[base + c] * scale * gain[c]);
        }
    } else {
        for (var c = 0u; c < params.channels; c++) {
            y[base + c] = x[base + c] * scale * gain[c];
        }
    }
}
