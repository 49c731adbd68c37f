//! Autotuning: times the variants of a convolution on the device and keeps the fastest one per shape.
//!
//! Only variants that give the same bits are compared, so neither a measurement nor a file can change a picture.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::ConvVariant;
use crate::{
    error::Result,
    exec::gpu::{Gpu, buffers::bytes, cache::Folder},
    ops::{self, Conv2d, Shape},
};

/// Most pixels of a measurement; larger grids share its result.
const MAX_PIXELS: usize = 1 << 14;

/// Most floating-point operations of a timed submission: about a millisecond on a GPU, several on a software device.
const fn max_flops(software: bool) -> u64 {
    if software { 1 << 26 } else { 1 << 31 }
}

/// Most repetitions of a convolution in a timed submission; they amortise the cost of submitting.
const MAX_REPEATS: u64 = 16;

/// Timed submissions per variant, of which the fastest counts, after one to warm up.
const ROUNDS: usize = 3;

/// Delay of measurements on a software device, whose kernels take up to seconds to compile.
const SOFTWARE_GRACE: Duration = Duration::from_secs(60);

/// Measurements on a software device take at most one part in this many of the time after the delay.
const SOFTWARE_SHARE: u32 = 20;

/// The shape class that a choice is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Key {
    kernel: usize,
    in_channels: usize,
    out_channels: usize,
    /// Base-2 logarithm of the number of pixels, rounded down.
    log2_pixels: u32,
}

impl Key {
    fn new(shape: Shape, p: &Conv2d) -> Self {
        let pixels = (shape.n * shape.pixels()).clamp(1, MAX_PIXELS);
        Self {
            kernel: p.kernel,
            in_channels: p.in_channels,
            out_channels: p.out_channels,
            log2_pixels: pixels.ilog2(),
        }
    }
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    key: Key,
    fastest: ConvVariant,
}

/// The choices for one device.
#[derive(Debug)]
pub(in crate::exec::gpu) struct Table {
    fastest: BTreeMap<Key, ConvVariant>,
    /// The cache folder.
    folder: Option<Folder>,
    /// True if there are choices that the file does not have.
    unsaved: bool,
    /// True on a software device: measurements are delayed and rationed.
    sparing: bool,
    opened: Instant,
    /// Time spent on measurements.
    spent: Duration,
}

impl Table {
    const NAME: &str = "convolutions.json";

    /// The choices stored in `folder`.
    pub(in crate::exec::gpu) fn open(folder: Option<Folder>, sparing: bool) -> Self {
        let file = folder.as_ref().and_then(|folder| folder.read(Self::NAME));
        let entries = file.map(|file| serde_json::from_slice::<Vec<Entry>>(&file)).transpose();
        let entries = entries
            .inspect_err(|e| tracing::warn!("{} is ignored: {e}", Self::NAME))
            .unwrap_or_default();
        let entries = entries.into_iter().flatten();
        Self {
            fastest: entries.map(|entry| (entry.key, entry.fastest)).collect(),
            folder,
            unsaved: false,
            sparing,
            opened: Instant::now(),
            spent: Duration::ZERO,
        }
    }

    /// Writes new choices to the folder.
    pub(in crate::exec::gpu) fn save(&mut self) {
        if !std::mem::take(&mut self.unsaved) {
            return;
        }
        let Some(folder) = &self.folder else { return };
        let entries = self.fastest.iter().map(|(&key, &fastest)| Entry { key, fastest });
        match serde_json::to_vec(&entries.collect::<Vec<_>>()) {
            Ok(file) => folder.write(Self::NAME, &file),
            Err(error) => tracing::warn!("{} can't be written: {error}", Self::NAME),
        }
    }
}

/// True if a measurement is allowed at the time `open` after opening the device, of which `spent` was spent on
/// measurements.
fn in_budget(sparing: bool, open: Duration, spent: Duration) -> bool {
    !sparing || spent < open.saturating_sub(SOFTWARE_GRACE) / SOFTWARE_SHARE
}

/// The fastest of `variants` for `p` with a result of `shape`, from the table or measured now; None without autotuning
/// or if the measurement failed.
pub(super) fn fastest(
    gpu: &mut Gpu,
    variants: &[ConvVariant],
    p: &Conv2d,
    shape: Shape,
) -> Option<ConvVariant> {
    let key = Key::new(shape, p);
    if let Some(table) = &*gpu.shared.table() {
        match table.fastest.get(&key) {
            Some(known) if variants.contains(known) => return Some(*known),
            _ if !in_budget(table.sparing, table.opened.elapsed(), table.spent) => return None,
            _ => {}
        }
    } else {
        return None;
    }
    let began = Instant::now();
    // Dispatches of a measurement are no part of a program.
    let recording = gpu.recording.take();
    let measured = measure(gpu, variants, p, shape);
    gpu.recording = recording;
    // A convolution that can't be measured, for lack of memory for instance, may still be computed.
    let measured = measured.inspect_err(|e| tracing::debug!("{key:?} is not measured: {e}"));
    let mut table = gpu.shared.table();
    let table = table.as_mut()?;
    table.spent += began.elapsed();
    let fastest = measured.ok().flatten()?;
    table.fastest.insert(key, fastest);
    table.unsaved = true;
    Some(fastest)
}

/// Shape of a measurement for a result of `shape`, and its repetitions per submission.
fn sample(shape: Shape, p: &Conv2d, software: bool) -> (Shape, u64) {
    let pixel = ops::conv2d::flops(Shape::new(1, 1, 1, p.in_channels), p).max(1);
    let most = usize::try_from(max_flops(software) / pixel).unwrap_or(usize::MAX);
    let pixels = (shape.n * shape.pixels()).min(MAX_PIXELS).min(most).max(1);
    let columns = shape.w.clamp(1, pixels);
    let sample = Shape::new(1, pixels / columns, columns, p.out_channels);
    let all = pixel.saturating_mul(sample.pixels() as u64);
    (sample, (max_flops(software) / all).clamp(1, MAX_REPEATS))
}

/// Times `variants` in turns, in scratch memory.
fn measure(
    gpu: &mut Gpu,
    variants: &[ConvVariant],
    p: &Conv2d,
    shape: Shape,
) -> Result<Option<ConvVariant>> {
    const WHAT: &str = "measuring convolutions";
    let (sample, repeats) = sample(shape, p, gpu.device.info.software);
    let (in_bytes, out_bytes) = (bytes(sample.with_channels(p.in_channels)), bytes(sample));
    let (x, y) = (gpu.scratch(in_bytes, WHAT)?, gpu.scratch(out_bytes, WHAT)?);
    let mut timed = Vec::new();
    for &variant in variants {
        let lengths = super::packed_lengths(gpu, variant, p);
        let [weight, bias] = lengths.map(|length| 4 * length as u64);
        let memory = [(gpu.scratch(weight, WHAT)?, weight), (gpu.scratch(bias, WHAT)?, bias)];
        timed.push((variant, memory, Duration::MAX));
    }
    // Earlier work must not count.
    gpu.submit()?;
    gpu.device.wait(None)?;
    for round in 0..=ROUNDS {
        for (variant, [(weight, weight_bytes), (bias, bias_bytes)], best) in &mut timed {
            let began = Instant::now();
            for _ in 0..repeats {
                let buffers = [
                    x.binding(in_bytes),
                    weight.binding(*weight_bytes),
                    bias.binding(*bias_bytes),
                    y.binding(out_bytes),
                ];
                let place = super::Place::default();
                super::run(gpu, *variant, p, sample, buffers, place, None)?;
            }
            gpu.submit()?;
            gpu.device.wait(None)?;
            // The first round compiles, allocates and wakes the device.
            if round > 0 {
                *best = began.elapsed().min(*best);
            }
        }
    }
    let times = timed.iter().map(|(variant, _, best)| (*variant, *best));
    tracing::debug!(
        "{p:?} at {sample:?}, {repeats} times: {:?}",
        times.clone().collect::<Vec<_>>()
    );
    Ok(times.min_by_key(|(_, time)| *time).map(|(variant, _)| variant))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        exec::gpu::tests::gpu,
        graph::testing::{random_inputs, results},
        model::{checkpoint::Checkpoint, decoder, sampler::latent_shapes, unet},
        ops::{Domain, testing::Random},
    };

    /// The bits of all results of the networks of `model` on `gpu` for pictures of two sizes.
    fn pictures(gpu: &mut Gpu, model: &Checkpoint) -> Vec<u32> {
        let (arch, mut random) = (&model.arch, Random::new(2));
        let mut bits = Vec::new();
        for side in [1, 2].map(|times| times * arch.coarsest_factor()) {
            let latents = latent_shapes(arch, 1, side, side);
            for graph in [unet::graph(arch, 0, &latents), decoder::graph(arch, &latents)] {
                let graph = graph.unwrap();
                let inputs = random_inputs(&graph, &mut random);
                let results = results(gpu, &graph, &inputs).unwrap().concat();
                bits.extend(results.into_iter().map(f32::to_bits));
            }
        }
        bits
    }

    fn model() -> Checkpoint {
        // Relative to the package's root, where cargo runs tests.
        Checkpoint::open(Path::new("tests/fixtures/net-a.safetensors")).unwrap()
    }

    /// Neither measured nor arbitrary choices change a bit, and measured ones are stored for the next device.
    #[test]
    fn autotuning_changes_no_bit_and_is_stored() {
        let model = model();
        let Some(mut plain) = gpu(model.weights.clone()) else { return };
        let wanted = pictures(&mut plain, &model);
        let dir = tempfile::tempdir().unwrap();
        let folder = || Some(Folder::new(dir.path(), plain.adapter()));
        let mut measuring = gpu(model.weights.clone()).unwrap();
        *measuring.shared.table() = Some(Table::open(folder(), false));
        assert!(pictures(&mut measuring, &model) == wanted);
        let measured = measuring.shared.table().take().unwrap();
        assert!(measured.spent > Duration::ZERO && !measured.unsaved);
        let mut next = gpu(model.weights.clone()).unwrap();
        *next.shared.table() = Some(Table::open(folder(), false));
        assert!(pictures(&mut next, &model) == wanted);
        let mut table = next.shared.table().take().unwrap();
        assert_eq!((&table.fastest, table.spent), (&measured.fastest, Duration::ZERO));
        for (key, variant) in &mut table.fastest {
            let odd = key.log2_pixels.is_multiple_of(2) == key.kernel.is_multiple_of(3);
            *variant = if odd { ConvVariant::Subgroup } else { ConvVariant::Tiled };
        }
        let both = |v| table.fastest.values().any(|&found| found == v);
        assert!(both(ConvVariant::Subgroup) && both(ConvVariant::Tiled), "{table:?}");
        *next.shared.table() = Some(table);
        assert!(pictures(&mut next, &model) == wanted);
    }

    #[test]
    fn autotuning_is_skipped_for_a_requested_variant() {
        let model = model();
        let Some(gpu) = gpu(model.weights.clone()) else { return };
        let mut gpu = gpu.with_convolutions(ConvVariant::Tiled);
        *gpu.shared.table() = Some(Table::open(None, false));
        pictures(&mut gpu, &model);
        assert!(gpu.shared.table().take().unwrap().fastest.is_empty());
    }

    /// Measurements are bounded in pixels and operations, and never empty.
    #[test]
    fn autotuning_samples_are_bounded() {
        let mut random = Random::new(6);
        for _ in 0..2000 {
            let extents = random.values(6, 6.0, 2.5);
            let [n, h, w, inputs, outputs, kernel] = extents[..] else { continue };
            let extent = |v: f32| v.abs().exp2() as usize + 1;
            let p = Conv2d {
                name: "layer".into(),
                in_channels: extent(inputs),
                out_channels: extent(outputs),
                kernel: if kernel > 6.0 { 3 } else { 1 },
                domain: Domain::Window,
            };
            let shape = Shape::new(extent(n), extent(h), extent(w), p.out_channels);
            for software in [false, true] {
                let (sample, repeats) = sample(shape, &p, software);
                assert!((1..=MAX_PIXELS).contains(&sample.pixels()), "{shape:?} {sample:?}");
                assert!(sample.pixels() <= shape.n * shape.pixels() && repeats >= 1);
                let input = sample.with_channels(p.in_channels);
                let flops = repeats * ops::conv2d::flops(input, &p);
                assert!(flops <= max_flops(software) || sample.pixels() == 1, "{flops}");
            }
        }
    }

    /// On a software device nothing is measured in the first minute, and for at most a twentieth of the time later.
    #[test]
    fn autotuning_is_rationed_on_software_devices() {
        let seconds = Duration::from_secs;
        assert!(in_budget(false, Duration::ZERO, seconds(9)));
        assert!(!in_budget(true, seconds(60), Duration::ZERO));
        assert!(in_budget(true, seconds(100), seconds(1)));
        assert!(!in_budget(true, seconds(100), seconds(2)));
    }
}
