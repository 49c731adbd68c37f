// v sigmoid(v).
fn silu(v: f32) -> f32 {
    // WGSL leaves infinities to the implementation, so the exponent is bounded.
    return v / (1.0 + exp(min(-v, 80.0)));
}

