enable f16;
enable wgpu_cooperative_matrix;

// Blocks of `conv2d_cooperative.wgsl` on devices with matrices of 16x16: a block is one matrix.

// 16 pixels by 16 input channels.
alias Pixels = coop_mat16x16<f16, A>;
// 16 input channels by 16 output channels.
alias Weights = coop_mat16x16<f16, B>;
// 16 pixels by 16 output channels.
alias Sums = coop_mat16x16<f32, C>;

fn load_pixels(at: u32) -> Pixels {
    return coopLoadT<Pixels>(&pixels[at], PIXEL_STRIDE);
}

fn load_weights(at: u32) -> Weights {
    return coopLoadT<Weights>(&weights[at], WEIGHT_STRIDE);
}

fn accumulate(sums: Sums, p: Pixels, w: Weights) -> Sums {
    return coopMultiplyAdd(p, w, sums);
}

fn store_sums(sums: Sums, at: u32) {
    coopStoreT(sums, &results[at], 16u);
}
