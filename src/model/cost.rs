//! Cost of the networks before they run, from tracing them: FLOPs and memory for plans and quotes, the halo for tiles.

use crate::{
    error::{Error, Result},
    model::{arch::Arch, decoder, encoder, params::traced_latents, unet},
    ops::{
        Shape,
        tracer::{BackendMemory, Cost, Tracer},
    },
};

/// Cost of encoding a picture of `width` x `height` pixels.
///
/// # Errors
/// A side is 0 or not a multiple of the coarsest factor.
pub fn encoder_cost(
    arch: &Arch,
    memory: &'static dyn BackendMemory,
    width: usize,
    height: usize,
) -> Result<Cost> {
    let mut o = Tracer::with_memory(memory);
    let picture = o.input(Shape::new(1, height, width, 3))?;
    encoder::encode(&mut o, arch, &picture)?;
    drop(picture);
    Ok(o.finish())
}

/// Cost of one evaluation of the U-Net for a picture of `width` x `height` pixels.
///
/// # Errors
/// As [`encoder_cost`].
pub fn unet_cost(
    arch: &Arch,
    memory: &'static dyn BackendMemory,
    width: usize,
    height: usize,
) -> Result<Cost> {
    let mut o = Tracer::with_memory(memory);
    let z = traced_latents(&o, arch, width, height)?;
    unet::predict(&mut o, arch, &z, &[0.0])?;
    Ok(o.finish())
}

/// Cost of the decoder's global stage for a picture of `width` x `height` pixels.
///
/// # Errors
/// As [`encoder_cost`].
pub fn global_cost(
    arch: &Arch,
    memory: &'static dyn BackendMemory,
    width: usize,
    height: usize,
) -> Result<Cost> {
    let mut o = Tracer::with_memory(memory);
    let z = traced_latents(&o, arch, width, height)?;
    decoder::global_stage(&mut o, arch, &z)?;
    Ok(o.finish())
}

/// Cost of the decoder's local stage for a window of `rows` x `columns` pixels of the finest latent's grid, halo
/// included.
///
/// # Errors
/// The window is empty.
pub fn local_cost(
    arch: &Arch,
    memory: &'static dyn BackendMemory,
    rows: usize,
    columns: usize,
) -> Result<Cost> {
    let mut o = Tracer::with_memory(memory);
    trace_local(&mut o, arch, rows, columns)?;
    Ok(o.finish())
}

/// Halo of a tile in pixels of the finest latent's grid: the receptive-field radius of the local stage. With that many
/// pixels beyond each of its edges a tile has the bits of the whole picture.
///
/// # Errors
/// The receptive field is unbounded, which no valid `arch` has.
pub fn halo(arch: &Arch) -> Result<usize> {
    let radius = trace_local(&mut Tracer::new(), arch, 1, 1)?;
    let radius = radius.ok_or_else(|| {
        Error::model("decoder.local_stage.radius", "unbounded", "a finite receptive field")
    })?;
    Ok(radius.div_ceil(arch.finest_factor()))
}

/// Traces the local stage; returns its receptive-field radius in pixels of the picture.
fn trace_local(o: &mut Tracer, arch: &Arch, rows: usize, columns: usize) -> Result<Option<usize>> {
    let stages = &arch.decoder.stages;
    let stage = stages.get(decoder::local_stages(arch));
    let channels = stage
        .ok_or_else(|| {
            Error::model("decoder.stages", stages.len(), "a stage at the finest latent level")
        })?
        .channels;
    let h = o.input(Shape::new(1, rows, columns, channels))?;
    let r = o.input(Shape::new(1, rows, columns, 3))?;
    Ok(decoder::local_stage(o, arch, h, r)?.radius())
}
