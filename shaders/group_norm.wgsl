// GroupNorm, then SiLU if params.silu. Three kernels: `partial` computes the moments of chunks of pixels per channel,
// `combine` merges them per group (Chan, Golub and LeVeque 1983), `apply` is the affine map. All values are taken
// relative to the group's first element, so that a mean far from 0 loses no precision.

struct Params {
    // Invocations of `partial` and `apply`, workgroups of `combine`.
    count: u32,
    channels: u32,
    groups: u32,
    // Pixels of a picture.
    pixels: u32,
    // Pixels of a chunk.
    chunk: u32,
    chunks: u32,
    silu: u32,
    eps: f32,
}

struct Moments {
    count: f32,
    mean: f32,
    // Sum of squared deviations from the mean.
    m2: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
// [picture][chunk][channel]: mean and sum of squared deviations.
@group(0) @binding(2) var<storage, read_write> moments: array<vec2<f32>>;
// [picture][group]: origin, mean relative to it, 1 / sqrt(variance + eps), unused.
@group(0) @binding(3) var<storage, read_write> statistics: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> gain: array<f32>;
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

// Pixels of an invocation of `apply`, all of one channel.
const RUN: u32 = 8u;

var<workgroup> shared_moments: array<Moments, 64>;

// The group's first element.
fn origin(n: u32, g: u32) -> f32 {
    return x[n * params.pixels * params.channels + g * (params.channels / params.groups)];
}

fn merge(a: Moments, b: Moments) -> Moments {
    let count = a.count + b.count;
    if (count == 0.0) {
        return a;
    }
    let delta = b.mean - a.mean;
    let share = b.count / count;
    return Moments(count, fma(delta, share, a.mean), a.m2 + b.m2 + delta * delta * a.count * share);
}

@compute @workgroup_size(64)
fn partial(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = invocation(group, groups, lane);
    if (i >= params.count) {
        return;
    }
    let c = i % params.channels;
    let chunk = i / params.channels % params.chunks;
    let n = i / params.channels / params.chunks;
    let zero = origin(n, c / (params.channels / params.groups));
    let first = chunk * params.chunk;
    let end = min(first + params.chunk, params.pixels);
    var sum = 0.0;
    for (var p = first; p < end; p++) {
        sum += x[(n * params.pixels + p) * params.channels + c] - zero;
    }
    let mean = sum / f32(end - first);
    var m2 = 0.0;
    for (var p = first; p < end; p++) {
        let d = (x[(n * params.pixels + p) * params.channels + c] - zero) - mean;
        m2 = fma(d, d, m2);
    }
    moments[i] = vec2<f32>(mean, m2);
}

@compute @workgroup_size(64)
fn combine(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group.y * groups.x + group.x;
    let width = params.channels / params.groups;
    let n = i / params.groups;
    let g = i % params.groups;
    var own = Moments(0.0, 0.0, 0.0);
    // Workgroups past the last have nothing to merge but must reach the barriers.
    let entries = select(0u, params.chunks * width, i < params.count);
    for (var e = lane; e < entries; e += 64u) {
        let chunk = e / width;
        let size = min(params.chunk, params.pixels - chunk * params.chunk);
        let m = moments[(n * params.chunks + chunk) * params.channels + g * width + e % width];
        own = merge(own, Moments(f32(size), m.x, m.y));
    }
    shared_moments[lane] = own;
    workgroupBarrier();
    for (var step = 32u; step > 0u; step /= 2u) {
        if (lane < step) {
            shared_moments[lane] = merge(shared_moments[lane], shared_moments[lane + step]);
        }
        workgroupBarrier();
    }
    if (lane == 0u && i < params.count) {
        let all = shared_moments[0];
        let variance = all.m2 / all.count;
        statistics[i] = vec4<f32>(origin(n, g), all.mean, 1.0 / sqrt(variance + params.eps), 0.0);
    }
}

@compute @workgroup_size(64)
fn apply(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = invocation(group, groups, lane);
    if (i >= params.count) {
        return;
    }
    let c = i % params.channels;
    let runs = (params.pixels + RUN - 1u) / RUN;
    let n = i / params.channels / runs;
    let first = i / params.channels % runs * RUN;
    let end = min(first + RUN, params.pixels);
    let s = statistics[n * params.groups + c / (params.channels / params.groups)];
    let scale = gain[c];
    let shift = bias[c];
    for (var p = first; p < end; p++) {
        let at = (n * params.pixels + p) * params.channels + c;
        let v = fma(((x[at] - s.x) - s.y) * s.z, scale, shift);
        if (params.silu != 0u) {
            y[at] = silu(v);
        } else {
            y[at] = v;
        }
    }
}
