//! Pictures made on any interpreter.

use std::sync::Arc;

use tessera::{
    engine::{
        self, Cancel, Event,
        plan::{Plan, Spec, TileSize},
        run::{Run, Task, Unit},
    },
    exec::cpu::Cpu,
    graph::Backend,
    image_out::Bits,
    model::{checkpoint::Checkpoint, sampler::Sampler},
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
            let tasks = plans.each_ref().map(|plan| Task { model: &model, plan, cancel: &cancel });
            let [mut alone, mut together] = [0; 2].map(|_| tasks.map(|task| Run::new(task.plan)));
            let none = |_: &[bool]| None;
            // The second is a step ahead, so the three end at different times.
            for runs in [&mut alone, &mut together] {
                runs[1].advance(&mut ops, tasks[1], none).unwrap();
            }
            for _ in 0..5 {
                for (&task, run) in tasks.iter().zip(&mut alone) {
                    if let Some(Unit::Step(_)) = run.next(task) {
                        run.advance(&mut ops, task, none).unwrap();
                    }
                }
                let mut members: Vec<_> = tasks.into_iter().zip(&mut together).collect();
                Run::advance_batch(&mut ops, &mut members, &cancel).unwrap();
                for (together, alone) in together.iter().zip(&alone) {
                    assert_eq!(together.sampling(), alone.sampling(), "{net} {method:?}");
                }
            }
        }
    }
}
