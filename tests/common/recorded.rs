//! Recorded pictures: `tests/fixtures/recorded.json` holds the SHA-256 of latents and pixels of some combinations, so that the
//! bits that a seed gives do not change by accident.
//!
//! Bits depend on the CPU's kernels (fused multiply-add or not, precision) and on the GPU's driver, so each has a record of its
//! own; one without a record has to come close to the CPU's picture in f32. `TESSERA_RECORD=1` writes what this machine finds
//! into the file.

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tessera::{
    engine::{
        self, Cancel, Event, denoise,
        plan::{Plan, Spec, TileSize, Tiling},
        run::{Run, Task},
        tiles::PixelBuffer,
    },
    exec::cpu::Cpu,
    graph::Backend,
    image_in::Picture,
    image_out::Bits,
    model::checkpoint::Checkpoint,
    ops::{testing::Random, weights::Weights},
};

use super::{default_model, fixture, model};

/// One combination, and the hashes that it has on each kind of device.
#[derive(Clone, Deserialize, Serialize)]
pub(crate) struct Record {
    /// A fixture, or `default`.
    model: String,
    seed: u64,
    width: usize,
    height: usize,
    sampler: String,
    steps: usize,
    /// Side in pixels; 0 is the whole picture at once.
    tile: usize,
    bits: u32,
    /// How much of a picture of noise is made anew; null starts from noise alone.
    strength: Option<f64>,
    /// By device.
    hashes: BTreeMap<String, Hashes>,
}

/// SHA-256, in lowercase hexadecimal digits.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Hashes {
    /// f32, little endian, finest level first, not normalised.
    latents: String,
    /// RGB samples, row by row, 16-bit ones little endian.
    picture: String,
}

/// All records.
pub(crate) fn records() -> Vec<Record> {
    serde_json::from_str(&fs::read_to_string(fixture("recorded.json")).unwrap()).unwrap()
}

impl Record {
    fn model(&self) -> Checkpoint {
        match self.model.as_str() {
            "default" => default_model(),
            name => model(name),
        }
    }

    fn spec(&self, model: &Checkpoint) -> Spec {
        Spec {
            width: self.width,
            height: self.height,
            steps: self.steps.into(),
            sampler: self.sampler.parse().unwrap(),
            tile: if self.tile == 0 { TileSize::Whole } else { TileSize::Pixels(self.tile) },
            bits: if self.bits == 8 { Bits::Eight } else { Bits::Sixteen },
            strength: self.strength,
            ..Spec::new(&model.arch, self.seed)
        }
    }

    /// The hashes that `ops` gives, and the picture's samples from 0 to 1.
    fn run(&self, ops: &mut impl Backend, model: &Checkpoint) -> (Hashes, Vec<f64>) {
        let spec = self.spec(model);
        let plan = Plan::new(spec.clone(), &model.arch).unwrap();
        let (mut silent, cancel) = (|_: Event| {}, Cancel::default());
        let mut run = match self.strength {
            None => Run::new(&plan),
            Some(_) => {
                let mut random = Random::new(self.seed + 1000);
                let samples = random.values(3 * self.width * self.height, 0.1, 0.6);
                let (width, height) = (self.width as u32, self.height as u32);
                let picture = Picture { width, height, bits: 8, samples };
                Run::edit(&plan, || Ok(picture))
            }
        };
        let task = Task { model, plan: &plan, cancel: &cancel };
        let latents = run.denoise(ops, task, &mut silent).unwrap().to_vec();
        let latents = denoise::denormalise(model, latents);
        let mut hash = Sha256::new();
        for value in latents.iter().flat_map(|latent| &latent.data) {
            hash.update(value.to_le_bytes());
        }
        let dir = tempfile::tempdir().unwrap();
        let canvas = PixelBuffer::create(dir.path(), self.width, self.height, spec.bits).unwrap();
        let tiling = Tiling::new(&model.arch, self.width, self.height, spec.tile).unwrap();
        let canvas = engine::decode(
            ops,
            &model.arch,
            (&latents, self.seed),
            &tiling,
            canvas,
            &mut silent,
            &cancel,
        )
        .unwrap();
        let (bytes, samples): (Vec<u8>, Vec<f64>) = match spec.bits {
            Bits::Eight => {
                let samples = canvas.bytes().iter().map(|&v| f64::from(v) / 255.0);
                (canvas.bytes().to_vec(), samples.collect())
            }
            Bits::Sixteen => {
                let samples = canvas.bytes().chunks_exact(2);
                let samples = samples.map(|v| u16::from_ne_bytes([v[0], v[1]]));
                let bytes = samples.clone().flat_map(u16::to_le_bytes);
                (bytes.collect(), samples.map(|v| f64::from(v) / 65535.0).collect())
            }
        };
        let picture = hex(&Sha256::digest(&bytes));
        (Hashes { latents: hex(&hash.finalize()), picture }, samples)
    }

    /// The combination in words.
    pub(crate) fn name(&self) -> String {
        let Self { model, seed, width, height, sampler, steps, tile, bits, strength, .. } = self;
        let edit = strength.map_or(String::new(), |strength| format!(", strength {strength}"));
        format!(
            "{model} seed {seed} {width}x{height} {sampler} {steps} steps, tile {tile}, {bits} bits{edit}"
        )
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares what `run` gives for every record with the hashes of `device`; with `TESSERA_RECORD=1` writes them instead.
/// A record without hashes of `device` is handed to `unknown`, with the samples that were found.
pub(crate) fn hold<O: Backend>(
    device: &str,
    make: impl Fn(Arc<Weights>) -> O,
    unknown: impl Fn(&Record, &Checkpoint, &[f64]),
) {
    /// Tests of one process write the file in turns.
    static FILE: Mutex<()> = Mutex::new(());
    let recording = std::env::var("TESSERA_RECORD").is_ok_and(|v| v == "1");
    let mut found = Vec::new();
    for record in records() {
        let model = record.model();
        let (hashes, samples) = record.run(&mut make(model.weights.clone()), &model);
        if !recording && !record.hashes.contains_key(device) {
            unknown(&record, &model, &samples);
        }
        found.push(hashes);
    }
    if recording {
        let _lock = FILE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut records = records();
        for (record, hashes) in records.iter_mut().zip(found) {
            record.hashes.insert(device.to_owned(), hashes);
        }
        let text = serde_json::to_string_pretty(&records).unwrap() + "\n";
        return fs::write(fixture("recorded.json"), text).unwrap();
    }
    let changed: Vec<_> = (records().iter().zip(&found))
        .filter(|(record, found)| record.hashes.get(device).is_some_and(|hashes| hashes != *found))
        .map(|(record, found)| {
            format!("{}\n  {:?}\n  {found:?}", record.name(), record.hashes[device])
        })
        .collect();
    assert!(
        changed.is_empty(),
        "{device}: recorded and found hashes differ:\n{}",
        changed.join("\n")
    );
}

/// The picture of `record` on the CPU, by the best kernels of f32.
pub(crate) fn on_cpu(record: &Record, model: &Checkpoint) -> Vec<f64> {
    record.run(&mut Cpu::new(model.weights.clone()), model).1
}
