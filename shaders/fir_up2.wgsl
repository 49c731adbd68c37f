// FIR [1,3,3,1]/4 per axis, zero-padded: even results lean on the pixel before, odd ones on the pixel after.
// One invocation per element of the result.

struct Params {
    count: u32,
    channels: u32,
    // Extent of the source; the result's is twice as large.
    height: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

// The source at a row of all pictures (first of its picture: first_row), 0 outside of the picture.
fn source(first_row: u32, row: i32, column: i32, c: u32) -> f32 {
    if (row < 0 || row >= i32(params.height) || column < 0 || column >= i32(params.width)) {
        return 0.0;
    }
    return x[((first_row + u32(row)) * params.width + u32(column)) * params.channels + c];
}

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
    let column = pixel % (2u * params.width);
    let row = pixel / (2u * params.width) % (2u * params.height);
    let first_row = pixel / (2u * params.width) / (2u * params.height) * params.height;
    let near_row = i32(row / 2u);
    let near_column = i32(column / 2u);
    let far_row = near_row + select(-1, 1, row % 2u == 1u);
    let far_column = near_column + select(-1, 1, column % 2u == 1u);
    let near = fma(0.75, source(first_row, near_row, near_column, c), 0.25 * source(first_row, near_row, far_column, c));
    let far = fma(0.75, source(first_row, far_row, near_column, c), 0.25 * source(first_row, far_row, far_column, c));
    y[i] = fma(0.75, near, 0.25 * far);
}
