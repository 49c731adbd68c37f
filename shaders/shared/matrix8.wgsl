enable f16;
enable wgpu_cooperative_matrix;

// Blocks of `conv2d_cooperative.wgsl` on devices with matrices of 8x8: a block is four matrices, named by their halves
// of rows and columns.

alias Pixels8 = coop_mat8x8<f16, A>;
alias Weights8 = coop_mat8x8<f16, B>;
alias Sums8 = coop_mat8x8<f32, C>;

// 16 pixels by 16 input channels.
struct Pixels {
    m00: Pixels8,
    m01: Pixels8,
    m10: Pixels8,
    m11: Pixels8,
}

// 16 input channels by 16 output channels.
struct Weights {
    m00: Weights8,
    m01: Weights8,
    m10: Weights8,
    m11: Weights8,
}

// 16 pixels by 16 output channels.
struct Sums {
    m00: Sums8,
    m01: Sums8,
    m10: Sums8,
    m11: Sums8,
}

fn load_pixels(at: u32) -> Pixels {
    let low = at + 8u * PIXEL_STRIDE;
    return Pixels(
        coopLoadT<Pixels8>(&pixels[at], PIXEL_STRIDE),
        coopLoadT<Pixels8>(&pixels[at + 8u], PIXEL_STRIDE),
        coopLoadT<Pixels8>(&pixels[low], PIXEL_STRIDE),
        coopLoadT<Pixels8>(&pixels[low + 8u], PIXEL_STRIDE),
    );
}

fn load_weights(at: u32) -> Weights {
    let low = at + 8u * WEIGHT_STRIDE;
    return Weights(
        coopLoadT<Weights8>(&weights[at], WEIGHT_STRIDE),
        coopLoadT<Weights8>(&weights[at + 8u], WEIGHT_STRIDE),
        coopLoadT<Weights8>(&weights[low], WEIGHT_STRIDE),
        coopLoadT<Weights8>(&weights[low + 8u], WEIGHT_STRIDE),
    );
}

fn accumulate(sums: Sums, p: Pixels, w: Weights) -> Sums {
    return Sums(
        coopMultiplyAdd(p.m01, w.m10, coopMultiplyAdd(p.m00, w.m00, sums.m00)),
        coopMultiplyAdd(p.m01, w.m11, coopMultiplyAdd(p.m00, w.m01, sums.m01)),
        coopMultiplyAdd(p.m11, w.m10, coopMultiplyAdd(p.m10, w.m00, sums.m10)),
        coopMultiplyAdd(p.m11, w.m11, coopMultiplyAdd(p.m10, w.m01, sums.m11)),
    );
}

fn store_sums(sums: Sums, at: u32) {
    coopStoreT(sums.m00, &results[at], 16u);
    coopStoreT(sums.m01, &results[at + 8u], 16u);
    coopStoreT(sums.m10, &results[at + 128u], 16u);
    coopStoreT(sums.m11, &results[at + 136u], 16u);
}
