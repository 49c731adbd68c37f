//! Differential fuzzing: chains of random operators on random shapes, computed by an interpreter and by the reference.
//!
//! A chain follows from its seed. `TESSERA_FUZZ_SEED=N` runs the chain of seed N alone, `TESSERA_FUZZ_CHAINS=N` draws N chains
//! instead of the usual number, from seed `TESSERA_FUZZ_FIRST` on.

use std::{env, fmt::Write as _, ops::Range, sync::Arc};

use tessera::{
    exec::reference::Reference,
    graph::{Backend, GraphBuilder},
    ops::{
        AddNoise, Conv2d, Domain, Factors, GroupNorm, Op, PixelNorm, Rect, Shape,
        testing::{Random, relative_error},
        weights::{Param, Weights},
    },
};

/// Most values of a tensor.
const VALUES: usize = 1 << 16;
/// Most multiplications of an operator, so that the reference takes milliseconds.
const PRODUCTS: usize = 1 << 23;
/// Numbers of channels on both sides of the widths of vectors, blocks and matrices; others are drawn too.
const CHANNELS: [usize; 14] = [1, 2, 3, 4, 7, 8, 12, 15, 16, 17, 31, 32, 33, 64];

/// Where an operator's input comes from.
#[derive(Clone, Copy, Debug)]
enum Input {
    /// An uploaded tensor, by its number.
    Uploaded(usize),
    /// The result of an earlier operator of the chain.
    Result(usize),
}

/// Operators that read uploaded tensors and one another's results; the last result is compared.
pub(crate) struct Chain {
    pub(crate) seed: u64,
    uploads: Vec<(Shape, Vec<f32>)>,
    steps: Vec<(Op, Vec<Input>)>,
    weights: Weights,
}

impl Chain {
    /// The chain of `seed`: one operator in half of the cases, else up to six.
    pub(crate) fn new(seed: u64) -> Self {
        let mut draw = Draw(Random::new(seed));
        let mut chain =
            Self { seed, uploads: Vec::new(), steps: Vec::new(), weights: Weights::default() };
        let count = if draw.flip() { 1 } else { draw.among(2..7) };
        let shape = draw.shape();
        let mut at = (chain.upload(&mut draw, shape), shape);
        // Results of the same shape are added to later ones, as in a residual block.
        let mut known = vec![at];
        while chain.steps.len() < count {
            at = chain.step(&mut draw, at, &known);
            known.push(at);
        }
        chain
    }

    fn upload(&mut self, draw: &mut Draw, shape: Shape) -> Input {
        let center = [0.0, 0.5][draw.among(0..2)];
        let scale = [0.1, 1.0, 1.5][draw.among(0..3)];
        self.uploads.push((shape, draw.0.values(shape.len(), center, scale)));
        Input::Uploaded(self.uploads.len() - 1)
    }

    fn param(&mut self, draw: &mut Draw, name: String, shape: Vec<usize>, center: f32, scale: f32) {
        let data = draw.0.values(shape.iter().product(), center, scale);
        self.weights.insert(name, Param { shape, data });
    }

    /// Adds an operator that reads `x` of shape `s`; gives its result.
    fn step(
        &mut self,
        draw: &mut Draw,
        (x, s): (Input, Shape),
        known: &[(Input, Shape)],
    ) -> (Input, Shape) {
        let name = format!("{}.{}", self.seed, self.steps.len());
        let room = |factor: usize| s.len() * factor <= VALUES;
        let even = s.h % 2 == 0 && s.w % 2 == 0;
        // GroupNorm and attention may enlarge the rounding of what they read without bound (a deviation near zero, a large
        // score), so they read uploaded tensors only.
        let exact = self.steps.is_empty();
        let (call, inputs, shape) = loop {
            let found = match draw.among(0..18) {
                // Convolutions are most of every network.
                0..3 => {
                    let (out_channels, kernel) = (draw.channels(), [1, 3][draw.among(0..2)]);
                    let shape = s.with_channels(out_channels);
                    let products = shape.len() * kernel * kernel * s.c;
                    if shape.len() > VALUES || products > PRODUCTS {
                        continue;
                    }
                    let domain = if draw.flip() { Domain::Whole } else { Domain::Window };
                    let layer = Conv2d {
                        name: name.clone(),
                        in_channels: s.c,
                        out_channels,
                        kernel,
                        domain,
                    };
                    let [(weight, weight_shape), (bias, bias_shape)] = layer.params();
                    let fan_in = (kernel * kernel * s.c) as f32;
                    self.param(draw, weight, weight_shape, 0.0, 1.7 / fan_in.sqrt());
                    self.param(draw, bias, bias_shape, 0.0, 1.0);
                    (Op::Conv2d(layer), vec![x], shape)
                }
                3 if exact && s.pixels() >= 8 => {
                    let divisors: Vec<_> = (1..=s.c).filter(|g| s.c % g == 0).collect();
                    let groups = divisors[draw.among(0..divisors.len())];
                    let norm =
                        GroupNorm { name: name.clone(), channels: s.c, groups, silu: draw.flip() };
                    let [(weight, weight_shape), (bias, bias_shape)] = norm.params();
                    self.param(draw, weight, weight_shape, 1.0, 0.5);
                    self.param(draw, bias, bias_shape, 0.0, 1.0);
                    (Op::GroupNorm(norm), vec![x], s)
                }
                4 => {
                    let norm = PixelNorm { name: name.clone(), channels: s.c, silu: draw.flip() };
                    let [(weight, weight_shape)] = norm.params();
                    self.param(draw, weight, weight_shape, 1.0, 0.5);
                    (Op::PixelNorm(norm), vec![x], s)
                }
                5 => (Op::Silu, vec![x], s),
                6 => {
                    let n = if draw.flip() { 1 } else { s.n };
                    let pair = self.upload(draw, Shape::new(n, 1, 1, 2 * s.c));
                    (Op::ScaleShift(draw.flip()), vec![x, pair], s)
                }
                7 => {
                    let equal: Vec<_> = known.iter().filter(|(_, shape)| *shape == s).collect();
                    let other = match draw.flip() {
                        true => self.upload(draw, s),
                        false => equal[draw.among(0..equal.len())].0,
                    };
                    let [wa, wb] = [(); 2].map(|()| 0.4 + draw.0.value().abs());
                    let pair = if draw.flip() { vec![x, other] } else { vec![other, x] };
                    (Op::WeightedAdd(Factors::Fixed(wa, wb)), pair, s)
                }
                8 => {
                    let other = s.with_channels(draw.channels());
                    if s.len() + other.len() > VALUES {
                        continue;
                    }
                    let b = self.upload(draw, other);
                    (Op::Concat, vec![x, b], s.with_channels(s.c + other.c))
                }
                9 if even => (Op::AvgPool2, vec![x], Shape { h: s.h / 2, w: s.w / 2, ..s }),
                10 => (Op::GlobalAvgPool, vec![x], Shape { h: 1, w: 1, ..s }),
                11 if room(4) => {
                    (Op::UpsampleNearest2, vec![x], Shape { h: 2 * s.h, w: 2 * s.w, ..s })
                }
                12 if even => (Op::FirDown2, vec![x], Shape { h: s.h / 2, w: s.w / 2, ..s }),
                13 if room(4) => (Op::FirUp2, vec![x], Shape { h: 2 * s.h, w: 2 * s.w, ..s }),
                14 => {
                    let r = draw.among(1..5);
                    if s.h % r == 0 && s.w % r == 0 && draw.flip() {
                        let shape = Shape { h: s.h / r, w: s.w / r, c: s.c * r * r, ..s };
                        (Op::PixelUnshuffle(r), vec![x], shape)
                    } else if s.c % (r * r) == 0 {
                        let shape = Shape { h: s.h * r, w: s.w * r, c: s.c / (r * r), ..s };
                        (Op::PixelShuffle(r), vec![x], shape)
                    } else {
                        continue;
                    }
                }
                15 if exact => {
                    let spatial = draw.flip();
                    let products = match spatial {
                        true => 2 * s.n * s.pixels() * s.pixels() * s.c,
                        false => 2 * s.n * s.pixels() * s.c * s.c,
                    };
                    if products > PRODUCTS {
                        continue;
                    }
                    let [k, v] = [(); 2].map(|()| self.upload(draw, s));
                    let call = match spatial {
                        true => Op::SpatialAttention,
                        false => Op::ChannelAttention,
                    };
                    (call, vec![x, k, v], s)
                }
                16 => {
                    let (y, x0) = (draw.among(0..s.h), draw.among(0..s.w));
                    let (h, w) = (draw.among(1..s.h - y + 1), draw.among(1..s.w - x0 + 1));
                    let window = Rect { x: x0, y, width: w, height: h };
                    (Op::Crop(window), vec![x], Shape { h, w, ..s })
                }
                17 => {
                    let layer = AddNoise { name: name.clone(), channels: s.c };
                    let [(gain, gain_shape)] = layer.params();
                    self.param(draw, gain, gain_shape, 0.0, 1.0);
                    let noise = self.upload(draw, s.with_channels(1));
                    (Op::AddNoise(layer), vec![x, noise], s)
                }
                _ => continue,
            };
            break found;
        };
        self.steps.push((call, inputs));
        (Input::Result(self.steps.len() - 1), shape)
    }

    /// Factor by which the chain amplifies relative rounding errors: the norm of the mean of absolute values over that of the
    /// mean, for attention over pixels, whose mean may cancel; 1 for other chains.
    fn condition(&self) -> f64 {
        let Some((op @ Op::SpatialAttention, inputs)) = self.steps.first() else { return 1.0 };
        let mut inputs: Vec<_> = (inputs.iter())
            .filter_map(|input| match input {
                Input::Uploaded(at) => Some(self.uploads[*at].clone()),
                Input::Result(_) => None,
            })
            .collect();
        let norm = |inputs: &[(Shape, Vec<f32>)]| {
            let inputs: Vec<_> = inputs.iter().map(|(shape, data)| (*shape, &data[..])).collect();
            let out = op.reference(&inputs, &self.weights).unwrap();
            out.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
        };
        let means = norm(&inputs);
        inputs[2].1.iter_mut().for_each(|v| *v = v.abs());
        (norm(&inputs) / means).max(1.0)
    }

    /// The last result.
    fn run<O: Backend>(&self, o: &mut O) -> tessera::error::Result<(Shape, Vec<f32>)> {
        let mut g = GraphBuilder::new();
        let uploads = self.uploads.iter().map(|(shape, _)| g.input(*shape));
        let uploads = uploads.collect::<tessera::error::Result<Vec<_>>>()?;
        let mut results = Vec::new();
        for (call, inputs) in &self.steps {
            let inputs: Vec<_> = (inputs.iter())
                .map(|input| match *input {
                    Input::Uploaded(i) => uploads[i],
                    Input::Result(i) => results[i],
                })
                .collect();
            results.push(g.operator(call.clone(), &inputs)?);
        }
        let inputs = self.uploads.iter().map(|(shape, data)| o.upload(*shape, data));
        let inputs = inputs.collect::<tessera::error::Result<Vec<_>>>()?;
        let last = o.run(&g.finish(results.last().copied()), inputs)?.remove(0);
        Ok((o.shape(&last), o.download(&last)?))
    }
}

impl std::fmt::Display for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, (shape, _)) in self.uploads.iter().enumerate() {
            writeln!(f, "  Uploaded({i}) = {shape:?}")?;
        }
        for (i, (call, inputs)) in self.steps.iter().enumerate() {
            writeln!(f, "  Result({i}) = {call:?} of {inputs:?}")?;
        }
        Ok(())
    }
}

/// Draws of whole numbers and shapes.
struct Draw(Random);

impl Draw {
    fn among(&mut self, range: Range<usize>) -> usize {
        range.start + (self.0.bits() % range.len() as u64) as usize
    }

    fn flip(&mut self) -> bool {
        self.0.bits() & 1 == 1
    }

    fn channels(&mut self) -> usize {
        if self.flip() { CHANNELS[self.among(0..CHANNELS.len())] } else { self.among(1..101) }
    }

    /// Sides from 1 to 48, mostly odd; few pictures, few values.
    fn shape(&mut self) -> Shape {
        loop {
            let side = |draw: &mut Self| match draw.among(0..4) {
                0 => draw.among(1..5),
                1 => 2 * draw.among(1..17),
                _ => 2 * draw.among(0..24) + 1,
            };
            let n = [1, 1, 1, 2, 3][self.among(0..5)];
            let shape = Shape::new(n, side(self), side(self), self.channels());
            if shape.len() <= VALUES / 2 {
                return shape;
            }
        }
    }
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

/// `usual` chains, or those that the environment names; and the parameters of them all.
pub(crate) fn chains(usual: u64) -> (Vec<Chain>, Arc<Weights>) {
    let first = number("TESSERA_FUZZ_FIRST").unwrap_or(0);
    let seeds = match number("TESSERA_FUZZ_SEED") {
        Some(seed) => seed..seed + 1,
        None => first..first + number("TESSERA_FUZZ_CHAINS").unwrap_or(usual),
    };
    let chains: Vec<_> = seeds.map(Chain::new).collect();
    let mut weights = Weights::default();
    for (name, param) in chains.iter().flat_map(|chain| chain.weights.iter()) {
        weights.insert(name.to_owned(), param.clone());
    }
    (chains, Arc::new(weights))
}

/// Every chain comes out of every one of `interpreters`, that has a name, as of the reference: the relative L2 error is at
/// most `tolerance` for each of its operators, times the chain's condition. Results of fewer than `least_values` are left out: a sum of few rounded products may
/// cancel. `test` names the test for a replay.
pub(crate) fn agree<O: Backend>(
    test: &str,
    (chains, weights): &(Vec<Chain>, Arc<Weights>),
    tolerance: f64,
    least_values: usize,
    interpreters: &mut [(String, O)],
) {
    let mut reference = Reference::new(weights.clone());
    let (mut failures, mut worst) = (String::new(), (0.0, 0));
    for chain in chains {
        let (shape, wanted) = chain
            .run(&mut reference)
            .unwrap_or_else(|e| panic!("seed {}: {e}\n{chain}", chain.seed));
        if shape.len() < least_values {
            continue;
        }
        let limit = tolerance * chain.steps.len() as f64 * chain.condition();
        for (name, o) in &mut *interpreters {
            let told = match chain.run(o) {
                Err(error) => error.to_string(),
                Ok((found, _)) if found != shape => format!("{found:?}, not {shape:?}"),
                Ok((_, values)) => {
                    let error = relative_error(&values, &wanted);
                    if error <= limit {
                        if error / limit > worst.0 {
                            worst = (error / limit, chain.seed);
                        }
                        continue;
                    }
                    format!("relative error {error:.1e}, the limit is {limit:.0e}")
                }
            };
            let seed = chain.seed;
            write!(failures, "seed {seed} by {name}: {told}\n{chain}  again: TESSERA_FUZZ_SEED={seed} cargo test --release {test}\n").unwrap();
        }
    }
    println!(
        "{} chains; the largest error is {:.2} of the limit, of seed {}",
        chains.len(),
        worst.0,
        worst.1
    );
    assert!(failures.is_empty(), "interpreters differ from the reference:\n{failures}");
}
