//! What is done inside a convolution changes no bit of what is done after it.

use std::sync::Arc;

use tessera::{
    exec::{
        gpu::{ConvVariant, Gpu},
        reference::Reference,
    },
    graph::{
        Backend, Fusion, GraphBuilder,
        testing::{random_inputs, results},
    },
    model::{checkpoint::Checkpoint, decoder, sampler::latent_shapes, unet},
    ops::{
        Conv2d, Domain, Factors, Op, Shape,
        testing::{self, Random, TestSuite, relative_error},
    },
};

use crate::{
    TOLERANCE,
    common::{gpu::gpu, model},
    f16::{F16_TOLERANCE, cooperative},
    weights,
};

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
    fn run<O: Backend>(self, o: &mut O, p: &Conv2d, shape: Shape) -> Vec<f32> {
        let mut g = GraphBuilder::new();
        let mut y = g.input(shape).unwrap();
        if self.up {
            y = g.upsample_nearest2(y).unwrap();
        }
        y = g.conv2d(y, p.clone()).unwrap();
        if let Some(first) = self.first {
            let mut shape = g.shape(y);
            if self.addend_up {
                shape = Shape { h: shape.h / 2, w: shape.w / 2, ..shape };
            }
            let mut addend = g.input(shape).unwrap();
            if self.addend_up {
                addend = g.upsample_nearest2(addend).unwrap();
            }
            let (a, b) = if first { (y, addend) } else { (addend, y) };
            y = g.weighted_add(a, b, Factors::Fixed(0.75, -1.25)).unwrap();
        }
        let graph = g.finish([y]);
        let mut random = Random::new(21);
        let inputs = graph.inputs().iter().map(|&input| graph.shape(input));
        let inputs = inputs.map(|shape| (shape, random.values(shape.len(), 0.5, 1.5)));
        results(o, &graph, &inputs.collect::<Vec<_>>()).unwrap().remove(0)
    }
}

/// Every convolution of `table` with all that may be fused with it comes out as in the reference, but for `tolerance`, and has
/// the bits that it has where nothing is fused. Gives the bits of all.
fn fused_equal_the_reference(
    table: &TestSuite,
    open: impl Fn() -> Gpu,
    tolerance: f64,
) -> Vec<Vec<u32>> {
    let (mut gpu, mut eager) = (open(), open().with_fusion(Fusion::NONE));
    let mut reference = Reference::new(table.weights.clone());
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let mut all = Vec::new();
    for case in &table.cases {
        let Op::Conv2d(p) = &case.op else { continue };
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
    let Some((gpu, _lock)) = gpu(Arc::default()) else { return };
    drop(gpu);
    let table = small_suite();
    let [one, other] = ConvVariant::SAME_BITS.map(|variant| {
        let open = || Gpu::new(None, table.weights.clone()).unwrap();
        fused_equal_the_reference(&table, || open().with_convolutions(variant), TOLERANCE)
    });
    assert!(one == other);
    let open = || Gpu::new(None, table.weights.clone()).unwrap();
    let fewer = || open().with_convolutions(ConvVariant::Winograd);
    fused_equal_the_reference(&table, fewer, TOLERANCE);
}

/// The same in f16, within its rounding.
#[test]
fn f16_fusion_with_a_convolution_equals_the_reference() {
    let Some((index, _lock)) = cooperative() else { return };
    let table = small_suite();
    let open = || Gpu::with_f16(Some(index), table.weights.clone()).unwrap();
    fused_equal_the_reference(&table, open, F16_TOLERANCE);
}

/// Random cases without the largest: the reference takes long for them.
fn small_suite() -> TestSuite {
    let mut table = testing::suite(6);
    table.cases.retain(|case| case.inputs[0].0.pixels() < 1000);
    table
}

/// The networks of a model with fusion give the bits of those without, for two sizes of pictures and several at once.
#[test]
fn fusion_changes_no_bit_of_a_network() {
    let Some((gpu, _lock)) = gpu(Arc::default()) else { return };
    drop(gpu);
    let model = model("net-a");
    let open = || Gpu::new(None, model.weights.clone()).unwrap();
    for (batch, times) in [(1, 1), (2, 2)] {
        let fused = network_bits(&mut open(), &model, batch, times);
        assert!(fused == network_bits(&mut open().with_fusion(Fusion::NONE), &model, batch, times));
    }
}

/// All values that the networks of `model` give for random latents of `batch` pictures, as bits.
fn network_bits<O: Backend>(o: &mut O, model: &Checkpoint, batch: usize, times: usize) -> Vec<u32> {
    let (arch, mut random) = (&model.arch, Random::new(2));
    let side = times * arch.coarsest_factor();
    let latents = latent_shapes(arch, batch, side, side);
    let graphs = [unet::graph(arch, 0, &latents), decoder::graph(arch, &latents)];
    let results = graphs.map(|graph| {
        let graph = graph.unwrap();
        let inputs = random_inputs(&graph, &mut random);
        results(o, &graph, &inputs).unwrap().concat()
    });
    results.concat().into_iter().map(f32::to_bits).collect()
}

/// Results are right however convolutions and upsampled tensors are read: never, once or several times, in several sums,
/// twice in one sum, beside another convolution, as a result and in a sum.
#[test]
fn fused_results_are_right_however_they_are_read() {
    let layer = |name: &str, kernel| {
        let (in_channels, out_channels) = (8, 8);
        Conv2d { name: name.into(), in_channels, out_channels, kernel, domain: Domain::Whole }
    };
    let layers = [layer("one", 3), layer("other", 1)];
    let [p, q] = &layers;
    let shape = Shape::new(2, 3, 5, 8);
    let mut g = GraphBuilder::new();
    let x = g.input(shape).unwrap();
    let mut results_of = Vec::new();
    let factors = || Factors::Fixed(0.75, -1.25);
    let (one, other) = (g.conv2d(x, p.clone()).unwrap(), g.conv2d(x, q.clone()).unwrap());
    for (a, b) in [(one, other), (other, x), (x, other), (one, one)] {
        results_of.push(g.weighted_add(a, b, factors()).unwrap());
    }
    // Of two convolutions that nothing else reads, one is fused.
    let (third, fourth) = (g.conv2d(x, p.clone()).unwrap(), g.conv2d(other, q.clone()).unwrap());
    results_of.push(g.weighted_add(third, fourth, factors()).unwrap());
    // Never read.
    g.conv2d(other, q.clone()).unwrap();
    let large = g.upsample_nearest2(other).unwrap();
    let larger = g.upsample_nearest2(large).unwrap();
    let of_large = g.conv2d(large, q.clone()).unwrap();
    results_of.push(g.weighted_add(large, of_large, factors()).unwrap());
    results_of.push(g.weighted_add(large, large, factors()).unwrap());
    let only_read_by_conv = g.upsample_nearest2(x).unwrap();
    let first = g.conv2d(only_read_by_conv, p.clone()).unwrap();
    let second = g.conv2d(only_read_by_conv, q.clone()).unwrap();
    results_of.push(g.weighted_add(first, second, factors()).unwrap());
    // A result that a sum reads as well.
    let both = g.conv2d(x, p.clone()).unwrap();
    results_of.push(g.weighted_add(x, both, factors()).unwrap());
    results_of.extend([both, one, other, larger, g.silu(one).unwrap(), x]);
    let graph = g.finish(results_of);

    let weights = weights(layers.iter().flat_map(Conv2d::params), 23);
    let Some((mut gpu, _lock)) = gpu(weights.clone()) else { return };
    let inputs = [(shape, Random::new(22).values(shape.len(), 0.5, 1.5))];
    let found = results(&mut gpu, &graph, &inputs).unwrap();
    let wanted = results(&mut Reference::new(weights), &graph, &inputs).unwrap();
    for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
        let error = relative_error(found, wanted);
        assert!(error <= TOLERANCE, "{i}: {error:e}");
    }
}
