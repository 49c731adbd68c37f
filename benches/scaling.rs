//! Time and memory as functions of the picture's size: the embedded model on the CPU from 2 to 128 megapixels. Prints a
//! table; sizes can be given as arguments (`cargo bench --bench scaling -- 2048x1024 4096x2048`).
//!
//! Columns: the decode in tiles of 512, in seconds per megapixel and relative to the first size, and the share of its
//! operations that is due to attention over pixels, which grows with their square; the same for one evaluation of the
//! U-Net; peak memory while decoding and while denoising, and the plan's estimate. Memory is that of the process
//! (Linux), weights included.
#![allow(missing_docs, reason = "a benchmark has no interface")]

use std::{
    env, fs,
    hint::black_box,
    time::{Duration, Instant},
};

use tessera::{
    engine::{
        device::{Choice, Device, Precision},
        plan::{Plan, Spec},
        tiles::{PixelBuffer, TileDecoder, samples},
    },
    error::{Error, Result},
    exec::memory::MEMORY,
    graph::Backend,
    model::{
        arch::Arch,
        checkpoint::Checkpoint,
        cost, precond,
        sampler::{Latent, NoisyLatents},
    },
    ops::testing::Random,
};

/// Resets the peak memory of the process.
fn forget_peak() {
    // Without permission, or the file, the peak of all sizes so far remains.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// Peak memory since the reset, in MiB.
fn peak_mib() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

fn latents(plan: &Plan) -> Vec<Latent> {
    let mut random = Random::new(1);
    let shapes = plan.latents.iter();
    shapes.map(|&shape| Latent { shape, data: random.values(shape.len(), 0.0, 0.5) }).collect()
}

/// Seconds of the whole decode, pixels into a file.
fn decode<O: Backend>(
    ops: &mut O,
    model: &Checkpoint,
    plan: &Plan,
    z: &[Latent],
) -> Result<Duration> {
    let began = Instant::now();
    let (spec, arch) = (&plan.spec, &model.arch);
    let mut canvas = PixelBuffer::create(&env::temp_dir(), spec.width, spec.height, spec.bits)?;
    let decoder = TileDecoder::new(ops, arch, z, 7)?;
    for tile in &plan.tiling.tiles {
        let values = decoder.decode(ops, arch, tile)?;
        canvas.put(tile.rect, &samples(tile.rect, &values, spec.bits)?)?;
    }
    black_box(canvas.bytes());
    Ok(began.elapsed())
}

/// Seconds of one evaluation of the U-Net.
fn evaluate<O: Backend>(ops: &mut O, model: &Checkpoint, z: &[Latent]) -> Result<Duration> {
    let began = Instant::now();
    let noisy = NoisyLatents { z, group: 0, sigma: 1.0, guidance: None };
    black_box(precond::denoise(ops, model, &[noisy])?);
    Ok(began.elapsed())
}

/// Operations of a whole decode.
fn decode_flops(arch: &Arch, width: usize, height: usize) -> Result<f64> {
    let finest = arch.levels[0].factor;
    let local = cost::local_cost(arch, &MEMORY, height / finest, width / finest)?;
    Ok((cost::global_cost(arch, &MEMORY, width, height)?.flops + local.flops) as f64)
}

/// Operations of one evaluation of the U-Net.
fn unet_flops(arch: &Arch, width: usize, height: usize) -> Result<f64> {
    Ok(cost::unet_cost(arch, 0, 1, &MEMORY, width, height)?.flops as f64)
}

fn table<O: Backend>(ops: &mut O, model: &Checkpoint, sizes: &[(usize, usize)]) -> Result<()> {
    println!(
        "| picture | decode s/MP | to first | by attention | U-Net s/MP | to first | by attention | decode MiB | U-Net MiB | planned MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let mut first = None;
    for &(width, height) in sizes {
        let arch = &model.arch;
        let plan = Plan::new(Spec { width, height, ..Spec::new(arch, 7) }, arch)?;
        let (z, megapixels) = (latents(&plan), (width * height) as f64 / 1e6);
        // The first run of the smallest size packs the weights.
        if first.is_none() {
            decode(ops, model, &plan, &z)?;
            evaluate(ops, model, &z)?;
        }
        // Small sizes are short, so the best of several runs counts.
        let repetitions = if megapixels < 40.0 { 3 } else { 1 };
        forget_peak();
        let times = (0..repetitions).map(|_| decode(ops, model, &plan, &z));
        let decoded = times.collect::<Result<Vec<_>>>()?.into_iter().min().unwrap_or_default();
        let decode_mib = peak_mib();
        forget_peak();
        let times = (0..repetitions).map(|_| evaluate(ops, model, &z));
        let evaluated = times.collect::<Result<Vec<_>>>()?.into_iter().min().unwrap_or_default();
        let unet_mib = peak_mib();
        let [of_decode, of_unet] = [decode_flops, unet_flops].map(|flops| {
            let flat = flops(arch, arch.width(), arch.height())? * (width * height) as f64
                / (arch.width() * arch.height()) as f64;
            Ok::<_, Error>(100.0 * (1.0 - (flat / flops(arch, width, height)?).min(1.0)))
        });
        let per = [decoded, evaluated].map(|time| time.as_secs_f64() / megapixels);
        let base = *first.get_or_insert(per);
        println!(
            "| {width}x{height} | {:.4} | {:.2} | {:.0} % | {:.4} | {:.2} | {:.0} % | {decode_mib:.0} | {unet_mib:.0} | {:.0} |",
            per[0],
            per[0] / base[0],
            of_decode?,
            per[1],
            per[1] / base[1],
            of_unet?,
            plan.peak_bytes as f64 / f64::from(1 << 20),
        );
    }
    Ok(())
}

fn main() -> Result<()> {
    let words = env::args().skip(1).filter(|word| !word.starts_with("--"));
    let mut sizes = words
        .map(|word| {
            let sides = word.split_once('x').map(|(w, h)| (w.parse(), h.parse()));
            match sides {
                Some((Ok(width), Ok(height))) => Ok((width, height)),
                _ => Err(Error::invalid("size", word, "a size such as 2048x1024")),
            }
        })
        .collect::<Result<Vec<_>>>()?;
    if sizes.is_empty() {
        sizes = [1, 2, 4, 8].map(|scale| (2048 * scale, 1024 * scale)).into();
    }
    let model = Checkpoint::default_model()?;
    match Device::open(Choice::Cpu, Precision::Auto, None, model.weights.clone())? {
        Device::Cpu(mut ops) => table(&mut ops, &model, &sizes),
        Device::Gpu(mut ops) => table(ops.as_mut(), &model, &sizes),
    }
}
