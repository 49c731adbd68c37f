//! Comparison of any interpreter with the fixtures: `make` builds one from a model's parameters.

use std::{collections::BTreeMap, sync::Arc};

use serde::Deserialize;
use serde_json::Value;
use tessera::{
    graph::{Backend, GraphBuilder, testing::apply},
    model::{
        arch::{AttentionRatio, Norm},
        block::{Block, Resample, sc_attention},
        decoder, encoder, precond, safetensors,
        sampler::{Latent, NoisyLatents},
        unet,
    },
    ops::{
        Conv2d, Domain, Factors, GroupNorm, Op, PixelNorm, Rect, Shape,
        testing::relative_error,
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
    assert!(fixture.cases.len() >= 17);
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

/// Encoder, both stages of the decoder, U-Net and preconditioned denoiser of whole models.
pub(crate) fn networks<O: Backend>(make: impl Fn(Arc<Weights>) -> O, tolerance: f64) {
    for net in ["net-a", "net-b", "net-c", "net-d", "net-e", "net-f"] {
        let model = model(net);
        let (arch, io) = (&model.arch, Fixture::read(&format!("{net}.io")));
        let mut o = make(model.weights.clone());
        let o = &mut o;
        let named = |part: &str| format!("{net} {part}");

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
        let graph = decoder::global_graph(arch, &shapes).unwrap();
        let z = upload(o, &latents);
        let global = o.run(&graph, z).unwrap();
        let [h, r] = &global[..] else { panic!("{net}: {} results", global.len()) };
        close(o, &named("h"), h, io.tensor("decoder/h"), tolerance);
        close(o, &named("r"), r, io.tensor("decoder/r"), tolerance);
        let Shape { n, h: rows, w: columns, .. } = o.shape(r);
        let graph = decoder::local_graph(arch, n, rows, columns).unwrap();
        let out = o.run(&graph, global).unwrap();
        close(o, &named("decoder"), &out[0], io.tensor("decoder/out"), tolerance);

        let latents = io.numbered("unet/in.");
        let shapes: Vec<_> = latents.iter().map(|latent| latent.shape).collect();
        let mut inputs = upload(o, &latents);
        let c_noise = f64::from(io.tensor("unet/c_noise").1[0]);
        let (shape, features) = unet::features(arch, &[c_noise]);
        inputs.push(o.upload(shape, &features).unwrap());
        let out = o.run(&unet::graph(arch, &shapes, 1).unwrap(), inputs).unwrap();
        assert_eq!(out.len(), arch.levels.len());
        for (l, out) in out.iter().enumerate() {
            let name = format!("unet/out.{l}");
            close(o, &named(&name), out, io.tensor(&name), tolerance);
        }

        let sigma = f64::from(io.tensor("denoiser/sigma").1[0]);
        let noisy = io.numbered("denoiser/in.");
        let out = precond::denoise(o, arch, &[NoisyLatents { z: &noisy, sigma }]).unwrap();
        let out = &out[0];
        for (l, out) in out.iter().enumerate() {
            let name = format!("denoiser/out.{l}");
            let (shape, expected) = io.tensor(&name);
            assert_eq!(out.shape, shape);
            let error = relative_error(&out.data, expected);
            assert!(error <= tolerance, "{net} {name}: relative error {error:.2e}");
        }
    }
}
