// What `conv2d_pack.wgsl`, which stands before it, packs, as f16.

// The largest one.
const MOST: f32 = 65504.0;

// Two of f16 each.
@group(0) @binding(2) var<storage, read_write> packed_pairs: array<u32>;

@compute @workgroup_size(64)
fn pairs(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = (group.y * groups.x + group.x) * 64u + lane;
    if (at < params.count) {
        let pair = vec2(element(2u * at), element(2u * at + 1u));
        packed_pairs[at] = pack2x16float(clamp(pair, vec2(-MOST), vec2(MOST)));
    }
}
