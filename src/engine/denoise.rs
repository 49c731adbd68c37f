//! From a seed to the latents of a plan, on a device, with an event for every step and every level that settles.

use crate::{
    engine::{Cancel, Event, Observer, picture::check_finite, plan::Plan},
    error::Result,
    model::{
        arch::Arch,
        checkpoint::Checkpoint,
        precond,
        sampler::{self, Churn, Denoise, Latent},
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

/// Samples the normalised latents of `plan`, finest first.
///
/// # Errors
/// [`crate::error::Kind::Cancelled`]; [`crate::error::Kind::InvalidModel`] when the weights overflow; what the device
/// reports.
pub fn denoise<O: Ops>(
    ops: &mut O,
    arch: &Arch,
    plan: &Plan,
    observer: &mut dyn Observer,
    cancel: &Cancel,
) -> Result<Vec<Latent>> {
    let (spec, schedule) = (&plan.spec, &plan.schedule);
    observer.event(Event::Denoising { of: schedule.steps() });
    let start = sampler::start(schedule, &plan.latents, spec.seed);
    let observe = |step: usize, z: &[Latent]| {
        let sigma = schedule.sigma(step);
        observer.event(Event::Step { step, of: schedule.steps(), sigma });
        for (level, latent) in z.iter().enumerate().rev() {
            if schedule.settled(level) == step {
                let (rows, columns) = (latent.shape.h, latent.shape.w);
                observer.event(Event::Settled { level, step, rows, columns });
            }
        }
        Ok(())
    };
    let mut denoiser = Denoiser { ops, arch, cancel };
    sampler::sample(&mut denoiser, schedule, spec.method, Churn::NONE, spec.seed, start, observe)
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
