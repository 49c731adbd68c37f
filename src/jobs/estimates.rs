//! Previews of the denoised estimate, for watchers that ask for them.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    engine::{denoise, tiles},
    error::Result,
    graph::Backend,
    jobs::Job,
    model::sampler::{self, Latent, SamplerState},
};

/// Number of previews that a job keeps for late watchers; stated by [`Job::estimate_at`].
const KEPT: usize = 4;

/// A preview of the picture that the denoiser expects, from a level of a group and coarser ones. It is not stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Denoising steps done.
    pub step: usize,
    /// Finest level that it shows.
    pub level: usize,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Rows of RGB, 8 bits a sample.
    pub samples: Vec<u8>,
}

impl Estimate {
    /// The preview of `job` from `level` on after the newest step of `sampling`, which began at the latents `before`.
    ///
    /// # Errors
    /// The backend's; [`crate::error::Kind::InvalidModel`] when a value is not finite.
    pub(super) fn new<B: Backend>(
        backend: &mut B,
        job: &Job,
        level: usize,
        before: &[Latent],
        sampling: &SamplerState,
    ) -> Result<Self> {
        let (model, plan, step) = (&job.model, &job.plan, sampling.step);
        let z = sampler::estimate(&plan.schedule, step - 1, before, &sampling.z);
        let latents = denoise::denormalise(model, z);
        let seed = plan.spec.seed;
        let (rect, samples) = tiles::preview(backend, &model.arch, &latents, level, seed)?;
        Ok(Self { step, level, width: rect.width, height: rect.height, samples })
    }
}

/// The newest previews of a job, while it is denoised.
#[derive(Debug, Default)]
pub(super) struct NewestEstimates {
    /// True once a client has asked for them.
    wanted: AtomicBool,
    /// The newest last.
    newest: Mutex<VecDeque<Arc<Estimate>>>,
}

impl NewestEstimates {
    /// Requests previews from now on.
    pub(super) fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    /// True once a client has asked for previews.
    pub(super) fn wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// The newest preview.
    pub(super) fn last(&self) -> Option<Arc<Estimate>> {
        self.lock().back().cloned()
    }

    /// The preview after `step`.
    pub(super) fn at(&self, step: usize) -> Option<Arc<Estimate>> {
        self.lock().iter().find(|estimate| estimate.step == step).cloned()
    }

    /// Adds the preview after the newest step.
    pub(super) fn add(&self, estimate: Estimate) {
        let mut newest = self.lock();
        if newest.len() == KEPT {
            newest.pop_front();
        }
        newest.push_back(Arc::new(estimate));
    }

    /// Removes all previews.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Estimate>>> {
        // It is consistent between any two calls.
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
