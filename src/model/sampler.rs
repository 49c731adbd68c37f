//! The samplers, in their papers' symbols: from noise to latents. Every level has its own sigma s.
//!
//! D = D(z; sigma) is the denoised pyramid. A level whose next s is 0 becomes its D and does not change any more: it is *settled*.
//! Updates are computed in f64 and rounded to f32 once per step.

use crate::{
    error::Result,
    model::{noise, schedule::Schedule},
    ops::Shape,
};

/// A level's latent on the host, f32, NHWC; normalised to a standard deviation of sigma_data, unless said otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Latent {
    /// Shape [n, h, w, c].
    pub shape: Shape,
    /// Values, as many as `shape` has elements.
    pub data: Vec<f32>,
}

/// A noisy pyramid and its shared sigma.
#[derive(Clone, Copy, Debug)]
pub struct Noisy<'a> {
    /// The latents, finest level first.
    pub z: &'a [Latent],
    /// Shared sigma.
    pub sigma: f64,
}

/// The denoiser D(z; sigma) that the samplers evaluate.
pub trait Denoise {
    /// D(z; sigma) for every pyramid of `batch`, in the order of the batch; the results have the shapes of the inputs.
    ///
    /// # Errors
    /// A failure of the device, or [`crate::error::Kind::Cancelled`].
    fn denoise(&mut self, batch: &[Noisy<'_>]) -> Result<Vec<Vec<Latent>>>;
}

/// A sampling algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// EDM's second-order sampler (Karras et al. 2022, algorithms 1 and 2).
    Heun,
    /// DPM-Solver++(2M) (Lu et al. 2022).
    Dpmpp,
    /// DDIM (Song et al. 2021), deterministic: Euler's method in sigma.
    Ddim,
}

impl Method {
    /// All samplers.
    pub const ALL: [Self; 3] = [Self::Heun, Self::Dpmpp, Self::Ddim];

    /// The name in flags, messages and metadata: `heun`, `dpmpp`, `ddim`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Heun => "heun",
            Self::Dpmpp => "dpmpp",
            Self::Ddim => "ddim",
        }
    }
}

/// Stochastic churn of EDM's algorithm 2, for [`Method::Heun`]; `s_churn` 0 turns it off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Churn {
    /// S_churn: total amount of noise that is added again.
    pub s_churn: f64,
    /// S_tmin: no churn below this shared sigma.
    pub s_min: f64,
    /// S_tmax: no churn above this shared sigma.
    pub s_max: f64,
    /// S_noise: standard deviation of the noise.
    pub s_noise: f64,
}

impl Churn {
    /// No churn.
    pub const NONE: Self = Self { s_churn: 0.0, s_min: 0.0, s_max: f64::INFINITY, s_noise: 1.0 };

    /// gamma_i at the shared `sigma` of a schedule of `steps` steps.
    fn gamma(&self, sigma: f64, steps: usize) -> f64 {
        let inside = (self.s_min..=self.s_max).contains(&sigma);
        if inside { (self.s_churn / steps as f64).min(std::f64::consts::SQRT_2 - 1.0) } else { 0.0 }
    }
}

/// The noise that sampling starts from, finest level first: normal with standard deviation s_0 of the level.
pub fn start(schedule: &Schedule, shapes: &[Shape], seed: u64) -> Vec<Latent> {
    let level = |(l, &shape): (usize, &Shape)| {
        let s = schedule.level(l, 0);
        let data = noise::normal(seed, l, 0, shape);
        Latent { shape, data: data.into_iter().map(|v| (s * f64::from(v)) as f32).collect() }
    };
    shapes.iter().enumerate().map(level).collect()
}

/// The state of sampling between two steps: everything that the next step needs, so that a copy can continue elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Number of steps done.
    pub step: usize,
    /// The latents, finest level first.
    pub z: Vec<Latent>,
    /// D of the previous step, which DPM-Solver++(2M) needs.
    pub previous: Option<Vec<Latent>>,
}

impl Sampling {
    /// The state before the first step: noise alone.
    pub fn start(schedule: &Schedule, shapes: &[Shape], seed: u64) -> Self {
        Self { step: 0, z: start(schedule, shapes, seed), previous: None }
    }

    /// The state before step `first`: normalised latents `z` with the noise of that step added (SDEdit, Meng et al. 2022). Levels
    /// that are settled by then get no noise.
    pub fn edit(schedule: &Schedule, mut z: Vec<Latent>, first: usize, seed: u64) -> Self {
        for (l, latent) in z.iter_mut().enumerate() {
            let s = schedule.level(l, first);
            let epsilon = noise::normal(seed, l, 0, latent.shape);
            for (z, epsilon) in latent.data.iter_mut().zip(epsilon) {
                *z = (f64::from(*z) + s * f64::from(epsilon)) as f32;
            }
        }
        Self { step: first, z, previous: None }
    }
}

/// One picture of a batch: its state, schedule and seed.
#[derive(Debug)]
pub struct Member<'a> {
    /// Its state; [`advance`] replaces it.
    pub sampling: &'a mut Sampling,
    /// Its sigmas.
    pub schedule: &'a Schedule,
    /// Seed of its noise.
    pub seed: u64,
}

/// Takes the next step of every member, with the same evaluations of the denoiser for all. Their latents must have equal shapes;
/// steps, schedules and seeds may differ.
///
/// # Errors
/// The denoiser's; no member has changed then.
pub fn advance(
    denoiser: &mut impl Denoise,
    members: &mut [Member<'_>],
    method: Method,
    churn: Churn,
) -> Result<()> {
    let mut moving: Vec<_> = (members.iter_mut())
        .filter(|member| member.schedule.active(member.sampling.step))
        .collect();
    if method == Method::Heun {
        let ends = heun(denoiser, churn, &moving)?;
        for (member, end) in moving.into_iter().zip(ends) {
            member.sampling.z = end;
        }
    } else {
        let batch: Vec<_> = moving
            .iter()
            .map(|m| Noisy { z: &m.sampling.z, sigma: m.schedule.sigma(m.sampling.step) })
            .collect();
        let denoised = if batch.is_empty() { Vec::new() } else { denoiser.denoise(&batch)? };
        for (member, d) in moving.iter_mut().zip(denoised) {
            let (schedule, Sampling { step: i, z, previous }) =
                (member.schedule, &mut *member.sampling);
            let i = *i;
            if method == Method::Ddim {
                *z = each(z, |l| {
                    euler(&z[l], &d[l], schedule.level(l, i), schedule.level(l, i + 1))
                });
            } else {
                *z = each(z, |l| dpmpp(schedule, i, l, &z[l], &d[l], previous.as_deref()));
                *previous = Some(d);
            }
        }
    }
    for member in members {
        member.sampling.step += 1;
    }
    Ok(())
}

/// Denoises `z` from [`start`] along `schedule`. `observe` hears of every finished step: how many are done, and z.
///
/// # Errors
/// The denoiser's and `observe`'s.
pub fn sample(
    denoiser: &mut impl Denoise,
    schedule: &Schedule,
    method: Method,
    churn: Churn,
    seed: u64,
    z: Vec<Latent>,
    mut observe: impl FnMut(usize, &[Latent]) -> Result<()>,
) -> Result<Vec<Latent>> {
    let mut sampling = Sampling { step: 0, z, previous: None };
    while sampling.step < schedule.steps() {
        advance(
            denoiser,
            &mut [Member { sampling: &mut sampling, schedule, seed }],
            method,
            churn,
        )?;
        observe(sampling.step, &sampling.z)?;
    }
    Ok(sampling.z)
}

/// The latents of every member after a step of EDM's algorithm 2. Levels that settle in this step take Euler's method, as the
/// last step does.
fn heun(
    denoiser: &mut impl Denoise,
    churn: Churn,
    members: &[&mut Member<'_>],
) -> Result<Vec<Vec<Latent>>> {
    // sigma-hat = sigma + gamma sigma; z-hat = z + sqrt(sigma-hat^2 - sigma^2) S_noise epsilon
    let gamma = |m: &Member<'_>| churn.gamma(m.schedule.sigma(m.sampling.step), m.schedule.steps());
    let s_hat = |m: &Member<'_>, l: usize| m.schedule.level(l, m.sampling.step) * (1.0 + gamma(m));
    let s_next = |m: &Member<'_>, l: usize| m.schedule.level(l, m.sampling.step + 1);
    let noised = |m: &Member<'_>| {
        let mut z = m.sampling.z.clone();
        if gamma(m) > 0.0 {
            for (l, latent) in z.iter_mut().enumerate() {
                let s = m.schedule.level(l, m.sampling.step);
                let added = churn.s_noise * (s_hat(m, l).powi(2) - s * s).sqrt();
                let epsilon = noise::normal(m.seed, l, m.sampling.step + 1, latent.shape);
                for (z, epsilon) in latent.data.iter_mut().zip(epsilon) {
                    *z = (f64::from(*z) + added * f64::from(epsilon)) as f32;
                }
            }
        }
        z
    };
    let z: Vec<_> = members.iter().map(|m| noised(m)).collect();
    let mut batch = Vec::with_capacity(members.len());
    for (m, z) in members.iter().zip(&z) {
        let sigma = m.schedule.sigma(m.sampling.step) * (1.0 + gamma(m));
        batch.push(Noisy { z, sigma });
    }
    let d = if batch.is_empty() { Vec::new() } else { denoiser.denoise(&batch)? };
    let mut ends: Vec<_> = (members.iter().zip(&z).zip(&d))
        .map(|((m, z), d)| each(z, |l| euler(&z[l], &d[l], s_hat(m, l), s_next(m, l))))
        .collect();
    let more = |&k: &usize| members[k].schedule.active(members[k].sampling.step + 1);
    let second: Vec<_> = (0..members.len()).filter(more).collect();
    if second.is_empty() {
        return Ok(ends);
    }
    let batch: Vec<_> = (second.iter())
        .map(|&k| (&ends[k], members[k].schedule.sigma(members[k].sampling.step + 1)))
        .map(|(z, sigma)| Noisy { z, sigma })
        .collect();
    let d_next = denoiser.denoise(&batch)?;
    for (&k, d_next) in second.iter().zip(&d_next) {
        let (m, z, d, next) = (&*members[k], &z[k], &d[k], &ends[k]);
        ends[k] = each(z, |l| {
            let (s, s_next) = (s_hat(m, l), s_next(m, l));
            if s_next == 0.0 {
                return next[l].clone();
            }
            // z + (s' - s) (slope + slope') / 2, slope = (z - D) / s
            let half = (s_next - s) / 2.0;
            let terms = [
                (&z[l], 1.0 + half / s),
                (&d[l], -half / s),
                (&next[l], half / s_next),
                (&d_next[l], -half / s_next),
            ];
            combine(terms)
        });
    }
    Ok(ends)
}

/// z' = D + (s'/s) (z - D).
fn euler(z: &Latent, d: &Latent, s: f64, s_next: f64) -> Latent {
    if s == 0.0 {
        return z.clone();
    }
    combine([(z, s_next / s), (d, 1.0 - s_next / s)])
}

/// z' = (s'/s) z - (exp(-h) - 1) D~, h = ln s - ln s', D~ = (1 + 1/2r) D - D_before/2r, r = h_before / h.
fn dpmpp(
    schedule: &Schedule,
    i: usize,
    l: usize,
    z: &Latent,
    d: &Latent,
    before: Option<&[Latent]>,
) -> Latent {
    let (s, s_next) = (schedule.level(l, i), schedule.level(l, i + 1));
    match before {
        Some(before) if s > 0.0 && s_next > 0.0 => {
            let h = libm::log(s / s_next);
            let h_before = libm::log(schedule.level(l, i - 1) / s);
            let w = h / (2.0 * h_before);
            let gain = -libm::expm1(-h);
            combine([(z, s_next / s), (d, gain * (1.0 + w)), (&before[l], -gain * w)])
        }
        _ => euler(z, d, s, s_next), // first order: the same formula with D~ = D
    }
}

/// The weighted sum of latents of one shape.
fn combine<const N: usize>(terms: [(&Latent, f64); N]) -> Latent {
    let shape = terms[0].0.shape;
    let value = |j| terms.iter().map(|(x, w)| w * f64::from(x.data[j])).sum::<f64>() as f32;
    Latent { shape, data: (0..shape.len()).map(value).collect() }
}

fn each(z: &[Latent], update: impl FnMut(usize) -> Latent) -> Vec<Latent> {
    (0..z.len()).map(update).collect()
}
