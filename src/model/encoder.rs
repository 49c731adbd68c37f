//! The encoder: light, without branches, with input skips of the picture at every resolution (the paper's figure 5).

use crate::{
    error::Result,
    graph::{Graph, GraphBuilder, Value},
    model::{
        arch::{Arch, Norm},
        block::{conv, norm},
    },
    ops::{Domain, Shape},
};

/// The encoder may run on windows of large pictures.
const DOMAIN: Domain = Domain::Window;

/// SiLU(PixelNorm(conv3x3 x)), x [n, h, w, c] -> [n, h, w, channels].
fn conv_norm(g: &mut GraphBuilder, x: Value, name: &str, channels: usize) -> Result<Value> {
    let h = conv(g, DOMAIN, x, format!("{name}.conv"), channels, 3)?;
    norm(g, h, format!("{name}.norm"), Norm::Pixel, true)
}

/// The encoder as a graph: input a picture of the shape `picture`, [n, H, W, 3] with values from -1 to 1; results per
/// level, finest first, the moments [n, H/f, W/f, 2 C] with the level's factor f and channels C: C means, then C
/// logarithms of variances, not yet clamped to -30 .. 20. The 1x1 level has [n, 1, 1, 2 C].
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if H or W is not a multiple of [`Arch::coarsest_factor`].
pub fn graph(arch: &Arch, picture: Shape) -> Result<Graph> {
    let mut g = GraphBuilder::new();
    let picture = g.input(picture)?;
    let moments = encode(&mut g, arch, picture)?;
    Ok(g.finish(moments))
}

/// Adds the network of [`graph`] to `g`: picture -> moments.
///
/// # Errors
/// As [`graph`].
pub fn encode(g: &mut GraphBuilder, arch: &Arch, picture: Value) -> Result<Vec<Value>> {
    let (stages, unshuffle) = (&arch.encoder.stages, arch.encoder.unshuffle);
    let mut moments = Vec::with_capacity(arch.levels.len());
    let mut h = g.pixel_unshuffle(picture, unshuffle)?;
    h = conv(g, DOMAIN, h, "encoder.stem".into(), stages[0].channels, 3)?;
    let mut r = picture;
    for _ in 0..unshuffle.ilog2() {
        r = g.avg_pool2(r)?;
    }
    for (i, stage) in stages.iter().enumerate() {
        let name = format!("encoder.stages.{i}");
        if i > 0 {
            h = g.avg_pool2(h)?;
            h = conv_norm(g, h, &format!("{name}.down"), stage.channels)?;
            r = g.avg_pool2(r)?;
        }
        let skip = conv(g, DOMAIN, r, format!("{name}.frgb"), stage.channels, 1)?;
        h = g.add(h, skip)?;
        for j in 0..stage.blocks {
            h = conv_norm(g, h, &format!("{name}.blocks.{j}"), stage.channels)?;
        }
        if let Some(level) = arch.level_at(unshuffle << i) {
            let channels = 2 * arch.levels[level].channels;
            moments.push(conv(g, DOMAIN, h, format!("{name}.head"), channels, 1)?);
        }
    }
    if let (true, Some(level)) = (arch.has_global(), arch.levels.last()) {
        h = g.global_avg_pool(h)?;
        moments.push(conv(g, DOMAIN, h, "encoder.head".into(), 2 * level.channels, 1)?);
    }
    Ok(moments)
}
