//! GFLOP/s of every operator at the sizes of the default model, on the CPU in f32 and bf16 and, where there is a real
//! one, on the GPU: criterion's "elements" are floating point operations as the cost rules count them (bytes moved,
//! where that is 0).
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a benchmark has no interface and may stop at an error"
)]

use std::{sync::Arc, time::Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tessera::{
    exec::{
        cpu::{Cpu, Kernels},
        gpu::{Gpu, best_real},
    },
    graph::{Backend, GraphBuilder},
    ops::{
        AddNoise, Conv2d, Domain, Factors, GroupNorm, Op, PixelNorm, Rect, Shape,
        testing::Random,
        weights::{Param, Weights},
    },
};

fn conv(inputs: usize, outputs: usize, kernel: usize) -> Op {
    let name = format!("conv2d.{inputs}.{outputs}.{kernel}");
    Op::Conv2d(Conv2d {
        name,
        in_channels: inputs,
        out_channels: outputs,
        kernel,
        domain: Domain::Whole,
    })
}

/// The timed operators: a label, the operator, shapes of its inputs.
fn table() -> Vec<(&'static str, Op, Vec<Shape>)> {
    let (fine, latent) = (Shape::new(1, 256, 512, 48), Shape::new(1, 64, 128, 128));
    let (deep, coarse) = (Shape::new(1, 16, 32, 128), Shape::new(1, 4, 8, 192));
    let group = GroupNorm { name: "group_norm".into(), channels: 128, groups: 32, silu: true };
    let pixel = PixelNorm { name: "pixel_norm".into(), channels: 48, silu: true };
    let noise = AddNoise { name: "add_noise".into(), channels: 48 };
    let window = Rect { x: 5, y: 3, width: 400, height: 200 };
    let shuffled = Shape::new(1, 512, 1024, 12);
    vec![
        ("conv2d_3x3_fine", conv(48, 48, 3), vec![fine]),
        ("conv2d_3x3_latent", conv(128, 128, 3), vec![latent]),
        ("conv2d_3x3_coarse", conv(192, 192, 3), vec![coarse]),
        ("conv2d_1x1", conv(128, 96, 1), vec![latent]),
        ("group_norm", Op::GroupNorm(group), vec![latent]),
        ("pixel_norm", Op::PixelNorm(pixel), vec![fine]),
        ("add_noise", Op::AddNoise(noise), vec![fine, fine.with_channels(1)]),
        ("silu", Op::Silu, vec![fine]),
        ("scale_shift", Op::ScaleShift(true), vec![latent, Shape::new(1, 1, 1, 256)]),
        ("weighted_add", Op::WeightedAdd(Factors::Fixed(0.6, 0.8)), vec![fine; 2]),
        ("concat", Op::Concat, vec![latent; 2]),
        ("avg_pool2", Op::AvgPool2, vec![fine]),
        ("global_avg_pool", Op::GlobalAvgPool, vec![latent]),
        ("upsample_nearest2", Op::UpsampleNearest2, vec![latent]),
        ("fir_down2", Op::FirDown2, vec![latent]),
        ("fir_up2", Op::FirUp2, vec![latent]),
        ("pixel_unshuffle", Op::PixelUnshuffle(2), vec![Shape::new(1, 1024, 2048, 3)]),
        ("pixel_shuffle", Op::PixelShuffle(2), vec![shuffled]),
        ("spatial_attention", Op::SpatialAttention, vec![deep; 3]),
        ("channel_attention", Op::ChannelAttention, vec![deep; 3]),
        ("crop", Op::Crop(window), vec![fine]),
    ]
}

fn weights() -> Arc<Weights> {
    let (mut random, mut weights) = (Random::new(1), Weights::default());
    for (_, op, _) in table() {
        for (name, shape) in op.params() {
            let data = random.values(shape.iter().product(), 0.1, 0.1);
            weights.insert(name, Param { shape, data });
        }
    }
    Arc::new(weights)
}

/// Times the table on `o`; downloading a pixel of the last result waits for queued work.
fn operators<O: Backend>(c: &mut Criterion, device: &str, o: &mut O) {
    let mut group = c.benchmark_group(device);
    group.sample_size(20);
    let mut random = Random::new(2);
    for (label, op, shapes) in table() {
        let data = shapes.iter().map(|shape| (*shape, random.values(shape.len(), 0.2, 1.0)));
        let data: Vec<(Shape, Vec<f32>)> = data.collect();
        let inputs: Vec<O::Tensor> = data.iter().map(|(s, x)| o.upload(*s, x).unwrap()).collect();
        let mut g = GraphBuilder::new();
        let values: Vec<_> = shapes.iter().map(|shape| g.input(*shape).unwrap()).collect();
        let result = g.operator(op.clone(), &values).unwrap();
        let graph = g.finish([result]);
        let cost = graph.cost(None).unwrap();
        group.throughput(match cost.flops {
            0 => Throughput::Bytes(cost.bytes),
            flops => Throughput::Elements(flops),
        });
        let mut g = GraphBuilder::new();
        let whole = g.input(graph.shape(result)).unwrap();
        let pixel = g.crop(whole, Rect { x: 0, y: 0, width: 1, height: 1 }).unwrap();
        let pixel = g.finish([pixel]);
        group.bench_function(label, |b| {
            b.iter_custom(|times| {
                let mut run = |times: u64| {
                    let mut last = Vec::new();
                    for _ in 0..times {
                        last = o.run(&graph, inputs.clone()).unwrap();
                    }
                    if !last.is_empty() {
                        let pixel = o.run(&pixel, last).unwrap().remove(0);
                        o.download(&pixel).unwrap();
                    }
                };
                run(1);
                let begin = Instant::now();
                run(times);
                begin.elapsed()
            });
        });
    }
    group.finish();
}

fn cpu(c: &mut Criterion) {
    for kernels in [Kernels::best(false), Kernels::best(true)].into_iter().flatten() {
        let mut cpu = Cpu::with_kernels(weights(), kernels).unwrap();
        operators(c, &format!("cpu {}", kernels.name()), &mut cpu);
    }
}

/// Skips software drivers: they compute on the CPU.
fn gpu(c: &mut Criterion) {
    match best_real() {
        Some(index) => operators(c, "gpu", &mut Gpu::new(Some(index), weights()).unwrap()),
        None => println!("gpu: left out, no GPU was found"),
    }
}

criterion_group!(benches, cpu, gpu);
criterion_main!(benches);
