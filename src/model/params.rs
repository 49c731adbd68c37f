//! The list of parameters of an architecture: what its checkpoint must hold, no more and no less. It comes from tracing
//! the networks.

use crate::{
    error::Result,
    model::{arch::Arch, decoder, encoder, unet},
    ops::{Ops, Shape, tracer::Tracer},
};

/// Traced latents of every level, finest first, for a picture of `width` x `height` pixels: [1, H/f, W/f, C] each with
/// the level's factor f and channels C.
///
/// # Errors
/// When a grid is empty or its tensor has more than 2^52 bytes.
pub fn traced_latents(
    o: &Tracer,
    arch: &Arch,
    width: usize,
    height: usize,
) -> Result<Vec<<Tracer as Ops>::Tensor>> {
    let grids = arch.grids(width, height).into_iter().zip(&arch.levels);
    grids.map(|((h, w), level)| o.input(Shape::new(1, h, w, level.channels))).collect()
}

/// Names of the statistics of level `level`: mean and standard deviation, [`channels`] each.
///
/// [`channels`]: crate::model::arch::Level::channels
pub fn latent_stats(level: usize) -> [String; 2] {
    [format!("latents.{level}.mean"), format!("latents.{level}.std")]
}

/// Names and shapes of all parameters: encoder, decoder, U-Net, statistics of the latents.
///
/// # Errors
/// When `arch` does not fit together; one from [`Arch::from_json`] does.
pub fn params(arch: &Arch) -> Result<Vec<(String, Vec<usize>)>> {
    let side = arch.coarsest_factor();
    let mut o = Tracer::new();
    let picture = o.input(Shape::new(1, side, side, 3))?;
    encoder::encode(&mut o, arch, &picture)?;
    let z = traced_latents(&o, arch, side, side)?;
    let (h, r) = decoder::global_stage(&mut o, arch, &z)?;
    decoder::local_stage(&mut o, arch, h, r)?;
    unet::predict(&mut o, arch, &z, &[0.0])?;
    let mut params = o.finish().params;
    for (l, level) in arch.levels.iter().enumerate() {
        params.extend(latent_stats(l).map(|name| (name, vec![level.channels])));
    }
    Ok(params)
}
