//! Pictures made on any interpreter.

use std::sync::Arc;

use tessera::{
    engine::{
        self, Cancel, Event, denoise,
        plan::{Plan, Spec, TileSize},
    },
    exec::cpu::Cpu,
    graph::Backend,
    image_out::Bits,
    model::{
        checkpoint::Checkpoint,
        sampler::{Sampler, SamplerState},
    },
    ops::weights::Weights,
};

use super::model;

/// A picture of 208 x 144 pixels in 4 steps.
pub(crate) fn spec(model: &Checkpoint, seed: u64, tile: TileSize, bits: Bits) -> Spec {
    let spec = Spec::new(&model.arch, seed);
    Spec { width: 208, height: 144, steps: 4.into(), tile, bits, ..spec }
}

/// The picture of `spec` on `ops`, its samples in rows.
pub(crate) fn generate_on(ops: &mut impl Backend, model: &Checkpoint, spec: Spec) -> Vec<u8> {
    let plan = Plan::new(spec, &model.arch).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut silent = |_: Event| {};
    engine::generate(ops, model, &plan, dir.path(), &mut silent, &Cancel::default())
        .unwrap()
        .bytes()
        .to_vec()
}

/// The same on the CPU.
pub(crate) fn generate(model: &Checkpoint, spec: Spec) -> Vec<u8> {
    generate_on(&mut Cpu::new(model.weights.clone()), model, spec)
}

/// Pictures that differ in seed, number of steps and how many of them are done share the network's runs; each gets the
/// latents that it gets alone, bit for bit.
pub(crate) fn together_equals_alone<O: Backend>(make: impl Fn(Arc<Weights>) -> O) {
    for net in ["net-a", "net-d", "net-f", "net-g"] {
        let model = model(net);
        let (arch, cancel) = (&model.arch, Cancel::default());
        let mut ops = make(model.weights.clone());
        for &method in Sampler::ALL {
            let plan = |(seed, steps): (u64, usize)| {
                let spec = spec(&model, seed, TileSize::Whole, Bits::Eight);
                let size = Spec { width: 96, height: 64, ..spec };
                Plan::new(Spec { sampler: method, steps: steps.into(), ..size }, arch).unwrap()
            };
            let plans = [(1, 3), (2, 3), (3, 5)].map(plan);
            let start =
                |plan: &Plan| SamplerState::start(&plan.schedule, &plan.latents, plan.spec.seed);
            let mut alone: Vec<_> = plans.iter().map(start).collect();
            let mut together = alone.clone();
            // The second is a step ahead, so the three end at different times.
            for samplings in [&mut alone, &mut together] {
                denoise::step(&mut ops, &model, &plans[1], &mut samplings[1], &cancel).unwrap();
            }
            for _ in 0..5 {
                let on_way =
                    |(plan, at): &(&Plan, &mut SamplerState)| at.step < plan.schedule.steps();
                for (plan, at) in plans.iter().zip(&mut alone).filter(on_way) {
                    denoise::step(&mut ops, &model, plan, at, &cancel).unwrap();
                }
                let mut members: Vec<_> = plans.iter().zip(&mut together).filter(on_way).collect();
                denoise::step_together(&mut ops, &model, &mut members, &cancel).unwrap();
                assert_eq!(together, alone, "{net} {method:?}");
            }
        }
    }
}
