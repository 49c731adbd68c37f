//! Whole pictures on the GPU beside the CPU's and beside themselves.

use std::sync::Arc;

use tessera::{engine::plan::TileSize, exec::gpu::Gpu, image_out::Bits};

use crate::common::{
    engine::{generate, generate_on, spec, together_equals_alone},
    gpu::gpu,
    model, psnr, unit16,
};

#[test]
fn batched_steps_equal_single_steps_on_the_gpu() {
    let Some((_, _turn)) = gpu(Arc::default()) else { return };
    together_equals_alone(|weights| Gpu::new(None, weights).unwrap());
}

#[test]
fn gpu_picture_is_within_50_db_of_the_cpu_and_the_same_in_tiles() {
    let model = model("net-a");
    let Some((mut gpu, _turn)) = gpu(model.weights.clone()) else { return };
    let bits = Bits::Sixteen;
    let cpu = generate(&model, spec(&model, 7, TileSize::Whole, bits));
    let whole = generate_on(&mut gpu, &model, spec(&model, 7, TileSize::Whole, bits));
    let tiled = generate_on(&mut gpu, &model, spec(&model, 7, TileSize::Pixels(64), bits));
    assert!(whole == tiled);
    let psnr = psnr(&unit16(&cpu), &unit16(&whole));
    assert!(psnr >= 50.0, "{psnr} dB");
}
