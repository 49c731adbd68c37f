//! What is done inside a convolution changes no bit of what is done after it.

use std::sync::Arc;

use tessera::{
    exec::{
        gpu::{ConvVariant, Gpu},
        reference::Reference,
    },
    graph::testing::{random_inputs, results},
    model::{checkpoint::Checkpoint, decoder, sampler::latent_shapes, unet},
    ops::{
        Conv2d, Domain, Op, Ops, Shape,
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
    table: &TestSuite,
    open: impl Fn() -> Gpu,
    tolerance: f64,
) -> Vec<Vec<u32>> {
    let (mut gpu, mut eager) = (open(), open().with_fusion(false));
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
    let mut table = testing::suite(6);
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
    let model = model("net-a");
    let open = || Gpu::new(None, model.weights.clone()).unwrap();
    for (batch, times) in [(1, 1), (2, 2)] {
        let fused = network_bits(&mut open(), &model, batch, times);
        assert!(fused == network_bits(&mut open().with_fusion(false), &model, batch, times));
    }
}

/// All values that the networks of `model` give for random latents of `batch` pictures, as bits.
fn network_bits<O: Ops>(o: &mut O, model: &Checkpoint, batch: usize, times: usize) -> Vec<u32> {
    let (arch, mut random) = (&model.arch, Random::new(2));
    let side = times * arch.coarsest_factor();
    let latents = latent_shapes(arch, batch, side, side);
    let graphs = [unet::graph(arch, &latents, 1), decoder::graph(arch, &latents)];
    let results = graphs.map(|graph| {
        let graph = graph.unwrap();
        let inputs = random_inputs(&graph, &mut random);
        results(o, &graph, &inputs).unwrap().concat()
    });
    results.concat().into_iter().map(f32::to_bits).collect()
}

/// What waits is right however it is read: never, once or several times, by its clone, by itself after a sum, in several
/// sums, twice in one sum, beside another that waits.
#[test]
fn fused_results_are_right_however_they_are_read() {
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
        Conv2d { name: name.into(), in_channels, out_channels, kernel, domain: Domain::Whole }
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
