//! The promises of the native CPU interpreter: the reference's values, at every place and with any number of threads
//! the same bits.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use std::sync::Arc;

use common::parity;
use tessera::{
    exec::{cpu::Cpu, reference::Reference},
    ops::{
        Conv2d, Ops, PixelNorm, Shape, Window,
        cases::{self, Random, Table, relative_error},
        weights::{Param, Weights},
    },
};

/// Largest relative L2 error.
const TOLERANCE: f64 = 1e-5;

#[test]
fn operators_match_pytorch() {
    parity::operators(Cpu::new, TOLERANCE);
}

#[test]
fn blocks_match_pytorch() {
    parity::blocks(Cpu::new, TOLERANCE);
}

#[test]
fn networks_match_pytorch() {
    parity::networks(Cpu::new, TOLERANCE);
}

/// Every operator is within a relative L2 error of 1e-5 of the reference.
#[test]
fn every_operator_agrees_with_the_reference() {
    let table = cases::table(2);
    let mut reference = Reference::new(table.weights.clone());
    let mut cpu = Cpu::new(table.weights.clone());
    for case in &table.cases {
        let (shape, wanted) = case.run(&mut reference).unwrap();
        let (found_shape, found) =
            case.run(&mut cpu).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert_eq!(found_shape, shape, "{}", case.name);
        let error = relative_error(&found, &wanted);
        assert!(error <= TOLERANCE, "{} {:?}: relative error {error:e}", case.name, case.op);
    }
}

fn run_all(table: &Table, threads: usize) -> Vec<Vec<f32>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let mut cpu = Cpu::new(table.weights.clone());
        table.cases.iter().map(|case| case.run(&mut cpu).unwrap().1).collect()
    })
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The number of threads does not show in the bits.
#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let table = cases::table(3);
    let one = run_all(&table, 1);
    for threads in [2, 5] {
        for ((case, one), many) in table.cases.iter().zip(&one).zip(run_all(&table, threads)) {
            assert_eq!(bits(one), bits(&many), "{} with {threads} threads", case.name);
        }
    }
}

/// Parameters of `local`'s layers for `channels` channels.
fn local_weights(random: &mut Random, channels: usize) -> Arc<Weights> {
    let mut weights = Weights::default();
    for (layer, inputs) in [("a", channels), ("b", channels), ("out", channels)] {
        let outputs = if layer == "out" { 12 } else { inputs };
        let shape = vec![outputs, inputs, 3, 3];
        let data = random.values(shape.iter().product(), 0.0, 0.3);
        weights.insert(format!("{layer}.weight"), Param { shape, data });
        let data = random.values(outputs, 0.0, 1.0);
        weights.insert(format!("{layer}.bias"), Param { shape: vec![outputs], data });
    }
    let data = random.values(channels, 1.0, 0.5);
    weights.insert("norm.weight", Param { shape: vec![channels], data });
    Arc::new(weights)
}

/// Operators of finite reach, one after the other, as in a decoder's local stage. From its input's cut edges inwards,
/// 3 pixels are wrong; the result is twice as large and shuffled by 2.
fn local(o: &mut Cpu, x: &<Cpu as Ops>::Tensor) -> <Cpu as Ops>::Tensor {
    let channels = o.shape(x).c;
    let conv = |name: &str, out_channels| Conv2d {
        name: name.into(),
        in_channels: channels,
        out_channels,
        kernel: 3,
    };
    let norm = PixelNorm { name: "norm".into(), channels, silu: true };
    let h = o.conv2d(x, &conv("a", channels)).unwrap();
    let h = o.pixel_norm(&h, &norm).unwrap();
    let h = o.weighted_add(x, &h, 0.6, 0.8).unwrap();
    let h = o.upsample_nearest2(&h).unwrap();
    let h = o.conv2d(&h, &conv("b", channels)).unwrap();
    let h = o.silu(&h).unwrap();
    let h = o.conv2d(&h, &conv("out", 12)).unwrap();
    o.pixel_shuffle(&h, 2).unwrap()
}

/// A window with its halo gives the same bits as the same window of the whole, wherever it lies.
#[test]
fn a_window_with_halo_equals_the_whole_bit_for_bit() {
    const HALO: usize = 3;
    let mut random = Random::new(4);
    for (h, w, channels) in [(40, 57, 16), (33, 90, 24), (25, 31, 7), (30, 41, 48)] {
        let weights = local_weights(&mut random, channels);
        let mut cpu = Cpu::new(weights);
        let shape = Shape::new(1, h, w, channels);
        let x = cpu.upload(shape, &random.values(shape.len(), 0.2, 1.0)).unwrap();
        let whole = local(&mut cpu, &x);
        for _ in 0..12 {
            let mut below = |limit: usize| (random.bits() % limit as u64) as usize;
            let (y, x0) = (below(h), below(w));
            let (rows, columns) = (1 + below(h - y), 1 + below(w - x0));
            let (top, left) = (y.saturating_sub(HALO), x0.saturating_sub(HALO));
            let (bottom, right) = ((y + rows + HALO).min(h), (x0 + columns + HALO).min(w));
            let window = Window { y: top, x: left, h: bottom - top, w: right - left };
            let part = cpu.crop(&x, window).unwrap();
            let part = local(&mut cpu, &part);
            let inner =
                Window { y: 4 * (y - top), x: 4 * (x0 - left), h: 4 * rows, w: 4 * columns };
            let outer = Window { y: 4 * y, x: 4 * x0, ..inner };
            let found = cpu.crop(&part, inner).unwrap();
            let wanted = cpu.crop(&whole, outer).unwrap();
            let (found, wanted) = (cpu.download(&found).unwrap(), cpu.download(&wanted).unwrap());
            assert!(bits(&found) == bits(&wanted), "{h}x{w}x{channels} at {outer:?}");
        }
    }
}

/// A layer asked for with another extent than the checkpoint's is refused, also after it has been used rightly.
#[test]
fn a_layer_of_another_extent_is_refused() {
    let mut random = Random::new(5);
    let mut cpu = Cpu::new(local_weights(&mut random, 8));
    let x = cpu.upload(Shape::new(1, 4, 4, 8), &random.values(128, 0.0, 1.0)).unwrap();
    let right = Conv2d { name: "a".into(), in_channels: 8, out_channels: 8, kernel: 3 };
    assert!(cpu.conv2d(&x, &right).is_ok());
    assert!(cpu.conv2d(&x, &Conv2d { out_channels: 9, ..right.clone() }).is_err());
    assert!(cpu.conv2d(&x, &Conv2d { kernel: 1, ..right }).is_err());
}
