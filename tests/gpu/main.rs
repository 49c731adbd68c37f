//! The GPU interpreter against the naive reference.
//!
//! Without an adapter these tests say that they are skipped; with `TESSERA_REQUIRE_GPU=1` in the environment a missing
//! adapter is a failure. Any adapter serves, a software one too. Tests of f16 want one with cooperative matrices, and fail
//! without it where `TESSERA_REQUIRE_COOPERATIVE=1` (`scripts/cooperative.sh` runs them on a software driver).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test panics")]

#[allow(dead_code, reason = "not all helpers are for these tests")]
#[path = "../common/mod.rs"]
mod common;
mod differential;
mod engine;
mod f16;
mod fusion;
mod recorded;

use std::{collections::BTreeSet, fs, sync::Arc};

use common::{default_model, gpu::gpu, parity};
use f16::cooperative;
use tessera::{
    error::Kind,
    exec::{
        gpu::{ConvVariant, Gpu, adapters, best_real},
        reference::Reference,
    },
    graph::{
        Backend, GraphBuilder, Value,
        testing::{apply, run_case},
    },
    ops::{
        Conv2d, Domain, Factors, GroupNorm, Op, PixelNorm, Rect, Shape,
        testing::{self, Random, relative_error},
        weights::{Param, Weights},
    },
};

/// Largest relative L2 error of an operator against the reference.
const TOLERANCE: f64 = 1e-4;

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
    let table = testing::suite(3);
    let Some((mut gpu, _lock)) = gpu(table.weights.clone()) else { return };
    let mut reference = Reference::new(table.weights.clone());
    let mut failed = Vec::new();
    for case in &table.cases {
        let (wanted_shape, wanted) = run_case(&mut reference, case).unwrap();
        let (shape, found) =
            run_case(&mut gpu, case).unwrap_or_else(|e| panic!("{}: {e}", case.name));
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
fn conv2d_variants_equal_the_reference() {
    let table = testing::suite(5);
    let Some((gpu, _lock)) = gpu(Arc::default()) else { return };
    drop(gpu);
    let (layers, own) = layers(&[]);
    for variant in [ConvVariant::Subgroup, ConvVariant::Tiled, ConvVariant::Winograd] {
        let open = |weights| Gpu::new(None, weights).unwrap().with_convolutions(variant);
        let name = variant.name();
        let (mut gpu, mut reference) =
            (open(table.weights.clone()), Reference::new(table.weights.clone()));
        for case in table.cases.iter().filter(|case| matches!(case.op, Op::Conv2d(_))) {
            let (wanted, found) =
                (run_case(&mut reference, case).unwrap(), run_case(&mut gpu, case).unwrap());
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

/// The layers of the default model and the widest of pdm-2k with `more` (output channels, input channels, kernel), each once,
/// and random weights for them.
fn layers(more: &[[usize; 3]]) -> (Vec<Conv2d>, Arc<Weights>) {
    let model = default_model();
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
                domain: Domain::Whole,
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
    let op = Op::Conv2d(layer.clone());
    let (x, y) = (apply(gpu, &op, &[x]).unwrap(), apply(reference, &op, &[y]).unwrap());
    relative_error(&gpu.download(&x).unwrap(), &reference.download(&y).unwrap())
}

/// Shaders that are compiled ahead, from scratch or from what an earlier device left, give the bits of those that are
/// compiled when they are used; a file that is cut off is passed over and replaced.
#[test]
fn precompiled_pipelines_change_no_bit() {
    let table = testing::suite(4);
    let Some((mut plain, _lock)) = gpu(table.weights.clone()) else { return };
    let results = |gpu: &mut Gpu| -> Vec<Vec<u32>> {
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
        table.cases.iter().map(|case| bits(run_case(gpu, case).unwrap().1)).collect()
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
fn norm_and_pooling_keep_accuracy_with_means_far_from_zero() {
    let norm = GroupNorm { name: "norm".into(), channels: 24, groups: 6, silu: false };
    let weights = weights(norm.params(), 5);
    let Some((mut gpu, _lock)) = gpu(weights.clone()) else { return };
    let mut reference = Reference::new(weights);
    let shape = Shape::new(2, 75, 41, 24);
    let data = Random::new(6).values(shape.len(), 1000.0, 1.0);
    let (x, y) = (gpu.upload(shape, &data).unwrap(), reference.upload(shape, &data).unwrap());
    let mut both = |op: Op| {
        let a = apply(&mut gpu, &op, std::slice::from_ref(&x)).unwrap();
        let b = apply(&mut reference, &op, std::slice::from_ref(&y)).unwrap();
        (gpu.download(&a).unwrap(), reference.download(&b).unwrap())
    };
    let (a, b) = both(Op::GroupNorm(norm));
    let error = relative_error(&a, &b);
    assert!(error <= TOLERANCE, "group_norm {error:e}");
    // Of the deviation, not of the mean.
    let (a, b) = both(Op::GlobalAvgPool);
    let centred = |v: Vec<f32>| v.into_iter().map(|v| v - 1000.0).collect::<Vec<_>>();
    let (a, b) = (centred(a), centred(b));
    let worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 1e-3, "global_avg_pool {worst:e}");
}

/// A chain of the decoder's local operators, as it is computed tile by tile.
fn local(g: &mut GraphBuilder, x: Value, c: usize, out: usize) -> Value {
    let conv = |name: &str, out_channels, kernel| Conv2d {
        name: name.into(),
        in_channels: c,
        out_channels,
        kernel,
        domain: Domain::Window,
    };
    let norm = PixelNorm { name: "norm".into(), channels: c, silu: true };
    let h = g.pixel_norm(x, norm).unwrap();
    let h = g.upsample_nearest2(h).unwrap();
    let h = g.conv2d(h, conv("first", c, 3)).unwrap();
    let skip = g.upsample_nearest2(x).unwrap();
    let h = g.weighted_add(skip, h, Factors::Fixed(0.7, 0.3)).unwrap();
    let h = g.silu(h).unwrap();
    let rgb = g.conv2d(h, conv("rgb", out, 1)).unwrap();
    let last = g.conv2d(h, conv("last", 4 * out, 3)).unwrap();
    let last = g.pixel_shuffle(last, 2).unwrap();
    let rgb = g.upsample_nearest2(rgb).unwrap();
    g.add(last, rgb).unwrap()
}

/// Tiles cut out with the chain's halo give the whole picture's bits, wherever they are cut, in f32 and in f16.
#[test]
fn tiles_equal_the_whole_bit_for_bit() {
    let Some((gpu, _lock)) = gpu(Arc::default()) else { return };
    drop(gpu);
    tiles_equal_the_whole(|weights| Gpu::new(None, weights).unwrap());
}

#[test]
fn f16_tiles_equal_the_whole_bit_for_bit() {
    let Some((index, _lock)) = cooperative() else { return };
    tiles_equal_the_whole(|weights| Gpu::with_f16(Some(index), weights).unwrap());
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
        // The picture of a window of x, cut to a rectangle, and its shape.
        let mut run = |window: Option<(Rect, Rect)>| {
            let mut g = GraphBuilder::new();
            let mut y = g.input(shape).unwrap();
            if let Some((window, _)) = window {
                y = g.crop(y, window).unwrap();
            }
            y = local(&mut g, y, channels, out);
            if let Some((_, inner)) = window {
                y = g.crop(y, inner).unwrap();
            }
            let result = gpu.run(&g.finish([y]), vec![x.clone()]).unwrap().remove(0);
            (gpu.shape(&result), gpu.download(&result).unwrap())
        };
        let (whole_shape, whole) = run(None);
        for (y0, x0, h, w) in [(0, 0, 5, 6), (5, 6, 1, 1), (4, 9, 9, 17), (12, 26, 1, 1)] {
            let (top, left) = (usize::saturating_sub(y0, halo), usize::saturating_sub(x0, halo));
            let (bottom, right) = ((y0 + h + halo).min(height), (x0 + w + halo).min(width));
            let window = Rect { x: left, y: top, width: right - left, height: bottom - top };
            let inner = Rect { x: 4 * (x0 - left), y: 4 * (y0 - top), width: 4 * w, height: 4 * h };
            let (_, tile) = run(Some((window, inner)));
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
    let sum = Op::WeightedAdd(Factors::Fixed(0.5, 0.25));
    let y = apply(&mut gpu, &sum, &[x.clone(), x]).unwrap();
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
        match apply(&mut gpu, &Op::UpsampleNearest2, std::slice::from_ref(&x)) {
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

/// A weighted sum of two tensors.
fn sum(wa: f32, wb: f32) -> Op {
    Op::WeightedAdd(Factors::Fixed(wa, wb))
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
        let y = apply(&mut gpu, &sum(1.0, 1.0), &[x.clone(), x]).unwrap();
        let z = apply(&mut gpu, &sum(1.0, -0.5), &[y.clone(), y]).unwrap();
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
fn downloads_in_flight_keep_their_values() {
    let Some((mut gpu, _lock)) = gpu(Arc::default()) else { return };
    let mut random = Random::new(12);
    let mut begun = Vec::new();
    for i in 0..60usize {
        let shape = Shape::new(1, 3 + i % 2, 7, 3);
        let data = random.values(shape.len(), 0.0, 1.0);
        let x = gpu.upload(shape, &data).unwrap();
        let y = apply(&mut gpu, &sum(1.0, 1.0), &[x.clone(), x]).unwrap();
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
    let window = Rect { x: usize::MAX, y: 1, width: 2, height: 1 };
    let layer = Conv2d {
        name: "absent".into(),
        in_channels: 2,
        out_channels: 3,
        kernel: 3,
        domain: Domain::Whole,
    };
    let ops = [Op::AvgPool2, Op::Crop(window), Op::PixelUnshuffle(2), Op::Conv2d(layer)];
    for op in ops {
        let ours = apply(&mut gpu, &op, std::slice::from_ref(&x)).map(drop).unwrap_err();
        let wanted = apply(&mut reference, &op, std::slice::from_ref(&y)).map(drop).unwrap_err();
        assert_eq!(ours.to_string(), wanted.to_string());
    }
    // Inputs of other shapes than the graph's.
    let mut g = GraphBuilder::new();
    let (a, b) = (g.input(shape).unwrap(), g.input(shape).unwrap());
    let sum = g.add(a, b).unwrap();
    let graph = g.finish([sum]);
    let ours = gpu.run(&graph, vec![x]).map(drop).unwrap_err();
    let wanted = reference.run(&graph, vec![y]).map(drop).unwrap_err();
    assert_eq!(ours.to_string(), wanted.to_string());
}

/// Without an index the best real GPU is taken if there is one; `software` says what an adapter is.
#[test]
fn adapter_of_a_real_gpu_is_preferred() {
    let Some((gpu, _lock)) = gpu(Arc::default()) else { return };
    let all = adapters();
    assert_eq!(gpu.adapter(), &all[best_real().unwrap_or(0)]);
    assert!(best_real().is_none_or(|index| !all[index].software));
    assert!(all.iter().enumerate().all(|(i, a)| a.index == i && a.max_tensor_bytes > 0));
}
