// As `conv2d_pack.wgsl`, which comes before it, but packs f16.

// Largest finite f16.
const F16_MAX: f32 = 65504.0;

// Two f16 each.
@group(0) @binding(2) var<storage, read_write> packed_pairs: array<u32>;

@compute @workgroup_size(64)
fn pairs(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = invocation(group, groups, lane);
    if (at < params.count) {
        let pair = vec2(element(2u * at), element(2u * at + 1u));
        packed_pairs[at] = pack2x16float(clamp(pair, vec2(-F16_MAX), vec2(F16_MAX)));
    }
}
