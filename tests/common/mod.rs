//! What several integration tests use: small architectures, seeded weights, comparison.
#![allow(dead_code, reason = "every test binary uses its own part")]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a failed test panics")]

pub(crate) mod parity;

use std::sync::Arc;

use tessera::{
    exec::gpu::adapters,
    model::{arch::Arch, params::params},
    ops::{
        cases::Random,
        weights::{Param, Weights},
    },
};

/// Three levels and the 1x1 one, every optional part present, thin.
pub(crate) fn small_arch() -> Arch {
    Arch::from_json(
        r#"{"version":1,"name":"small","width":64,"height":32,
        "levels":[{"factor":4,"channels":4},{"factor":16,"channels":5},{"factor":0,"channels":6}],
        "encoder":{"unshuffle":2,"stages":[{"channels":4,"blocks":0},{"channels":6,"blocks":1},
            {"channels":8,"blocks":1},{"channels":8,"blocks":0}]},
        "decoder":{"shuffle":2,"global_norm":"group","stages":[
            {"channels":6,"blocks":1,"attention":false},{"channels":8,"blocks":1,"attention":false},
            {"channels":8,"blocks":0,"attention":true},{"channels":12,"blocks":1,"attention":true}]},
        "unet":{"embedding":8,"global_channels":8,"stages":[{"channels":8,"blocks":1,"attention":false},
            {"channels":8,"blocks":2,"attention":true},{"channels":12,"blocks":1,"attention":true}]},
        "noise":{"sigma_data":0.5,"sigma_min":0.002,"sigma_max":80.0,"rho":7.0,"shift":[0.0,-0.7,-1.4]},
        "attention_ratio":"learned"}"#,
    )
    .unwrap()
}

/// Random parameters for `arch`: activations stay near 1.
pub(crate) fn random_weights(arch: &Arch, seed: u64) -> Arc<Weights> {
    let mut random = Random::new(seed);
    let mut weights = Weights::default();
    for (name, shape) in params(arch).unwrap() {
        let fan_in: usize = shape[1..].iter().product();
        let (center, scale) = match (shape.len(), name.ends_with("weight")) {
            (4, true) => (0.0, 1.7 / (fan_in as f32).sqrt()),
            (_, true) => (1.0, 0.3),
            _ if name.ends_with("std") => (1.0, 0.5),
            _ => (0.0, 0.2),
        };
        let data = random.values(shape.iter().product(), center, scale);
        weights.insert(name, Param { shape, data });
    }
    Arc::new(weights)
}

/// Whether there is an adapter; without one, a line that says so. With `TESSERA_REQUIRE_GPU=1` a missing one is a failure.
pub(crate) fn has_gpu() -> bool {
    let found = !adapters().is_empty();
    if !found {
        let required = std::env::var("TESSERA_REQUIRE_GPU").is_ok_and(|v| v == "1");
        assert!(!required, "TESSERA_REQUIRE_GPU=1, but there is no Vulkan, Metal or DX12 adapter");
        println!("skipped: no Vulkan, Metal or DX12 adapter on this machine");
    }
    found
}
