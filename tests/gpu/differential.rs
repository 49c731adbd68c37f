//! Differential fuzzing of the GPU's operators against the reference.

use std::sync::Arc;

use tessera::exec::gpu::{ConvVariant, Gpu};

use crate::{
    TOLERANCE,
    common::{
        differential::{agree, chains},
        gpu::gpu,
    },
    f16::{F16_TOLERANCE, cooperative},
};

/// Chains of random operators give the reference's values on the GPU, by every variant of convolution of f32.
#[test]
fn differential_fuzzing_gpu_agrees_with_the_reference() {
    let Some((plain, _turn)) = gpu(Arc::default()) else { return };
    drop(plain);
    let chains = chains(CHAINS);
    let open = || Gpu::new(None, chains.1.clone()).unwrap();
    let mut interpreters = vec![("default".to_owned(), open())];
    for variant in [ConvVariant::Subgroup, ConvVariant::Tiled, ConvVariant::Winograd] {
        interpreters.push((variant.name().to_owned(), open().with_convolutions(variant)));
    }
    agree("differential_fuzzing_gpu_agrees", &chains, TOLERANCE, &mut interpreters);
}

/// The same in f16, where the device has it, within the rounding of factors.
#[test]
fn differential_fuzzing_gpu_in_f16_agrees_with_the_reference() {
    let Some((index, _turn)) = cooperative() else { return };
    let chains = chains(CHAINS);
    let gpu = Gpu::with_f16(Some(index), chains.1.clone()).unwrap();
    agree(
        "differential_fuzzing_gpu_in_f16",
        &chains,
        F16_TOLERANCE,
        &mut [("f16".to_owned(), gpu)],
    );
}

/// Chains of the usual run: seconds on a software driver.
const CHAINS: u64 = 600;
