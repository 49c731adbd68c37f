//! Differential fuzzing of the CPU's operators against the reference.

use tessera::exec::cpu::{ConvVariant, Cpu, Kernels};

use crate::common::differential::{agree, chains};

/// Chains of random operators give the reference's values with every kernel of this machine, by every variant of convolution.
#[test]
fn differential_fuzzing_cpu_kernels_agree_with_the_reference() {
    let chains = chains(CHAINS);
    for (bf16, tolerance, least_values) in [(false, 1e-5, 1), (true, 1e-2, 64)] {
        let kernels = Kernels::ALL.iter().copied().filter(|k| k.is_bf16() == bf16 && k.available());
        let mut interpreters = Vec::new();
        for kernels in kernels {
            let open = || Cpu::with_kernels(chains.1.clone(), kernels).unwrap();
            interpreters.push((kernels.name().to_owned(), open()));
            for variant in [ConvVariant::Direct, ConvVariant::Winograd] {
                let name = format!("{}, {variant:?}", kernels.name());
                interpreters.push((name, open().with_convolutions(variant)));
            }
        }
        agree("differential_fuzzing_cpu", &chains, tolerance, least_values, &mut interpreters);
    }
}

/// Chains of the usual run: seconds.
const CHAINS: u64 = 5000;
