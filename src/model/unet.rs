//! The pyramid U-Net: NCSN++ blocks, Res-Skip streams of latents, SC attention (the paper's figures 2 to 4).

use std::f64::consts::FRAC_PI_2;

use crate::{
    error::{Error, Result},
    graph::{Graph, GraphBuilder, Value},
    model::{
        arch::{Arch, Norm, Skip},
        block::{Block, Resample, conv, norm, sc_attention},
    },
    ops::{Domain, Shape},
};

/// The U-Net always runs on whole grids.
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
pub fn features(arch: &Arch, c_noise: &[f64]) -> (Shape, Vec<f32>) {
    let size = arch.unet.embedding;
    let features = c_noise.iter().flat_map(|&c| fourier_features(c, size)).collect();
    (Shape::new(c_noise.len(), 1, 1, size), features)
}

/// The embeddings [n, 1, 1, E] of n noise levels from their Fourier features [n, 1, 1, E].
fn embed(g: &mut GraphBuilder, arch: &Arch, features: Value) -> Result<Value> {
    let mut e = features;
    for layer in ["unet.time1", "unet.time2"] {
        e = conv(g, DOMAIN, e, layer.into(), arch.unet.embedding, 1)?;
        e = g.silu(e)?;
    }
    Ok(e)
}

/// Features h [n, h, w, c] -> change of a latent [n, h, w, channels]: conv(SiLU(GroupNorm h)).
fn to_latent(
    g: &mut GraphBuilder,
    h: Value,
    name: &str,
    channels: usize,
    kernel: usize,
) -> Result<Value> {
    let h = norm(g, h, format!("{name}.norm"), Norm::Group, true)?;
    conv(g, DOMAIN, h, format!("{name}.conv"), channels, kernel)
}

/// The block `name` of the U-Net.
fn block(arch: &Arch, name: String, channels: usize, resample: Option<Resample>) -> Block {
    let residual = arch.unet.skip != Skip::Input;
    Block { residual, ..Block::new(name, DOMAIN, channels, Norm::Group, resample) }
}

/// `blocks` blocks at one resolution, then attention if the stage has it.
fn half_stage(
    g: &mut GraphBuilder,
    arch: &Arch,
    i: usize,
    half: &str,
    h: Value,
    e: Value,
) -> Result<Value> {
    let spec = arch.unet.stages[i];
    let mut h = h;
    for j in 0..spec.blocks {
        let name = format!("unet.stages.{i}.{half}.{j}");
        h = block(arch, name, spec.channels, None).run(g, h, Some(e))?;
    }
    if spec.attention {
        let name = format!("unet.stages.{i}.{half}_attention");
        h = sc_attention(g, DOMAIN, h, &name, arch.attention_ratio)?;
    }
    Ok(h)
}

/// The 1x1 level: features h [n, h, w, c] of the coarsest stage, latent z [n, 1, 1, C], embedding e [n, 1, 1, E] -> h
/// scaled and shifted [n, h, w, c], and the prediction [n, 1, 1, C].
fn global_stage(
    g: &mut GraphBuilder,
    arch: &Arch,
    h: Value,
    z: Value,
    e: Value,
) -> Result<(Value, Value)> {
    let (channels, width) = (g.shape(h).c, arch.unet.global_channels);
    let mut m = g.global_avg_pool(h)?;
    m = conv(g, DOMAIN, m, "unet.coarsest.down".into(), width, 1)?;
    let latent = conv(g, DOMAIN, z, "unet.coarsest.frgb".into(), width, 1)?;
    m = g.add(m, latent)?;
    let block = block(arch, "unet.coarsest.block".into(), width, None);
    m = Block { kernel: 1, ..block }.run(g, m, Some(e))?;
    let channels_out = g.shape(z).c;
    let prediction = to_latent(g, m, "unet.coarsest.trgb", channels_out, 1)?;
    let pair = conv(g, DOMAIN, m, "unet.coarsest.up".into(), 2 * channels, 1)?;
    Ok((g.scale_shift(h, pair, false)?, prediction))
}

/// The network F of the preconditioned denoiser (Karras et al. 2022, equation 7) as a graph.
///
/// Inputs: the scaled latents c_in z, finest first, of the shapes `latents`, [n, H/f, W/f, C] each with the level's factor
/// f and channels C, where the 1x1 level has [n, 1, 1, C]; then the [`features`] of `noise_levels` values of c_noise, one
/// for each of the n pictures, or one for all. Results: predictions of the latents' shapes.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if there is not one latent per level, or its shape does not fit.
pub fn graph(arch: &Arch, latents: &[Shape], noise_levels: usize) -> Result<Graph> {
    let mut g = GraphBuilder::new();
    let z = latents.iter().map(|&shape| g.input(shape)).collect::<Result<Vec<_>>>()?;
    let features = g.input(Shape::new(noise_levels, 1, 1, arch.unet.embedding))?;
    let predictions = predict(&mut g, arch, &z, features)?;
    Ok(g.finish(predictions))
}

/// Adds the network of [`graph`] to `g`: latents `z` and Fourier features -> predictions.
///
/// # Errors
/// As [`graph`].
pub fn predict(
    g: &mut GraphBuilder,
    arch: &Arch,
    z: &[Value],
    features: Value,
) -> Result<Vec<Value>> {
    let levels = arch.levels.len();
    if z.len() != levels {
        return Err(Error::invalid("unet latents", z.len(), format!("{levels}")));
    }
    let (stages, unshuffle) = (&arch.unet.stages, arch.unet.unshuffle);
    let name = |i: usize, part: &str| format!("unet.stages.{i}.{part}");
    let e = embed(g, arch, features)?;

    let mut r = if unshuffle == 1 { z[0] } else { g.pixel_unshuffle(z[0], unshuffle)? };
    let mut h = conv(g, DOMAIN, r, "unet.enter".into(), stages[0].channels, 3)?;
    let mut skips = Vec::with_capacity(stages.len());
    for (i, spec) in stages.iter().enumerate() {
        if i > 0 {
            let down = block(arch, name(i, "down"), spec.channels, Some(Resample::FirDown));
            h = down.run(g, h, Some(e))?;
        }
        if i > 0 && arch.stage_has_latent_io(i) {
            r = match arch.unet_level(i) {
                Some(level) => z[level],
                None => g.fir_down2(r)?,
            };
            let latent = conv(g, DOMAIN, r, name(i, "frgb"), spec.channels, 1)?;
            h = g.add(h, latent)?;
        }
        h = half_stage(g, arch, i, "encoder", h, e)?;
        skips.push(h);
    }

    let mut out: Vec<Option<Value>> = vec![None; levels];
    if arch.has_global() {
        let prediction;
        (h, prediction) = global_stage(g, arch, h, z[levels - 1], e)?;
        out[levels - 1] = Some(prediction);
    }

    // The coarsest stage has no `up` and does not read its own skip.
    skips.pop();
    let mut rgb: Option<Value> = None;
    for (i, spec) in stages.iter().enumerate().rev() {
        if i + 1 < stages.len()
            && let Some(skip) = skips.pop()
        {
            let up = block(arch, name(i, "up"), spec.channels, Some(Resample::FirUp));
            h = up.run(g, h, Some(e))?;
            h = g.concat(h, skip)?;
        }
        h = half_stage(g, arch, i, "decoder", h, e)?;
        if !arch.stage_has_latent_io(i) {
            continue;
        }
        let mut t = to_latent(g, h, &name(i, "trgb"), arch.stage_latent_channels(i), 3)?;
        // A stream starts at the coarsest stage of its level and runs to the level's own grid.
        if let Some(coarser) = rgb.take() {
            let up = g.fir_up2(coarser)?;
            t = g.add(up, t)?;
        }
        match arch.unet_level(i) {
            Some(0) if unshuffle > 1 => out[0] = Some(g.pixel_shuffle(t, unshuffle)?),
            Some(level) => out[level] = Some(t),
            None => rgb = Some(t),
        }
    }
    let missing = || Error::model("unet.stages", "incomplete", "a stage at every level");
    out.into_iter().map(|prediction| prediction.ok_or_else(missing)).collect()
}
