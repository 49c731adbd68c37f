// Register-tiled sums of products whose shared factors are broadcast within a subgroup; it comes before the shaders
// that use it. An invocation computes 4 output channels of 32 pixels, its workgroup 4 LANES output channels.

override LANES: u32 = 8u;

// 4 output channels of 8 pixels.
struct Eight {
    p0: vec4<f32>,
    p1: vec4<f32>,
    p2: vec4<f32>,
    p3: vec4<f32>,
    p4: vec4<f32>,
    p5: vec4<f32>,
    p6: vec4<f32>,
    p7: vec4<f32>,
}

// Weights of 4 input channels (x to w) by 4 output channels.
struct Weights {
    x: vec4<f32>,
    y: vec4<f32>,
    z: vec4<f32>,
    w: vec4<f32>,
}

fn start(v: vec4<f32>) -> Eight {
    return Eight(v, v, v, v, v, v, v, v);
}

fn accumulate(sum: vec4<f32>, v: vec4<f32>, w: Weights) -> vec4<f32> {
    return fma(vec4(v.w), w.w, fma(vec4(v.z), w.z, fma(vec4(v.y), w.y, fma(vec4(v.x), w.x, sum))));
}

fn accumulate8(sum: ptr<function, Eight>, own: vec4<f32>, w: Weights) {
    (*sum).p0 = accumulate((*sum).p0, subgroupBroadcast(own, 0u), w);
    (*sum).p1 = accumulate((*sum).p1, subgroupBroadcast(own, 1u), w);
    (*sum).p2 = accumulate((*sum).p2, subgroupBroadcast(own, 2u), w);
    (*sum).p3 = accumulate((*sum).p3, subgroupBroadcast(own, 3u), w);
    (*sum).p4 = accumulate((*sum).p4, subgroupBroadcast(own, 4u), w);
    (*sum).p5 = accumulate((*sum).p5, subgroupBroadcast(own, 5u), w);
    (*sum).p6 = accumulate((*sum).p6, subgroupBroadcast(own, 6u), w);
    (*sum).p7 = accumulate((*sum).p7, subgroupBroadcast(own, 7u), w);
}

