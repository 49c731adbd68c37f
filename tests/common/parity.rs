//! Comparison of any interpreter with the fixtures: `make` builds one from a model's parameters.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::Deserialize;
use serde_json::Value;
use strum::VariantNames as _;
use tessera::{
    graph::{Backend, GraphBuilder, testing::apply},
    model::{
        arch::{AttentionRatio, Norm},
        block::{Block, Resample, sc_attention},
        checkpoint::Checkpoint,
        decoder::{self, Part},
        encoder,
        place_noise::place_noise,
        precond, safetensors,
        sampler::{Guidance, Latent, NoisyLatents},
        unet,
    },
    ops::{
        AddNoise, Conv2d, Domain, Factors, GroupNorm, Op, PixelNorm, Rect, Shape,
        testing::{relative_error, suite},
        weights::{Param, Weights},
    },
};

use super::{fixture, model};

/// A file of fixtures.
struct Fixture {
    tensors: BTreeMap<String, Param>,
    cases: Vec<Value>,
}

impl Fixture {
    fn read(name: &str) -> Self {
        let path = fixture(&format!("{name}.safetensors"));
        let contents = safetensors::read(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        let cases = contents.metadata.get("cases");
        let cases = cases.map_or(Vec::new(), |text| serde_json::from_str(text).unwrap());
        Self { tensors: contents.tensors, cases }
    }

    /// The tensor `name`, NHWC.
    fn tensor(&self, name: &str) -> (Shape, &[f32]) {
        let param = self.tensors.get(name).unwrap_or_else(|| panic!("no tensor {name}"));
        let [n, h, w, c] = param.shape[..] else { panic!("{name}: {:?}", param.shape) };
        (Shape::new(n, h, w, c), &param.data)
    }

    /// `prefix` followed by 0, 1, .. as far as there are.
    fn numbered(&self, prefix: &str) -> Vec<Latent> {
        let names = (0..).map(|i| format!("{prefix}{i}"));
        let names = names.take_while(|name| self.tensors.contains_key(name));
        names
            .map(|name| self.tensor(&name))
            .map(|(shape, data)| Latent { shape, data: data.to_vec() })
            .collect()
    }

    /// The whole numbers of the tensor `name`, [1, count].
    fn labels(&self, name: &str) -> Vec<usize> {
        self.tensors[name].data.iter().map(|&value| value as usize).collect()
    }

    /// Those tensors that are parameters.
    fn weights(&self) -> Arc<Weights> {
        let mut weights = Weights::default();
        for (name, param) in self.tensors.iter().filter(|(name, _)| !name.contains('/')) {
            weights.insert(name.clone(), param.clone());
        }
        Arc::new(weights)
    }
}

fn upload<O: Backend>(o: &mut O, latents: &[Latent]) -> Vec<O::Tensor> {
    latents.iter().map(|x| o.upload(x.shape, &x.data).unwrap()).collect()
}

/// `found` is `expected`, but for `tolerance`.
fn close<O: Backend>(
    o: &mut O,
    name: &str,
    found: &O::Tensor,
    (shape, expected): (Shape, &[f32]),
    tolerance: f64,
) {
    assert_eq!(o.shape(found), shape, "{name}");
    let error = relative_error(&o.download(found).unwrap(), expected);
    assert!(error <= tolerance, "{name}: relative error {error:.2e}, the limit is {tolerance:.0e}");
}

/// The operator of a case of `ops.safetensors`.
fn op_call(name: &str, case: &Value) -> Op {
    let number = |key: &str| case["params"][key].as_u64().unwrap() as usize;
    let float = |key: &str| case["params"][key].as_f64().unwrap() as f32;
    let silu = || case["params"]["silu"].as_bool().unwrap();
    let name = || name.to_owned();
    match case["op"].as_str().unwrap() {
        "conv2d" => Op::Conv2d(Conv2d {
            name: name(),
            in_channels: number("in_channels"),
            out_channels: number("out_channels"),
            kernel: number("kernel"),
            domain: Domain::Whole,
        }),
        "group_norm" => Op::GroupNorm(GroupNorm {
            name: name(),
            channels: number("channels"),
            groups: number("groups"),
            silu: silu(),
        }),
        "pixel_norm" => {
            Op::PixelNorm(PixelNorm { name: name(), channels: number("channels"), silu: silu() })
        }
        "add_noise" => {
            Op::AddNoise(AddNoise { name: name() + ".noise", channels: number("channels") })
        }
        "silu" => Op::Silu,
        "scale_shift" => Op::ScaleShift(silu()),
        "weighted_add" => Op::WeightedAdd(Factors::Fixed(float("wa"), float("wb"))),
        "concat" => Op::Concat,
        "avg_pool2" => Op::AvgPool2,
        "global_avg_pool" => Op::GlobalAvgPool,
        "upsample_nearest2" => Op::UpsampleNearest2,
        "fir_down2" => Op::FirDown2,
        "fir_up2" => Op::FirUp2,
        "pixel_unshuffle" => Op::PixelUnshuffle(number("r")),
        "pixel_shuffle" => Op::PixelShuffle(number("r")),
        "spatial_attention" => Op::SpatialAttention,
        "channel_attention" => Op::ChannelAttention,
        "crop" => Op::Crop(Rect {
            x: number("x"),
            y: number("y"),
            width: number("w"),
            height: number("h"),
        }),
        other => panic!("operator {other} is not known here"),
    }
}

/// Every operator's cases.
pub(crate) fn operators<O: Backend>(make: impl Fn(Arc<Weights>) -> O, tolerance: f64) {
    let fixture = Fixture::read("ops");
    let mut o = make(fixture.weights());
    let (fixtures, drawn): (BTreeSet<_>, BTreeSet<&str>) = (
        fixture.cases.iter().map(|case| case["op"].as_str().unwrap()).collect(),
        suite(1).cases.iter().map(|case| (&case.op).into()).collect(),
    );
    let all: BTreeSet<_> = Op::VARIANTS.iter().copied().collect();
    assert_eq!(fixtures, all, "the operators with fixtures");
    assert_eq!(drawn, all, "the operators with drawn cases");
    for case in &fixture.cases {
        let name = case["name"].as_str().unwrap();
        let inputs = upload(&mut o, &fixture.numbered(&format!("{name}/in")));
        let call = op_call(name, case);
        let out = apply(&mut o, &call, &inputs).unwrap_or_else(|e| panic!("{name}: {e}"));
        close(&mut o, name, &out, fixture.tensor(&format!("{name}/out")), tolerance);
    }
}

/// A case of `blocks.safetensors`.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum BlockCase {
    Block {
        name: String,
        cout: usize,
        norm: Norm,
        resample: Option<String>,
        kernel: usize,
        residual: Option<bool>,
    },
    Attention {
        name: String,
        ratio: AttentionRatio,
    },
}

/// Residual blocks and attention.
pub(crate) fn blocks<O: Backend>(make: impl Fn(Arc<Weights>) -> O, tolerance: f64) {
    let fixture = Fixture::read("blocks");
    let mut o = make(fixture.weights());
    assert!(fixture.cases.len() >= 10);
    for case in &fixture.cases {
        let case = BlockCase::deserialize(case).unwrap();
        let (BlockCase::Block { name, .. } | BlockCase::Attention { name, .. }) = &case;
        let latents = fixture.numbered(&format!("{name}/in"));
        let inputs = upload(&mut o, &latents);
        let mut g = GraphBuilder::new();
        let values: Vec<_> = latents.iter().map(|x| g.input(x.shape).unwrap()).collect();
        let out = match &case {
            BlockCase::Block { name, cout, norm, resample, kernel, residual } => {
                let resample = resample.as_deref().map(|kind| match kind {
                    "nearest_up" => Resample::NearestUp,
                    "fir_up" => Resample::FirUp,
                    "fir_down" => Resample::FirDown,
                    other => panic!("resampling {other} is not known here"),
                });
                let block = Block {
                    name: name.clone(),
                    domain: Domain::Window,
                    channels: *cout,
                    norm: *norm,
                    resample,
                    kernel: *kernel,
                    residual: residual.unwrap_or(true),
                };
                block.run(&mut g, values[0], values.get(1).copied()).unwrap()
            }
            BlockCase::Attention { name, ratio } => {
                sc_attention(&mut g, Domain::Window, values[0], name, *ratio).unwrap()
            }
        };
        let out = o.run(&g.finish([out]), inputs).unwrap().remove(0);
        close(&mut o, name, &out, fixture.tensor(&format!("{name}/out")), tolerance);
    }
}

/// Seed of the decoder's noise in the fixtures.
const SEED: u64 = 0x0123_4567_89AB_CDEF;

/// Encoder, both stages of the decoder, U-Nets and preconditioned denoisers of whole models.
pub(crate) fn networks<O: Backend>(make: impl Fn(Arc<Weights>) -> O, tolerance: f64) {
    for net in ["net-a", "net-b", "net-c", "net-d", "net-e", "net-f", "net-g"] {
        let (model, io) = (model(net), Fixture::read(&format!("{net}.io")));
        let mut o = make(model.weights.clone());
        autoencoder(&mut o, &model, &io, tolerance);
        match model.arch.version {
            1 => joint_denoiser(&mut o, &model, &io, tolerance),
            _ => {
                (0..model.arch.groups.len()).for_each(|group| {
                    group_denoiser(&mut o, &model, &io, group, tolerance);
                });
            }
        }
    }
}

fn autoencoder<O: Backend>(o: &mut O, model: &Checkpoint, io: &Fixture, tolerance: f64) {
    let arch = &model.arch;
    let named = |part: &str| format!("{} {part}", arch.name);
    let (shape, picture) = io.tensor("encoder/in");
    let picture = o.upload(shape, picture).unwrap();
    let graph = encoder::graph(arch, shape).unwrap();
    let moments = o.run(&graph, vec![picture]).unwrap();
    assert_eq!(moments.len(), arch.levels.len());
    for (l, moments) in moments.iter().enumerate() {
        let [mean, log_variance] =
            ["mean", "log_variance"].map(|part| format!("encoder/{part}.{l}"));
        let halves = io.tensor(&mean).1.chunks_exact(arch.levels[l].channels);
        let logs = io.tensor(&log_variance).1.chunks_exact(arch.levels[l].channels);
        let expected: Vec<f32> = halves.zip(logs).flat_map(|(m, v)| [m, v].concat()).collect();
        assert!(
            expected.iter().all(|v| v.abs() < 20.0),
            "the fixture is clamped, the operator's result is not"
        );
        let shape = io.tensor(&mean).0.with_channels(2 * arch.levels[l].channels);
        close(o, &named(&mean), moments, (shape, &expected), tolerance);
    }

    let latents = io.numbered("decoder/in.");
    let shapes: Vec<_> = latents.iter().map(|latent| latent.shape).collect();
    let grid = Rect { x: 0, y: 0, width: shapes[0].w, height: shapes[0].h };
    let mut z = upload(o, &latents);
    z.extend(noise(o, model, Part::Global, grid));
    let global = o.run(&decoder::global_graph(arch, &shapes).unwrap(), z).unwrap();
    let [h, r] = &global[..] else { panic!("{}: {} results", arch.name, global.len()) };
    close(o, &named("h"), h, io.tensor("decoder/h"), tolerance);
    close(o, &named("r"), r, io.tensor("decoder/r"), tolerance);
    let mut local = |window: Rect, name: &str| {
        let mut inputs: Vec<_> = (global.iter())
            .map(|x| apply(o, &Op::Crop(window), std::slice::from_ref(x)).unwrap())
            .collect();
        inputs.extend(noise(o, model, Part::Local, window));
        let graph = decoder::local_graph(arch, 1, window.height, window.width).unwrap();
        let out = o.run(&graph, inputs).unwrap();
        close(o, &named(name), &out[0], io.tensor(name), tolerance);
    };
    local(grid, "decoder/out");
    if arch.decoder.stages.iter().any(|stage| stage.noise) {
        let window = Rect { x: 8, y: 4, width: grid.width - 8, height: grid.height - 4 };
        local(window, "decoder/window");
        for (name, stage, place) in
            [("noise/0", 0, (0, 0)), ("noise/2", 2, ((1 << 20) + 3, (1 << 31) - 2))]
        {
            let (shape, wanted) = io.tensor(name);
            let found = place_noise(SEED, stage, place, (shape.h, shape.w));
            assert!(found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-6), "{name}");
        }
    }
}

/// The decoder's noise for `window`, on the device.
fn noise<O: Backend>(o: &mut O, model: &Checkpoint, part: Part, window: Rect) -> Vec<O::Tensor> {
    let inputs = decoder::noise_inputs(&model.arch, part, SEED, window);
    inputs.iter().map(|(shape, values)| o.upload(*shape, values).unwrap()).collect()
}

/// The one U-Net of a model of version 1.
fn joint_denoiser<O: Backend>(o: &mut O, model: &Checkpoint, io: &Fixture, tolerance: f64) {
    let arch = &model.arch;
    let named = |part: &str| format!("{} {part}", arch.name);
    let latents = io.numbered("unet/in.");
    let shapes: Vec<_> = latents.iter().map(|latent| latent.shape).collect();
    let mut inputs = upload(o, &latents);
    let c_noise = f64::from(io.tensor("unet/c_noise").1[0]);
    let (shape, features) = unet::features(arch.group(0), &[c_noise]);
    inputs.push(o.upload(shape, &features).unwrap());
    let out = o.run(&unet::graph(arch, 0, &shapes).unwrap(), inputs).unwrap();
    assert_eq!(out.len(), arch.levels.len());
    for (l, out) in out.iter().enumerate() {
        let name = format!("unet/out.{l}");
        close(o, &named(&name), out, io.tensor(&name), tolerance);
    }
    let sigma = f64::from(io.tensor("denoiser/sigma").1[0]);
    let z = io.numbered("denoiser/in.");
    let noisy = NoisyLatents { z: &z, group: 0, sigma, guidance: None };
    denoised(o, model, &noisy, io, "denoiser/out", tolerance);
}

/// The U-Net of a group: with labels, without, and guided, beside another picture of the batch.
fn group_denoiser<O: Backend>(
    o: &mut O,
    model: &Checkpoint,
    io: &Fixture,
    group: usize,
    tolerance: f64,
) {
    let shape = model.arch.group(group);
    let (own, condition) = (
        io.numbered(&format!("groups.{group}/in.")),
        io.numbered(&format!("groups.{group}/condition.")),
    );
    assert_eq!((own.len(), condition.len()), (shape.levels().len(), shape.condition().len()));
    // The finer levels are not read.
    let finer = (0..shape.range().start).map(|level| {
        let (shape, _) = io.tensor(&format!("decoder/in.{level}"));
        Latent { shape, data: vec![f32::NAN; shape.len()] }
    });
    let z: Vec<_> = finer.chain(own).chain(condition).collect();
    let sigma = f64::from(io.tensor("sigma").1[0]);
    let rows: Vec<_> = io.labels("labels");
    let labelled = Guidance { rows: rows.clone(), scale: 1.0 };
    let with = NoisyLatents { z: &z, group, sigma, guidance: Some(&labelled) };
    denoised(o, model, &with, io, &format!("groups.{group}/denoised"), tolerance);
    let without = NoisyLatents { guidance: None, ..with };
    denoised(o, model, &without, io, &format!("groups.{group}/unlabelled"), tolerance);

    // Guidance is for the first group.
    let guided = Guidance { rows, scale: 3.0 };
    let twice = NoisyLatents { guidance: Some(&guided), ..with };
    let batch = precond::denoise(o, model, &[without, twice, with]).unwrap();
    let [a, b, c] = &batch[..] else { panic!("{} results", batch.len()) };
    assert!(*a == precond::denoise(o, model, &[without]).unwrap()[0]);
    assert!(*c == precond::denoise(o, model, &[with]).unwrap()[0]);
    let scale = if group == 0 { 3.0 } else { 1.0 };
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        let wanted = a.data.iter().zip(&c.data).map(|(a, c)| a + scale * (c - a));
        let error = relative_error(&b.data, &wanted.collect::<Vec<_>>());
        assert!(error <= 1e-5, "guided: relative error {error:.2e}");
    }
}

/// D of `noisy` is that of the fixture.
fn denoised<O: Backend>(
    o: &mut O,
    model: &Checkpoint,
    noisy: &NoisyLatents<'_>,
    io: &Fixture,
    name: &str,
    tolerance: f64,
) {
    let out = precond::denoise(o, model, &[*noisy]).unwrap().remove(0);
    assert_eq!(out.len(), model.arch.group(noisy.group).levels().len());
    for (l, out) in out.iter().enumerate() {
        let (shape, expected) = io.tensor(&format!("{name}.{l}"));
        assert_eq!(out.shape, shape);
        let error = relative_error(&out.data, expected);
        assert!(error <= tolerance, "{} {name}.{l}: relative error {error:.2e}", model.arch.name);
    }
}
