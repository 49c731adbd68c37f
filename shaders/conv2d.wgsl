// Convolution, stride 1, zero padding that keeps the grid; one invocation per element of the result.

struct Params {
    count: u32,
    in_channels: u32,
    out_channels: u32,
    height: u32,
    width: u32,
    // 1 or 3
    kernel: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
// [row][column][in][out]
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

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
    let o = i % params.out_channels;
    let pixel = i / params.out_channels;
    let column = pixel % params.width;
    let row = pixel / params.width % params.height;
    let first_row = pixel / params.width / params.height * params.height;
    let reach = params.kernel / 2u;
    var sum = bias[o];
    for (var dy = 0u; dy < params.kernel; dy++) {
        for (var dx = 0u; dx < params.kernel; dx++) {
            if (row + dy < reach || row + dy >= params.height + reach
                || column + dx < reach || column + dx >= params.width + reach) {
                continue;
            }
            let at = ((first_row + row + dy - reach) * params.width + column + dx - reach) * params.in_channels;
            var w = (dy * params.kernel + dx) * params.in_channels * params.out_channels + o;
            for (var c = 0u; c < params.in_channels; c++) {
                sum = fma(x[at + c], weight[w], sum);
                w += params.out_channels;
            }
        }
    }
    y[i] = sum;
}
