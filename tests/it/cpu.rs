//! The promises of the native CPU interpreter, with all kernels that the machine has: the reference's values, at every
//! place and with any number of threads the same bits.

use std::sync::Arc;

use tessera::{
    exec::{
        cpu::{ConvVariant, Cpu, Kernels},
        reference::Reference,
    },
    graph::{
        Backend, Fusion, GraphBuilder, Value,
        testing::{apply, results, run_case},
    },
    ops::{
        Conv2d, Domain, Factors, Op, PixelNorm, Rect, Shape,
        testing::{self, Random, TestSuite, relative_error},
        weights::{Param, Weights},
    },
};

use crate::common::parity;

/// Largest relative L2 error in f32.
const TOLERANCE: f64 = 1e-5;
/// The same of one operator where products are in bf16.
const TOLERANCE_BF16: f64 = 1e-2;

/// The kernels of this machine; those that it lacks are named in the test's output.
fn kernels() -> impl Iterator<Item = Kernels> {
    Kernels::ALL.iter().copied().filter(|kernels| {
        let available = kernels.available();
        if !available {
            eprintln!("not tested, this CPU lacks them: {}", kernels.name());
        }
        available
    })
}

fn tolerance(kernels: Kernels) -> f64 {
    if kernels.is_bf16() { TOLERANCE_BF16 } else { TOLERANCE }
}

fn cpu(kernels: Kernels) -> impl Fn(Arc<Weights>) -> Cpu {
    move |weights| Cpu::with_kernels(weights, kernels).unwrap()
}

#[test]
fn operators_match_pytorch() {
    for kernels in kernels() {
        parity::operators(cpu(kernels), tolerance(kernels));
    }
}

#[test]
fn blocks_match_pytorch() {
    for kernels in kernels() {
        parity::blocks(cpu(kernels), tolerance(kernels));
    }
}

#[test]
fn networks_match_pytorch() {
    for kernels in kernels().filter(|kernels| !kernels.is_bf16()) {
        parity::networks(cpu(kernels), TOLERANCE);
    }
}

/// Convolutions by rule, and by each variant.
const VARIANTS: [Option<ConvVariant>; 3] =
    [None, Some(ConvVariant::Direct), Some(ConvVariant::Winograd)];

fn by(variant: Option<ConvVariant>, cpu: Cpu) -> Cpu {
    match variant {
        Some(variant) => cpu.with_convolutions(variant),
        None => cpu,
    }
}

/// Every operator of every case, with all kernels and variants of convolutions.
fn agree(table: &TestSuite) {
    let mut reference = Reference::new(table.weights.clone());
    let ways = kernels().flat_map(|kernels| VARIANTS.map(|variant| (kernels, variant)));
    let mut all: Vec<_> =
        ways.map(|(k, variant)| (k, variant, by(variant, cpu(k)(table.weights.clone())))).collect();
    for case in &table.cases {
        let (shape, wanted) = run_case(&mut reference, case).unwrap();
        // Variants are of convolutions alone.
        let convolution = matches!(case.op, Op::Conv2d(_));
        for (kernels, variant, cpu) in all.iter_mut().filter(|(_, v, _)| convolution || v.is_none())
        {
            let name = format!("{} with {}, {variant:?}", case.name, kernels.name());
            let (found_shape, found) =
                run_case(cpu, case).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(found_shape, shape, "{name}");
            let error = relative_error(&found, &wanted);
            assert!(error <= tolerance(*kernels), "{name} {:?}: relative error {error:e}", case.op);
        }
    }
}

#[test]
fn operators_agree_with_the_reference() {
    agree(&testing::suite(2));
}

/// The channels that meet in the configurations of `train/`, on small grids.
#[test]
fn conv2d_layers_of_all_configurations_agree_with_the_reference() {
    let channels = [
        (3, 16),
        (12, 24),
        (16, 32),
        (24, 12),
        (24, 24),
        (24, 3),
        (32, 64),
        (48, 24),
        (48, 48),
        (64, 96),
        (64, 192),
        (96, 48),
        (96, 96),
        (96, 128),
        (128, 96),
        (128, 128),
        (128, 160),
        (160, 160),
        (192, 320),
        (256, 128),
        (256, 512),
        (288, 128),
        (320, 160),
        (192, 192),
        (192, 384),
        (384, 384),
        (512, 512),
        (576, 768),
        (768, 768),
        (1344, 576),
        (1536, 768),
    ];
    agree(&testing::layers(5, &channels));
}

fn run_all(
    table: &TestSuite,
    kernels: Kernels,
    variant: Option<ConvVariant>,
    threads: usize,
) -> Vec<Vec<f32>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let mut cpu = by(variant, cpu(kernels)(table.weights.clone()));
        table.cases.iter().map(|case| run_case(&mut cpu, case).unwrap().1).collect()
    })
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The number of threads does not show in the bits.
#[test]
fn threads_do_not_change_a_bit() {
    let table = testing::suite(3);
    for (kernels, variant) in kernels().flat_map(|k| VARIANTS.map(|variant| (k, variant))) {
        let one = run_all(&table, kernels, variant, 1);
        for threads in [2, 5] {
            let many = run_all(&table, kernels, variant, threads);
            for ((case, one), many) in table.cases.iter().zip(&one).zip(many) {
                let way = format!("{threads} threads, {}, {variant:?}", kernels.name());
                assert_eq!(bits(one), bits(&many), "{} with {way}", case.name);
            }
        }
    }
}

/// What a convolution applies as it loads and stores has the bits of operators that run by themselves.
#[test]
fn fusion_changes_no_bit() {
    let mut random = Random::new(6);
    for (h, w, channels) in [(9, 150, 24), (20, 13, 40), (1, 1, 7), (7, 6, 96), (19, 30, 48)] {
        let weights = local_weights(&mut random, channels);
        let shape = Shape::new(1, h, w, channels);
        let data = random.values(shape.len(), 0.2, 1.0);
        let conv = |name: &str, kernel| Conv2d {
            name: name.into(),
            in_channels: channels,
            out_channels: channels,
            kernel,
            domain: Domain::Whole,
        };
        for (kernels, variant) in kernels().flat_map(|k| VARIANTS.map(|variant| (k, variant))) {
            let mut g = GraphBuilder::new();
            let x = g.input(shape).unwrap();
            let norm = PixelNorm { name: "norm".into(), channels, silu: true };
            let y = g.pixel_norm(x, norm).unwrap();
            let y = g.upsample_nearest2(y).unwrap();
            let y = g.conv2d(y, conv("a", 3)).unwrap();
            let y = g.silu(y).unwrap();
            let y = g.conv2d(y, conv("b", 3)).unwrap();
            let up = g.upsample_nearest2(x).unwrap();
            let sum = g.weighted_add(up, y, Factors::Fixed(0.6, 0.8)).unwrap();
            let term = g.conv2d(sum, conv("b", 3)).unwrap();
            let last = g.weighted_add(term, sum, Factors::Fixed(-0.3, 1.1)).unwrap();
            let graph = g.finish([last]);
            let run = |fusion| {
                let mut cpu = by(variant, cpu(kernels)(weights.clone())).with_fusion(fusion);
                results(&mut cpu, &graph, &[(shape, data.clone())]).unwrap().remove(0)
            };
            let (fused, single) = (run(Fusion::ALL), run(Fusion::NONE));
            let way = format!("{h}x{w}x{channels}, {}, {variant:?}", kernels.name());
            assert!(bits(&fused) == bits(&single), "{way}");
        }
    }
}

/// Winograd's convolutions are used by rule for what sees whole grids of some size, and never for what may see a window; a
/// picture of a batch has the bits that it has alone. They differ from sums in one order only by rounding.
#[test]
fn winograd_runs_on_whole_grids_only_and_batches_change_no_bit() {
    let (channels, mut random) = (48, Random::new(8));
    let weights = local_weights(&mut random, channels);
    let layer = |domain| Conv2d {
        name: "a".into(),
        in_channels: channels,
        out_channels: channels,
        kernel: 3,
        domain,
    };
    let shape = Shape::new(2, 21, 30, channels);
    let data = random.values(shape.len(), 0.5, 1.5);
    // Its squares take more than the 8 MiB that are transformed at a time.
    let large = Shape::new(1, 41, 300, channels);
    let large_data = random.values(large.len(), 0.5, 1.5);
    let f32_kernels = kernels().filter(|kernels| !kernels.is_bf16());
    for kernels in f32_kernels {
        let run = |variant, domain, n: usize, h: usize| {
            let mut o = by(variant, cpu(kernels)(weights.clone()));
            let shape = Shape { n, h, ..shape };
            let x = o.upload(shape, &data[..shape.len()]).unwrap();
            let y = apply(&mut o, &Op::Conv2d(layer(domain)), &[x]).unwrap();
            o.download(&y).unwrap()
        };
        let [direct, winograd] = [ConvVariant::Direct, ConvVariant::Winograd].map(Some);
        let (rule, sums) = (run(None, Domain::Whole, 2, 21), run(direct, Domain::Whole, 2, 21));
        assert!(bits(&rule) == bits(&run(winograd, Domain::Whole, 2, 21)), "{}", kernels.name());
        assert!(bits(&rule) != bits(&sums), "{}", kernels.name());
        assert!(relative_error(&rule, &sums) <= TOLERANCE, "{}", kernels.name());
        let [whole_sums, squares] = [direct, winograd].map(|variant| {
            let mut o = by(variant, cpu(kernels)(weights.clone()));
            let x = o.upload(large, &large_data).unwrap();
            let y = apply(&mut o, &Op::Conv2d(layer(Domain::Whole)), &[x]).unwrap();
            o.download(&y).unwrap()
        });
        assert!(bits(&whole_sums) != bits(&squares), "{}", kernels.name());
        assert!(relative_error(&squares, &whole_sums) <= TOLERANCE, "{}", kernels.name());
        let alone = run(None, Domain::Whole, 1, 21);
        assert!(bits(&alone) == bits(&rule[..alone.len()]), "{}", kernels.name());
        // Windows, and grids of fewer than 128 pixels.
        assert!(bits(&run(None, Domain::Window, 2, 21)) == bits(&sums), "{}", kernels.name());
        assert!(bits(&run(winograd, Domain::Window, 2, 21)) == bits(&sums), "{}", kernels.name());
        let small =
            [None, direct, winograd].map(|variant| bits(&run(variant, Domain::Whole, 1, 4)));
        assert!(small[0] == small[1] && small[1] != small[2], "{}", kernels.name());
    }
}

/// A value that is not a number reaches every pixel that reads it and no other.
#[test]
fn nan_does_not_spread_beyond_the_kernel() {
    let mut random = Random::new(7);
    let (h, w, channels) = (7, 90, 24);
    let weights = local_weights(&mut random, channels);
    let shape = Shape::new(1, h, w, channels);
    for (bad, kernels) in kernels().flat_map(|k| [(f32::NAN, k), (f32::INFINITY, k)]) {
        let mut o = cpu(kernels)(weights.clone());
        let mut data = random.values(shape.len(), 0.0, 1.0);
        data[(3 * w + 70) * channels + 5] = bad;
        let x = o.upload(shape, &data).unwrap();
        let layer = Conv2d {
            name: "a".into(),
            in_channels: channels,
            out_channels: channels,
            kernel: 3,
            domain: Domain::Whole,
        };
        let out = apply(&mut o, &Op::Conv2d(layer), &[x]).unwrap();
        let out = o.download(&out).unwrap();
        for (i, pixel) in out.chunks(channels).enumerate() {
            let (y, x) = (i / w, i % w);
            let within = y.abs_diff(3) <= 1 && x.abs_diff(70) <= 1;
            let finite = pixel.iter().all(|v| v.is_finite());
            assert!(finite != within, "{bad} at {y},{x}, {}", kernels.name());
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
fn local(g: &mut GraphBuilder, x: Value) -> Value {
    let channels = g.shape(x).c;
    let conv = |name: &str, out_channels| Conv2d {
        name: name.into(),
        in_channels: channels,
        out_channels,
        kernel: 3,
        domain: Domain::Window,
    };
    let norm = PixelNorm { name: "norm".into(), channels, silu: true };
    let h = g.conv2d(x, conv("a", channels)).unwrap();
    let h = g.pixel_norm(h, norm).unwrap();
    let h = g.weighted_add(x, h, Factors::Fixed(0.6, 0.8)).unwrap();
    let h = g.upsample_nearest2(h).unwrap();
    let h = g.conv2d(h, conv("b", channels)).unwrap();
    let h = g.silu(h).unwrap();
    let h = g.conv2d(h, conv("out", 12)).unwrap();
    g.pixel_shuffle(h, 2).unwrap()
}

/// A window with its halo gives the same bits as the same window of the whole, wherever it lies.
#[test]
fn tile_with_halo_equals_the_whole_bit_for_bit() {
    const HALO: usize = 3;
    let mut random = Random::new(4);
    for (h, w, channels) in [(40, 57, 16), (33, 90, 24), (25, 31, 7), (30, 41, 48)] {
        let weights = local_weights(&mut random, channels);
        let shape = Shape::new(1, h, w, channels);
        let data = random.values(shape.len(), 0.2, 1.0);
        for kernels in kernels() {
            let mut cpu = cpu(kernels)(weights.clone());
            let x = cpu.upload(shape, &data).unwrap();
            let mut run = |input: Option<Rect>, result: Rect| {
                let mut g = GraphBuilder::new();
                let whole = g.input(shape).unwrap();
                let part = input.map_or(whole, |window| g.crop(whole, window).unwrap());
                let picture = local(&mut g, part);
                let pixels = g.crop(picture, result).unwrap();
                let pixels = cpu.run(&g.finish([pixels]), vec![x.clone()]).unwrap().remove(0);
                bits(&cpu.download(&pixels).unwrap())
            };
            for _ in 0..8 {
                let mut below = |limit: usize| (random.bits() % limit as u64) as usize;
                let (y, x0) = (below(h), below(w));
                let (rows, columns) = (1 + below(h - y), 1 + below(w - x0));
                let (top, left) = (y.saturating_sub(HALO), x0.saturating_sub(HALO));
                let (bottom, right) = ((y + rows + HALO).min(h), (x0 + columns + HALO).min(w));
                let window = Rect { x: left, y: top, width: right - left, height: bottom - top };
                let inner = Rect {
                    x: 4 * (x0 - left),
                    y: 4 * (y - top),
                    width: 4 * columns,
                    height: 4 * rows,
                };
                let outer = Rect { x: 4 * x0, y: 4 * y, ..inner };
                let (found, wanted) = (run(Some(window), inner), run(None, outer));
                let name = kernels.name();
                assert!(found == wanted, "{h}x{w}x{channels} at {outer:?}, {name}");
            }
        }
    }
}

/// A layer asked for with another extent than the checkpoint's is refused, also after it has been used rightly.
#[test]
fn conv2d_of_other_channels_than_the_checkpoint_is_refused() {
    let mut random = Random::new(5);
    let mut cpu = Cpu::new(local_weights(&mut random, 8));
    let x = cpu.upload(Shape::new(1, 4, 4, 8), &random.values(128, 0.0, 1.0)).unwrap();
    let right = Conv2d {
        name: "a".into(),
        in_channels: 8,
        out_channels: 8,
        kernel: 3,
        domain: Domain::Whole,
    };
    let mut run = |layer| apply(&mut cpu, &Op::Conv2d(layer), std::slice::from_ref(&x));
    assert!(run(right.clone()).is_ok());
    assert!(run(Conv2d { out_channels: 9, ..right.clone() }).is_err());
    assert!(run(Conv2d { kernel: 1, ..right }).is_err());
}
