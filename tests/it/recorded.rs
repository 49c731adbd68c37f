//! Latents and pictures of the CPU have the recorded SHA-256.

use tessera::{
    exec::cpu::{Cpu, Kernels},
    model::checkpoint::Checkpoint,
};

use crate::common::{
    psnr,
    recorded::{Record, hold, on_cpu, records},
};

/// Every kernel of this machine gives its recorded bits; one without a record comes within 60 dB of f32, in
/// bf16 within 30 dB.
#[test]
fn recorded_hashes_hold_on_the_cpu_with_every_kernel() {
    assert!(records().len() >= 12);
    for kernels in Kernels::ALL.iter().copied().filter(|kernels| kernels.available()) {
        let least = if kernels.is_bf16() { 30.0 } else { 60.0 };
        let near = |record: &Record, model: &Checkpoint, samples: &[f64]| {
            let psnr = psnr(samples, &on_cpu(record, model));
            println!("{} is not recorded; {}: {psnr:.1} dB", kernels.name(), record.name());
            assert!(psnr >= least, "{}, {}: {psnr:.1} dB", kernels.name(), record.name());
        };
        let device = format!("cpu {}", kernels.name());
        hold(&device, |weights| Cpu::with_kernels(weights, kernels).unwrap(), near);
    }
}
