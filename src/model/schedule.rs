//! Sigma of every step and level.
//!
//! The shared sigma follows Karras et al. 2022, equation 5: sigma_i = (sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) -
//! sigma_max^(1/rho)))^rho for i < N, sigma_N = 0. Level l has s^l_i = sigma_i exp(shift_l). Where that falls below
//! sigma_min the level is *settled*: its sigma is 0 from there on. This is what makes denoising go level by level.

use crate::model::{arch::Noise, sampler::Sampler};

/// The sigmas of N steps, shared and per level; index N is the end.
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
}

impl Schedule {
    /// The schedule of `steps` steps, at least 1.
    pub fn new(noise: &Noise, steps: usize) -> Self {
        let last = steps.max(1) - 1;
        let (most, least) = (root(noise.sigma_max, noise.rho), root(noise.sigma_min, noise.rho));
        let shared = |i: usize| match i {
            0 => noise.sigma_max,
            // Exactly, so that rounding does not settle a level one step early.
            i if i == last => noise.sigma_min,
            i => libm::pow(most + i as f64 / last as f64 * (least - most), noise.rho),
        };
        let sigma: Vec<f64> = (0..=last).map(shared).chain([0.0]).collect();
        let level = |&shift: &f64| {
            let scaled = sigma.iter().enumerate().map(|(i, &sigma)| {
                let s = sigma * libm::exp(shift);
                match i {
                    0 => s.max(noise.sigma_min), // every level is denoised at least once
                    _ if s < noise.sigma_min => 0.0,
                    _ => s,
                }
            });
            scaled.collect()
        };
        let levels = noise.shift.iter().map(level).collect();
        Self { sigma, levels }
    }

    /// Number of steps, N.
    pub fn steps(&self) -> usize {
        self.sigma.len() - 1
    }

    /// Number of levels.
    pub fn levels(&self) -> usize {
        self.levels.len()
    }

    /// Shared sigma after `i` steps, `i` from 0 to N.
    pub fn sigma(&self, i: usize) -> f64 {
        self.sigma[i]
    }

    /// Sigma of `level` after `i` steps, `i` from 0 to N; 0 once the level is settled.
    pub fn level(&self, level: usize, i: usize) -> f64 {
        self.levels[level][i]
    }

    /// Number of steps after which `level` is settled.
    pub fn settled(&self, level: usize) -> usize {
        self.levels[level].iter().position(|&s| s == 0.0).unwrap_or(self.steps())
    }

    /// True if some level is not settled after `i` steps.
    pub fn active(&self, i: usize) -> bool {
        self.levels.iter().any(|level| level[i] > 0.0)
    }

    /// Number of evaluations of the denoiser that `method` needs for the steps from `first` on.
    pub fn evaluations(&self, method: Sampler, first: usize) -> usize {
        let active = (first..self.steps()).filter(|&i| self.active(i)).count();
        match method {
            Sampler::Heun => {
                active + (first + 1..=self.steps()).filter(|&i| self.active(i)).count()
            }
            Sampler::Dpmpp | Sampler::Ddim => active,
        }
    }
}

fn root(x: f64, rho: f64) -> f64 {
    libm::pow(x, 1.0 / rho)
}
