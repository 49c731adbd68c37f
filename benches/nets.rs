//! Times the native CPU path for `benches/compare_torch.py`: one command per line of standard input, one line of JSON
//! with the seconds of every repetition on standard output. With `--cpu-time`, seconds that the threads were on a core
//! (Linux): what to compare with one thread on a machine that has other work. With `--bf16`, products in bf16.
//!
//! Commands: `conv CIN COUT KERNEL ROWS COLUMNS`, `whole` with the same (for a layer that sees whole grids, as the U-Net's), `norm CHANNELS ROWS COLUMNS` (GroupNorm with SiLU), `attention CHANNELS
//! ROWS COLUMNS` (over pixels), `copy MIB`; with a checkpoint's path as argument also `unet WIDTH HEIGHT`, `decoder WIDTH
//! HEIGHT` (with a third number: a batch of so many pictures) and `generate WIDTH HEIGHT STEPS`, for pictures of that
//! size. `generate` is all from the seed to the samples of all tiles. `gpu-unet` and `gpu-decoder` are `unet` and
//! `decoder` on the GPU, in f32. For `benches/compare_vulkan.py`: the name of a variant of the GPU's convolutions in
//! place of `conv`, a chain of four, upload and download included; and `fma`, whose line also tells its `flops`:
//! multiply-adds on the GPU's registers. Where the GPU does not have the variant the line has no seconds, and says why.
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
    exec::{
        cpu::{Cpu, Kernels, Tensor},
        gpu::{ConvVariant, Gpu},
    },
    model::{arch::norm_groups, checkpoint::Checkpoint, decoder, unet},
    ops::{
        Conv2d, GroupNorm, Ops, Shape, Window,
        cases::Random,
        weights::{Param, Weights},
    },
};

/// Convolutions of a chain on the GPU.
const CHAIN: usize = 4;

/// Seconds since some moment: of the clock on the wall, or of all threads together on a core.
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

/// Seconds of `work`, of several batches that are long enough for the clocks, after two that warm caches and pools.
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

/// One operator on random inputs of `shape`, with random parameters.
fn operator(
    cpu_time: bool,
    kernels: Kernels,
    params: impl IntoIterator<Item = (String, Vec<usize>)>,
    shape: Shape,
    mut run: impl FnMut(&mut Cpu, &Tensor) -> tessera::error::Result<Tensor>,
) -> Result<Vec<f64>, Box<dyn Error>> {
    let mut random = Random::new(1);
    let mut cpu = Cpu::with_kernels(random_weights(&mut random, params), kernels)?;
    let x = cpu.upload(shape, &random.values(shape.len(), 0.0, 1.0))?;
    time(cpu_time, || {
        let out = run(&mut cpu, &x)?;
        // A result may wait until it is read.
        cpu.crop(&out, Window { y: 0, x: 0, h: 1, w: 1 }).map(drop)
    })
}

/// A layer of `extents`: inputs, outputs, kernel; and the shape of what it reads: rows, columns.
fn layer(extents: &[usize], whole: bool) -> Result<(Conv2d, Shape), Box<dyn Error>> {
    let &[inputs, outputs, kernel, rows, columns] = extents else {
        return Err("a convolution takes 5 numbers".into());
    };
    let layer =
        Conv2d { name: "layer".into(), in_channels: inputs, out_channels: outputs, kernel, whole };
    Ok((layer, Shape::new(1, rows, columns, inputs)))
}

fn conv(
    cpu_time: bool,
    kernels: Kernels,
    extents: &[usize],
    whole: bool,
) -> Result<Vec<f64>, Box<dyn Error>> {
    let (layer, shape) = layer(extents, whole)?;
    operator(cpu_time, kernels, layer.params(), shape, |cpu, x| cpu.conv2d(x, &layer))
}

/// A chain of [`CHAIN`] times the same convolution on the GPU, upload and download included.
fn gpu_conv(
    cpu_time: bool,
    variant: ConvVariant,
    extents: &[usize],
) -> Result<Vec<f64>, Box<dyn Error>> {
    let (layer, shape) = layer(extents, true)?;
    let mut random = Random::new(1);
    let weights = random_weights(&mut random, layer.params());
    let gpu = match variant {
        ConvVariant::Cooperative => Gpu::with_f16(None, weights)?,
        _ => Gpu::new(None, weights)?,
    };
    let mut gpu = gpu.with_convolutions(variant);
    let data = random.values(shape.len(), 0.0, 1.0);
    time(cpu_time, || {
        let mut x = gpu.upload(shape, &data)?;
        for _ in 0..CHAIN {
            x = gpu.conv2d(&x, &layer)?;
        }
        gpu.download(&x).map(drop)
    })
}

/// Nothing but multiply-adds on the GPU.
fn fma(cpu_time: bool) -> Result<Vec<f64>, Box<dyn Error>> {
    let ceiling = ceiling::Ceiling::new()?;
    let failed = |e: wgpu::PollError| tessera::error::Error::device(e.to_string());
    time(cpu_time, || ceiling.run().map_err(failed))
}

fn norm(cpu_time: bool, kernels: Kernels, extents: &[usize]) -> Result<Vec<f64>, Box<dyn Error>> {
    let &[channels, rows, columns] = extents else { return Err("norm takes 3 numbers".into()) };
    let groups = norm_groups(channels);
    let norm = GroupNorm { name: "norm".into(), channels, groups, silu: true };
    let shape = Shape::new(1, rows, columns, channels);
    operator(cpu_time, kernels, norm.params(), shape, |cpu, x| cpu.group_norm(x, &norm))
}

fn attention(
    cpu_time: bool,
    kernels: Kernels,
    extents: &[usize],
) -> Result<Vec<f64>, Box<dyn Error>> {
    let &[channels, rows, columns] = extents else {
        return Err("attention takes 3 numbers".into());
    };
    let shape = Shape::new(1, rows, columns, channels);
    operator(cpu_time, kernels, [], shape, |cpu, x| cpu.spatial_attention(x, x, x))
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

/// A picture of `extents` pixels and steps, from its seed to all its samples.
fn generate(
    cpu_time: bool,
    kernels: Kernels,
    model: Option<&Checkpoint>,
    extents: &[usize],
) -> Result<Vec<f64>, Box<dyn Error>> {
    let (Some(model), &[width, height, steps]) = (model, extents) else {
        return Err("generate takes width, height and steps, and a checkpoint as argument".into());
    };
    let mut cpu = Cpu::with_kernels(model.weights.clone(), kernels)?;
    let plan = Plan::new(Spec { width, height, steps, ..Spec::new(&model.arch, 7) }, &model.arch)?;
    let (scratch, cancel) = (env::temp_dir(), Cancel::default());
    time(cpu_time, || {
        engine::generate(&mut cpu, model, &plan, &scratch, &mut |_: Event| (), &cancel).map(drop)
    })
}

/// One evaluation of a network of `model` for a picture of `extents` pixels by the interpreter that `open` gives, upload and
/// download included.
fn network<O: Ops>(
    cpu_time: bool,
    open: impl FnOnce(Arc<Weights>) -> tessera::error::Result<O>,
    model: Option<&Checkpoint>,
    net: &str,
    extents: &[usize],
) -> Result<Vec<f64>, Box<dyn Error>> {
    let (model, width, height, batch) = match (model, extents) {
        (Some(model), &[width, height]) => (model, width, height, 1),
        (Some(model), &[width, height, batch]) => (model, width, height, batch),
        _ => {
            let wanted = "a width, a height and perhaps a batch, and a checkpoint as argument";
            return Err(format!("{net} takes {wanted}").into());
        }
    };
    let (arch, mut random) = (&model.arch, Random::new(1));
    let grids = arch.levels.iter().zip(arch.grids(width, height));
    let latents: Vec<(Shape, Vec<f32>)> = grids
        .map(|(level, (rows, columns))| Shape::new(batch, rows, columns, level.channels))
        .map(|shape| (shape, random.values(shape.len(), 0.0, 1.0)))
        .collect();
    let mut o = open(model.weights.clone())?;
    time(cpu_time, || {
        let z = latents.iter().map(|(shape, data)| o.upload(*shape, data));
        let z = z.collect::<tessera::error::Result<Vec<_>>>()?;
        let outputs = if net == "unet" {
            unet::predict(&mut o, arch, &z, &[0.3])?
        } else {
            let (h, r) = decoder::global_stage(&mut o, arch, &z)?;
            vec![decoder::local_stage(&mut o, arch, h, r)?]
        };
        outputs.iter().try_for_each(|out| o.download(out).map(|_| ()))
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let cpu_time = env::args().any(|argument| argument == "--cpu-time");
    let bf16 = env::args().any(|argument| argument == "--bf16");
    let kernels = Kernels::best(bf16).ok_or("this CPU has no bf16")?;
    let path = env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let model = path.map(|path| Checkpoint::open(Path::new(&path))).transpose()?;
    for line in stdin().lock().lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        let Some(command) = words.next() else { continue };
        let extents = words.map(str::parse).collect::<Result<Vec<usize>, _>>()?;
        let mut lack = None;
        let seconds = match command {
            "conv" | "whole" => conv(cpu_time, kernels, &extents, command == "whole")?,
            "norm" => norm(cpu_time, kernels, &extents)?,
            "attention" => attention(cpu_time, kernels, &extents)?,
            "copy" => copy(cpu_time, &extents)?,
            "generate" => generate(cpu_time, kernels, model.as_ref(), &extents)?,
            "unet" | "decoder" => {
                let open = |weights| Cpu::with_kernels(weights, kernels);
                network(cpu_time, open, model.as_ref(), command, &extents)?
            }
            "gpu-unet" | "gpu-decoder" => {
                let (open, net) = (|weights| Gpu::new(None, weights), &command["gpu-".len()..]);
                network(cpu_time, open, model.as_ref(), net, &extents)?
            }
            "fma" => fma(cpu_time)?,
            other => match gpu_conv(cpu_time, ConvVariant::from_name(other)?, &extents) {
                Err(error) if other == ConvVariant::Cooperative.name() => {
                    lack = Some(error.to_string());
                    Vec::new()
                }
                outcome => outcome?,
            },
        };
        let flops = (command == "fma").then_some(ceiling::FLOPS);
        let answer = serde_json::json!({
            "command": line, "seconds": seconds, "flops": flops, "lack": lack,
        });
        writeln!(stdout(), "{answer}")?;
        stdout().flush()?;
    }
    Ok(())
}
