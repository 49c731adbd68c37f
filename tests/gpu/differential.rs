//! Differential fuzzing of the GPU's operators against the reference.

use std::sync::Arc;

use tessera::exec::gpu::{ConvVariant, Gpu};

use crate::{
    TOLERANCE,
    common::{
        differential::{agree, chains},
        gpu::gpu,
    },
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
    agree("differential_fuzzing_gpu_agrees", &chains, TOLERANCE, 1, &mut interpreters);
}

/// Chains of the usual run: seconds on a software driver.
const CHAINS: u64 = 600;
