//! Helpers of the integration tests: models, the built program, its server, the GPU, comparisons.

pub(crate) mod command;
pub(crate) mod differential;
pub(crate) mod engine;
pub(crate) mod gpu;
pub(crate) mod jobs;
pub(crate) mod parity;
pub(crate) mod recorded;
pub(crate) mod server;
pub(crate) mod stub;

use std::{
    path::{Path, PathBuf, absolute},
    sync::Arc,
};

use tessera::{
    model::{arch::Arch, checkpoint::Checkpoint, params::params},
    ops::{
        testing::Random,
        weights::{Param, Weights},
    },
};

/// The path of the file `name` in `tests/fixtures` of the working directory. Cargo runs tests in the package's root; a packed
/// test binary can be run in any copy of the tree.
pub(crate) fn fixture(name: &str) -> PathBuf {
    absolute(Path::new("tests/fixtures").join(name)).unwrap()
}

/// The default model, from its file, so that tests have it without the feature `default-model`.
pub(crate) fn default_model() -> Checkpoint {
    Checkpoint::open(Path::new("models/scenery.safetensors")).unwrap()
}

/// The random, tiny model `name` of `tests/fixtures`.
pub(crate) fn model(name: &str) -> Checkpoint {
    let path = fixture(&format!("{name}.safetensors"));
    Checkpoint::open(&path).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Peak signal-to-noise ratio in dB of samples from 0 to 1.
pub(crate) fn psnr(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares: f64 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    -10.0 * (squares / a.len() as f64).log10()
}

/// Samples of 16 bits in the machine's byte order, from 0 to 1.
pub(crate) fn unit16(bytes: &[u8]) -> Vec<f64> {
    let sample = |v: &[u8]| f64::from(u16::from_ne_bytes([v[0], v[1]])) / 65535.0;
    bytes.chunks_exact(2).map(sample).collect()
}

/// The document of [`small_arch`].
pub(crate) const SMALL_ARCH: &str = r#"{"version":1,"name":"small","width":64,"height":32,
        "levels":[{"factor":4,"channels":4},{"factor":16,"channels":5},{"factor":0,"channels":6}],
        "encoder":{"unshuffle":2,"stages":[{"channels":4,"blocks":0},{"channels":6,"blocks":1},
            {"channels":8,"blocks":1},{"channels":8,"blocks":0}]},
        "decoder":{"shuffle":2,"global_norm":"group","stages":[
            {"channels":6,"blocks":1,"attention":false},{"channels":8,"blocks":1,"attention":false},
            {"channels":8,"blocks":0,"attention":true},{"channels":12,"blocks":1,"attention":true}]},
        "unet":{"embedding":8,"global_channels":8,"stages":[{"channels":8,"blocks":1,"attention":false},
            {"channels":8,"blocks":2,"attention":true},{"channels":12,"blocks":1,"attention":true}]},
        "noise":{"sigma_data":0.5,"sigma_min":0.002,"sigma_max":80.0,"rho":7.0,"shift":[0.0,-0.7,-1.4]},
        "attention_ratio":"learned"}"#;

/// Three levels and the 1x1 one, every optional part present, thin.
pub(crate) fn small_arch() -> Arch {
    Arch::from_json(SMALL_ARCH).unwrap()
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
