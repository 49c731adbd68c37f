//! Test vectors for every operator, drawn from seeds, for the tests and benches of all backends.
//!
//! Extents are chosen to catch what vectorised code gets wrong: single pixels, single rows and columns, odd and
//! non-square grids, batches, channel counts on both sides of every vector width. Inputs are not centred, so that norms
//! that subtract large sums show it.

use std::sync::Arc;

use super::{
    AddNoise, Conv2d, Domain, Factors, GroupNorm, Op, PixelNorm, Rect, Shape,
    weights::{Param, Weights},
};

/// An operator with its inputs. Its parameters, if it has any, are in [`TestSuite::weights`].
#[derive(Clone, Debug)]
pub struct TestCase {
    /// Operator and number; layers have this name.
    pub name: String,
    /// The operator.
    pub op: Op,
    /// Inputs, NHWC.
    pub inputs: Vec<(Shape, Vec<f32>)>,
}

/// Test cases with the parameters of all their layers: a backend made from `weights` can run all of them.
#[derive(Clone, Debug)]
pub struct TestSuite {
    /// Parameters of every case's layer.
    pub weights: Arc<Weights>,
    /// The cases.
    pub cases: Vec<TestCase>,
}

/// Relative L2 error |a - b| / |b|, sums in f64; 0 when both are zero everywhere, infinite when the lengths differ.
pub fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let norm: f64 = b.iter().map(|&b| square(f64::from(b))).sum();
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

/// SplitMix64 (Steele et al. 2014): the tests' source of values.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next value of [-1, 1).
    pub fn value(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// `len` values of center + scale [-1, 1).
    pub fn values(&mut self, len: usize, center: f32, scale: f32) -> Vec<f32> {
        (0..len).map(|_| center + scale * self.value()).collect()
    }
}

const GRIDS: [(usize, usize, usize); 6] =
    [(1, 1, 1), (1, 1, 7), (2, 5, 3), (1, 16, 9), (1, 6, 33), (2, 12, 4)];
const CHANNELS: [usize; 8] = [1, 3, 5, 8, 17, 33, 64, 100];
const GROUPS: [usize; 8] = [1, 1, 1, 2, 1, 3, 16, 25];

/// The suite of `seed`.
pub fn suite(seed: u64) -> TestSuite {
    let mut b =
        Builder { random: Random::new(seed), weights: Weights::default(), cases: Vec::new() };
    let grid = |i: usize, c: usize| {
        let (n, h, w) = GRIDS[i % GRIDS.len()];
        Shape::new(n, h, w, c)
    };
    for kernel in [1, 3] {
        for (i, &cin) in CHANNELS.iter().enumerate() {
            for (j, &cout) in CHANNELS.iter().enumerate() {
                b.conv2d(grid(i + j, cin), cout, kernel);
            }
        }
        b.conv2d(Shape::new(1, 37, 53, 24), 16, kernel);
        b.conv2d(Shape::new(1, 19, 70, 128), 96, kernel);
    }
    for (i, &c) in CHANNELS.iter().enumerate() {
        for (j, silu) in [(0, false), (1, true)] {
            for k in 0..3 {
                let shape = grid(i + j + 2 * k, c);
                b.group_norm(shape, GROUPS[i], silu);
                b.pixel_norm(shape, silu);
                let pair = Shape::new(if k == 0 { 1 } else { shape.n }, 1, 1, 2 * c);
                b.push("scale_shift", Op::ScaleShift(silu), &[shape, pair]);
            }
        }
        for k in 0..2 {
            let shape = grid(i + 3 * k, c);
            let even = Shape { h: 2 * shape.h, w: 2 * shape.w, ..shape };
            b.push("silu", Op::Silu, &[shape]);
            b.push("weighted_add", Op::WeightedAdd(Factors::Fixed(0.75, -1.25)), &[shape; 2]);
            b.push("concat", Op::Concat, &[shape, shape.with_channels(CHANNELS[7 - i])]);
            b.push("avg_pool2", Op::AvgPool2, &[even]);
            b.push("global_avg_pool", Op::GlobalAvgPool, &[shape]);
            b.push("upsample_nearest2", Op::UpsampleNearest2, &[shape]);
            b.push("fir_down2", Op::FirDown2, &[even]);
            b.push("fir_up2", Op::FirUp2, &[shape]);
            let r = [1, 2, 4, 8][(i + k) % 4];
            let unshuffled = Shape { h: r * shape.h, w: r * shape.w, ..shape };
            b.push("pixel_unshuffle", Op::PixelUnshuffle(r), &[unshuffled]);
            let deep = shape.with_channels(r * r * c.min(5));
            b.push("pixel_shuffle", Op::PixelShuffle(r), &[deep]);
            b.push("spatial_attention", Op::SpatialAttention, &[shape; 3]);
            b.push("channel_attention", Op::ChannelAttention, &[shape; 3]);
            b.add_noise(shape);
            let whole = Rect { x: 0, y: 0, width: shape.w, height: shape.h };
            let (y, x) = (shape.h / 3, shape.w / 2);
            let part = Rect { x, y, width: shape.w - x, height: (shape.h - y).div_ceil(2) };
            b.push("crop", Op::Crop(if k == 0 { part } else { whole }), &[shape]);
        }
    }
    b.push("spatial_attention", Op::SpatialAttention, &[Shape::new(1, 23, 45, 32); 3]);
    b.push("channel_attention", Op::ChannelAttention, &[Shape::new(1, 23, 45, 96); 3]);
    b.push("global_avg_pool", Op::GlobalAvgPool, &[Shape::new(1, 61, 67, 9)]);
    b.group_norm(Shape::new(1, 61, 67, 48), 12, true);
    b.pixel_norm(Shape::new(1, 61, 67, 16), true);
    TestSuite { weights: Arc::new(b.weights), cases: b.cases }
}

/// A suite of convolutions, 1x1 and 3x3, with the (input, output) channels of `layers`, on small grids that differ.
pub fn layers(seed: u64, layers: &[(usize, usize)]) -> TestSuite {
    let mut b =
        Builder { random: Random::new(seed), weights: Weights::default(), cases: Vec::new() };
    for (i, &(inputs, outputs)) in layers.iter().enumerate() {
        for kernel in [1, 3] {
            b.conv2d(Shape::new(1, 1 + i % 4, 3 + i % 3, inputs), outputs, kernel);
        }
    }
    TestSuite { weights: Arc::new(b.weights), cases: b.cases }
}

struct Builder {
    random: Random,
    weights: Weights,
    cases: Vec<TestCase>,
}

impl Builder {
    fn name(&self, op: &str) -> String {
        format!("{op}.{}", self.cases.len())
    }

    fn push(&mut self, op: &str, call: Op, shapes: &[Shape]) {
        let name = self.name(op);
        let inputs = shapes.iter().map(|s| (*s, self.random.values(s.len(), 0.5, 1.5))).collect();
        self.cases.push(TestCase { name, op: call, inputs });
    }

    fn param(&mut self, (name, shape): (String, Vec<usize>), center: f32, scale: f32) {
        let data = self.random.values(shape.iter().product(), center, scale);
        self.weights.insert(name, Param { shape, data });
    }

    fn conv2d(&mut self, x: Shape, out_channels: usize, kernel: usize) {
        let p = Conv2d {
            name: self.name("conv2d"),
            in_channels: x.c,
            out_channels,
            kernel,
            domain: Domain::Whole,
        };
        let [weight, bias] = p.params();
        self.param(weight, 0.0, 1.7 / ((kernel * kernel * x.c) as f32).sqrt());
        self.param(bias, 0.0, 1.0);
        self.push("conv2d", Op::Conv2d(p), &[x]);
    }

    fn group_norm(&mut self, x: Shape, groups: usize, silu: bool) {
        let p = GroupNorm { name: self.name("group_norm"), channels: x.c, groups, silu };
        let [weight, bias] = p.params();
        self.param(weight, 1.0, 0.5);
        self.param(bias, 0.0, 1.0);
        self.push("group_norm", Op::GroupNorm(p), &[x]);
    }

    fn add_noise(&mut self, x: Shape) {
        let p = AddNoise { name: self.name("add_noise"), channels: x.c };
        let [gain] = p.params();
        self.param(gain, 0.0, 1.0);
        self.push("add_noise", Op::AddNoise(p), &[x, x.with_channels(1)]);
    }

    fn pixel_norm(&mut self, x: Shape, silu: bool) {
        let p = PixelNorm { name: self.name("pixel_norm"), channels: x.c, silu };
        let [weight] = p.params();
        self.param(weight, 1.0, 0.5);
        self.push("pixel_norm", Op::PixelNorm(p), &[x]);
    }
}
