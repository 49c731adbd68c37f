//! Times the networks and their operators for `benches/compare_torch.py` and `benches/compare_vulkan.py`: one command
//! per line of standard input, one line of JSON with the seconds of every repetition on standard output. On the CPU,
//! with `--bf16` with products in bf16; with `--gpu` on the GPU, there with `--f16` with products in f16. With
//! `--cpu-time`, CPU seconds of all threads (Linux), for comparisons on a machine with other load.
//!
//! Commands: `conv CIN COUT KERNEL ROWS COLUMNS`, `whole` with the same (a layer that only runs on whole grids, as the
//! U-Net's), both on the GPU also as `conv:VARIANT`; `norm CHANNELS ROWS COLUMNS` (GroupNorm with SiLU), `attention
//! CHANNELS ROWS COLUMNS` (over pixels), `channels` with the same (attention over channels), `copy MIB`; with a
//! checkpoint's path as argument also `unet WIDTH HEIGHT`, `decoder WIDTH HEIGHT` (with a third number: the batch size;
//! with a fourth: the group of levels) and `generate WIDTH HEIGHT STEPS`, for pictures of that size. `generate` is everything from the seed to the samples
//! of all tiles.
//!
//! Always on the GPU: `chain:VARIANT` with a convolution's numbers, which is four of it with upload and download;
//! `fma`, whose line also tells its `flops`: multiply-adds on registers; `submit`, one submission of nothing but the
//! download of 16 bytes; `dispatch COUNT`, the seconds per dispatch in a run of COUNT kernels of one invocation each.
//! With a checkpoint, `unet` and `decoder` on the GPU also tell the number of `dispatches` of one evaluation. If the
//! device lacks a requested feature the line has no seconds and gives the reason. `adapters` prints limits, features
//! and matrices of all adapters.
#![allow(missing_docs, reason = "a benchmark has no interface")]

mod ceiling;

use std::{
    env,
    error::Error,
    fs,
    io::{BufRead, Write, stdin, stdout},
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use rayon::prelude::*;
use tessera::{
    engine::{
        self, Cancel, Event,
        plan::{Plan, Spec},
    },
    error::Kind,
    exec::{
        cpu::{Cpu, Kernels},
        gpu::{ConvVariant, Gpu},
    },
    graph::{
        Backend, Graph, GraphBuilder, Input,
        testing::{random_inputs, results},
    },
    model::{arch::norm_groups, checkpoint::Checkpoint, decoder, sampler::latent_shapes, unet},
    ops::{
        Conv2d, Domain, GroupNorm, Op, Rect, Shape,
        testing::Random,
        weights::{Param, Weights},
    },
};

/// Convolutions of a chain on the GPU.
const CHAIN: usize = 4;

/// Seconds since a fixed moment: wall-clock time, or CPU time of all threads.
fn now(cpu_time: bool) -> Result<f64, Box<dyn Error>> {
    static START: OnceLock<Instant> = OnceLock::new();
    if !cpu_time {
        return Ok(START.get_or_init(Instant::now).elapsed().as_secs_f64());
    }
    let mut nanoseconds = 0;
    for task in fs::read_dir("/proc/self/task")? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let on_core = text.split_whitespace().next().ok_or("schedstat is empty")?;
        nanoseconds += on_core.parse::<u64>()?;
    }
    Ok(nanoseconds as f64 / 1e9)
}

/// Seconds of `work` for several batches that are long enough for the clock, after two runs to warm up.
fn time(
    cpu_time: bool,
    mut work: impl FnMut() -> tessera::error::Result<()>,
) -> Result<Vec<f64>, Box<dyn Error>> {
    work()?;
    let begin = Instant::now();
    work()?;
    let batch = (0.02 / begin.elapsed().as_secs_f64()).ceil() as usize;
    let (start, mut seconds) = (Instant::now(), Vec::new());
    while start.elapsed() < Duration::from_millis(300) || seconds.len() < 3 {
        let begin = now(cpu_time)?;
        (0..batch).try_for_each(|_| work())?;
        seconds.push((now(cpu_time)? - begin) / batch as f64);
    }
    Ok(seconds)
}

fn random_weights(
    random: &mut Random,
    params: impl IntoIterator<Item = (String, Vec<usize>)>,
) -> Arc<Weights> {
    let mut weights = Weights::default();
    for (name, shape) in params {
        let data = random.values(shape.iter().product(), 0.0, 0.1);
        weights.insert(name, Param { shape, data });
    }
    Arc::new(weights)
}

/// Settings of a measurement.
struct Setup<'a, O> {
    cpu_time: bool,
    /// Runs of an operator per download.
    runs: usize,
    open: &'a dyn Fn(Arc<Weights>) -> tessera::error::Result<O>,
    /// Number of dispatches that an interpreter has recorded, on a GPU.
    dispatches: fn(&O) -> Option<u64>,
}

/// A measurement: seconds of every repetition, and the dispatches of one evaluation of a network on a GPU.
#[derive(Default)]
struct Measured {
    seconds: Vec<f64>,
    dispatches: Option<u64>,
}

impl From<Vec<f64>> for Measured {
    fn from(seconds: Vec<f64>) -> Self {
        Self { seconds, dispatches: None }
    }
}

/// One operator, of which all inputs are the same tensor of random values of `shape`, with random parameters.
fn operator<O: Backend>(
    setup: &Setup<O>,
    op: &Op,
    inputs: usize,
    shape: Shape,
) -> Result<Vec<f64>, Box<dyn Error>> {
    let mut random = Random::new(1);
    let mut ops = (setup.open)(random_weights(&mut random, op.params()))?;
    let x = ops.upload(shape, &random.values(shape.len(), 0.0, 1.0))?;
    let mut g = GraphBuilder::new();
    let input = g.input(shape)?;
    let result = g.operator(op.clone(), &vec![input; inputs])?;
    let shape = g.shape(result);
    let graph = g.finish([result]);
    let mut g = GraphBuilder::new();
    let whole = g.input(shape)?;
    let pixel = g.crop(whole, Rect { x: 0, y: 0, width: 1, height: 1 })?;
    let pixel = g.finish([pixel]);
    let seconds = time(setup.cpu_time, || {
        let mut last = Vec::new();
        for _ in 0..setup.runs {
            last = ops.run(&graph, vec![x.clone()])?;
        }
        let read = ops.run(&pixel, last)?;
        ops.download(&read[0]).map(drop)
    })?;
    Ok(seconds.into_iter().map(|seconds| seconds / setup.runs as f64).collect())
}

/// A layer and the shape of its input from `extents`: inputs, outputs, kernel, rows, columns.
fn layer(extents: &[usize], domain: Domain) -> Result<(Conv2d, Shape), Box<dyn Error>> {
    let &[inputs, outputs, kernel, rows, columns] = extents else {
        return Err("a convolution takes 5 numbers".into());
    };
    let layer =
        Conv2d { name: "layer".into(), in_channels: inputs, out_channels: outputs, kernel, domain };
    Ok((layer, Shape::new(1, rows, columns, inputs)))
}

/// A chain of [`CHAIN`] times the same convolution on the GPU, upload and download included.
fn chain(
    cpu_time: bool,
    open: impl Fn(Arc<Weights>) -> tessera::error::Result<Gpu>,
    extents: &[usize],
) -> Result<Vec<f64>, Box<dyn Error>> {
    let (layer, shape) = layer(extents, Domain::Whole)?;
    let mut random = Random::new(1);
    let mut gpu = open(random_weights(&mut random, layer.params()))?;
    let data = random.values(shape.len(), 0.0, 1.0);
    let mut g = GraphBuilder::new();
    let mut x = g.input(shape)?;
    for _ in 0..CHAIN {
        x = g.conv2d(x, layer.clone())?;
    }
    let (graph, inputs) = (g.finish([x]), [(shape, data)]);
    time(cpu_time, || results(&mut gpu, &graph, &inputs).map(drop))
}

/// Multiply-adds on the GPU, without memory accesses.
fn fma(cpu_time: bool) -> Result<Vec<f64>, Box<dyn Error>> {
    let ceiling = ceiling::Ceiling::new()?;
    let failed = |e: wgpu::PollError| tessera::error::Error::device("gpu", e.to_string());
    time(cpu_time, || ceiling.run().map_err(failed))
}

/// `count` kernels of one invocation each (none at all for 0), then the download of 16 bytes.
fn submissions(
    cpu_time: bool,
    open: impl Fn(Arc<Weights>) -> tessera::error::Result<Gpu>,
    count: usize,
) -> Result<Vec<f64>, Box<dyn Error>> {
    let mut gpu = open(Arc::default())?;
    let shape = Shape::new(1, 1, 1, 4);
    let first = gpu.upload(shape, &[0.5; 4])?;
    let mut g = GraphBuilder::new();
    let mut x = g.input(shape)?;
    for _ in 0..count {
        x = g.silu(x)?;
    }
    let graph = g.finish([x]);
    let seconds = time(cpu_time, || {
        let x = gpu.run(&graph, vec![first.clone()])?.remove(0);
        gpu.download(&x).map(drop)
    })?;
    Ok(seconds.into_iter().map(|seconds| seconds / count.max(1) as f64).collect())
}

/// Limits and features of every adapter, as its driver reports them.
fn adapters() -> Vec<serde_json::Value> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::PRIMARY;
    let instance = wgpu::Instance::new(descriptor);
    let all = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    let describe = |adapter: wgpu::Adapter| {
        serde_json::json!({
            "adapter": format!("{:?}", adapter.get_info()),
            "limits": format!("{:?}", adapter.limits()),
            "features": format!("{:?}", adapter.features()),
            "matrices": format!("{:?}", adapter.cooperative_matrix_properties()),
        })
    };
    all.into_iter().map(describe).collect()
}

/// A copy on all threads.
fn copy(cpu_time: bool, extents: &[usize]) -> Result<Vec<f64>, Box<dyn Error>> {
    let &[mebibytes] = extents else { return Err("copy takes a number of MiB".into()) };
    let from = vec![1.0f32; mebibytes << 18];
    let mut to = vec![0.0f32; from.len()];
    let part = from.len().div_ceil(rayon::current_num_threads()).max(1);
    time(cpu_time, || {
        let parts = to.par_chunks_mut(part).zip(from.par_chunks(part));
        parts.for_each(|(to, from)| to.copy_from_slice(from));
        Ok(())
    })
}

/// Seconds of `command` with `extents` on the device of `setup`.
fn run<O: Backend>(
    setup: &Setup<O>,
    model: Option<&Checkpoint>,
    command: &str,
    extents: &[usize],
) -> Result<Measured, Box<dyn Error>> {
    let seconds = match (command, extents) {
        ("conv" | "whole", _) => {
            let domain = if command == "whole" { Domain::Whole } else { Domain::Window };
            let (layer, shape) = layer(extents, domain)?;
            operator(setup, &Op::Conv2d(layer), 1, shape)?
        }
        ("norm", &[channels, rows, columns]) => {
            let groups = norm_groups(channels);
            let norm = GroupNorm { name: "norm".into(), channels, groups, silu: true };
            let shape = Shape::new(1, rows, columns, channels);
            operator(setup, &Op::GroupNorm(norm), 1, shape)?
        }
        ("attention" | "channels", &[channels, rows, columns]) => {
            let shape = Shape::new(1, rows, columns, channels);
            let op = match command {
                "attention" => Op::SpatialAttention,
                _ => Op::ChannelAttention,
            };
            operator(setup, &op, 3, shape)?
        }
        // All rows but one of a tensor, in rows of 64 KiB.
        ("copy", &[mebibytes]) => {
            let rows = mebibytes << 4;
            let window = Rect { x: 0, y: 1, width: 256, height: rows };
            operator(setup, &Op::Crop(window), 1, Shape::new(1, rows + 1, 256, 64))?
        }
        ("generate", &[width, height, steps]) => {
            let model = model.ok_or("generate takes a checkpoint as argument")?;
            let spec = Spec { width, height, steps: steps.into(), ..Spec::new(&model.arch, 7) };
            let plan = Plan::new(spec, &model.arch)?;
            let mut ops = (setup.open)(model.weights.clone())?;
            let (scratch, cancel) = (env::temp_dir(), Cancel::default());
            time(setup.cpu_time, || {
                let mut silent = |_: Event| ();
                engine::generate(&mut ops, model, &plan, &scratch, &mut silent, &cancel).map(drop)
            })?
        }
        ("unet" | "decoder", &[width, height, ref more @ ..]) if more.len() < 3 => {
            let model = model.ok_or("a network takes a checkpoint as argument")?;
            let (batch, group) = (more.first().map_or(1, |&n| n), more.get(1).map_or(0, |&g| g));
            let latents = latent_shapes(&model.arch, batch, width, height);
            let graph = match command {
                "unet" => unet::graph(&model.arch, group, &latents),
                _ => decoder::graph(&model.arch, &latents),
            }?;
            return network(setup, model, &graph);
        }
        _ => return Err(format!("{command} with {} numbers is no command", extents.len()).into()),
    };
    Ok(seconds.into())
}

/// One evaluation of `graph`, a network of `model`, upload and download included.
fn network<O: Backend>(
    setup: &Setup<O>,
    model: &Checkpoint,
    graph: &Graph,
) -> Result<Measured, Box<dyn Error>> {
    let values = random_inputs(graph, &mut Random::new(1));
    let inputs: Vec<_> = values.iter().map(|(shape, data)| Input::Host(*shape, data)).collect();
    let mut o = (setup.open)(model.weights.clone())?;
    let evaluate = |o: &mut O| {
        let results = o.evaluate(graph, &inputs)?;
        results.into_iter().try_for_each(|result| result.wait().map(drop))
    };
    let seconds = time(setup.cpu_time, || evaluate(&mut o))?;
    let before = (setup.dispatches)(&o);
    evaluate(&mut o)?;
    let dispatches = (setup.dispatches)(&o).zip(before).map(|(after, before)| after - before);
    Ok(Measured { seconds, dispatches })
}

fn main() -> Result<(), Box<dyn Error>> {
    let flag = |name: &str| env::args().any(|argument| argument == name);
    let (cpu_time, gpu, f16) = (flag("--cpu-time"), flag("--gpu"), flag("--f16"));
    let kernels = Kernels::best(flag("--bf16"));
    let path = env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let model = path.map(|path| Checkpoint::open(Path::new(&path))).transpose()?;
    for line in stdin().lock().lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        let Some(command) = words.next() else { continue };
        if command == "adapters" {
            writeln!(stdout(), "{:#}", serde_json::Value::from(adapters()))?;
            continue;
        }
        let extents = words.map(str::parse).collect::<Result<Vec<usize>, _>>()?;
        let (command, variant) = match command.split_once(':') {
            Some((command, variant)) => (command, Some(variant.parse::<ConvVariant>()?)),
            None => (command, None),
        };
        let open_gpu = |weights| {
            let f16 = f16 || variant == Some(ConvVariant::Cooperative);
            let gpu = if f16 { Gpu::with_f16(None, weights) } else { Gpu::new(None, weights) }?;
            Ok(match variant {
                Some(variant) => gpu.with_convolutions(variant),
                None => gpu,
            })
        };
        let open_cpu = |weights| {
            let lacks = || tessera::error::Error::device("cpu", "no bf16 instructions");
            Cpu::with_kernels(weights, kernels.ok_or_else(lacks)?)
        };
        let outcome = match (command, variant) {
            ("fma", None) => fma(cpu_time).map(Measured::from),
            ("chain", Some(_)) => chain(cpu_time, open_gpu, &extents).map(Measured::from),
            ("submit", None) => submissions(cpu_time, open_gpu, 0).map(Measured::from),
            ("dispatch", None) => {
                let &[count] = &extents[..] else { return Err("dispatch takes a number".into()) };
                submissions(cpu_time, open_gpu, count).map(Measured::from)
            }
            ("copy", None) if !gpu => copy(cpu_time, &extents).map(Measured::from),
            _ if gpu => {
                let dispatches = |gpu: &Gpu| Some(gpu.dispatches());
                let setup = Setup { cpu_time, runs: 16, open: &open_gpu, dispatches };
                run(&setup, model.as_ref(), command, &extents)
            }
            _ => {
                let setup = Setup { cpu_time, runs: 1, open: &open_cpu, dispatches: |_| None };
                run(&setup, model.as_ref(), command, &extents)
            }
        };
        let (measured, lack) = match outcome {
            Ok(measured) => (measured, None),
            Err(error) => match error.downcast_ref::<tessera::error::Error>() {
                Some(lack) if lack.kind() == Kind::Device => {
                    (Measured::default(), Some(lack.to_string()))
                }
                _ => return Err(error),
            },
        };
        let flops = (command == "fma").then_some(ceiling::FLOPS);
        let answer = serde_json::json!({
            "command": line, "seconds": measured.seconds, "flops": flops,
            "dispatches": measured.dispatches, "lack": lack,
        });
        writeln!(stdout(), "{answer}")?;
        stdout().flush()?;
    }
    Ok(())
}
