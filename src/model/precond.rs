//! EDM's preconditioning (Karras et al. 2022, table 1), with one sigma per level of the pyramid. Sigma is the standard
//! deviation of the noise in units of normalised latents.

use crate::{
    error::{Error, Result},
    graph::Backend,
    model::{
        arch::{Arch, Noise},
        sampler::{Latent, NoisyLatents},
        unet,
    },
    ops::Shape,
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

/// D(z; sigma) for every pyramid of `batch`, in their order, by one evaluation of the network; the results have the
/// shapes of the inputs. Sigmas may differ within the batch. A pyramid's result has the same bits as in a batch of its
/// own.
///
/// # Errors
/// The pyramids differ in their shapes; the backend's.
pub fn denoise<O: Backend>(
    o: &mut O,
    arch: &Arch,
    batch: &[NoisyLatents<'_>],
) -> Result<Vec<Vec<Latent>>> {
    let Some(first) = batch.first() else { return Ok(Vec::new()) };
    let shapes: Vec<_> = first.z.iter().map(|latent| latent.shape).collect();
    if batch.iter().any(|noisy| !noisy.z.iter().map(|latent| latent.shape).eq(shapes.clone())) {
        return Err(Error::invalid("batch", "latents of several shapes", "latents of one shape"));
    }
    let preconds: Vec<_> =
        batch.iter().map(|noisy| Precond::new(&arch.noise, noisy.sigma)).collect();
    let mut scaled = Vec::with_capacity(shapes.len());
    for (level, &shape) in shapes.iter().enumerate() {
        let scale = |(noisy, precond): (&NoisyLatents<'_>, &Precond)| {
            let c_in = precond.levels[level].c_in;
            noisy.z[level].data.iter().map(move |&v| (c_in * f64::from(v)) as f32).collect()
        };
        let data: Vec<Vec<f32>> = batch.iter().zip(&preconds).map(scale).collect();
        scaled.push(o.upload(Shape { n: batch.len() * shape.n, ..shape }, &data.concat())?);
    }
    let c_noise: Vec<f64> = (preconds.iter().zip(batch))
        .flat_map(|(precond, noisy)| vec![precond.c_noise; noisy.z[0].shape.n])
        .collect();
    let (shape, features) = unet::features(arch, &c_noise);
    let shapes_in: Vec<_> = scaled.iter().map(|latent| o.shape(latent)).collect();
    scaled.push(o.upload(shape, &features)?);
    let raw = o.run(&unet::graph(arch, &shapes_in, c_noise.len())?, scaled)?;
    let mut out = vec![Vec::with_capacity(shapes.len()); batch.len()];
    for (level, raw) in raw.iter().enumerate() {
        let raw = o.download(raw)?;
        let shares = raw.chunks_exact(shapes[level].len());
        for (((out, noisy), precond), raw) in out.iter_mut().zip(batch).zip(&preconds).zip(shares) {
            let (latent, c) = (&noisy.z[level], precond.levels[level]);
            let mix =
                |(&z, &f): (&f32, &f32)| (c.c_skip * f64::from(z) + c.c_out * f64::from(f)) as f32;
            let data = latent.data.iter().zip(raw).map(mix).collect();
            out.push(Latent { shape: latent.shape, data });
        }
    }
    Ok(out)
}
