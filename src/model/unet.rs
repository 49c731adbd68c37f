//! The pyramid U-Net: NCSN++ blocks, Res-Skip streams of latents, SC attention (the paper's figures 2 to 4).
//!
//! A model has one for each group of levels. It is conditioned on the coarser levels, which are denoised before, on the
//! labels of the picture and on the position in the picture, where the architecture says so.

use std::f64::consts::FRAC_PI_2;

use crate::{
    error::{Error, Result},
    graph::{Graph, GraphBuilder, Value},
    model::{
        arch::{Arch, GroupShape, Label, Level, Norm, Skip, UNet},
        block::{Block, Resample, conv, norm, sc_attention},
    },
    ops::{Domain, Shape, weights::Weights},
};

/// A U-Net always runs on whole grids.
const DOMAIN: Domain = Domain::Whole;

/// Fourier features of the noise level: cosines, then sines, of c_noise pi/2 32^(k/(K-1)) for k = 0 .. K-1, K = size/2.
///
/// The frequencies are this project's choice. c_noise lies between about -1.6 and 1.1 (ln(sigma)/4), so the slowest
/// feature passes through less than a period and the fastest resolves steps of the schedule. NCSN++ draws its
/// frequencies at random.
fn fourier_features(c_noise: f64, size: usize) -> Vec<f32> {
    let half = size / 2;
    let last = half.saturating_sub(1).max(1) as f64;
    let angle = |k: usize| c_noise * FRAC_PI_2 * libm::pow(32.0, k as f64 / last);
    let cosines = (0..half).map(|k| libm::cos(angle(k)) as f32);
    cosines.chain((0..half).map(|k| libm::sin(angle(k)) as f32)).collect()
}

/// The network's input for n values of c_noise: Fourier features [n, 1, 1, E].
pub fn features(shape: GroupShape<'_>, c_noise: &[f64]) -> (Shape, Vec<f32>) {
    let size = shape.group.unet.embedding;
    let features = c_noise.iter().flat_map(|&c| fourier_features(c, size)).collect();
    (Shape::new(c_noise.len(), 1, 1, size), features)
}

/// The network's input for the labels of n pictures, [n, 1, 1, E]: for each picture the sum of a row of every label's
/// table. A picture's row numbers are 0 for a label that is not given, else 1 + the index of its value.
///
/// # Errors
/// [`crate::error::Kind::InvalidModel`] if a table is missing; [`crate::error::Kind::InvalidArgument`] if there is not a
/// row number for each label, or it is too large.
pub fn label_embeddings(
    arch: &Arch,
    shape: GroupShape<'_>,
    weights: &Weights,
    rows: &[Vec<usize>],
) -> Result<(Shape, Vec<f32>)> {
    let size = shape.group.unet.embedding;
    let mut sums = vec![0.0; rows.len() * size];
    for (sum, rows) in sums.chunks_exact_mut(size).zip(rows) {
        if rows.len() != arch.labels.len() {
            return Err(Error::invalid("labels", rows.len(), arch.labels.len().to_string()));
        }
        for ((name, table_shape), &row) in label_tables(arch, shape).zip(rows) {
            let table = weights.get(&name, &table_shape)?;
            let count = table_shape[0];
            let row =
                table.data.chunks_exact(size).nth(row).ok_or_else(|| {
                    Error::invalid(name.clone(), row, format!("a row below {count}"))
                })?;
            sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
    }
    Ok((Shape::new(rows.len(), 1, 1, size), sums))
}

/// Names and shapes of the labels' tables, [1 + values, E] each; the first row is for a label that is not given.
pub fn label_tables(
    arch: &Arch,
    shape: GroupShape<'_>,
) -> impl Iterator<Item = (String, Vec<usize>)> {
    let (prefix, size) = (shape.prefix(), shape.group.unet.embedding);
    let table = move |(i, label): (usize, &Label)| {
        (format!("{prefix}labels.{i}.weight"), vec![1 + label.values.len(), size])
    };
    arch.labels.iter().enumerate().map(table)
}

/// The network's input for positions, [n, h, w, 2] on a grid of h x w: x and y of pixel centres, -1 and 1 at the
/// picture's edges.
pub fn coordinates(grid: Shape) -> (Shape, Vec<f32>) {
    let Shape { n, h, w, .. } = grid;
    let axis = |at: usize, extent: usize| (2 * at + 1) as f32 / extent as f32 - 1.0;
    let picture = (0..h).flat_map(|y| (0..w).flat_map(move |x| [axis(x, w), axis(y, h)]));
    let values: Vec<f32> = picture.collect();
    (grid.with_channels(2), values.repeat(n))
}

/// The embedding [n, 1, 1, E] of the noise level, the labels and the 1x1 level of the condition.
fn embed(g: &mut GraphBuilder, net: &Net<'_>, inputs: &Inputs) -> Result<Value> {
    let size = net.unet().embedding;
    let mut e = conv(g, DOMAIN, inputs.features, net.name("time1"), size, 1)?;
    e = g.silu(e)?;
    e = conv(g, DOMAIN, e, net.name("time2"), size, 1)?;
    if let Some(labels) = inputs.labels {
        e = g.add(e, labels)?;
    }
    if let (Some(Level { factor: 0, .. }), Some(&z)) =
        (net.shape.condition().last(), inputs.condition.last())
    {
        let coarsest = conv(g, DOMAIN, z, net.name("condition.coarsest"), size, 1)?;
        e = g.add(e, coarsest)?;
    }
    g.silu(e)
}

/// The stream of the condition, [n, h, w, C] on the grid of the first stage: the coarser levels, each entering where the
/// stream, upsampled from the coarsest one, has reached its grid.
fn condition(g: &mut GraphBuilder, net: &Net<'_>, inputs: &Inputs) -> Result<Option<Value>> {
    let channels = net.unet().stages[0].channels;
    let mut stream: Option<(Value, usize)> = None;
    let levels = net.shape.condition().iter().zip(&inputs.condition).enumerate();
    for (i, (level, &z)) in levels.filter(|(_, (level, _))| level.factor > 0).rev() {
        let entered = conv(g, DOMAIN, z, net.name(&format!("condition.levels.{i}")), channels, 1)?;
        let next = match stream {
            Some((r, factor)) => {
                let r = upsampled(g, r, factor, level.factor)?;
                g.add(r, entered)?
            }
            None => entered,
        };
        stream = Some((next, level.factor));
    }
    let first = net.shape.factor(0);
    stream.map(|(r, factor)| upsampled(g, r, factor, first)).transpose()
}

/// `r` upsampled by FIR from a grid at `factor` to one at `finer`.
fn upsampled(g: &mut GraphBuilder, r: Value, factor: usize, finer: usize) -> Result<Value> {
    let mut r = r;
    for _ in 0..(factor / finer.max(1)).max(1).ilog2() {
        r = g.fir_up2(r)?;
    }
    Ok(r)
}

/// A group's U-Net.
struct Net<'a> {
    arch: &'a Arch,
    shape: GroupShape<'a>,
    prefix: String,
}

impl<'a> Net<'a> {
    fn unet(&self) -> &'a UNet {
        &self.shape.group.unet
    }

    fn name(&self, part: &str) -> String {
        format!("{}{part}", self.prefix)
    }

    /// The block `name`.
    fn block(&self, name: &str, channels: usize, resample: Option<Resample>) -> Block {
        let residual = self.unet().skip != Skip::Input;
        let name = self.name(name);
        Block { residual, ..Block::new(name, DOMAIN, channels, self.unet().norm, resample) }
    }
}

/// Features h [n, h, w, c] -> change of a latent [n, h, w, channels]: conv(SiLU(norm h)).
fn to_latent(
    g: &mut GraphBuilder,
    h: Value,
    name: &str,
    channels: usize,
    kind: Norm,
    kernel: usize,
) -> Result<Value> {
    let h = norm(g, h, format!("{name}.norm"), kind, true)?;
    conv(g, DOMAIN, h, format!("{name}.conv"), channels, kernel)
}

/// `blocks` blocks at one resolution, then attention if the stage has it.
fn half_stage(
    g: &mut GraphBuilder,
    net: &Net<'_>,
    i: usize,
    half: &str,
    h: Value,
    e: Value,
) -> Result<Value> {
    let spec = net.unet().stages[i];
    let mut h = h;
    for j in 0..spec.blocks {
        let block = net.block(&format!("stages.{i}.{half}.{j}"), spec.channels, None);
        h = block.run(g, h, Some(e))?;
    }
    if spec.attention {
        let name = net.name(&format!("stages.{i}.{half}_attention"));
        h = sc_attention(g, DOMAIN, h, &name, net.arch.attention_ratio)?;
    }
    Ok(h)
}

/// The 1x1 level: features h [n, h, w, c] of the coarsest stage, latent z [n, 1, 1, C], embedding e [n, 1, 1, E] -> h
/// scaled and shifted [n, h, w, c], and the prediction [n, 1, 1, C].
fn global_stage(
    g: &mut GraphBuilder,
    net: &Net<'_>,
    h: Value,
    z: Value,
    e: Value,
) -> Result<(Value, Value)> {
    let (channels, width) = (g.shape(h).c, net.unet().global_channels);
    let mut m = g.global_avg_pool(h)?;
    m = conv(g, DOMAIN, m, net.name("coarsest.down"), width, 1)?;
    let latent = conv(g, DOMAIN, z, net.name("coarsest.frgb"), width, 1)?;
    m = g.add(m, latent)?;
    let block = net.block("coarsest.block", width, None);
    m = Block { kernel: 1, ..block }.run(g, m, Some(e))?;
    let own = g.shape(z).c;
    let prediction = to_latent(g, m, &net.name("coarsest.trgb"), own, Norm::Group, 1)?;
    let pair = conv(g, DOMAIN, m, net.name("coarsest.up"), 2 * channels, 1)?;
    Ok((g.scale_shift(h, pair, false)?, prediction))
}

/// Inputs of a group's U-Net.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Scaled latents c_in z of the group's levels, finest first, [n, H/f, W/f, C] each with the level's factor f and
    /// channels C; the 1x1 level has [n, 1, 1, C].
    pub latents: Vec<Value>,
    /// The [`features`] of c_noise.
    pub features: Value,
    /// The [`label_embeddings`], if the model has labels.
    pub labels: Option<Value>,
    /// The [`coordinates`] of the first stage's grid, if the U-Net reads them.
    pub coordinates: Option<Value>,
    /// Normalised latents of all coarser levels, finest first.
    pub condition: Vec<Value>,
}

impl Inputs {
    /// Adds the inputs of the U-Net `shape` to `g`, in the order of the fields, for pictures whose levels, all of them, have
    /// latents of the shapes `latents`.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] if there is not one latent per level, or one is empty.
    pub fn add(
        g: &mut GraphBuilder,
        arch: &Arch,
        shape: GroupShape<'_>,
        latents: &[Shape],
    ) -> Result<Self> {
        if latents.len() != arch.levels.len() {
            let levels = arch.levels.len();
            return Err(Error::invalid("unet latents", latents.len(), levels.to_string()));
        }
        let (unet, range) = (&shape.group.unet, shape.range());
        let own = g.inputs(&latents[range.clone()])?;
        let finest = latents[range.start];
        let embedding = Shape::new(finest.n, 1, 1, unet.embedding);
        let features = g.input(embedding)?;
        let labels = match arch.labels.is_empty() {
            true => None,
            false => Some(g.input(embedding)?),
        };
        let grid = Shape { h: finest.h / unet.unshuffle, w: finest.w / unet.unshuffle, ..finest };
        let coordinates = match unet.coordinates {
            true => Some(g.input(grid.with_channels(2))?),
            false => None,
        };
        let condition = g.inputs(&latents[range.end..])?;
        Ok(Self { latents: own, features, labels, coordinates, condition })
    }
}

/// The network F of a group's preconditioned denoiser (Karras et al. 2022, equation 7) as a graph, for pictures whose
/// levels, all of them, have latents of the shapes `latents`. Inputs: those of [`Inputs`]. Results: predictions of the
/// shapes of the group's latents, finest first.
///
/// # Errors
/// As [`Inputs::add`].
pub fn graph(arch: &Arch, group: usize, latents: &[Shape]) -> Result<Graph> {
    let mut g = GraphBuilder::new();
    let shape = arch.group(group);
    let inputs = Inputs::add(&mut g, arch, shape, latents)?;
    let predictions = predict(&mut g, arch, shape, &inputs)?;
    Ok(g.finish(predictions))
}

/// Adds the network of [`graph`] to `g`; returns the predictions.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if the shapes do not fit.
pub fn predict(
    g: &mut GraphBuilder,
    arch: &Arch,
    shape: GroupShape<'_>,
    inputs: &Inputs,
) -> Result<Vec<Value>> {
    let net = Net { arch, shape, prefix: shape.prefix() };
    let (unet, z) = (net.unet(), &inputs.latents);
    let (stages, unshuffle, levels) = (&unet.stages, unet.unshuffle, z.len());
    let name = |i: usize, part: &str| net.name(&format!("stages.{i}.{part}"));
    let e = embed(g, &net, inputs)?;

    let mut r = if unshuffle == 1 { z[0] } else { g.pixel_unshuffle(z[0], unshuffle)? };
    let mut h = conv(g, DOMAIN, r, net.name("enter"), stages[0].channels, 3)?;
    if let Some(coordinates) = inputs.coordinates {
        let position =
            conv(g, DOMAIN, coordinates, net.name("coordinates"), stages[0].channels, 1)?;
        h = g.add(h, position)?;
    }
    if let Some(stream) = condition(g, &net, inputs)? {
        h = g.add(h, stream)?;
    }
    let mut skips = Vec::with_capacity(stages.len());
    for (i, spec) in stages.iter().enumerate() {
        if i > 0 {
            let part = format!("stages.{i}.down");
            h = net.block(&part, spec.channels, Some(Resample::FirDown)).run(g, h, Some(e))?;
        }
        if i > 0 && shape.has_latent_io(i) {
            r = match shape.level(i) {
                Some(level) => z[level],
                None => g.fir_down2(r)?,
            };
            let latent = conv(g, DOMAIN, r, name(i, "frgb"), spec.channels, 1)?;
            h = g.add(h, latent)?;
        }
        h = half_stage(g, &net, i, "encoder", h, e)?;
        skips.push(h);
    }

    let mut out: Vec<Option<Value>> = vec![None; levels];
    if shape.has_global() {
        let prediction;
        (h, prediction) = global_stage(g, &net, h, z[levels - 1], e)?;
        out[levels - 1] = Some(prediction);
    }

    // The coarsest stage has no `up` and does not read its own skip.
    skips.pop();
    let mut rgb: Option<Value> = None;
    for (i, spec) in stages.iter().enumerate().rev() {
        if i + 1 < stages.len()
            && let Some(skip) = skips.pop()
        {
            let part = format!("stages.{i}.up");
            h = net.block(&part, spec.channels, Some(Resample::FirUp)).run(g, h, Some(e))?;
            h = g.concat(h, skip)?;
        }
        h = half_stage(g, &net, i, "decoder", h, e)?;
        if !shape.has_latent_io(i) {
            continue;
        }
        let channels = shape.latent_channels(i);
        let mut t = to_latent(g, h, &name(i, "trgb"), channels, unet.norm, 3)?;
        // A stream starts at the coarsest stage of its level and runs to the level's own grid.
        if let Some(coarser) = rgb.take() {
            let up = g.fir_up2(coarser)?;
            t = g.add(up, t)?;
        }
        match shape.level(i) {
            Some(0) if unshuffle > 1 => out[0] = Some(g.pixel_shuffle(t, unshuffle)?),
            Some(level) => out[level] = Some(t),
            None => rgb = Some(t),
        }
    }
    let missing = || Error::model("unet.stages", "incomplete", "a stage at every level");
    out.into_iter().map(|prediction| prediction.ok_or_else(missing)).collect()
}
