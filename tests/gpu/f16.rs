//! Products in f16 on cooperative matrices: convolutions and attention beside the reference, a picture beside the one in f32.

use std::sync::Arc;

use tessera::{
    engine::{
        self, Cancel, Event,
        plan::{Plan, Spec, TileSize},
    },
    error::Kind,
    exec::{
        gpu::{AdapterInfo, Gpu, adapters, is_fast_in_f16},
        reference::Reference,
    },
    graph::{
        Backend as _,
        testing::{apply, run_case},
    },
    image_out::Bits,
    ops::{
        Conv2d, Domain, Op, Shape,
        testing::{self, relative_error},
        weights::{Param, Weights},
    },
};

use crate::{
    common::{
        default_model,
        gpu::{Turn, adapter, gpu},
        psnr, unit16,
    },
    layer_error, layers,
};

/// Largest relative L2 error of a convolution in f16. Rounding to f16 changes a factor by at most 2^-11 of itself, so a product
/// by at most 2^-10, and in the mean of many by about 2^-12; sums are f32.
pub(super) const F16_TOLERANCE: f64 = 1.0 / 1024.0;

/// Smallest relative L2 error that shows that f16 was at work: f32 is off by about 1e-7.
const F16_SIGN: f64 = 1e-5;

/// Number of the first adapter with cooperative matrices, or None and a line that says why.
pub(super) fn cooperative() -> Option<(usize, Turn)> {
    let matrix = |adapter: &AdapterInfo| adapter.matrix.is_some();
    let what = "adapter with cooperative matrices";
    let (adapter, turn) = adapter(what, "TESSERA_REQUIRE_COOPERATIVE", matrix)?;
    Some((adapter.index, turn))
}

/// In f16 every convolution of the table and every layer of the default model and of the largest configuration comes out as
/// in the reference but for the rounding of its factors, on grids of odd extents and on several pictures at once; layers
/// of few channels stay f32.
#[test]
fn f16_convolutions_equal_the_reference_within_rounding() {
    let Some((index, _lock)) = cooperative() else { return };
    let table = testing::suite(5);
    let mut gpu = Gpu::with_f16(Some(index), table.weights.clone()).unwrap();
    assert!(gpu.is_f16());
    let mut reference = Reference::new(table.weights.clone());
    for case in table.cases.iter().filter(|case| matches!(case.op, Op::Conv2d(_))) {
        let (wanted, found) =
            (run_case(&mut reference, case).unwrap(), run_case(&mut gpu, case).unwrap());
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
fn f16_values_beyond_its_range_stay_finite() {
    let Some((index, _lock)) = cooperative() else { return };
    let layer = Conv2d {
        name: "layer".into(),
        in_channels: 16,
        out_channels: 16,
        kernel: 1,
        domain: Domain::Whole,
    };
    let mut own = Weights::default();
    let [(weight, shape), (bias, _)] = layer.params();
    own.insert(weight, Param { shape, data: (0..256).map(|i| f32::from(i % 17 == 0)).collect() });
    own.insert(bias, Param { shape: vec![16], data: vec![0.5; 16] });
    let mut gpu = Gpu::with_f16(Some(index), Arc::new(own)).unwrap();
    let mut data = vec![1.0; 16];
    data[..3].copy_from_slice(&[1e6, -1e30, 65504.0]);
    let x = gpu.upload(Shape::new(1, 1, 1, 16), &data).unwrap();
    let y = apply(&mut gpu, &Op::Conv2d(layer), &[x]).unwrap();
    let mut wanted = vec![1.5; 16];
    wanted[..3].copy_from_slice(&[65504.5, -65503.5, 65504.5]);
    assert_eq!(gpu.download(&y).unwrap(), wanted);
}

/// A picture of the default model in f16 is at least 45 dB from the one in f32, differs from it, and is the same in tiles.
#[test]
fn f16_picture_is_near_f32_and_the_same_in_tiles() {
    let Some((index, _lock)) = cooperative() else { return };
    let model = default_model();
    let picture = |mut gpu: Gpu, tile| -> Vec<f64> {
        let spec = Spec::new(&model.arch, 7);
        let spec =
            Spec { width: 512, height: 256, steps: 3.into(), tile, bits: Bits::Sixteen, ..spec };
        let plan = Plan::new(spec, &model.arch).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (silent, cancel) = (&mut |_: Event| {}, Cancel::default());
        let canvas =
            engine::generate(&mut gpu, &model, &plan, folder.path(), silent, &cancel).unwrap();
        unit16(canvas.bytes())
    };
    let f16 = || Gpu::with_f16(Some(index), model.weights.clone()).unwrap();
    let whole = picture(f16(), TileSize::Whole);
    assert!(picture(f16(), TileSize::Pixels(200)) == whole);
    let exact = picture(Gpu::new(Some(index), model.weights.clone()).unwrap(), TileSize::Whole);
    let psnr = psnr(&exact, &whole);
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
                for word in ["precision is f16", &adapter.name, "expected f32 or auto"] {
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

/// Attention in f16 comes out as in the reference but for the rounding of its factors, and is of f16 where there are channels and
/// pixels enough to fill a matrix.
#[test]
fn f16_attention_equals_the_reference_within_rounding() {
    let Some((index, _lock)) = cooperative() else { return };
    let table = testing::suite(9);
    let mut gpu = Gpu::with_f16(Some(index), table.weights.clone()).unwrap();
    let mut reference = Reference::new(table.weights.clone());
    let is_attention = |op: &Op| matches!(op, Op::SpatialAttention | Op::ChannelAttention);
    let (mut worst, mut rounded) = (0.0f64, 0);
    for case in table.cases.iter().filter(|case| is_attention(&case.op)) {
        let shape = case.inputs[0].0;
        let (wanted, found) =
            (run_case(&mut reference, case).unwrap(), run_case(&mut gpu, case).unwrap());
        let error = relative_error(&found.1, &wanted.1);
        assert!(error <= F16_TOLERANCE, "{} {shape:?}: {error:e}", case.name);
        worst = worst.max(error);
        if shape.c >= 16 && shape.pixels() >= 16 {
            assert!(error > F16_SIGN, "{} {shape:?}: {error:e}", case.name);
            rounded += 1;
        }
    }
    assert!(rounded > 0);
    println!("largest error {worst:e}");
}
