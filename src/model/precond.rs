//! EDM's preconditioning (Karras et al. 2022, table 1), with one sigma per level of the pyramid. Sigma is the standard
//! deviation of the noise in units of normalised latents.

use crate::{
    error::{Error, Result},
    graph::{Backend, Download, Input},
    model::{
        arch::{Arch, GroupShape, Noise},
        checkpoint::Checkpoint,
        sampler::{Latent, NoisyLatents},
        unet,
    },
    ops::{Shape, weights::Weights},
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

/// One row of a batch for the network: a pyramid, and the rows of its labels.
struct Row<'a> {
    noisy: &'a NoisyLatents<'a>,
    labels: Vec<usize>,
}

/// D(z; sigma) of the group's levels for every pyramid of `batch`, in their order, by one evaluation of the network; the
/// results have the shapes of the inputs. Sigmas and labels may differ within the batch. A pyramid's result has the same
/// bits as in a batch of its own. A guided pyramid is evaluated twice, with labels and without, in the same batch.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if the pyramids differ in their shapes or groups; the backend's.
pub fn denoise<O: Backend>(
    o: &mut O,
    model: &Checkpoint,
    batch: &[NoisyLatents<'_>],
) -> Result<Vec<Vec<Latent>>> {
    let (arch, weights) = (&model.arch, &model.weights);
    let Some(first) = batch.first() else { return Ok(Vec::new()) };
    let shapes: Vec<_> = first.z.iter().map(|latent| latent.shape).collect();
    let same = |noisy: &NoisyLatents<'_>| {
        noisy.group == first.group && noisy.z.iter().map(|z| z.shape).eq(shapes.iter().copied())
    };
    if !batch.iter().all(same) {
        return Err(Error::invalid("batch", "latents of several shapes or groups", "of one"));
    }
    let shape = arch.group(first.group);
    let none = vec![0; arch.labels.len()];
    let mut rows = Vec::with_capacity(batch.len());
    for noisy in batch {
        let labels = noisy.guidance.map_or(&none, |guidance| &guidance.rows);
        rows.push(Row { noisy, labels: labels.clone() });
        if scale(shape, noisy) != 1.0 {
            rows.push(Row { noisy, labels: none.clone() });
        }
    }
    let raw = evaluate(o, arch, weights, &rows, &shapes)?;

    let mut out = Vec::with_capacity(batch.len());
    let mut row = 0;
    for noisy in batch {
        let precond = Precond::new(&shape.group.noise, noisy.sigma);
        let denoised = |row: usize| -> Vec<Vec<f32>> {
            let levels = shape.range().zip(&raw).zip(&precond.levels);
            levels
                .map(|((level, raw), c)| {
                    let len = shapes[level].len();
                    let mix = |(&z, &f): (&f32, &f32)| {
                        (c.c_skip * f64::from(z) + c.c_out * f64::from(f)) as f32
                    };
                    let own = &raw[row * len..(row + 1) * len];
                    noisy.z[level].data.iter().zip(own).map(mix).collect()
                })
                .collect()
        };
        let mut data = denoised(row);
        row += 1;
        let scale = scale(shape, noisy);
        if scale != 1.0 {
            for (with, without) in data.iter_mut().zip(denoised(row)) {
                for (with, without) in with.iter_mut().zip(without) {
                    let (d, base) = (f64::from(*with), f64::from(without));
                    *with = (base + scale * (d - base)) as f32;
                }
            }
            row += 1;
        }
        let latents = shape.range().zip(data);
        out.push(latents.map(|(level, data)| Latent { shape: shapes[level], data }).collect());
    }
    Ok(out)
}

/// Scale of a pyramid's guidance.
fn scale(shape: GroupShape<'_>, noisy: &NoisyLatents<'_>) -> f64 {
    noisy.guidance.map_or(1.0, |guidance| guidance.scale_at(shape, noisy.sigma))
}

/// The network's predictions for every row, by level of the group.
fn evaluate<O: Backend>(
    o: &mut O,
    arch: &Arch,
    weights: &Weights,
    rows: &[Row<'_>],
    shapes: &[Shape],
) -> Result<Vec<Vec<f32>>> {
    let shape = arch.group(rows[0].noisy.group);
    let preconds: Vec<_> =
        rows.iter().map(|row| Precond::new(&shape.group.noise, row.noisy.sigma)).collect();
    let batched = |level: usize| Shape { n: rows.len() * shapes[level].n, ..shapes[level] };
    let mut inputs = Vec::new();
    for level in shape.range() {
        let scaled = |(row, precond): (&Row<'_>, &Precond)| -> Vec<f32> {
            let c_in = precond.levels[level - shape.range().start].c_in;
            row.noisy.z[level].data.iter().map(|&v| (c_in * f64::from(v)) as f32).collect()
        };
        let data: Vec<_> = rows.iter().zip(&preconds).map(scaled).collect();
        inputs.push((batched(level), data.concat()));
    }
    let pictures = shapes[0].n;
    let c_noise: Vec<f64> =
        preconds.iter().flat_map(|precond| vec![precond.c_noise; pictures]).collect();
    inputs.push(unet::features(shape, &c_noise));
    if !arch.labels.is_empty() {
        let labels: Vec<_> =
            rows.iter().flat_map(|row| vec![row.labels.clone(); pictures]).collect();
        inputs.push(unet::label_embeddings(arch, shape, weights, &labels)?);
    }
    if shape.group.unet.coordinates {
        let (finest, unshuffle) = (batched(shape.range().start), shape.group.unet.unshuffle);
        let grid = Shape { h: finest.h / unshuffle, w: finest.w / unshuffle, ..finest };
        inputs.push(unet::coordinates(grid));
    }
    for level in shape.range().end..shapes.len() {
        let data: Vec<_> = rows.iter().map(|row| row.noisy.z[level].data.as_slice()).collect();
        inputs.push((batched(level), data.concat()));
    }
    let batch: Vec<_> = (0..shapes.len()).map(batched).collect();
    let inputs: Vec<_> = inputs.iter().map(|(shape, data)| Input::Host(*shape, data)).collect();
    let predictions = o.evaluate(&unet::graph(arch, shape.index(), &batch)?, &inputs)?;
    predictions.into_iter().map(Download::wait).collect()
}
