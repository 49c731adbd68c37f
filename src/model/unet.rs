//! The pyramid U-Net: NCSN++ blocks, Res-Skip streams of latents, SC attention (the paper's figures 2 to 4).

use std::f64::consts::FRAC_PI_2;

use crate::{
    error::{Error, Result},
    model::{
        arch::{Arch, Norm, Skip},
        block::{Block, Resample, add, conv, norm, sc_attention},
    },
    ops::{Domain, Ops, Shape},
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

/// The embeddings [n, 1, 1, E] of n values of c_noise.
fn embed<O: Ops>(o: &mut O, arch: &Arch, c_noise: &[f64]) -> Result<O::Tensor> {
    let size = arch.unet.embedding;
    let features: Vec<f32> = c_noise.iter().flat_map(|&c| fourier_features(c, size)).collect();
    let mut e = o.upload(Shape::new(c_noise.len(), 1, 1, size), &features)?;
    for layer in ["unet.time1", "unet.time2"] {
        e = conv(o, DOMAIN, &e, layer.into(), size, 1)?;
        e = o.silu(&e)?;
    }
    Ok(e)
}

/// Features h [n, h, w, c] -> change of a latent [n, h, w, channels]: conv(SiLU(GroupNorm h)).
fn to_latent<O: Ops>(
    o: &mut O,
    h: &O::Tensor,
    name: &str,
    channels: usize,
    kernel: usize,
) -> Result<O::Tensor> {
    let h = norm(o, h, format!("{name}.norm"), Norm::Group, true)?;
    conv(o, DOMAIN, &h, format!("{name}.conv"), channels, kernel)
}

/// The block `name` of the U-Net.
fn block(arch: &Arch, name: String, channels: usize, resample: Option<Resample>) -> Block {
    let residual = arch.unet.skip != Skip::Input;
    Block { residual, ..Block::new(name, DOMAIN, channels, Norm::Group, resample) }
}

/// `blocks` blocks at one resolution, then attention if the stage has it.
fn half_stage<O: Ops>(
    o: &mut O,
    arch: &Arch,
    i: usize,
    half: &str,
    h: O::Tensor,
    e: &O::Tensor,
) -> Result<O::Tensor> {
    let spec = arch.unet.stages[i];
    let mut h = h;
    for j in 0..spec.blocks {
        let name = format!("unet.stages.{i}.{half}.{j}");
        h = block(arch, name, spec.channels, None).run(o, h, Some(e))?;
    }
    if spec.attention {
        let name = format!("unet.stages.{i}.{half}_attention");
        h = sc_attention(o, DOMAIN, &h, &name, arch.attention_ratio)?;
    }
    Ok(h)
}

/// The 1x1 level: features h [n, h, w, c] of the coarsest stage, latent z [n, 1, 1, C], embedding e [n, 1, 1, E] -> h
/// scaled and shifted [n, h, w, c], and the prediction [n, 1, 1, C].
fn global_stage<O: Ops>(
    o: &mut O,
    arch: &Arch,
    h: &O::Tensor,
    z: &O::Tensor,
    e: &O::Tensor,
) -> Result<(O::Tensor, O::Tensor)> {
    let (channels, width) = (o.shape(h).c, arch.unet.global_channels);
    let mut g = o.global_avg_pool(h)?;
    g = conv(o, DOMAIN, &g, "unet.coarsest.down".into(), width, 1)?;
    let latent = conv(o, DOMAIN, z, "unet.coarsest.frgb".into(), width, 1)?;
    g = add(o, &g, &latent)?;
    let block = block(arch, "unet.coarsest.block".into(), width, None);
    g = Block { kernel: 1, ..block }.run(o, g, Some(e))?;
    let prediction = to_latent(o, &g, "unet.coarsest.trgb", o.shape(z).c, 1)?;
    let pair = conv(o, DOMAIN, &g, "unet.coarsest.up".into(), 2 * channels, 1)?;
    Ok((o.scale_shift(h, &pair, false)?, prediction))
}

/// The network F of the preconditioned denoiser (Karras et al. 2022, equation 7).
///
/// Scaled latents c_in z, finest first, [n, H/f, W/f, C] each with the level's factor f and channels C -> predictions
/// of the same shapes. The 1x1 level has [n, 1, 1, C]. `c_noise` has a value for each of the n pictures, or one for
/// all.
///
/// # Errors
/// There is not one latent per level; the backend's.
pub fn predict<O: Ops>(
    o: &mut O,
    arch: &Arch,
    z: &[O::Tensor],
    c_noise: &[f64],
) -> Result<Vec<O::Tensor>> {
    o.install(|o| evaluate(o, arch, z, c_noise))
}

fn evaluate<O: Ops>(
    o: &mut O,
    arch: &Arch,
    z: &[O::Tensor],
    c_noise: &[f64],
) -> Result<Vec<O::Tensor>> {
    let levels = arch.levels.len();
    if z.len() != levels {
        return Err(Error::invalid("unet latents", z.len(), format!("{levels}")));
    }
    let (stages, unshuffle) = (&arch.unet.stages, arch.unet.unshuffle);
    let name = |i: usize, part: &str| format!("unet.stages.{i}.{part}");
    let e = embed(o, arch, c_noise)?;

    let mut r = if unshuffle == 1 { z[0].clone() } else { o.pixel_unshuffle(&z[0], unshuffle)? };
    let mut h = conv(o, DOMAIN, &r, "unet.enter".into(), stages[0].channels, 3)?;
    let mut skips = Vec::with_capacity(stages.len());
    for (i, spec) in stages.iter().enumerate() {
        if i > 0 {
            let down = block(arch, name(i, "down"), spec.channels, Some(Resample::FirDown));
            h = down.run(o, h, Some(&e))?;
        }
        if i > 0 && arch.stage_has_latent_io(i) {
            r = match arch.unet_level(i) {
                Some(level) => z[level].clone(),
                None => o.fir_down2(&r)?,
            };
            let latent = conv(o, DOMAIN, &r, name(i, "frgb"), spec.channels, 1)?;
            h = add(o, &h, &latent)?;
        }
        h = half_stage(o, arch, i, "encoder", h, &e)?;
        skips.push(h.clone());
    }

    let mut out: Vec<Option<O::Tensor>> = vec![None; levels];
    if arch.has_global() {
        let prediction;
        (h, prediction) = global_stage(o, arch, &h, &z[levels - 1], &e)?;
        out[levels - 1] = Some(prediction);
    }

    // The coarsest stage has no `up` and does not read its own skip.
    skips.pop();
    let mut rgb: Option<O::Tensor> = None;
    for (i, spec) in stages.iter().enumerate().rev() {
        if i + 1 < stages.len()
            && let Some(skip) = skips.pop()
        {
            let up = block(arch, name(i, "up"), spec.channels, Some(Resample::FirUp));
            h = up.run(o, h, Some(&e))?;
            h = o.concat(&h, &skip)?;
        }
        h = half_stage(o, arch, i, "decoder", h, &e)?;
        if !arch.stage_has_latent_io(i) {
            continue;
        }
        let mut t = to_latent(o, &h, &name(i, "trgb"), arch.stage_latent_channels(i), 3)?;
        // A stream starts at the coarsest stage of its level and runs to the level's own grid.
        if let Some(coarser) = rgb.take() {
            let up = o.fir_up2(&coarser)?;
            t = add(o, &up, &t)?;
        }
        match arch.unet_level(i) {
            Some(0) if unshuffle > 1 => out[0] = Some(o.pixel_shuffle(&t, unshuffle)?),
            Some(level) => out[level] = Some(t),
            None => rgb = Some(t),
        }
    }
    let missing = || Error::model("unet.stages", "incomplete", "a stage at every level");
    out.into_iter().map(|prediction| prediction.ok_or_else(missing)).collect()
}
