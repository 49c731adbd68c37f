//! Denoising: the first state of a plan, its steps, and the scale of latents.

use crate::{
    engine::{
        Cancel,
        encode::{check_finite, encode},
        plan::Plan,
    },
    error::{Error, Kind, Result},
    graph::Backend,
    image_in::Picture,
    model::{
        checkpoint::Checkpoint,
        precond,
        sampler::{self, BatchItem, Denoise, Latent, NoisyLatents, SamplerState},
    },
};

/// The preconditioned U-Net, as a denoiser for the samplers.
struct Denoiser<'a, O: Backend> {
    ops: &'a mut O,
    model: &'a Checkpoint,
    cancel: &'a Cancel,
}

impl<O: Backend> Denoise for Denoiser<'_, O> {
    fn denoise(&mut self, batch: &[NoisyLatents<'_>]) -> Result<Vec<Vec<Latent>>> {
        self.cancel.check()?;
        let denoised = precond::denoise(self.ops, self.model, batch)?;
        let first = batch.first().map_or(0, |noisy| noisy.group);
        let levels = self.model.arch.group(first).range();
        for (level, latent) in denoised.iter().flat_map(|own| levels.clone().zip(own)) {
            check_finite(latent, level, "denoising")?;
        }
        Ok(denoised)
    }
}

/// Takes the next step of every member along its plan, as one batch for the network. The plans must have latents of the
/// same shapes and the same sampler.
///
/// # Errors
/// [`crate::error::Kind::Cancelled`]; [`crate::error::Kind::InvalidModel`] when the weights overflow; the backend's. No
/// member has changed then.
pub(super) fn step<O: Backend>(
    ops: &mut O,
    model: &Checkpoint,
    members: &mut [(&Plan, &mut SamplerState)],
    cancel: &Cancel,
) -> Result<()> {
    let Some(sampler) = members.first().map(|(plan, _)| plan.spec.sampler) else { return Ok(()) };
    let guidance: Vec<_> =
        members.iter().map(|(plan, _)| plan.spec.labels_with_guidance()).collect();
    let mut members: Vec<_> = (members.iter_mut().zip(&guidance))
        .map(|((plan, sampling), guidance)| BatchItem {
            state: sampling,
            schedule: &plan.schedule,
            guidance: guidance.as_ref(),
        })
        .collect();
    sampler::advance(&mut Denoiser { ops, model, cancel }, &mut members, sampler)
}

/// The initial state of `plan`: noise alone.
pub fn begin(plan: &Plan) -> SamplerState {
    SamplerState::start(&plan.schedule, &plan.latents, plan.spec.seed)
}

/// The initial state of `plan` as an edit of `picture`: its latents with noise.
///
/// # Errors
/// [`crate::error::Kind::InvalidImage`] when the picture is not of the plan's size; those of [`encode`].
pub(super) fn begin_from<O: Backend>(
    ops: &mut O,
    model: &Checkpoint,
    plan: &Plan,
    picture: Picture,
) -> Result<SamplerState> {
    let found = (picture.width as usize, picture.height as usize);
    let wanted = (plan.spec.width, plan.spec.height);
    if found != wanted {
        let [found, wanted] = [found, wanted].map(|(width, height)| format!("{width}x{height}"));
        return Err(Error::wrong(Kind::InvalidImage, "picture", found, wanted));
    }
    let latents = normalise(model, encode(ops, &model.arch, picture)?);
    Ok(SamplerState::edit(&plan.schedule, latents, plan.first_step, plan.spec.seed))
}

/// Normalised latents -> the decoder's input: z / sigma_data * std + mean, per channel.
pub fn denormalise(model: &Checkpoint, latents: Vec<Latent>) -> Vec<Latent> {
    let sigma_data = model.arch.sigma_data();
    per_channel(model, latents, |z, mean, std| z / sigma_data * std + mean)
}

/// The encoder's latents -> normalised ones, the inverse of [`denormalise`].
pub fn normalise(model: &Checkpoint, latents: Vec<Latent>) -> Vec<Latent> {
    let sigma_data = model.arch.sigma_data();
    per_channel(model, latents, |z, mean, std| (z - mean) / std * sigma_data)
}

/// Applies `map` to every value with the mean and standard deviation of its channel.
fn per_channel(
    model: &Checkpoint,
    mut latents: Vec<Latent>,
    map: impl Fn(f64, f64, f64) -> f64,
) -> Vec<Latent> {
    for (latent, stats) in latents.iter_mut().zip(&model.latent_stats) {
        for pixel in latent.data.chunks_exact_mut(latent.shape.c) {
            for ((v, &mean), &std) in pixel.iter_mut().zip(&stats.mean).zip(&stats.std) {
                *v = map(f64::from(*v), f64::from(mean), f64::from(std)) as f32;
            }
        }
    }
    latents
}
