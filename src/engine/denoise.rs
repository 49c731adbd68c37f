//! From a seed to the latents of a plan, on a device, with an event for every step and every level that settles.

use crate::{
    engine::{Cancel, Event, Observer, picture::check_finite, plan::Plan},
    error::Result,
    model::{
        arch::Arch,
        checkpoint::Checkpoint,
        precond,
        sampler::{Churn, Denoise, Latent, Sampling},
    },
    ops::Ops,
};

/// The preconditioned U-Net, as the samplers see it.
struct Denoiser<'a, O: Ops> {
    ops: &'a mut O,
    arch: &'a Arch,
    cancel: &'a Cancel,
}

impl<O: Ops> Denoise for Denoiser<'_, O> {
    fn denoise(&mut self, z: &[Latent], sigma: f64) -> Result<Vec<Latent>> {
        self.cancel.check()?;
        let denoised = precond::denoise(self.ops, self.arch, z, sigma)?;
        for (level, latent) in denoised.iter().enumerate() {
            check_finite(latent, level, "denoising")?;
        }
        Ok(denoised)
    }
}

/// Takes the next step of `sampling` along `plan`; gives what there is to tell of it.
///
/// # Errors
/// [`crate::error::Kind::Cancelled`]; [`crate::error::Kind::InvalidModel`] when the weights overflow; what the device
/// reports. `sampling` is then as it was.
pub fn step<O: Ops>(
    ops: &mut O,
    arch: &Arch,
    plan: &Plan,
    sampling: &mut Sampling,
    cancel: &Cancel,
) -> Result<Vec<Event>> {
    let (spec, schedule) = (&plan.spec, &plan.schedule);
    let mut denoiser = Denoiser { ops, arch, cancel };
    sampling.advance(&mut denoiser, schedule, spec.method, Churn::NONE, spec.seed)?;
    let step = sampling.step;
    let sigma = schedule.sigma(step);
    let settled = sampling.z.iter().enumerate().rev().filter_map(|(level, latent)| {
        let (rows, columns) = (latent.shape.h, latent.shape.w);
        (schedule.settled(level) == step).then_some(Event::Settled { level, step, rows, columns })
    });
    Ok(std::iter::once(Event::Step { step, of: schedule.steps(), sigma }).chain(settled).collect())
}

/// Samples the normalised latents of `plan`, finest first.
///
/// # Errors
/// Those of [`step`].
pub fn denoise<O: Ops>(
    ops: &mut O,
    arch: &Arch,
    plan: &Plan,
    observer: &mut dyn Observer,
    cancel: &Cancel,
) -> Result<Vec<Latent>> {
    observer.event(Event::Denoising { of: plan.schedule.steps() });
    let mut sampling = Sampling::start(&plan.schedule, &plan.latents, plan.spec.seed);
    while sampling.step < plan.schedule.steps() {
        for event in step(ops, arch, plan, &mut sampling, cancel)? {
            observer.event(event);
        }
    }
    Ok(sampling.z)
}

/// Normalised latents to the decoder's: z / sigma_data * std + mean, per channel.
pub fn denormalise(model: &Checkpoint, normalised: Vec<Latent>) -> Vec<Latent> {
    let sigma_data = model.arch.noise.sigma_data;
    let mut latents = normalised;
    for (latent, stats) in latents.iter_mut().zip(&model.latent_stats) {
        for pixel in latent.data.chunks_exact_mut(latent.shape.c) {
            for ((v, mean), std) in pixel.iter_mut().zip(&stats.mean).zip(&stats.std) {
                *v = (f64::from(*v) / sigma_data * f64::from(*std) + f64::from(*mean)) as f32;
            }
        }
    }
    latents
}
