//! What schedule, noise and samplers promise, checked where the answer is known: published vectors of the generator, and
//! a Gaussian, whose denoiser and whose flow have closed forms.

use tessera::{
    error::{Error, Kind, Result},
    model::{
        arch::Noise,
        noise::{normal, normal4, philox4x32},
        precond::{Coefficients, level_sigma},
        sampler::{Denoise, Latent, NoisyLatents, Sampler, SamplerState, sample},
        schedule::Schedule,
    },
    ops::Shape,
};

const SHAPES: [Shape; 3] =
    [Shape::new(1, 16, 32, 8), Shape::new(1, 8, 16, 5), Shape::new(1, 1, 1, 7)];

fn noise() -> Noise {
    Noise {
        sigma_data: 0.5,
        sigma_min: 0.002,
        sigma_max: 80.0,
        rho: 7.0,
        shift: vec![0.0, -0.7, -2.0],
    }
}

/// The exact denoiser of a Gaussian of standard deviation sigma_data: D(z; s) = z sd^2 / (sd^2 + s^2).
struct Gaussian {
    noise: Noise,
    calls: usize,
}

impl Denoise for Gaussian {
    fn denoise(&mut self, batch: &[NoisyLatents<'_>]) -> Result<Vec<Vec<Latent>>> {
        self.calls += 1;
        let one = |noisy: &NoisyLatents<'_>| {
            let level = |(l, z): (usize, &Latent)| {
                let s = level_sigma(&self.noise, l, noisy.sigma);
                let shrink = Coefficients::new(s, self.noise.sigma_data).c_skip;
                let data = z.data.iter().map(|&v| (shrink * f64::from(v)) as f32).collect();
                Latent { shape: z.shape, data }
            };
            noisy.z.iter().enumerate().map(level).collect()
        };
        Ok(batch.iter().map(one).collect())
    }
}

fn run(method: Sampler, steps: usize, seed: u64) -> (Vec<Latent>, usize) {
    let noise = noise();
    let schedule = Schedule::new(&noise, steps);
    let mut denoiser = Gaussian { noise, calls: 0 };
    let state = SamplerState::start(&schedule, &SHAPES, seed);
    let z = sample(&mut denoiser, &schedule, method, state, |_, _| Ok(())).unwrap();
    (z, denoiser.calls)
}

/// Largest relative distance of level 0 from the flow's end: z_0 sd / sqrt(sd^2 + s_0^2).
fn distance(method: Sampler, steps: usize) -> f64 {
    let (z, _) = run(method, steps, 1);
    let noise = noise();
    let from = SamplerState::start(&Schedule::new(&noise, steps), &SHAPES, 1).z;
    let gain = noise.sigma_data / noise.sigma_data.hypot(noise.sigma_max);
    let relative = |(a, b): (&f32, &f32)| (f64::from(*a) / (gain * f64::from(*b)) - 1.0).abs();
    z[0].data.iter().zip(&from[0].data).map(relative).fold(0.0, f64::max)
}

fn deviation(values: &[f32]) -> f64 {
    (values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
}

/// The generator gives the known answers of its authors' distribution.
#[test]
fn philox_known_answers() {
    let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
    for (counter, key, answer) in [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (pi, [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
    ] {
        assert_eq!(philox4x32(counter, key), answer);
    }
}

/// Noise is standard normal: moments, tails, no correlation between neighbouring channels or pixels.
#[test]
fn noise_is_standard_normal() {
    let x = normal(7, 0, 0, Shape::new(1, 128, 256, 8));
    let n = x.len() as f64;
    let mean = |f: &dyn Fn(usize) -> f64| (0..x.len() - 8).map(f).sum::<f64>() / n;
    let at = |i: usize| f64::from(x[i]);
    let error = 5.0 / n.sqrt();
    assert!(mean(&|i| at(i)).abs() < error);
    assert!((mean(&|i| at(i).powi(2)) - 1.0).abs() < 1.5 * error);
    assert!((mean(&|i| at(i).powi(4)) - 3.0).abs() < 10.0 * error);
    assert!((mean(&|i| f64::from(u8::from(at(i).abs() < 1.0))) - 0.6827).abs() < error);
    for lag in [1, 2, 8] {
        assert!(mean(&|i| at(i) * at(i + lag)).abs() < error, "lag {lag}");
    }
}

/// A value depends on seed, level, step, pixel and channel alone: any part in any order is that part of the whole.
#[test]
fn noise_does_not_depend_on_order_or_extent() {
    let shape = Shape::new(1, 5, 7, 6);
    let whole = normal(1 << 40, 2, 3, shape);
    for pixel in (0..35).rev() {
        for block in [1, 0] {
            let values = normal4(1 << 40, 2, 3, pixel, block);
            let from = pixel as usize * 6 + 4 * block as usize;
            let count = if block == 0 { 4 } else { 2 };
            assert_eq!(whole[from..from + count], values[..count]);
        }
    }
    let fewer = normal(1 << 40, 2, 3, Shape::new(1, 3, 7, 6));
    assert_eq!(whole[..fewer.len()], fewer);
}

/// Each of seed (all 64 bits), level and step gives noise of its own.
#[test]
fn noise_differs_by_seed_level_and_step() {
    let shape = Shape::new(1, 4, 4, 4);
    let all = [(1, 0, 0), (2, 0, 0), (1 + (1 << 32), 0, 0), (1, 1, 0), (1, 0, 1)];
    for (i, &(seed, level, step)) in all.iter().enumerate() {
        for &(seed2, level2, step2) in &all[..i] {
            let (a, b) = (normal(seed, level, step, shape), normal(seed2, level2, step2, shape));
            assert!(a.iter().zip(&b).all(|(a, b)| a != b));
        }
    }
}

/// The shared sigma is equation 5 of Karras et al. 2022, from sigma_max over sigma_min to 0.
#[test]
fn schedule_follows_the_paper() {
    let schedule = Schedule::new(&noise(), 18);
    assert_eq!(schedule.steps(), 18);
    assert_eq!([schedule.sigma(0), schedule.sigma(17), schedule.sigma(18)], [80.0, 0.002, 0.0]);
    let (most, least) = (80f64.powf(1.0 / 7.0), 0.002f64.powf(1.0 / 7.0));
    let middle = (most + 5.0 / 17.0 * (least - most)).powf(7.0);
    assert!((schedule.sigma(5) / middle - 1.0).abs() < 1e-12);
    assert!((schedule.level(1, 5) / (middle * (-0.7f64).exp()) - 1.0).abs() < 1e-12);
}

/// Levels settle in the order of their shifts, coarse first, and only the finest lasts to the end.
#[test]
fn coarse_levels_settle_first() {
    for steps in [1, 2, 5, 25, 100] {
        let schedule = Schedule::new(&noise(), steps);
        let settled: Vec<_> = (0..3).map(|l| schedule.settled(l)).collect();
        assert!(settled.is_sorted_by(|fine, coarse| fine >= coarse), "{settled:?}");
        assert_eq!(settled[0], steps);
        if steps >= 25 {
            assert!(settled[2] < settled[1] && settled[1] < settled[0], "{settled:?}");
        }
        for (l, &settled) in settled.iter().enumerate() {
            assert!((0..settled).all(|i| schedule.level(l, i) >= 0.002));
            assert!((settled..=steps).all(|i| schedule.level(l, i) == 0.0));
        }
    }
}

/// A settled level keeps its bits to the end, and the one that settles becomes what the denoiser said.
#[test]
fn settled_levels_stay() {
    for &method in Sampler::ALL {
        let schedule = Schedule::new(&noise(), 25);
        let mut denoiser = Gaussian { noise: noise(), calls: 0 };
        let state = SamplerState::start(&schedule, &SHAPES, 3);
        let mut seen = vec![state.z.clone()];
        let keep = |step: usize, z: &[Latent]| {
            assert_eq!(step, seen.len());
            seen.push(z.to_vec());
            Ok(())
        };
        let end = sample(&mut denoiser, &schedule, method, state, keep).unwrap();
        for (l, end) in end.iter().enumerate() {
            let settled = schedule.settled(l);
            assert_ne!(seen[settled - 1][l], *end, "{method:?}");
            assert!(seen[settled..].iter().all(|z| z[l] == *end), "{method:?}");
            let (z, sigma) = (&seen[settled - 1], schedule.sigma(settled - 1));
            let before = NoisyLatents { z, group: 0, sigma, guidance: None };
            let denoised = denoiser.denoise(&[before]).unwrap();
            assert_eq!(denoised[0][l], *end, "{method:?}");
        }
    }
}

/// The samplers follow the Gaussian's flow, with the order that their papers state.
#[test]
fn samplers_converge_with_their_order() {
    for (method, order, bound) in
        [(Sampler::Ddim, 1.0, 0.1), (Sampler::Heun, 2.0, 0.02), (Sampler::Dpmpp, 2.0, 0.02)]
    {
        let errors = [25, 50, 100].map(|steps| distance(method, steps));
        assert!(errors[2] < bound, "{method:?}: {errors:?}");
        for pair in errors.windows(2) {
            let observed = (pair[0] / pair[1]).log2();
            assert!((observed - order).abs() < 0.35, "{method:?}: {errors:?}, order {observed}");
        }
    }
}

/// With every sampler noise becomes the data's standard deviation, level by level.
#[test]
fn samples_have_the_deviation_of_the_data() {
    for method in [Sampler::Heun, Sampler::Dpmpp] {
        let (z, _) = run(method, 40, 11);
        for latent in &z[..2] {
            let found = deviation(&latent.data);
            let error = 4.0 * 0.5 / (2.0 * latent.data.len() as f64).sqrt();
            assert!((found - 0.5).abs() < error + 0.01, "{method:?}: {found}");
        }
    }
}

/// The same seed gives the same bits, another seed another picture.
#[test]
fn samples_follow_from_the_seed() {
    assert_eq!(run(Sampler::Heun, 10, 4).0, run(Sampler::Heun, 10, 4).0);
    assert_ne!(run(Sampler::Dpmpp, 10, 4).0, run(Sampler::Dpmpp, 10, 5).0);
}

/// Level l starts with standard deviation s^l_0.
#[test]
fn start_has_the_sigma_of_each_level() {
    let schedule = Schedule::new(&noise(), 10);
    let state = SamplerState::start(&schedule, &SHAPES, 2);
    for (l, latent) in state.z.iter().enumerate().take(2) {
        let ratio = deviation(&latent.data) / schedule.level(l, 0);
        assert!((ratio - 1.0).abs() < 4.0 / (2.0 * latent.data.len() as f64).sqrt(), "{ratio}");
    }
}

/// The number of evaluations that a plan states is the number that is made, settled pyramids included.
#[test]
fn evaluations_are_as_stated() {
    for &method in Sampler::ALL {
        for steps in [1, 2, 7, 30] {
            let stated = Schedule::new(&noise(), steps).evaluations(method, 0);
            assert_eq!(stated.len(), run(method, steps, 1).1, "{method:?} {steps}");
        }
        let noise = Noise { shift: vec![-3.0, -5.0], ..noise() };
        let schedule = Schedule::new(&noise, 40);
        let mut denoiser = Gaussian { noise, calls: 0 };
        let state = SamplerState::start(&schedule, &SHAPES[..2], 1);
        let end = sample(&mut denoiser, &schedule, method, state, |_, _| Ok(()));
        assert!(end.unwrap().iter().all(|z| z.data.iter().all(|v| v.abs() < 5.0)));
        assert_eq!(schedule.evaluations(method, 0).len(), denoiser.calls);
        assert!(denoiser.calls < 40 * 2 - 1);
    }
}

/// An error of the denoiser or of the observer ends the sampling and is handed on.
#[test]
fn errors_of_the_denoiser_are_returned() {
    struct Broken;
    impl Denoise for Broken {
        fn denoise(&mut self, _: &[NoisyLatents<'_>]) -> Result<Vec<Vec<Latent>>> {
            Err(Error::device("gpu", "lost"))
        }
    }
    let schedule = Schedule::new(&noise(), 4);
    for &method in Sampler::ALL {
        let state = SamplerState::start(&schedule, &SHAPES, 1);
        let error = sample(&mut Broken, &schedule, method, state.clone(), |_, _| Ok(()));
        assert_eq!(error.unwrap_err().kind(), Kind::Device);
        let mut denoiser = Gaussian { noise: noise(), calls: 0 };
        let stop = |step, _: &[Latent]| match step {
            2 => Err(Error::cancelled("the test")),
            _ => Ok(()),
        };
        let error = sample(&mut denoiser, &schedule, method, state, stop);
        assert_eq!(error.unwrap_err().kind(), Kind::Cancelled);
    }
}
