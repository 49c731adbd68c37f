//! Sigma of every step and level.
//!
//! The shared sigma follows Karras et al. 2022, equation 5: sigma_i = (sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) -
//! sigma_max^(1/rho)))^rho for i < N, sigma_N = 0. Level l has s^l_i = sigma_i exp(shift_l). Where that falls below
//! sigma_min the level is *settled*: its sigma is 0 from there on. This is what makes denoising go level by level.

use std::{collections::BTreeMap, ops::Range};

use crate::model::{
    arch::{Arch, Noise},
    sampler::Sampler,
};

/// The sigmas of N steps, shared and per level; index N is the end.
///
/// The groups of a model's levels are denoised one after the other, each along its own schedule: before its group's
/// first step a level keeps its first sigma, after the last one it is settled. The shared sigma is that of the group
/// whose step it is.
///
/// ```
/// use tessera::model::{arch::Noise, schedule::Schedule};
///
/// let noise = Noise { sigma_data: 0.5, sigma_min: 0.002, sigma_max: 80.0, rho: 7.0, shift: vec![0.0, -2.0] };
/// let schedule = Schedule::new(&noise, 10);
/// assert_eq!((schedule.sigma(0), schedule.sigma(10)), (80.0, 0.0));
/// // The coarse level, whose noise is weaker, settles first.
/// assert!(schedule.settled(1) < schedule.settled(0));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    sigma: Vec<f64>,
    levels: Vec<Vec<f64>>,
    groups: Vec<GroupSteps>,
}

/// One evaluation of the denoiser.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Index of the group whose network is evaluated.
    pub group: usize,
    /// Shared sigma.
    pub sigma: f64,
}

/// The steps of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
struct GroupSteps {
    /// The group's levels, finest first.
    levels: Range<usize>,
    /// Its steps.
    steps: Range<usize>,
}

impl Schedule {
    /// The schedule of `steps` steps, at least 1, of one group with all levels.
    pub fn new(noise: &Noise, steps: usize) -> Self {
        Self::of([(noise, 0..noise.shift.len(), steps)])
    }

    /// The schedule of a model's groups with `steps` steps each, at least 1.
    pub fn of_groups(arch: &Arch, steps: &[usize]) -> Self {
        let groups = arch.group_shapes().zip(steps);
        Self::of(groups.map(|(shape, &steps)| (&shape.group.noise, shape.range(), steps)))
    }

    fn of<'a>(groups: impl IntoIterator<Item = (&'a Noise, Range<usize>, usize)>) -> Self {
        let mut schedule = Self { sigma: Vec::new(), levels: Vec::new(), groups: Vec::new() };
        let mut levels: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for (noise, range, steps) in groups {
            let first = schedule.sigma.len();
            let shared = shared_sigmas(noise, steps);
            schedule
                .groups
                .push(GroupSteps { levels: range.clone(), steps: first..first + shared.len() });
            for (level, &shift) in range.zip(&noise.shift) {
                let own = level_sigmas(noise, &shared, shift);
                let start = own.first().copied().unwrap_or(0.0);
                levels.insert(level, std::iter::repeat_n(start, first).chain(own).collect());
            }
            schedule.sigma.extend(shared);
        }
        // Settled after the group's last step.
        let end = schedule.sigma.len() + 1;
        schedule.sigma.push(0.0);
        schedule.levels = levels.into_values().collect();
        schedule.levels.iter_mut().for_each(|level| level.resize(end, 0.0));
        schedule
    }

    /// Number of steps, N.
    pub fn steps(&self) -> usize {
        self.sigma.len() - 1
    }

    /// Number of levels.
    pub fn levels(&self) -> usize {
        self.levels.len()
    }

    /// Index of the group whose step `i` is, `i` from 0 to N - 1; for N that of the last one.
    pub fn group(&self, i: usize) -> usize {
        let last = self.groups.len() - 1;
        self.groups.iter().position(|group| group.steps.contains(&i)).unwrap_or(last)
    }

    /// The levels that step `i` changes, finest first.
    pub fn moving(&self, i: usize) -> Range<usize> {
        self.groups[self.group(i)].levels.clone()
    }

    /// True if `i` is the first step of its group.
    pub fn begins_group(&self, i: usize) -> bool {
        self.groups.iter().any(|group| group.steps.start == i)
    }

    /// Shared sigma before step `i`, `i` from 0 to N; 0 for N.
    pub fn sigma(&self, i: usize) -> f64 {
        self.sigma[i]
    }

    /// Shared sigma that step `i` - 1 ends at, `i` from 1 to N; 0 at the end of a group.
    pub fn reached(&self, i: usize) -> f64 {
        if self.begins_group(i) { 0.0 } else { self.sigma[i] }
    }

    /// Sigma of `level` after `i` steps, `i` from 0 to N; 0 once the level is settled.
    pub fn level(&self, level: usize, i: usize) -> f64 {
        self.levels[level][i]
    }

    /// Number of steps after which `level` is settled.
    pub fn settled(&self, level: usize) -> usize {
        self.levels[level].iter().position(|&s| s == 0.0).unwrap_or(self.steps())
    }

    /// True if some level that step `i` changes is not settled before it.
    pub fn active(&self, i: usize) -> bool {
        i < self.steps() && self.levels[self.moving(i)].iter().any(|level| level[i] > 0.0)
    }

    /// True if some level that step `i` changes is not settled after it: Heun's method evaluates the denoiser there.
    pub fn active_after(&self, i: usize) -> bool {
        i < self.steps() && self.levels[self.moving(i)].iter().any(|level| level[i + 1] > 0.0)
    }

    /// The evaluations of the denoiser in the steps from `first` on, in their order.
    pub fn evaluations(&self, method: Sampler, first: usize) -> Vec<Evaluation> {
        let of_step = |i: usize| {
            let group = self.group(i);
            let second = method == Sampler::Heun && self.active_after(i);
            let ends = [(i, self.active(i)), (i + 1, second)];
            let made = ends.into_iter().filter(|(_, made)| *made);
            made.map(move |(end, _)| Evaluation { group, sigma: self.sigma[end] })
        };
        (first..self.steps()).flat_map(of_step).collect()
    }
}

/// The shared sigmas before each of `steps` steps.
fn shared_sigmas(noise: &Noise, steps: usize) -> Vec<f64> {
    let last = steps.max(1) - 1;
    let (most, least) = (root(noise.sigma_max, noise.rho), root(noise.sigma_min, noise.rho));
    let shared = |i: usize| match i {
        0 => noise.sigma_max,
        // Exactly, so that rounding does not settle a level one step early.
        i if i == last => noise.sigma_min,
        i => libm::pow(most + i as f64 / last as f64 * (least - most), noise.rho),
    };
    (0..=last).map(shared).collect()
}

/// The sigmas of a level before each step with the shared sigmas `shared`.
fn level_sigmas(noise: &Noise, shared: &[f64], shift: f64) -> Vec<f64> {
    let level = |(i, &sigma): (usize, &f64)| {
        let s = sigma * libm::exp(shift);
        match i {
            0 => s.max(noise.sigma_min), // every level is denoised at least once
            _ if s < noise.sigma_min => 0.0,
            _ => s,
        }
    };
    shared.iter().enumerate().map(level).collect()
}

fn root(x: f64, rho: f64) -> f64 {
    libm::pow(x, 1.0 / rho)
}
