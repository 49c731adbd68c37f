// Number of an invocation in a dispatch of workgroups of 64, which may be spread over two dimensions.
fn invocation(group: vec3<u32>, groups: vec3<u32>, lane: u32) -> u32 {
    return (group.y * groups.x + group.x) * 64u + lane;
}

