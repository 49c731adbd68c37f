//! The samplers, in their papers' symbols: from noise to latents. Every level has its own sigma s.
//!
//! D = D(z; sigma) is the denoised pyramid. A level whose next s is 0 becomes its D and does not change any more: it is
//! *settled*. Updates are computed in f64 and rounded to f32 once per step.

use strum::{EnumString, IntoStaticStr, VariantArray, VariantNames};

use crate::{
    error::Result,
    model::{arch::Arch, noise, schedule::Schedule},
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

/// Shapes of the latents of `n` pictures of `width` x `height` pixels, finest level first: [n, H/f, W/f, C] each with the
/// level's factor f and channels C; the 1x1 level has [n, 1, 1, C].
pub fn latent_shapes(arch: &Arch, n: usize, width: usize, height: usize) -> Vec<Shape> {
    let grids = arch.grids(width, height).into_iter().zip(&arch.levels);
    grids.map(|((h, w), level)| Shape::new(n, h, w, level.channels)).collect()
}

/// A noisy pyramid and its shared sigma.
#[derive(Clone, Copy, Debug)]
pub struct NoisyLatents<'a> {
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
    fn denoise(&mut self, batch: &[NoisyLatents<'_>]) -> Result<Vec<Vec<Latent>>>;
}

/// A sampling algorithm.
///
/// ```
/// use tessera::model::sampler::Sampler;
///
/// assert_eq!("heun".parse(), Ok(Sampler::Heun));
/// assert_eq!(Sampler::Dpmpp.name(), "dpmpp");
/// ```
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantArray, VariantNames,
)]
#[strum(serialize_all = "lowercase")]
pub enum Sampler {
    /// EDM's second-order sampler (Karras et al. 2022, algorithms 1 and 2).
    Heun,
    /// DPM-Solver++(2M) (Lu et al. 2022).
    Dpmpp,
    /// DDIM (Song et al. 2021), deterministic: Euler's method in sigma.
    Ddim,
}

impl Sampler {
    /// All samplers.
    pub const ALL: &[Self] = <Self as VariantArray>::VARIANTS;

    /// The name in flags, messages and metadata: `heun`, `dpmpp`, `ddim`.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The noise that sampling starts from, finest level first: normal with standard deviation s_0 of the level.
fn start(schedule: &Schedule, shapes: &[Shape], seed: u64) -> Vec<Latent> {
    let level = |(l, &shape): (usize, &Shape)| {
        let s = schedule.level(l, 0);
        let data = noise::normal(seed, l, 0, shape);
        Latent { shape, data: data.into_iter().map(|v| (s * f64::from(v)) as f32).collect() }
    };
    shapes.iter().enumerate().map(level).collect()
}

/// The state of sampling between two steps: everything that the next step needs, so that a copy can continue elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerState {
    /// Number of steps done.
    pub step: usize,
    /// The latents, finest level first.
    pub z: Vec<Latent>,
    /// D of the previous step, which DPM-Solver++(2M) needs.
    pub previous: Option<Vec<Latent>>,
}

impl SamplerState {
    /// The state before the first step: noise alone.
    pub fn start(schedule: &Schedule, shapes: &[Shape], seed: u64) -> Self {
        Self { step: 0, z: start(schedule, shapes, seed), previous: None }
    }

    /// The state before step `first`: normalised latents `z` with the noise of that step added (SDEdit, Meng et al.
    /// 2022). Levels that are settled by then get no noise.
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

/// One picture of a batch: its state and schedule.
#[derive(Debug)]
pub struct BatchItem<'a> {
    /// Its state; [`advance`] replaces it.
    pub state: &'a mut SamplerState,
    /// Its sigmas.
    pub schedule: &'a Schedule,
}

/// Takes the next step of every member, with the same evaluations of the denoiser for all. Their latents must have
/// equal shapes; steps and schedules may differ.
///
/// # Errors
/// The denoiser's; no member has changed then.
pub fn advance(
    denoiser: &mut impl Denoise,
    members: &mut [BatchItem<'_>],
    sampler: Sampler,
) -> Result<()> {
    let mut moving: Vec<_> =
        (members.iter_mut()).filter(|member| member.schedule.active(member.state.step)).collect();
    if sampler == Sampler::Heun {
        let ends = heun(denoiser, &moving)?;
        for (member, end) in moving.into_iter().zip(ends) {
            member.state.z = end;
        }
    } else {
        let batch: Vec<_> = moving
            .iter()
            .map(|m| NoisyLatents { z: &m.state.z, sigma: m.schedule.sigma(m.state.step) })
            .collect();
        let denoised = if batch.is_empty() { Vec::new() } else { denoiser.denoise(&batch)? };
        for (member, d) in moving.iter_mut().zip(denoised) {
            let (schedule, SamplerState { step: i, z, previous }) =
                (member.schedule, &mut *member.state);
            let i = *i;
            if sampler == Sampler::Ddim {
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
        member.state.step += 1;
    }
    Ok(())
}

/// Runs the steps of `schedule` that `state` has not done yet; returns the latents. `observe` is called after every
/// step with the number of steps done and the latents.
///
/// ```
/// use tessera::error::Result;
/// use tessera::model::arch::Noise;
/// use tessera::model::sampler::{Denoise, Latent, NoisyLatents, Sampler, SamplerState, sample};
/// use tessera::{model::schedule::Schedule, ops::Shape};
///
/// /// The exact denoiser of data that is always zero.
/// struct Zero;
///
/// impl Denoise for Zero {
///     fn denoise(&mut self, batch: &[NoisyLatents<'_>]) -> Result<Vec<Vec<Latent>>> {
///         let zero = |z: &Latent| Latent { shape: z.shape, data: vec![0.0; z.data.len()] };
///         Ok(batch.iter().map(|noisy| noisy.z.iter().map(zero).collect()).collect())
///     }
/// }
///
/// let noise = Noise { sigma_data: 0.5, sigma_min: 0.002, sigma_max: 80.0, rho: 7.0, shift: vec![0.0] };
/// let schedule = Schedule::new(&noise, 5);
/// let state = SamplerState::start(&schedule, &[Shape::new(1, 2, 2, 3)], 7);
/// let z = sample(&mut Zero, &schedule, Sampler::Heun, state, |_, _| Ok(()))?;
/// assert!(z[0].data.iter().all(|&v| v == 0.0));
/// # Ok::<(), tessera::error::Error>(())
/// ```
///
/// # Errors
/// The denoiser's and `observe`'s.
pub fn sample(
    denoiser: &mut impl Denoise,
    schedule: &Schedule,
    sampler: Sampler,
    mut state: SamplerState,
    mut observe: impl FnMut(usize, &[Latent]) -> Result<()>,
) -> Result<Vec<Latent>> {
    while state.step < schedule.steps() {
        advance(denoiser, &mut [BatchItem { state: &mut state, schedule }], sampler)?;
        observe(state.step, &state.z)?;
    }
    Ok(state.z)
}

/// The latents of every member after a step of EDM's algorithm 2. Levels that settle in this step take Euler's method,
/// as the last step does.
fn heun(denoiser: &mut impl Denoise, members: &[&mut BatchItem<'_>]) -> Result<Vec<Vec<Latent>>> {
    let sigmas = |m: &BatchItem<'_>, l: usize| {
        (m.schedule.level(l, m.state.step), m.schedule.level(l, m.state.step + 1))
    };
    let batch: Vec<_> = (members.iter())
        .map(|m| NoisyLatents { z: &m.state.z, sigma: m.schedule.sigma(m.state.step) })
        .collect();
    let d = if batch.is_empty() { Vec::new() } else { denoiser.denoise(&batch)? };
    let first = |(m, d): (&&mut BatchItem<'_>, &Vec<Latent>)| {
        let z = &m.state.z;
        each(z, |l| {
            let (s, s_next) = sigmas(m, l);
            euler(&z[l], &d[l], s, s_next)
        })
    };
    let mut ends: Vec<_> = members.iter().zip(&d).map(first).collect();
    let more = |&k: &usize| members[k].schedule.active(members[k].state.step + 1);
    let second: Vec<_> = (0..members.len()).filter(more).collect();
    if second.is_empty() {
        return Ok(ends);
    }
    let batch: Vec<_> = (second.iter())
        .map(|&k| (&ends[k], members[k].schedule.sigma(members[k].state.step + 1)))
        .map(|(z, sigma)| NoisyLatents { z, sigma })
        .collect();
    let d_next = denoiser.denoise(&batch)?;
    for (&k, d_next) in second.iter().zip(&d_next) {
        let (m, d, next) = (&*members[k], &d[k], &ends[k]);
        let z = &m.state.z;
        ends[k] = each(z, |l| match sigmas(m, l) {
            (_, 0.0) => next[l].clone(),
            (s, s_next) => trapezoid([&z[l], &d[l]], [&next[l], &d_next[l]], s, s_next),
        });
    }
    Ok(ends)
}

/// z' = z + (s' - s) (slope + slope') / 2 with slope = (z - D) / s, from (z, D) at s and (z, D) at s'.
fn trapezoid([z, d]: [&Latent; 2], [next, d_next]: [&Latent; 2], s: f64, s_next: f64) -> Latent {
    let half = (s_next - s) / 2.0;
    combine([(z, 1.0 + half / s), (d, -half / s), (next, half / s_next), (d_next, -half / s_next)])
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
