//! The GPU interpreter against the naive reference.
//!
//! Without an adapter these tests say that they are skipped; with `TESSERA_REQUIRE_GPU=1` in the environment a missing
//! adapter is a failure. Any adapter serves, a software one too. Tests of f16 want one with cooperative matrices, and fail
//! without it where `TESSERA_REQUIRE_COOPERATIVE=1` (`scripts/cooperative.sh` runs them on a software driver).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test panics")]

mod common;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use common::parity;
use tessera::{
    engine::{
        self, Cancel, Event,
        plan::{Plan, Spec, TileSize},
    },
    error::{Kind, Result},
    exec::{
        gpu::{ConvVariant, Gpu, Lazy, adapters, best_real, is_fast_in_f16},
        reference::Reference,
    },
    image_out::Bits,
    model::{checkpoint::Checkpoint, decoder, unet},
    ops::{
        Conv2d, GroupNorm, Ops, PixelNorm, Shape, Window,
        cases::{self, OpCall, Random, Table, relative_error},
        weights::{Param, Weights},
    },
};

/// Largest relative L2 error of an operator against the reference.
const TOLERANCE: f64 = 1e-4;

/// Largest relative L2 error of a convolution in f16. Rounding to f16 changes a factor by at most 2^-11 of itself, so a product
/// by at most 2^-10, and in the mean of many by about 2^-12; sums are f32.
const F16_TOLERANCE: f64 = 1.0 / 1024.0;

/// Smallest relative L2 error that shows that f16 was at work: f32 is off by about 1e-7.
const F16_SIGN: f64 = 1e-5;

/// One device at a time: software drivers take all cores for one.
static DEVICE: Mutex<()> = Mutex::new(());

/// The best adapter with `weights`, or None and a line that says why.
fn gpu(weights: Arc<Weights>) -> Option<(Gpu, MutexGuard<'static, ()>)> {
    let lock = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    if !common::has_gpu() {
        return None;
    }
    Some((Gpu::new(None, weights).unwrap(), lock))
}

/// Number of the first adapter with cooperative matrices, or None and a line that says why.
fn cooperative() -> Option<(usize, MutexGuard<'static, ()>)> {
    let lock = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    let index = adapters().into_iter().find(|adapter| adapter.matrix.is_some()).map(|a| a.index);
    if index.is_none() {
        let required = std::env::var("TESSERA_REQUIRE_COOPERATIVE").is_ok_and(|v| v == "1");
        assert!(
            !required,
            "TESSERA_REQUIRE_COOPERATIVE=1, but no adapter has cooperative matrices"
        );
        println!("skipped: no adapter of this machine has cooperative matrices");
    }
    Some((index?, lock))
}

fn weights(params: impl IntoIterator<Item = (String, Vec<usize>)>, seed: u64) -> Arc<Weights> {
    let mut random = Random::new(seed);
    let mut weights = Weights::default();
    for (name, shape) in params {
        let data = random.values(shape.iter().product(), 0.1, 1.0);
        weights.insert(name, Param { shape, data });
    }
    Arc::new(weights)
}

/// Every case of the shared table comes out as in the reference.
#[test]
fn operators_equal_the_reference() {
    let table = cases::table(3);
    let Some((mut gpu, _lock)) = gpu(table.weights.clone()) else { return };
    let mut reference = Reference::new(table.weights.clone());
    let mut failed = Vec::new();
    for case in &table.cases {
        let (wanted_shape, wanted) = case.run(&mut reference).unwrap();
        let (shape, found) = case.run(&mut gpu).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert_eq!(shape, wanted_shape, "{}", case.name);
        let error = relative_error(&found, &wanted);
        if error.is_nan() || error > TOLERANCE {
            failed.push(format!("{} {:?}: {error:e}", case.name, case.inputs[0].0));
        }
    }
    assert!(failed.is_empty(), "{} of {}: {failed:#?}", failed.len(), table.cases.len());
}

/// Every variant of the convolution comes out as in the reference, for all cases of the table and all layers of the default
/// model and of the largest configuration, on grids of odd extents.
#[test]
fn every_variant_of_a_convolution_equals_the_reference() {
    let table = cases::table(5);
    let Some((gpu, _lock)) = gpu(Arc::default()) else { return };
    drop(gpu);
    let (layers, own) = layers(&[]);
    for variant in [ConvVariant::Subgroup, ConvVariant::Tiled, ConvVariant::Winograd] {
        let open = |weights| Gpu::new(None, weights).unwrap().with_convolutions(variant);
        let name = variant.name();
        let (mut gpu, mut reference) =
            (open(table.weights.clone()), Reference::new(table.weights.clone()));
        for case in table.cases.iter().filter(|case| matches!(case.op, OpCall::Conv2d(_))) {
            let (wanted, found) = (case.run(&mut reference).unwrap(), case.run(&mut gpu).unwrap());
            let error = relative_error(&found.1, &wanted.1);
            assert!(error <= TOLERANCE, "{name} {}: {error:e}", case.name);
        }
        let (mut gpu, mut reference) = (open(own.clone()), Reference::new(own.clone()));
        for layer in &layers {
            let shape = Shape::new(1, 3, 5, layer.in_channels);
            let error = layer_error(&mut gpu, &mut reference, layer, shape);
            assert!(error <= TOLERANCE, "{name} {layer:?}: {error:e}");
        }
    }
}

/// In f16 every convolution of the table and every layer of the default model and of the largest configuration comes out as
/// in the reference but for the rounding of its factors, on grids of odd extents and on several pictures at once; layers
/// of few channels stay f32.
#[test]
fn convolutions_in_f16_equal_the_reference_but_for_rounding() {
    let Some((index, _lock)) = cooperative() else { return };
    let table = cases::table(5);
    let mut gpu = Gpu::with_f16(Some(index), table.weights.clone()).unwrap();
    assert!(gpu.is_f16());
    let mut reference = Reference::new(table.weights.clone());
    for case in table.cases.iter().filter(|case| matches!(case.op, OpCall::Conv2d(_))) {
        let (wanted, found) = (case.run(&mut reference).unwrap(), case.run(&mut gpu).unwrap());
        let error = relative_error(&found.1, &wanted.1);
        assert!(error <= F16_TOLERANCE, "{}: {error:e}", case.name);
    }
    let odd = [[16, 16, 3], [33, 17, 3], [47, 50, 3], [65, 31, 1], [17, 99, 1], [15, 32, 3]];
    let (layers, own) = layers(&odd);
    let (mut gpu, mut reference) =
        (Gpu::with_f16(Some(index), own.clone()).unwrap(), Reference::new(own));
    let mut worst = 0.0f64;
    for layer in &layers {
        for shape in [Shape::new(1, 3, 5, 0), Shape::new(2, 11, 13, 0)] {
            let wide = layer.in_channels * layer.out_channels > 1 << 16;
            if wide && shape.n > 1 {
                continue;
            }
            let shape = Shape { c: layer.in_channels, ..shape };
            let error = layer_error(&mut gpu, &mut reference, layer, shape);
            worst = worst.max(error);
            assert!(error <= F16_TOLERANCE, "{layer:?}: {error:e}");
            let rounded = layer.in_channels.min(layer.out_channels) >= 16;
            assert!(rounded == (error > F16_SIGN), "{layer:?}: {error:e}");
        }
    }
    println!("{} layers, largest error {worst:e}", layers.len());
}

/// What is beyond f16 on its way into a convolution becomes the largest number of f16, and no infinity.
#[test]
fn values_beyond_f16_stay_finite() {
    let Some((index, _lock)) = cooperative() else { return };
    let layer =
        Conv2d { name: "layer".into(), in_channels: 16, out_channels: 16, kernel: 1, whole: true };
    let mut own = Weights::default();
    let [(weight, shape), (bias, _)] = layer.params();
    own.insert(weight, Param { shape, data: (0..256).map(|i| f32::from(i % 17 == 0)).collect() });
    own.insert(bias, Param { shape: vec![16], data: vec![0.5; 16] });
    let mut gpu = Gpu::with_f16(Some(index), Arc::new(own)).unwrap();
    let mut data = vec![1.0; 16];
    data[..3].copy_from_slice(&[1e6, -1e30, 65504.0]);
    let x = gpu.upload(Shape::new(1, 1, 1, 16), &data).unwrap();
    let y = gpu.conv2d(&x, &layer).unwrap();
    let mut wanted = vec![1.5; 16];
    wanted[..3].copy_from_slice(&[65504.5, -65503.5, 65504.5]);
    assert_eq!(gpu.download(&y).unwrap(), wanted);
}

/// A picture of the default model in f16 is at least 45 dB from the one in f32, differs from it, and is the same in tiles.
#[test]
fn a_picture_in_f16_is_near_the_one_in_f32_and_the_same_in_tiles() {
    let Some((index, _lock)) = cooperative() else { return };
    let model = Checkpoint::default_model().unwrap();
    let picture = |mut gpu: Gpu, tile| -> Vec<f64> {
        let spec = Spec::new(&model.arch, 7);
        let spec = Spec { width: 512, height: 256, steps: 3, tile, bits: Bits::Sixteen, ..spec };
        let plan = Plan::new(spec, &model.arch).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (silent, cancel) = (&mut |_: Event| {}, Cancel::default());
        let canvas =
            engine::generate(&mut gpu, &model, &plan, folder.path(), silent, &cancel).unwrap();
        let sample = |b: &[u8]| f64::from(u16::from_ne_bytes([b[0], b[1]])) / 65535.0;
        canvas.bytes().chunks_exact(2).map(sample).collect()
    };
    let f16 = || Gpu::with_f16(Some(index), model.weights.clone()).unwrap();
    let whole = picture(f16(), TileSize::Whole);
    assert!(picture(f16(), TileSize::Pixels(200)) == whole);
    let exact = picture(Gpu::new(Some(index), model.weights.clone()).unwrap(), TileSize::Whole);
    let squares: f64 = exact.iter().zip(&whole).map(|(a, b)| (a - b) * (a - b)).sum();
    let psnr = -10.0 * (squares / whole.len() as f64).log10();
    println!("{psnr:.1} dB");
    assert!((45.0..120.0).contains(&psnr), "{psnr} dB");
}

/// An adapter without cooperative matrices refuses f16 with its name, what it lacks and what would do; one that has them
/// computes f32 unless f16 is asked for.
#[test]
fn f16_is_refused_where_it_is_not_there() {
    let Some((gpu, _lock)) = gpu(Arc::default()) else { return };
    assert!(!gpu.is_f16());
    for adapter in adapters() {
        match Gpu::with_f16(Some(adapter.index), Arc::default()) {
            Ok(gpu) => assert!(gpu.is_f16() && adapter.matrix.is_some()),
            Err(error) => {
                assert_eq!((error.kind(), adapter.matrix), (Kind::Device, None));
                let message = error.to_string();
                for word in ["f16", &adapter.name, "can't compute: it", "f32 or auto would do"] {
                    assert!(message.contains(word), "{message}");
                }
            }
        }
        assert_eq!(
            is_fast_in_f16(Some(adapter.index)),
            adapter.matrix.is_some() && !adapter.software
        );
    }
}

/// The layers of the default model and the widest of pdm-2k with `more` (output channels, input channels, kernel), each once,
/// and random weights for them.
fn layers(more: &[[usize; 3]]) -> (Vec<Conv2d>, Arc<Weights>) {
    let model = Checkpoint::default_model().unwrap();
    let mut layers: BTreeSet<[usize; 3]> = model
        .weights
        .iter()
        .filter_map(|(_, p)| match p.shape[..] {
            [outputs, inputs, kernel, _] => Some([outputs, inputs, kernel]),
            _ => None,
        })
        .collect();
    // pdm-2k: the widest of each kind, and what doubles or joins them.
    layers.extend([[192, 384, 3], [384, 192, 1], [768, 576, 3], [512, 1024, 1], [3, 48, 1]]);
    layers.extend(more);
    let mut own = Weights::default();
    let mut random = Random::new(13);
    let layers = layers
        .into_iter()
        .enumerate()
        .map(|(i, [out_channels, in_channels, kernel])| {
            let layer = Conv2d {
                name: format!("layer{i}"),
                in_channels,
                out_channels,
                kernel,
                whole: true,
            };
            for (name, shape) in layer.params() {
                let data = random.values(shape.iter().product(), 0.0, 0.1);
                own.insert(name, Param { shape, data });
            }
            layer
        })
        .collect();
    (layers, Arc::new(own))
}

/// Relative L2 error of `layer` against the reference on random values of `shape`.
fn layer_error(gpu: &mut Gpu, reference: &mut Reference, layer: &Conv2d, shape: Shape) -> f64 {
    let data = Random::new(17).values(shape.len(), 0.5, 1.5);
    let (x, y) = (gpu.upload(shape, &data).unwrap(), reference.upload(shape, &data).unwrap());
    let (x, y) = (gpu.conv2d(&x, layer).unwrap(), reference.conv2d(&y, layer).unwrap());
    relative_error(&gpu.download(&x).unwrap(), &reference.download(&y).unwrap())
}

/// The GPU without fusion: every result is read, so computed, before the next operator.
struct Eager(Gpu);

impl Eager {
    fn read(&mut self, x: Result<Lazy>) -> Result<Lazy> {
        let x = x?;
        self.0.crop(&x, Window { y: 0, x: 0, h: 1, w: 1 })?;
        Ok(x)
    }
}

/// Operators of [`Eager`]: those of [`Gpu`], read at once.
macro_rules! eager {
    ($($name:ident($($x:ident: $kind:ty),*);)*) => {
        $(fn $name(&mut self, $($x: $kind),*) -> Result<Lazy> {
            let x = self.0.$name($($x),*);
            self.read(x)
        })*
    };
}

impl Ops for Eager {
    type Tensor = Lazy;

    fn shape(&self, x: &Lazy) -> Shape {
        self.0.shape(x)
    }

    fn download(&mut self, x: &Lazy) -> Result<Vec<f32>> {
        self.0.download(x)
    }

    fn scalar(&mut self, name: &str) -> Result<f32> {
        self.0.scalar(name)
    }

    eager! {
        upload(shape: Shape, data: &[f32]);
        conv2d(x: &Lazy, p: &Conv2d);
        group_norm(x: &Lazy, p: &GroupNorm);
        pixel_norm(x: &Lazy, p: &PixelNorm);
        silu(x: &Lazy);
        scale_shift(x: &Lazy, pair: &Lazy, silu: bool);
        weighted_add(a: &Lazy, b: &Lazy, wa: f32, wb: f32);
        concat(a: &Lazy, b: &Lazy);
        avg_pool2(x: &Lazy);
        global_avg_pool(x: &Lazy);
        upsample_nearest2(x: &Lazy);
        fir_down2(x: &Lazy);
        fir_up2(x: &Lazy);
        pixel_unshuffle(x: &Lazy, r: usize);
        pixel_shuffle(x: &Lazy, r: usize);
        spatial_attention(q: &Lazy, k: &Lazy, v: &Lazy);
        channel_attention(q: &Lazy, k: &Lazy, v: &Lazy);
        crop(x: &Lazy, window: Window);
    }
}

/// What may be fused with a convolution.
#[derive(Clone, Copy, Debug)]
struct Fused {
    /// The input is enlarged.
    up: bool,
    /// A sum with another tensor follows, in which the convolution comes first, or second.
    first: Option<bool>,
    /// The other tensor is enlarged.
    addend_up: bool,
}

impl Fused {
    /// The forms that there are for a result of `shape`.
    fn all(shape: Shape) -> Vec<Self> {
        let plain = Self { up: false, first: None, addend_up: false };
        let mut all = vec![Self { up: true, ..plain }];
        for up in [false, true] {
            // The result of an enlarged input has even extents.
            let even = up || shape.h.is_multiple_of(2) && shape.w.is_multiple_of(2);
            for first in [Some(false), Some(true)] {
                all.push(Self { up, first, ..plain });
                if even {
                    all.push(Self { up, first, addend_up: true });
                }
            }
        }
        all
    }

    /// The convolution `p` of random values of `shape`, with this.
    fn run<O: Ops>(self, o: &mut O, p: &Conv2d, shape: Shape) -> Vec<f32> {
        let mut random = Random::new(21);
        let mut x = o.upload(shape, &random.values(shape.len(), 0.5, 1.5)).unwrap();
        if self.up {
            x = o.upsample_nearest2(&x).unwrap();
        }
        let mut y = o.conv2d(&x, p).unwrap();
        if let Some(first) = self.first {
            let mut shape = o.shape(&y);
            if self.addend_up {
                shape = Shape { h: shape.h / 2, w: shape.w / 2, ..shape };
            }
            let mut addend = o.upload(shape, &random.values(shape.len(), 0.5, 1.5)).unwrap();
            if self.addend_up {
                addend = o.upsample_nearest2(&addend).unwrap();
            }
            let (a, b) = if first { (&y, &addend) } else { (&addend, &y) };
            y = o.weighted_add(a, b, 0.75, -1.25).unwrap();
        }
        o.download(&y).unwrap()
    }
}

/// Every convolution of `table` with all that may be fused with it comes out as in the reference, but for `tolerance`, and has
/// the bits that it has where nothing is fused. Gives the bits of all.
fn fused_equal_the_reference(
    table: &Table,
    open: impl Fn() -> Gpu,
    tolerance: f64,
) -> Vec<Vec<u32>> {
    let (mut gpu, mut eager) = (open(), Eager(open()));
    let mut reference = Reference::new(table.weights.clone());
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let mut all = Vec::new();
    for case in &table.cases {
        let OpCall::Conv2d(p) = &case.op else { continue };
        for fused in Fused::all(case.inputs[0].0) {
            let found = fused.run(&mut gpu, p, case.inputs[0].0);
            let wanted = fused.run(&mut reference, p, case.inputs[0].0);
            let error = relative_error(&found, &wanted);
            assert!(error <= tolerance, "{p:?} {fused:?}: {error:e}");
            let plain = fused.run(&mut eager, p, case.inputs[0].0);
            assert!(bits(&found) == bits(&plain), "{p:?} {fused:?}");
            all.push(bits(&found));
        }
    }
    all
}

/// What is fused with a convolution of any variant comes out as in the reference and changes no bit; variants of f32 have
/// the same bits with it.
#[test]
fn fusion_with_a_convolution_changes_no_bit() {
    let mut table = cases::table(6);
    // The reference takes long for the largest.
    table.cases.retain(|case| case.inputs[0].0.pixels() < 1000);
    if let Some((gpu, _lock)) = gpu(Arc::default()) {
        drop(gpu);
        let [one, other] = ConvVariant::SAME_BITS.map(|variant| {
            let open = || Gpu::new(None, table.weights.clone()).unwrap();
            fused_equal_the_reference(&table, || open().with_convolutions(variant), TOLERANCE)
        });
        assert!(one == other);
        let open = || Gpu::new(None, table.weights.clone()).unwrap();
        let fewer = || open().with_convolutions(ConvVariant::Winograd);
        fused_equal_the_reference(&table, fewer, TOLERANCE);
    }
    if let Some((index, _lock)) = cooperative() {
        let open = || Gpu::with_f16(Some(index), table.weights.clone()).unwrap();
        fused_equal_the_reference(&table, open, F16_TOLERANCE);
    }
}

/// The networks of a model with fusion give the bits of those without, for two sizes of pictures and several at once.
#[test]
fn fusion_changes_no_bit_of_a_network() {
    let Some((gpu, _lock)) = gpu(Arc::default()) else { return };
    drop(gpu);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let model = Checkpoint::open(&fixtures.join("net-a.safetensors")).unwrap();
    let open = || Gpu::new(None, model.weights.clone()).unwrap();
    for (batch, times) in [(1, 1), (2, 2)] {
        let fused = network_bits(&mut open(), &model, batch, times);
        assert!(fused == network_bits(&mut Eager(open()), &model, batch, times));
    }
}

/// All values that the networks of `model` give for random latents of `batch` pictures, as bits.
fn network_bits<O: Ops>(o: &mut O, model: &Checkpoint, batch: usize, times: usize) -> Vec<u32> {
    let (arch, mut random) = (&model.arch, Random::new(2));
    let side = times * arch.coarsest_factor();
    let z: Vec<_> = (arch.levels.iter().zip(arch.grids(side, side)))
        .map(|(level, (rows, columns))| {
            let shape = Shape::new(batch, rows, columns, level.channels);
            o.upload(shape, &random.values(shape.len(), 0.0, 1.0)).unwrap()
        })
        .collect();
    let mut outputs = unet::predict(o, arch, &z, &[0.3]).unwrap();
    let (h, r) = decoder::global_stage(o, arch, &z).unwrap();
    outputs.push(decoder::local_stage(o, arch, h, r).unwrap());
    let values = outputs.iter().flat_map(|output| o.download(output).unwrap());
    values.map(f32::to_bits).collect()
}

/// What waits is right however it is read: never, once or several times, by its clone, by itself after a sum, in several
/// sums, twice in one sum, beside another that waits.
#[test]
fn what_waits_is_right_however_it_is_read() {
    fn run<O: Ops>(o: &mut O, layers: &[Conv2d; 2]) -> Vec<Vec<f32>> {
        let shape = Shape::new(2, 3, 5, 8);
        let x = o.upload(shape, &Random::new(22).values(shape.len(), 0.5, 1.5)).unwrap();
        let [p, q] = layers;
        let mut all = Vec::new();
        let mut sum = |o: &mut O, a: &O::Tensor, b: &O::Tensor| {
            let sum = o.weighted_add(a, b, 0.75, -1.25).unwrap();
            all.push(o.download(&sum).unwrap());
        };
        let (one, other) = (o.conv2d(&x, p).unwrap(), o.conv2d(&x, q).unwrap());
        sum(o, &one, &other);
        sum(o, &other, &x);
        sum(o, &x, &other);
        sum(o, &one, &one);
        let again = o.conv2d(&x, p).unwrap();
        sum(o, &again, &again.clone());
        sum(o, &again, &other);
        // Never read.
        o.conv2d(&other, q).unwrap();
        let (twice, large) = (o.conv2d(&other, p).unwrap(), o.upsample_nearest2(&other).unwrap());
        let (larger, of_large) =
            (o.upsample_nearest2(&large).unwrap(), o.conv2d(&large, q).unwrap());
        sum(o, &large, &of_large);
        sum(o, &large, &large);
        let mut read = vec![twice.clone(), twice, other, again, one, large, larger, of_large];
        read.push(o.silu(&read[0]).unwrap());
        all.extend(read.iter().map(|x| o.download(x).unwrap()));
        all
    }
    let layer = |name: &str, kernel| {
        let (in_channels, out_channels) = (8, 8);
        Conv2d { name: name.into(), in_channels, out_channels, kernel, whole: true }
    };
    let layers = [layer("one", 3), layer("other", 1)];
    let weights = weights(layers.iter().flat_map(Conv2d::params), 23);
    let Some((mut gpu, _lock)) = gpu(weights.clone()) else { return };
    let (found, wanted) = (run(&mut gpu, &layers), run(&mut Reference::new(weights), &layers));
    for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
        let error = relative_error(found, wanted);
        assert!(error <= TOLERANCE, "{i}: {error:e}");
    }
}

/// Shaders that are compiled ahead, from scratch or from what an earlier device left, give the bits of those that are
/// compiled when they are used; a file that is cut off is passed over and replaced.
#[test]
fn compiling_ahead_changes_no_bit() {
    let table = cases::table(4);
    let Some((mut plain, _lock)) = gpu(table.weights.clone()) else { return };
    let results = |gpu: &mut Gpu| -> Vec<Vec<u32>> {
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
        table.cases.iter().map(|case| bits(case.run(gpu).unwrap().1)).collect()
    };
    let wanted = results(&mut plain);
    let dir = tempfile::tempdir().unwrap();
    let files = || -> Vec<_> {
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let lengths = || files().iter().map(|file| fs::metadata(file).unwrap().len()).sum::<u64>();
    let mut whole = None;
    for _ in 0..3 {
        let gpu = Gpu::new(None, table.weights.clone()).unwrap();
        let mut gpu = gpu.prepared(Some(dir.path()));
        assert!(results(&mut gpu) == wanted);
        // What is kept is written at the latest when the device goes.
        drop(gpu);
        assert_eq!(*whole.get_or_insert_with(lengths), lengths());
        for file in files() {
            let bytes = fs::read(&file).unwrap();
            fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
        }
    }
    let vulkan = plain.adapter().backend == "Vulkan";
    assert!(!vulkan || whole.unwrap() > 0);
}

/// Operators, blocks and whole networks come out as in PyTorch.
#[test]
fn fixtures_match_pytorch() {
    let Some((_, _lock)) = gpu(Arc::default()) else { return };
    let make = |weights| Gpu::new(None, weights).unwrap();
    parity::operators(make, TOLERANCE);
    parity::blocks(make, TOLERANCE);
    parity::networks(make, TOLERANCE);
}

/// GroupNorm and pooling keep their accuracy where the mean is a thousand times the deviation.
#[test]
fn means_far_from_zero_cost_no_accuracy() {
    let norm = GroupNorm { name: "norm".into(), channels: 24, groups: 6, silu: false };
    let weights = weights(norm.params(), 5);
    let Some((mut gpu, _lock)) = gpu(weights.clone()) else { return };
    let mut reference = Reference::new(weights);
    let shape = Shape::new(2, 75, 41, 24);
    let data = Random::new(6).values(shape.len(), 1000.0, 1.0);
    let (x, y) = (gpu.upload(shape, &data).unwrap(), reference.upload(shape, &data).unwrap());
    let (a, b) = (gpu.group_norm(&x, &norm).unwrap(), reference.group_norm(&y, &norm).unwrap());
    let error = relative_error(&gpu.download(&a).unwrap(), &reference.download(&b).unwrap());
    assert!(error <= TOLERANCE, "group_norm {error:e}");
    // Of the deviation, not of the mean.
    let (a, b) = (gpu.global_avg_pool(&x).unwrap(), reference.global_avg_pool(&y).unwrap());
    let centred = |v: Vec<f32>| v.into_iter().map(|v| v - 1000.0).collect::<Vec<_>>();
    let (a, b) = (centred(gpu.download(&a).unwrap()), centred(reference.download(&b).unwrap()));
    let worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 1e-3, "global_avg_pool {worst:e}");
}

/// A chain of the decoder's local operators, as it is computed tile by tile.
fn local<O: Ops>(o: &mut O, x: &O::Tensor, c: usize, out: usize) -> O::Tensor {
    let conv = |name: &str, out_channels, kernel| Conv2d {
        name: name.into(),
        in_channels: c,
        out_channels,
        kernel,
        whole: false,
    };
    let norm = PixelNorm { name: "norm".into(), channels: c, silu: true };
    let h = o.pixel_norm(x, &norm).unwrap();
    let h = o.upsample_nearest2(&h).unwrap();
    let h = o.conv2d(&h, &conv("first", c, 3)).unwrap();
    let skip = o.upsample_nearest2(x).unwrap();
    let h = o.weighted_add(&skip, &h, 0.7, 0.3).unwrap();
    let h = o.silu(&h).unwrap();
    let rgb = o.conv2d(&h, &conv("rgb", out, 1)).unwrap();
    let last = o.conv2d(&h, &conv("last", 4 * out, 3)).unwrap();
    let last = o.pixel_shuffle(&last, 2).unwrap();
    let rgb = o.upsample_nearest2(&rgb).unwrap();
    o.weighted_add(&last, &rgb, 1.0, 1.0).unwrap()
}

/// Tiles cut out with the chain's halo give the whole picture's bits, wherever they are cut, in f32 and in f16.
#[test]
fn tiles_equal_the_whole_bit_for_bit() {
    if let Some((gpu, _lock)) = gpu(Arc::default()) {
        drop(gpu);
        tiles_equal_the_whole(|weights| Gpu::new(None, weights).unwrap());
    }
    if let Some((index, _lock)) = cooperative() {
        tiles_equal_the_whole(|weights| Gpu::with_f16(Some(index), weights).unwrap());
    }
}

fn tiles_equal_the_whole(make: impl Fn(Arc<Weights>) -> Gpu) {
    for (channels, out) in [(16, 3), (5, 1), (40, 17), (33, 16)] {
        let param = |name: &str, shape: &[usize]| (name.to_owned(), shape.to_vec());
        let params = [
            param("norm.weight", &[channels]),
            param("first.weight", &[channels, channels, 3, 3]),
            param("first.bias", &[channels]),
            param("rgb.weight", &[out, channels, 1, 1]),
            param("rgb.bias", &[out]),
            param("last.weight", &[4 * out, channels, 3, 3]),
            param("last.bias", &[4 * out]),
        ];
        let mut gpu = make(weights(params, 8));
        let (height, width, halo) = (13, 27, 2);
        let shape = Shape::new(1, height, width, channels);
        let x = gpu.upload(shape, &Random::new(9).values(shape.len(), 0.0, 1.0)).unwrap();
        let whole = local(&mut gpu, &x, channels, out);
        let whole_shape = gpu.shape(&whole);
        let whole = gpu.download(&whole).unwrap();
        for (y0, x0, h, w) in [(0, 0, 5, 6), (5, 6, 1, 1), (4, 9, 9, 17), (12, 26, 1, 1)] {
            let (top, left) = (usize::saturating_sub(y0, halo), usize::saturating_sub(x0, halo));
            let (bottom, right) = ((y0 + h + halo).min(height), (x0 + w + halo).min(width));
            let window = Window { y: top, x: left, h: bottom - top, w: right - left };
            let cut = gpu.crop(&x, window).unwrap();
            let tile = local(&mut gpu, &cut, channels, out);
            let inner = Window { y: 4 * (y0 - top), x: 4 * (x0 - left), h: 4 * h, w: 4 * w };
            let tile = gpu.crop(&tile, inner).unwrap();
            let tile = gpu.download(&tile).unwrap();
            let row = |y: usize| (((4 * y0 + y) * whole_shape.w) + 4 * x0) * out;
            let wanted: Vec<f32> = (0..4 * h)
                .flat_map(|y| whole[row(y)..row(y) + 4 * w * out].iter().copied())
                .collect();
            let same = tile.iter().zip(&wanted).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && tile.len() == wanted.len(), "{channels} channels, {window:?}");
        }
    }
}

/// More workgroups than one dimension takes are spread over two; every element is still computed.
#[test]
fn dispatches_beyond_one_dimension_are_complete() {
    let Some((mut gpu, _lock)) = gpu(Arc::default()) else { return };
    // 4.4 million elements are 68,751 workgroups of 64; one dimension takes 65,535.
    let shape = Shape::new(1, 2095, 2100, 1);
    let data = Random::new(11).values(shape.len(), 0.0, 1.0);
    let x = gpu.upload(shape, &data).unwrap();
    let y = gpu.weighted_add(&x, &x, 0.5, 0.25).unwrap();
    let found = gpu.download(&y).unwrap();
    assert!(found.iter().zip(&data).all(|(y, x)| (y - 0.75 * x).abs() <= 1e-6 * x.abs()));
}

/// A tensor that is larger than the device takes is an error that names both sizes, and does no harm.
#[test]
fn too_large_tensors_are_refused_with_the_limit() {
    let Some((mut gpu, _lock)) = gpu(Arc::default()) else { return };
    let limit = gpu.adapter().max_tensor_bytes;
    let shape = Shape::new(1, 1, 1, 4);
    let mut x = gpu.upload(shape, &[1.0, 2.0, 3.0, 4.0]).unwrap();
    let error = loop {
        match gpu.upsample_nearest2(&x) {
            Ok(larger) => x = larger,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), Kind::Device);
    let message = error.to_string();
    let wanted = gpu.shape(&x).len() * 16;
    assert!(wanted as u64 > limit || message.contains("memory"), "{message}");
    if wanted as u64 > limit {
        assert!(message.contains(&limit.to_string()), "{message}");
        assert!(message.contains(&wanted.to_string()), "{message}");
    }
    drop(x);
    let x = gpu.upload(shape, &[1.0, 2.0, 3.0, 4.0]).unwrap();
    assert_eq!(gpu.download(&x).unwrap(), [1.0, 2.0, 3.0, 4.0]);
}

/// Memory of dropped tensors is reused only by later work: no result sees what came after it.
#[test]
fn recycled_memory_never_changes_a_result() {
    let Some((mut gpu, _lock)) = gpu(Arc::default()) else { return };
    let shape = Shape::new(1, 9, 31, 5);
    let mut kept = Vec::new();
    for i in 0..300u16 {
        let value = f32::from(i);
        let x = gpu.upload(shape, &vec![value; shape.len()]).unwrap();
        let y = gpu.weighted_add(&x, &x, 1.0, 1.0).unwrap();
        drop(x);
        let z = gpu.weighted_add(&y, &y, 1.0, -0.5).unwrap();
        if i % 50 == 0 {
            kept.push((z, value));
        }
    }
    for (z, value) in kept {
        assert_eq!(gpu.download(&z).unwrap(), vec![value; shape.len()]);
    }
}

/// Downloads that are on their way at the same time give each its own values, whatever is computed meanwhile, in whatever
/// order they are waited for, and though some are given up.
#[test]
fn downloads_on_their_way_keep_their_values() {
    let Some((mut gpu, _lock)) = gpu(Arc::default()) else { return };
    let mut random = Random::new(12);
    let mut begun = Vec::new();
    for i in 0..60usize {
        let shape = Shape::new(1, 3 + i % 2, 7, 3);
        let data = random.values(shape.len(), 0.0, 1.0);
        let x = gpu.upload(shape, &data).unwrap();
        let y = gpu.weighted_add(&x, &x, 1.0, 1.0).unwrap();
        begun.push((gpu.download_later(&y).unwrap(), data));
        if i % 7 == 6 {
            begun.swap_remove(i % begun.len());
        }
        while begun.len() > 4 {
            let (download, data) = begun.swap_remove(i % begun.len());
            let wanted: Vec<f32> = data.iter().map(|v| v + v).collect();
            assert_eq!(download.wait().unwrap(), wanted);
        }
    }
}

/// What the reference refuses, the GPU refuses with the same words; a missing parameter is named.
#[test]
fn misuse_is_refused_like_the_reference() {
    let Some((mut gpu, _lock)) = gpu(Arc::default()) else { return };
    let mut reference = Reference::new(Arc::default());
    let shape = Shape::new(1, 3, 5, 2);
    let data = vec![0.0; shape.len()];
    assert!(gpu.upload(shape, &data[1..]).is_err());
    assert!(gpu.upload(Shape::new(0, 3, 5, 2), &[]).is_err());
    let (x, y) = (gpu.upload(shape, &data).unwrap(), reference.upload(shape, &data).unwrap());
    let window = Window { y: 1, x: usize::MAX, h: 1, w: 2 };
    let layer =
        Conv2d { name: "absent".into(), in_channels: 2, out_channels: 3, kernel: 3, whole: true };
    let pairs = [
        (gpu.avg_pool2(&x).map(drop), reference.avg_pool2(&y).map(drop)),
        (gpu.crop(&x, window).map(drop), reference.crop(&y, window).map(drop)),
        (gpu.pixel_unshuffle(&x, 2).map(drop), reference.pixel_unshuffle(&y, 2).map(drop)),
        (gpu.conv2d(&x, &layer).map(drop), reference.conv2d(&y, &layer).map(drop)),
    ];
    for (gpu, reference) in pairs {
        assert_eq!(gpu.unwrap_err().to_string(), reference.unwrap_err().to_string());
    }
}

/// Without an index the best real GPU is taken if there is one; `software` says what an adapter is.
#[test]
fn a_real_gpu_is_preferred() {
    let Some((gpu, _lock)) = gpu(Arc::default()) else { return };
    let all = adapters();
    assert_eq!(gpu.adapter(), &all[best_real().unwrap_or(0)]);
    assert!(best_real().is_none_or(|index| !all[index].software));
    assert!(all.iter().enumerate().all(|(i, a)| a.index == i && a.max_tensor_bytes > 0));
}
