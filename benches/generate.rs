//! A whole picture from the embedded model, noise to decoded pixels, per size: on the CPU, in bf16 too if it has that,
//! and on a real GPU if there is one. Two steps, as further ones only repeat them.
#![allow(missing_docs, reason = "a benchmark has no interface")]

use std::{env, path::Path, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput};
use tessera::{
    engine::{
        self, Cancel, Event,
        device::{Choice, Device, Precision},
        plan::{Plan, Spec},
    },
    error::Result,
    graph::Backend,
    model::checkpoint::Checkpoint,
};

fn generate<O: Backend>(
    ops: &mut O,
    model: &Checkpoint,
    plan: &Plan,
    scratch: &Path,
) -> Result<()> {
    engine::generate(ops, model, plan, scratch, &mut |_: Event| (), &Cancel::default()).map(drop)
}

fn main() -> Result<()> {
    let model = Checkpoint::default_model()?;
    let scratch = env::temp_dir();
    // Auto is the CPU again where there is no real GPU.
    let mut devices = vec![Device::open(Choice::Cpu, Precision::F32, None, model.weights.clone())?];
    if let Ok(bf16) = Device::open(Choice::Cpu, Precision::Bf16, None, model.weights.clone()) {
        devices.push(bf16);
    }
    let auto = Device::open(Choice::Auto, Precision::F32, None, model.weights.clone())?;
    if matches!(auto, Device::Gpu(_)) {
        devices.push(auto);
    }
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("generate");
    group.sample_size(10).warm_up_time(Duration::from_secs(1));
    for (width, height) in [(512, 256), (1024, 512), (2048, 1024)] {
        let plan = Plan::new(
            Spec { width, height, steps: 2.into(), ..Spec::new(&model.arch, 7) },
            &model.arch,
        )?;
        group.throughput(Throughput::Elements((width * height) as u64));
        for device in &mut devices {
            let id = BenchmarkId::new(device.name(), format!("{width}x{height}"));
            let mut picture = || match device {
                Device::Cpu(o) => generate(o, &model, &plan, &scratch),
                Device::Gpu(o) => generate(o.as_mut(), &model, &plan, &scratch),
            };
            picture()?; // an error ends the benchmark here, and not in a figure
            group.bench_function(id, |b| b.iter(&mut picture));
        }
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
