// Packs a matrix on the device as the weights of a 1x1 convolution: [block of outputs][input][output of the block],
// padded with zeros. A product of two matrices is then a convolution (`matrix.rs`).

struct Params {
    // Invocations.
    count: u32,
    inputs: u32,
    outputs: u32,
    // Inputs, padded.
    rows: u32,
    // Outputs of a block, even.
    block: u32,
    // Index of the first element in `x`, and the strides of inputs and outputs.
    first: u32,
    input_stride: u32,
    output_stride: u32,
    // Factor of all elements.
    scale: f32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> packed: array<f32>;

fn element(at: u32) -> f32 {
    let input = at / params.block % params.rows;
    let output = at / params.block / params.rows * params.block + at % params.block;
    if (input >= params.inputs || output >= params.outputs) {
        return 0.0;
    }
    return params.scale * x[params.first + input * params.input_stride + output * params.output_stride];
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = invocation(group, groups, lane);
    if (at < params.count) {
        packed[at] = element(at);
    }
}
