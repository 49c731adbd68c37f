//! What a network costs before it runs: the networks over the [`Tracer`], for admission and tile plans.

use crate::{
    error::{Error, Result},
    model::{arch::Arch, decoder, encoder, params::traced_latents, unet},
    ops::Shape,
};

pub use crate::{
    model::params::params,
    ops::trace::{Cost, Tensor, Tracer},
};

/// Cost of encoding a picture of `width` x `height` pixels.
///
/// # Errors
/// When the size is not a multiple of the coarsest factor.
pub fn encoder_cost(arch: &Arch, width: usize, height: usize) -> Result<Cost> {
    let mut o = Tracer::new();
    let picture = o.input(Shape::new(1, height, width, 3))?;
    encoder::encode(&mut o, arch, &picture)?;
    drop(picture);
    Ok(o.finish())
}

/// Cost of one evaluation of the U-Net for a picture of `width` x `height` pixels.
///
/// # Errors
/// As [`encoder_cost`].
pub fn unet_cost(arch: &Arch, width: usize, height: usize) -> Result<Cost> {
    let mut o = Tracer::new();
    let z = traced_latents(&o, arch, width, height)?;
    unet::predict(&mut o, arch, &z, &[0.0])?;
    Ok(o.finish())
}

/// Cost of the decoder's global stage for a picture of `width` x `height` pixels.
///
/// # Errors
/// As [`encoder_cost`].
pub fn global_cost(arch: &Arch, width: usize, height: usize) -> Result<Cost> {
    let mut o = Tracer::new();
    let z = traced_latents(&o, arch, width, height)?;
    decoder::global_stage(&mut o, arch, &z)?;
    Ok(o.finish())
}

/// Cost of the decoder's local stage for a window of `rows` x `columns` pixels of the finest latent's grid, halo included.
///
/// # Errors
/// When the window is empty.
pub fn local_cost(arch: &Arch, rows: usize, columns: usize) -> Result<Cost> {
    Ok(trace_local(arch, rows, columns)?.0)
}

/// Pixels of the finest latent's grid that a tile needs beyond each of its edges so that its picture is the whole's.
///
/// # Errors
/// When the local stage has an operator of unbounded reach, which no valid `arch` gives it.
pub fn halo(arch: &Arch) -> Result<usize> {
    let (_, reach) = trace_local(arch, 1, 1)?;
    let reach = reach.ok_or_else(|| {
        Error::model("decoder.local_stage.reach", "infinite", "a finite receptive field")
    })?;
    Ok(reach.div_ceil(arch.finest_factor()))
}

fn trace_local(arch: &Arch, rows: usize, columns: usize) -> Result<(Cost, Option<usize>)> {
    let mut o = Tracer::new();
    let stages = &arch.decoder.stages;
    let stage = stages.get(decoder::local_stages(arch));
    let channels = stage
        .ok_or_else(|| {
            Error::model("decoder.stages", stages.len(), "a stage at the finest latent level")
        })?
        .channels;
    let h = o.input(Shape::new(1, rows, columns, channels))?;
    let r = o.input(Shape::new(1, rows, columns, 3))?;
    let picture = decoder::local_stage(&mut o, arch, h, r)?;
    Ok((o.finish(), picture.reach()))
}
