//! EDM's preconditioning (Karras et al. 2022, table 1), with a sigma of its own for every level of the pyramid.

use crate::{
    error::Result,
    model::{
        arch::{Arch, Noise},
        sampler::Latent,
        unet,
    },
    ops::Ops,
};

/// The coefficients of D(z; s) = c_skip z + c_out F(c_in z; c_noise) at one sigma.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coefficients {
    /// sd^2 / (s^2 + sd^2).
    pub c_skip: f64,
    /// s sd / sqrt(s^2 + sd^2).
    pub c_out: f64,
    /// 1 / sqrt(s^2 + sd^2).
    pub c_in: f64,
}

impl Coefficients {
    /// At `s` with the data's standard deviation `sd`.
    pub fn new(s: f64, sd: f64) -> Self {
        let total = s * s + sd * sd;
        Self { c_skip: sd * sd / total, c_out: s * sd / total.sqrt(), c_in: 1.0 / total.sqrt() }
    }
}

/// The coefficients of all levels at one shared sigma.
#[derive(Clone, Debug, PartialEq)]
pub struct Precond {
    /// Per level, finest first.
    pub levels: Vec<Coefficients>,
    /// ln(shared sigma) / 4.
    pub c_noise: f64,
}

impl Precond {
    /// At the shared `sigma`.
    pub fn new(noise: &Noise, sigma: f64) -> Self {
        let at = |level| Coefficients::new(level_sigma(noise, level, sigma), noise.sigma_data);
        let levels = (0..noise.shift.len()).map(at).collect();
        Self { levels, c_noise: libm::log(sigma) / 4.0 }
    }
}

/// The sigma that `level`'s network input has at the shared `sigma`: max(sigma exp(shift), sigma_min).
pub fn level_sigma(noise: &Noise, level: usize, sigma: f64) -> f64 {
    (sigma * libm::exp(noise.shift[level])).max(noise.sigma_min)
}

/// D(z; sigma) of every level: noisy normalised latents `z`, finest first, to the denoised ones.
///
/// # Errors
/// The interpreter's.
pub fn denoise<O: Ops>(o: &mut O, arch: &Arch, z: &[Latent], sigma: f64) -> Result<Vec<Latent>> {
    let precond = Precond::new(&arch.noise, sigma);
    let mut scaled = Vec::with_capacity(z.len());
    for (latent, c) in z.iter().zip(&precond.levels) {
        let data: Vec<f32> = latent.data.iter().map(|&v| (c.c_in * f64::from(v)) as f32).collect();
        scaled.push(o.upload(latent.shape, &data)?);
    }
    let raw = unet::predict(o, arch, &scaled, precond.c_noise)?;
    let mut out = Vec::with_capacity(z.len());
    for ((latent, raw), c) in z.iter().zip(&raw).zip(&precond.levels) {
        let raw = o.download(raw)?;
        let mix =
            |(&z, &f): (&f32, &f32)| (c.c_skip * f64::from(z) + c.c_out * f64::from(f)) as f32;
        let data = latent.data.iter().zip(&raw).map(mix).collect();
        out.push(Latent { shape: latent.shape, data });
    }
    Ok(out)
}
