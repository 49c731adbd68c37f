//! Latents and pictures of a GPU have the SHA-256 that are recorded for its driver; without a record they come close to the
//! CPU's in f32.

use std::sync::Arc;

use tessera::{exec::gpu::Gpu, model::checkpoint::Checkpoint, ops::weights::Weights};

use crate::{
    common::{
        gpu::gpu,
        psnr,
        recorded::{Record, hold, on_cpu},
    },
    f16::cooperative,
};

/// Compares with the records of the driver of `precision`; a driver without them gives pictures at least `least` dB from the
/// CPU's in f32.
fn hold_or_near(precision: &str, least: f64, make: impl Fn(Arc<Weights>) -> Gpu) {
    let gpu = make(Arc::default());
    let device = format!("{}, {}, {precision}", gpu.adapter().name, gpu.adapter().driver);
    drop(gpu);
    let near = |record: &Record, model: &Checkpoint, samples: &[f64]| {
        let psnr = psnr(samples, &on_cpu(record, model));
        println!("{device} is not recorded; {}: {psnr:.1} dB", record.name());
        assert!(psnr >= least, "{device}, {}: {psnr:.1} dB", record.name());
    };
    hold(&device, make, near);
}

#[test]
fn recorded_hashes_hold_on_the_gpu() {
    let Some((_, _turn)) = gpu(Arc::default()) else { return };
    hold_or_near("f32", 50.0, |weights| Gpu::new(None, weights).unwrap());
}

#[test]
fn recorded_hashes_hold_on_the_gpu_in_f16() {
    let Some((index, _turn)) = cooperative() else { return };
    hold_or_near("f16", 30.0, |weights| Gpu::with_f16(Some(index), weights).unwrap());
}
