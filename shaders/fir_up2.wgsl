// FIR [1,3,3,1]/4 per axis, edges repeated: even results also read the pixel before, odd ones the pixel after.
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

// The source at a row of all pictures (first of its picture: first_row).
fn source(first_row: u32, row: u32, column: u32, c: u32) -> f32 {
    return x[((first_row + row) * params.width + column) * params.channels + c];
}

// The source pixel of weight 1; the one at i / 2 has weight 3. It is the one before for even i, the one after for odd
// i; edges are repeated.
fn far(i: u32, extent: u32) -> u32 {
    return select(max(i / 2u, 1u) - 1u, min(i / 2u + 1u, extent - 1u), i % 2u == 1u);
}

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
    let column = pixel % (2u * params.width);
    let row = pixel / (2u * params.width) % (2u * params.height);
    let first_row = pixel / (2u * params.width) / (2u * params.height) * params.height;
    let near_row = row / 2u;
    let near_column = column / 2u;
    let far_row = far(row, params.height);
    let far_column = far(column, params.width);
    let near = fma(0.75, source(first_row, near_row, near_column, c), 0.25 * source(first_row, near_row, far_column, c));
    let far = fma(0.75, source(first_row, far_row, near_column, c), 0.25 * source(first_row, far_row, far_column, c));
    y[i] = fma(0.75, near, 0.25 * far);
}
