//! The samplers, in their papers' symbols: from noise to latents. Every level has its own sigma s.
//!
//! D = D(z; sigma) is the denoised pyramid. A level whose next s is 0 becomes its D and does not change any more: it is
//! *settled*. Updates are computed in f64 and rounded to f32 once per step.

use std::{collections::BTreeSet, ops::Range};

use strum::{EnumString, IntoStaticStr, VariantArray, VariantNames};

use crate::{
    error::Result,
    model::{
        arch::{Arch, GroupShape},
        noise,
        schedule::Schedule,
    },
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

/// Labels of a picture and how strongly they guide it (classifier-free guidance, Ho and Salimans 2022).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Guidance {
    /// For each label of the model the row of its table: 0 if it is not given, else 1 + the index of its value.
    pub rows: Vec<usize>,
    /// D = D without labels + scale (D with labels - D without); 1: no guidance.
    pub scale: f64,
}

impl Guidance {
    /// The scale in a group at the shared sigma `sigma`, 1 without guidance: no label is given, or sigma is not in the
    /// group's interval. Guidance is for the first group, whose levels carry the labels to the others.
    pub fn scale_at(&self, shape: GroupShape<'_>, sigma: f64) -> f64 {
        let guided = shape.index() == 0 && shape.group.guided_at(sigma);
        if guided && self.rows.iter().any(|&row| row > 0) { self.scale } else { 1.0 }
    }
}

/// A noisy pyramid, the group of levels to denoise, its shared sigma, and the picture's labels.
#[derive(Clone, Copy, Debug)]
pub struct NoisyLatents<'a> {
    /// The latents of all levels, finest first. Those of the coarser groups are settled.
    pub z: &'a [Latent],
    /// Index of the group.
    pub group: usize,
    /// Shared sigma of the group.
    pub sigma: f64,
    /// Labels; `None` for a model without.
    pub guidance: Option<&'a Guidance>,
}

/// The denoiser D(z; sigma) that the samplers evaluate.
pub trait Denoise {
    /// D(z; sigma) of the group's levels, finest first, for every pyramid of `batch`, in the order of the batch; the results
    /// have the shapes of the inputs. All of a batch are of one group.
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
    /// D of the previous step of the same group, which DPM-Solver++(2M) needs; levels of other groups have their latents.
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
    /// Its labels.
    pub guidance: Option<&'a Guidance>,
}

impl BatchItem<'_> {
    /// The input of the denoiser for the latents `z` at shared sigma `sigma` of the present step's group.
    fn noisy<'a>(&'a self, z: &'a [Latent], sigma: f64) -> NoisyLatents<'a> {
        let group = self.schedule.group(self.state.step);
        NoisyLatents { z, group, sigma, guidance: self.guidance }
    }
}

/// Takes the next step of every member, with the same evaluations of the denoiser for all that are in one group of levels.
/// Their latents must have equal shapes; steps and schedules may differ.
///
/// # Errors
/// The denoiser's; no member of that group has changed then.
pub fn advance(
    denoiser: &mut impl Denoise,
    members: &mut [BatchItem<'_>],
    sampler: Sampler,
) -> Result<()> {
    let groups: BTreeSet<_> =
        members.iter().map(|member| member.schedule.group(member.state.step)).collect();
    for group in groups {
        let mut moving: Vec<_> = (members.iter_mut())
            .filter(|member| member.schedule.group(member.state.step) == group)
            .filter(|member| member.schedule.active(member.state.step))
            .collect();
        if sampler == Sampler::Heun {
            let ends = heun(denoiser, &moving)?;
            for (member, end) in moving.into_iter().zip(ends) {
                member.state.z = end;
            }
            continue;
        }
        let batch: Vec<_> =
            moving.iter().map(|m| m.noisy(&m.state.z, m.schedule.sigma(m.state.step))).collect();
        let denoised = if batch.is_empty() { Vec::new() } else { denoiser.denoise(&batch)? };
        for (member, d) in moving.iter_mut().zip(denoised) {
            let (schedule, SamplerState { step: i, z, previous }) =
                (member.schedule, &mut *member.state);
            let (i, levels) = (*i, schedule.moving(*i));
            let d = of_all_levels(z, &levels, d);
            let before = previous.as_deref().filter(|_| !schedule.begins_group(i));
            *z = each(z, &levels, |l| match sampler {
                Sampler::Ddim => {
                    euler(&z[l], &d[l], schedule.level(l, i), schedule.level(l, i + 1))
                }
                _ => dpmpp(schedule, i, l, &z[l], &d[l], before),
            });
            if sampler == Sampler::Dpmpp {
                *previous = Some(d);
            }
        }
    }
    for member in members {
        member.state.step += 1;
    }
    Ok(())
}

/// The latents `d` of the levels `levels`, and those of `z` for all other levels.
fn of_all_levels(z: &[Latent], levels: &Range<usize>, d: Vec<Latent>) -> Vec<Latent> {
    let (finer, coarser) = (&z[..levels.start], &z[levels.end..]);
    finer.iter().cloned().chain(d).chain(coarser.iter().cloned()).collect()
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
        let member = BatchItem { state: &mut state, schedule, guidance: None };
        advance(denoiser, &mut [member], sampler)?;
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
    let levels = |m: &BatchItem<'_>| m.schedule.moving(m.state.step);
    let batch: Vec<_> =
        (members.iter()).map(|m| m.noisy(&m.state.z, m.schedule.sigma(m.state.step))).collect();
    let d = if batch.is_empty() { Vec::new() } else { denoiser.denoise(&batch)? };
    let d: Vec<_> =
        members.iter().zip(d).map(|(m, d)| of_all_levels(&m.state.z, &levels(m), d)).collect();
    let first = |(m, d): (&&mut BatchItem<'_>, &Vec<Latent>)| {
        let z = &m.state.z;
        each(z, &levels(m), |l| {
            let (s, s_next) = sigmas(m, l);
            euler(&z[l], &d[l], s, s_next)
        })
    };
    let mut ends: Vec<_> = members.iter().zip(&d).map(first).collect();
    let more = |&k: &usize| members[k].schedule.active_after(members[k].state.step);
    let second: Vec<_> = (0..members.len()).filter(more).collect();
    if second.is_empty() {
        return Ok(ends);
    }
    let batch: Vec<_> = (second.iter())
        .map(|&k| members[k].noisy(&ends[k], members[k].schedule.sigma(members[k].state.step + 1)))
        .collect();
    let d_next = denoiser.denoise(&batch)?;
    for (&k, d_next) in second.iter().zip(d_next) {
        let (m, d, next) = (&*members[k], &d[k], &ends[k]);
        let (z, range) = (&m.state.z, levels(m));
        let d_next = of_all_levels(z, &range, d_next);
        ends[k] = each(z, &range, |l| match sigmas(m, l) {
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

/// The denoised estimate that step `step` has moved towards, from the latents before and after it: D with
/// z' = D + (s'/s) (z - D) for the levels that the step changes, the latents themselves for all others.
pub fn estimate(
    schedule: &Schedule,
    step: usize,
    before: &[Latent],
    after: &[Latent],
) -> Vec<Latent> {
    each(after, &schedule.moving(step), |l| {
        let (s, s_next) = (schedule.level(l, step), schedule.level(l, step + 1));
        if s == 0.0 || s_next == 0.0 {
            return after[l].clone();
        }
        let ratio = s_next / s;
        combine([(&after[l], 1.0 / (1.0 - ratio)), (&before[l], -ratio / (1.0 - ratio))])
    })
}

/// The weighted sum of latents of one shape.
fn combine<const N: usize>(terms: [(&Latent, f64); N]) -> Latent {
    let shape = terms[0].0.shape;
    let value = |j| terms.iter().map(|(x, w)| w * f64::from(x.data[j])).sum::<f64>() as f32;
    Latent { shape, data: (0..shape.len()).map(value).collect() }
}

/// The latents `z`, those of `levels` updated.
fn each(
    z: &[Latent],
    levels: &Range<usize>,
    mut update: impl FnMut(usize) -> Latent,
) -> Vec<Latent> {
    let one = |l: usize| if levels.contains(&l) { update(l) } else { z[l].clone() };
    (0..z.len()).map(one).collect()
}
