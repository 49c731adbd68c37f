//! Models of version 2: groups of levels that are denoised one after the other, labels, noise of the decoder.

use std::collections::{BTreeMap, BTreeSet};

use tessera::{
    engine::{
        Cancel, Event,
        plan::{EstimatePlan, Plan, Spec, TileSize},
        run::{Run, Task},
    },
    error::{Kind, Result},
    exec::{cpu::Cpu, memory::MEMORY},
    image_out::Bits,
    model::{
        arch::Arch,
        cost,
        sampler::{
            BatchItem, Denoise, Latent, NoisyLatents, Sampler, SamplerState, advance, latent_shapes,
        },
        schedule::{Evaluation, Schedule},
    },
};

use crate::common::{
    default_model,
    engine::{generate, spec},
    model,
};

/// Halves the levels of the group; notes what it was asked.
#[derive(Default)]
struct Halves {
    evaluations: Vec<Evaluation>,
    conditions: Vec<Vec<Latent>>,
}

impl Denoise for Halves {
    fn denoise(&mut self, batch: &[NoisyLatents<'_>]) -> Result<Vec<Vec<Latent>>> {
        let arch = model("net-g").arch;
        let one = |noisy: &NoisyLatents<'_>| -> Vec<Latent> {
            let range = arch.group(noisy.group).range();
            self.evaluations.push(Evaluation { group: noisy.group, sigma: noisy.sigma });
            self.conditions.push(noisy.z[range.end..].to_vec());
            let half = |z: &Latent| {
                let data = z.data.iter().map(|v| 0.5 * v).collect();
                Latent { shape: z.shape, data }
            };
            noisy.z[range].iter().map(half).collect()
        };
        Ok(batch.iter().map(one).collect())
    }
}

/// The layout is denoised to its end before the detail begins, keeps its bits from then on, and is the detail's condition; the
/// detail keeps its noise until its first step. A step is of one group.
#[test]
fn groups_are_denoised_one_after_the_other() {
    let arch = model("net-g").arch;
    let shapes = latent_shapes(&arch, 1, 96, 64);
    let steps = [5, 3];
    let schedule = Schedule::of_groups(&arch, &steps);
    assert_eq!(schedule.steps(), 8);
    for &sampler in Sampler::ALL {
        let mut denoiser = Halves::default();
        let mut state = SamplerState::start(&schedule, &shapes, 3);
        let begin = state.z.clone();
        let mut layout = None;
        for step in 0..schedule.steps() {
            let member = BatchItem { state: &mut state, schedule: &schedule, guidance: None };
            let asked = denoiser.evaluations.len();
            advance(&mut denoiser, &mut [member], sampler).unwrap();
            let group = usize::from(step >= steps[0]);
            assert!(
                denoiser.evaluations[asked..].iter().all(|asked| asked.group == group),
                "{step}"
            );
            assert!(denoiser.evaluations.len() > asked || !schedule.active(step));
            match group {
                0 => assert_eq!(state.z[0], begin[0], "{sampler:?} {step}"),
                _ => {
                    let settled = layout.get_or_insert_with(|| state.z[1..].to_vec());
                    assert_eq!(&state.z[1..], &settled[..], "{sampler:?} {step}");
                    let conditions = &denoiser.conditions[asked..];
                    assert!(conditions.iter().all(|condition| condition == settled));
                }
            }
        }
        assert_ne!(state.z[0], begin[0]);
        assert_eq!(schedule.evaluations(sampler, 0), denoiser.evaluations, "{sampler:?}");
    }
}

/// Each group's schedule is the one that it has alone, and its levels are settled at its end at the latest.
#[test]
fn schedules_of_groups_are_joined() {
    let arch = model("net-g").arch;
    let schedule = Schedule::of_groups(&arch, &[6, 4]);
    let alone = arch.group_shapes().zip([(6, 0), (4, 6)]);
    for (shape, (steps, first)) in alone {
        let own = Schedule::new(&shape.group.noise, steps);
        for (l, level) in shape.range().enumerate() {
            for i in 0..=schedule.steps() {
                let wanted = match i.checked_sub(first) {
                    None => own.level(l, 0),
                    Some(i) if i < steps => own.level(l, i),
                    Some(_) => 0.0,
                };
                assert_eq!(schedule.level(level, i), wanted, "{level} {i}");
            }
        }
        for i in 0..steps {
            assert_eq!(schedule.sigma(first + i), own.sigma(i));
            assert_eq!(schedule.group(first + i), shape.index());
        }
        assert_eq!(schedule.reached(first + steps), 0.0);
    }
}

/// A guided picture of a model with labels: tiles do not show, the seed decides, labels and guidance change it.
#[test]
fn labels_and_guidance_decide_the_picture() {
    let model = model("net-g");
    let plain = spec(&model, 3, TileSize::Whole, Bits::Eight);
    let plain = Spec { width: 192, height: 128, ..plain };
    let with = |time: &str, guidance: f64| {
        let named = BTreeMap::from([("time".to_owned(), time.to_owned())]);
        let labels = model.labels(3, &named).unwrap();
        Spec { labels, guidance, ..plain.clone() }
    };
    let day = generate(&model, with("day", 2.0));
    for tile in [64, 100] {
        let tiled = Spec { tile: TileSize::Pixels(tile), ..with("day", 2.0) };
        assert!(generate(&model, tiled) == day, "tile {tile}");
    }
    let others = [plain.clone(), with("night", 2.0), with("day", 1.0), with("day", 5.0)];
    let mut all: BTreeSet<_> = others.into_iter().map(|spec| generate(&model, spec)).collect();
    all.insert(day);
    assert_eq!(all.len(), 5);
    // Guidance without a label changes nothing.
    assert!(generate(&model, Spec { guidance: 5.0, ..plain.clone() }) == generate(&model, plain));
}

/// What is named is kept, the rest is as in a training picture; unknown names and values are refused with those that there are.
#[test]
fn labels_are_drawn_by_the_seed_from_training_pictures() {
    let model = model("net-g");
    assert_eq!(model.label_rows.len(), 7);
    let named = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
    let mut drawn = BTreeSet::new();
    for seed in 0..200 {
        let labels = model.labels(seed, &BTreeMap::new()).unwrap();
        assert!(model.label_rows.contains(&labels), "{labels:?}");
        assert_eq!(labels, model.labels(seed, &BTreeMap::new()).unwrap());
        drawn.insert(labels);
        let dusk = model.labels(seed, &named("time", "dusk")).unwrap();
        assert_eq!(dusk[0], 2);
        assert!(model.label_rows.iter().any(|row| row[1] == dusk[1]));
    }
    let distinct: BTreeSet<_> = model.label_rows.iter().cloned().collect();
    assert_eq!(drawn, distinct);
    for (name, value, field, expected) in [
        ("weather", "rain", "labels", "one of time, water"),
        ("time", "noon", "labels.time", "one of day, dusk, night"),
    ] {
        let error = model.labels(1, &named(name, value)).unwrap_err();
        assert_eq!((error.kind(), error.field()), (Kind::InvalidArgument, Some(field)));
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// A guided step of the first group is stated at twice the operations, and the steps are shared among the groups.
#[test]
fn guidance_and_groups_are_in_the_plan() {
    let model = model("net-g");
    let plan = |spec: Spec| Plan::new(spec, &model.arch).unwrap();
    let spec = Spec { steps: 9.into(), ..Spec::new(&model.arch, 1) };
    let plain = plan(spec.clone());
    assert_eq!((plain.schedule.group(5), plain.schedule.group(6)), (0, 1));
    let labels = model.labels(1, &BTreeMap::new()).unwrap();
    let guided = plan(Spec { labels: labels.clone(), guidance: 2.0, ..spec.clone() });
    assert!(guided.flops > plain.flops && guided.flops < 2 * plain.flops);
    assert_eq!(plan(Spec { labels, guidance: 1.0, ..spec.clone() }).flops, plain.flops);
    for (bad, field) in [
        (Spec { guidance: 0.5, ..spec.clone() }, "guidance"),
        (Spec { guidance: f64::NAN, ..spec.clone() }, "guidance"),
        (Spec { labels: vec![1], ..spec.clone() }, "labels"),
        (Spec { labels: vec![4, 0], ..spec.clone() }, "labels"),
        (Spec { steps: 1.into(), ..spec.clone() }, "steps"),
    ] {
        let error = Plan::new(bad, &model.arch).unwrap_err();
        assert_eq!((error.kind(), error.field()), (Kind::InvalidArgument, Some(field)));
    }
}

/// Labels guide where the model's interval of sigma says so, and the plan counts two pyramids there and one elsewhere.
#[test]
fn guidance_keeps_to_its_interval() {
    let model = model("net-g");
    let labels = model.labels(1, &BTreeMap::new()).unwrap();
    let spec = Spec { steps: 9.into(), labels, ..Spec::new(&model.arch, 1) };
    let picture = |interval: Option<[f64; 2]>, guidance: f64| {
        let mut model = model.clone();
        model.arch.groups[0].guidance = interval;
        let spec = Spec { guidance, ..spec.clone() };
        (Plan::new(spec.clone(), &model.arch).unwrap().flops, generate(&model, spec))
    };
    let (plain, everywhere) = (picture(None, 1.0), picture(None, 4.0));
    assert!(picture(Some([0.0, 1e9]), 4.0) == everywhere);
    assert!(picture(Some([1e8, 1e9]), 4.0) == plain);

    let schedule = Plan::new(spec.clone(), &model.arch).unwrap().schedule;
    let (high, low) = (schedule.sigma(1), schedule.sigma(3));
    let part = picture(Some([low, high]), 4.0);
    assert!(part.1 != plain.1 && part.1 != everywhere.1);
    let mut first = schedule.evaluations(spec.sampler, 0);
    first.retain(|evaluation| evaluation.group == 0);
    let guided = first.iter().filter(|e| low < e.sigma && e.sigma <= high).count() as u64;
    let [part, everywhere] = [part.0, everywhere.0].map(|flops| flops - plain.0);
    assert_eq!(part * first.len() as u64, everywhere * guided);
    assert!(guided > 0 && part < everywhere);
}

/// Previews of the estimate are planned to take at most 3 % of a picture's operations, at any size and number of steps.
#[test]
fn previews_of_the_estimate_are_planned_within_their_share() {
    for net in ["net-a", "net-d", "net-g"] {
        let arch = model(net).arch;
        for (width, height, steps) in [(96, 64, 2), (96, 64, 200), (768, 512, 25)] {
            let spec = Spec { width, height, steps: steps.into(), ..Spec::new(&arch, 1) };
            let plan = Plan::new(spec, &arch).unwrap();
            let estimates = plan.estimates(&arch).unwrap();
            assert_eq!(estimates.len(), arch.groups.len());
            let of_step = |step: &usize| {
                let group = plan.schedule.group(step - 1);
                let EstimatePlan { level, period } = estimates[group];
                assert!(arch.group(group).range().contains(&level));
                let one = || cost::preview_cost(&arch, level, &MEMORY, width, height).unwrap();
                if step.is_multiple_of(period) { one().flops } else { 0 }
            };
            let all: u64 = (1..=steps).map(|step| of_step(&step)).sum();
            assert!(all as f64 <= 0.03 * plan.flops as f64, "{net} {width} {steps}: {all}");
        }
    }
}

/// A picture of the default model with the default steps has previews of its layout, the first one in the first half of the
/// layout's steps.
#[test]
fn the_default_picture_has_previews_of_its_layout() {
    let arch = default_model().arch;
    let plan = Plan::new(Spec::new(&arch, 1), &arch).unwrap();
    let layout = (0..plan.schedule.steps()).filter(|&step| plan.schedule.group(step) == 0).count();
    let estimates = plan.estimates(&arch).unwrap();
    assert!(2 * estimates[0].period <= layout, "{estimates:?} of {layout} steps");
}

/// A state that is copied in any step, of either group, continues to the same latents.
#[test]
fn a_copied_state_continues_in_every_group() {
    let model = model("net-g");
    let labels = model.labels(5, &BTreeMap::new()).unwrap();
    let spec = Spec { steps: 6.into(), labels, ..Spec::new(&model.arch, 5) };
    let plan = Plan::new(spec, &model.arch).unwrap();
    let (mut cpu, cancel) = (Cpu::new(model.weights.clone()), Cancel::default());
    let mut silent = |_: Event| {};
    let task = Task { model: &model, plan: &plan, cancel: &cancel };
    let whole = Run::new(&plan).denoise(&mut cpu, task, &mut silent).unwrap().to_vec();
    let mut run = Run::new(&plan);
    for step in 1..=plan.schedule.steps() {
        run.advance(&mut cpu, task, |_| None).unwrap();
        let mut other = Cpu::new(model.weights.clone());
        let mut copy = Run::resume(run.sampling().unwrap().clone(), vec![false; 1]);
        let end = copy.denoise(&mut other, task, &mut silent).unwrap();
        assert!(end == whole, "from step {step}");
    }
}

/// Documents of version 2 whose parts do not fit together are refused with the field.
#[test]
fn bad_documents_of_version_2_are_refused() {
    let good = &model("net-g").metadata["arch"];
    Arch::from_json(good).unwrap();
    for (from, to, field) in [
        ("\"sizes\":[[96,64],[64,64]]", "\"sizes\":[]", "arch.sizes"),
        ("[64,64]]", "[64,65]]", "arch.height"),
        ("\"levels\":[1,2,3]", "\"levels\":[1,2]", "arch.groups.levels"),
        ("\"levels\":[1,2,3]", "\"levels\":[1,3,2]", "arch.groups.levels"),
        ("\"levels\":[0]", "\"levels\":[7]", "arch.groups.levels"),
        ("[\"day\",\"dusk\"", "[\"day\",\"day\"", "arch.labels.time.values"),
        ("\"name\":\"water\"", "\"name\":\"time\"", "arch.labels.name"),
        ("\"embedding\":6", "\"embedding\":5", "arch.groups[1].unet.embedding"),
        ("\"sigma_max\":10.0", "\"sigma_max\":0.0", "arch.groups[1].noise.sigma_max"),
        ("\"levels\":[0],", "\"guidance\":[2.0,1.0],\"levels\":[0],", "arch.groups[1].guidance"),
        ("\"rgb\":\"fir\"", "\"rgb\":\"cubic\"", "arch"),
        ("\"labels\":", "\"labelz\":", "arch"),
    ] {
        assert!(good.contains(from), "{from} in {good}");
        let error = Arch::from_json(&good.replacen(from, to, 1)).unwrap_err();
        assert_eq!((error.kind(), error.field()), (Kind::InvalidModel, Some(field)), "{error}");
    }
}
