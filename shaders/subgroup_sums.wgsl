// Sums of products in registers, of which the factors that invocations share are handed round in a subgroup; it stands before the
// convolutions that are computed so. An invocation has 4 output channels of 32 pixels, its workgroup 4 LANES output channels.

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

// What 4 input channels count in 4 output channels.
struct Weights {
    x: vec4<f32>,
    y: vec4<f32>,
    z: vec4<f32>,
    w: vec4<f32>,
}

fn start(v: vec4<f32>) -> Eight {
    return Eight(v, v, v, v, v, v, v, v);
}

fn gain(sum: vec4<f32>, v: vec4<f32>, w: Weights) -> vec4<f32> {
    return fma(vec4(v.w), w.w, fma(vec4(v.z), w.z, fma(vec4(v.y), w.y, fma(vec4(v.x), w.x, sum))));
}

fn gain8(sum: ptr<function, Eight>, own: vec4<f32>, w: Weights) {
    (*sum).p0 = gain((*sum).p0, subgroupBroadcast(own, 0u), w);
    (*sum).p1 = gain((*sum).p1, subgroupBroadcast(own, 1u), w);
    (*sum).p2 = gain((*sum).p2, subgroupBroadcast(own, 2u), w);
    (*sum).p3 = gain((*sum).p3, subgroupBroadcast(own, 3u), w);
    (*sum).p4 = gain((*sum).p4, subgroupBroadcast(own, 4u), w);
    (*sum).p5 = gain((*sum).p5, subgroupBroadcast(own, 5u), w);
    (*sum).p6 = gain((*sum).p6, subgroupBroadcast(own, 6u), w);
    (*sum).p7 = gain((*sum).p7, subgroupBroadcast(own, 7u), w);
}

