//! Times the native CPU path for `benches/compare_torch.py`: one command per line of standard input, one line of JSON
//! with the seconds of every repetition on standard output. With `--cpu-time`, seconds that the threads were on a core
//! (Linux): what to compare with one thread on a machine that has other work.
//!
//! Commands: `conv CIN COUT KERNEL ROWS COLUMNS`; with a checkpoint's path as argument also `unet WIDTH HEIGHT` and
//! `decoder WIDTH HEIGHT`, for pictures of that size. For `benches/compare_vulkan.py`: the name of a variant of the GPU's
//! convolutions in place of `conv`, a chain of four, upload and download included.
#![allow(missing_docs, reason = "a benchmark has no interface")]

use std::{
    env,
    error::Error,
    fs,
    io::{BufRead, Write, stdin, stdout},
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use tessera::{
    exec::{
        cpu::Cpu,
        gpu::{ConvVariant, Gpu},
    },
    model::{checkpoint::Checkpoint, decoder, unet},
    ops::{
        Conv2d, Ops, Shape,
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

/// A convolution with its parameters and an input.
struct Layer {
    weights: Arc<Weights>,
    conv: Conv2d,
    shape: Shape,
    data: Vec<f32>,
}

/// A random layer of `inputs`, `outputs`, `kernel`, and an input of `rows`, `columns` for it.
fn layer(extents: &[usize]) -> Result<Layer, Box<dyn Error>> {
    let &[inputs, outputs, kernel, rows, columns] = extents else {
        return Err("a convolution takes 5 numbers".into());
    };
    let mut random = Random::new(1);
    let mut weights = Weights::default();
    let conv = Conv2d { name: "layer".into(), in_channels: inputs, out_channels: outputs, kernel };
    for ((name, shape), scale) in conv.params().into_iter().zip([0.1, 1.0]) {
        let data = random.values(shape.iter().product(), 0.0, scale);
        weights.insert(name, Param { shape, data });
    }
    let shape = Shape::new(1, rows, columns, inputs);
    let data = random.values(shape.len(), 0.0, 1.0);
    Ok(Layer { weights: Arc::new(weights), conv, shape, data })
}

fn conv(cpu_time: bool, extents: &[usize]) -> Result<Vec<f64>, Box<dyn Error>> {
    let Layer { weights, conv, shape, data } = layer(extents)?;
    let mut cpu = Cpu::new(weights);
    let x = cpu.upload(shape, &data)?;
    time(cpu_time, || cpu.conv2d(&x, &conv).map(|_| ()))
}

/// A chain of [`CHAIN`] times the same convolution on the GPU, upload and download included.
fn gpu_conv(
    cpu_time: bool,
    variant: ConvVariant,
    extents: &[usize],
) -> Result<Vec<f64>, Box<dyn Error>> {
    let Layer { weights, conv, shape, data } = layer(extents)?;
    let mut gpu = Gpu::new(None, weights)?.with_convolutions(variant);
    time(cpu_time, || {
        let mut x = gpu.upload(shape, &data)?;
        for _ in 0..CHAIN {
            x = gpu.conv2d(&x, &conv)?;
        }
        gpu.download(&x).map(|_| ())
    })
}

/// One evaluation of a network of `model` for a picture of `extents` pixels, upload and download included.
fn network(
    cpu_time: bool,
    model: Option<&Checkpoint>,
    net: &str,
    extents: &[usize],
) -> Result<Vec<f64>, Box<dyn Error>> {
    let (Some(model), &[width, height]) = (model, extents) else {
        return Err(
            format!("{net} takes a width and a height, and a checkpoint as argument").into()
        );
    };
    let (arch, mut random) = (&model.arch, Random::new(1));
    let grids = arch.levels.iter().zip(arch.grids(width, height));
    let latents: Vec<(Shape, Vec<f32>)> = grids
        .map(|(level, (rows, columns))| Shape::new(1, rows, columns, level.channels))
        .map(|shape| (shape, random.values(shape.len(), 0.0, 1.0)))
        .collect();
    let mut cpu = Cpu::new(model.weights.clone());
    time(cpu_time, || {
        let z = latents.iter().map(|(shape, data)| cpu.upload(*shape, data));
        let z = z.collect::<tessera::error::Result<Vec<_>>>()?;
        let outputs = if net == "unet" {
            unet::predict(&mut cpu, arch, &z, 0.3)?
        } else {
            let (h, r) = decoder::global_stage(&mut cpu, arch, &z)?;
            vec![decoder::local_stage(&mut cpu, arch, h, r)?]
        };
        outputs.iter().try_for_each(|out| cpu.download(out).map(|_| ()))
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let cpu_time = env::args().any(|argument| argument == "--cpu-time");
    let path = env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let model = path.map(|path| Checkpoint::open(Path::new(&path))).transpose()?;
    for line in stdin().lock().lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        let Some(command) = words.next() else { continue };
        let extents = words.map(str::parse).collect::<Result<Vec<usize>, _>>()?;
        let seconds = match command {
            "conv" => conv(cpu_time, &extents)?,
            "unet" | "decoder" => network(cpu_time, model.as_ref(), command, &extents)?,
            other => gpu_conv(cpu_time, ConvVariant::from_name(other)?, &extents)?,
        };
        writeln!(stdout(), "{}", serde_json::json!({ "command": line, "seconds": seconds }))?;
        stdout().flush()?;
    }
    Ok(())
}
