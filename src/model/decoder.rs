//! The decoder: a global stage up to the finest latent's grid, and from there to pixels a local stage whose receptive
//! field is bounded, so that it can run tile by tile.

use crate::{
    error::{Error, Result},
    model::{
        arch::{Arch, Norm},
        block::{Block, Resample, add, conv, norm, sc_attention},
    },
    ops::{Domain, Ops},
};

/// The decoder runs tile by tile.
const DOMAIN: Domain = Domain::Window;

/// Number of stages that belong to the local stage: those finer than the finest latent.
pub fn local_stages(arch: &Arch) -> usize {
    (arch.finest_factor() / arch.decoder.shuffle).ilog2() as usize
}

/// Stage `i`: upsampled features h [n, h, w, c] and RGB stream r [n, h, w, 3] -> features [n, 2h, 2w, c'] and RGB
/// stream [n, 2h, 2w, 3]. The coarsest stage does not upsample. The stage's latent z enters through the layer `frgb`;
/// `trgb` gives the change of the RGB stream.
fn stage<O: Ops>(
    o: &mut O,
    arch: &Arch,
    i: usize,
    h: O::Tensor,
    r: Option<O::Tensor>,
    z: Option<&O::Tensor>,
) -> Result<(O::Tensor, O::Tensor)> {
    let name = format!("decoder.stages.{i}");
    let (stages, spec) = (&arch.decoder.stages, arch.decoder.stages[i]);
    let coarsest = i == stages.len() - 1;
    let kind = if i < local_stages(arch) { Norm::Pixel } else { arch.decoder.global_norm };
    let mut h = h;
    if !coarsest {
        let up = Block::new(
            format!("{name}.up"),
            DOMAIN,
            spec.channels,
            kind,
            Some(Resample::NearestUp),
        );
        h = up.run(o, h, None)?;
    }
    if let (false, Some(z)) = (coarsest, z) {
        let latent = conv(o, DOMAIN, z, format!("{name}.frgb"), spec.channels, 1)?;
        h = add(o, &h, &latent)?;
    }
    for j in 0..spec.blocks {
        h = Block::new(format!("{name}.blocks.{j}"), DOMAIN, spec.channels, kind, None)
            .run(o, h, None)?;
    }
    if spec.attention {
        h = sc_attention(o, DOMAIN, &h, &format!("{name}.attention"), arch.attention_ratio)?;
    }
    let mut t = conv(o, DOMAIN, &h, format!("{name}.trgb"), 3, 1)?;
    if let Some(r) = r {
        let r = o.upsample_nearest2(&r)?;
        t = add(o, &r, &t)?;
    }
    Ok((h, t))
}

/// The global stage: latents z, finest first, [n, H/f, W/f, C] each with the level's factor f and channels C, not
/// normalised -> features [n, H/f0, W/f0, c] and RGB stream [n, H/f0, W/f0, 3] with the finest factor f0 and the width
/// c of the first global stage.
///
/// # Errors
/// There is not one latent per level; the backend's.
pub fn global_stage<O: Ops>(
    o: &mut O,
    arch: &Arch,
    z: &[O::Tensor],
) -> Result<(O::Tensor, O::Tensor)> {
    coarse_stages(o, arch, z, local_stages(arch))
}

/// A coarse preview: the global stage up to twice the grid of `level`, or to the finest latent's grid where that is
/// coarser. Latents z as in [`global_stage`], of which finer ones than that are not read -> RGB stream [n, h, w, 3] on
/// that grid.
///
/// # Errors
/// Those of [`global_stage`].
pub fn coarse_preview<O: Ops>(
    o: &mut O,
    arch: &Arch,
    z: &[O::Tensor],
    level: usize,
) -> Result<O::Tensor> {
    let coarsest = arch.coarsest_factor();
    let factor = arch.levels.get(level).map_or(coarsest, |level| level.factor);
    let factor = if factor == 0 { coarsest } else { factor };
    let stage = (factor / arch.decoder.shuffle).ilog2() as usize;
    let (_, rgb) = coarse_stages(o, arch, z, stage.saturating_sub(1).max(local_stages(arch)))?;
    Ok(rgb)
}

/// The stages from the coarsest one to `finest`.
fn coarse_stages<O: Ops>(
    o: &mut O,
    arch: &Arch,
    z: &[O::Tensor],
    finest: usize,
) -> Result<(O::Tensor, O::Tensor)> {
    let [.., last] = z else { return Err(Error::missing("decoder latents", "one for each level")) };
    if z.len() != arch.levels.len() {
        let wanted = arch.levels.len().to_string();
        return Err(Error::invalid("decoder latents", z.len(), wanted));
    }
    let stages = &arch.decoder.stages;
    let width = stages[stages.len() - 1].channels;
    let mut h =
        conv(o, DOMAIN, &z[arch.spatial_levels().len() - 1], "decoder.enter".into(), width, 3)?;
    if arch.has_global() {
        let pair = conv(o, DOMAIN, last, "decoder.modulate".into(), 2 * width, 1)?;
        h = o.scale_shift(&h, &pair, false)?;
    }
    let mut r = None;
    for i in (finest..stages.len()).rev() {
        let latent = arch.level_at(arch.decoder.shuffle << i).map(|level| &z[level]);
        let (features, rgb) = stage(o, arch, i, h, r, latent)?;
        (h, r) = (features, Some(rgb));
    }
    match r {
        Some(r) => Ok((h, r)),
        None => Err(Error::model(
            "decoder.stages",
            arch.decoder.stages.len(),
            "a stage at the finest latent level",
        )),
    }
}

/// The local stage on any window of the global stage's output: features h [n, h, w, c] and RGB stream r [n, h, w, 3] ->
/// pixels [n, h f0, w f0, 3] with the finest factor f0, values about -1 to 1.
///
/// Pixels closer to a cut edge than [`halo`](crate::model::cost::halo) differ from those of the whole picture.
///
/// # Errors
/// The backend's.
pub fn local_stage<O: Ops>(
    o: &mut O,
    arch: &Arch,
    h: O::Tensor,
    r: O::Tensor,
) -> Result<O::Tensor> {
    let (mut h, mut r) = (h, r);
    for i in (0..local_stages(arch)).rev() {
        (h, r) = stage(o, arch, i, h, Some(r), None)?;
    }
    let shuffle = arch.decoder.shuffle;
    h = norm(o, &h, "decoder.norm".into(), Norm::Pixel, true)?;
    h = conv(o, DOMAIN, &h, "decoder.out".into(), 3 * shuffle * shuffle, 3)?;
    h = o.pixel_shuffle(&h, shuffle)?;
    for _ in 0..shuffle.ilog2() {
        r = o.upsample_nearest2(&r)?;
    }
    add(o, &r, &h)
}
