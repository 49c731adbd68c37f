//! The encoder: light, without branches, with input skips of the picture at every resolution (the paper's figure 5).

use crate::{
    error::Result,
    model::{
        arch::{Arch, Norm},
        block::{add, conv, norm},
    },
    ops::{Domain, Ops},
};

/// The encoder may run on windows of large pictures.
const DOMAIN: Domain = Domain::Window;

/// SiLU(PixelNorm(conv3x3 x)), x [n, h, w, c] -> [n, h, w, channels].
fn conv_norm<O: Ops>(o: &mut O, x: &O::Tensor, name: &str, channels: usize) -> Result<O::Tensor> {
    let h = conv(o, DOMAIN, x, format!("{name}.conv"), channels, 3)?;
    norm(o, &h, format!("{name}.norm"), Norm::Pixel, true)
}

/// The encoder: picture [n, H, W, 3] with values from -1 to 1 -> per level, finest first, the moments [n, H/f, W/f, 2
/// C] with the level's factor f and channels C: C means, then C logarithms of variances, not yet clamped to -30 .. 20.
/// The 1x1 level has [n, 1, 1, 2 C].
///
/// # Errors
/// H or W is not a multiple of [`Arch::coarsest_factor`]; the backend's.
pub fn encode<O: Ops>(o: &mut O, arch: &Arch, picture: &O::Tensor) -> Result<Vec<O::Tensor>> {
    let (stages, unshuffle) = (&arch.encoder.stages, arch.encoder.unshuffle);
    let mut moments = Vec::with_capacity(arch.levels.len());
    let mut h = o.pixel_unshuffle(picture, unshuffle)?;
    h = conv(o, DOMAIN, &h, "encoder.stem".into(), stages[0].channels, 3)?;
    let mut r = picture.clone();
    for _ in 0..unshuffle.ilog2() {
        r = o.avg_pool2(&r)?;
    }
    for (i, stage) in stages.iter().enumerate() {
        let name = format!("encoder.stages.{i}");
        if i > 0 {
            h = o.avg_pool2(&h)?;
            h = conv_norm(o, &h, &format!("{name}.down"), stage.channels)?;
            r = o.avg_pool2(&r)?;
        }
        let skip = conv(o, DOMAIN, &r, format!("{name}.frgb"), stage.channels, 1)?;
        h = add(o, &h, &skip)?;
        drop(skip);
        for j in 0..stage.blocks {
            h = conv_norm(o, &h, &format!("{name}.blocks.{j}"), stage.channels)?;
        }
        if let Some(level) = arch.level_at(unshuffle << i) {
            let channels = 2 * arch.levels[level].channels;
            moments.push(conv(o, DOMAIN, &h, format!("{name}.head"), channels, 1)?);
        }
    }
    if let (true, Some(level)) = (arch.has_global(), arch.levels.last()) {
        h = o.global_avg_pool(&h)?;
        moments.push(conv(o, DOMAIN, &h, "encoder.head".into(), 2 * level.channels, 1)?);
    }
    Ok(moments)
}
