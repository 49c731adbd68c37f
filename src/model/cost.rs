//! Cost of the networks before they run, from their graphs: FLOPs and memory for plans and quotes, the halo for tiles.

use crate::{
    error::{Error, Result},
    graph::{BackendMemory, Cost},
    model::{arch::Arch, decoder, encoder, sampler::latent_shapes, unet},
    ops::Shape,
};

/// Cost of encoding a picture of `width` x `height` pixels.
///
/// # Errors
/// A side is 0 or not a multiple of the coarsest factor.
pub fn encoder_cost(
    arch: &Arch,
    memory: &dyn BackendMemory,
    width: usize,
    height: usize,
) -> Result<Cost> {
    encoder::graph(arch, Shape::new(1, height, width, 3))?.cost(Some(memory))
}

/// Cost of one evaluation of the U-Net of group `group` for a batch of `pictures` of `width` x `height` pixels.
///
/// # Errors
/// As [`encoder_cost`].
pub fn unet_cost(
    arch: &Arch,
    group: usize,
    pictures: usize,
    memory: &dyn BackendMemory,
    width: usize,
    height: usize,
) -> Result<Cost> {
    unet::graph(arch, group, &latent_shapes(arch, pictures, width, height))?.cost(Some(memory))
}

/// Cost of the decoder's global stage for a picture of `width` x `height` pixels.
///
/// # Errors
/// As [`encoder_cost`].
pub fn global_cost(
    arch: &Arch,
    memory: &dyn BackendMemory,
    width: usize,
    height: usize,
) -> Result<Cost> {
    decoder::global_graph(arch, &latent_shapes(arch, 1, width, height))?.cost(Some(memory))
}

/// Cost of a preview of the levels from `level` on of a picture of `width` x `height` pixels.
///
/// # Errors
/// As [`encoder_cost`].
pub fn preview_cost(
    arch: &Arch,
    level: usize,
    memory: &dyn BackendMemory,
    width: usize,
    height: usize,
) -> Result<Cost> {
    let latents = latent_shapes(arch, 1, width, height);
    decoder::preview_graph(arch, &latents, level)?.cost(Some(memory))
}

/// Cost of the decoder's local stage for a window of `rows` x `columns` pixels of the finest latent's grid, halo
/// included.
///
/// # Errors
/// The window is empty.
pub fn local_cost(
    arch: &Arch,
    memory: &dyn BackendMemory,
    rows: usize,
    columns: usize,
) -> Result<Cost> {
    decoder::local_graph(arch, 1, rows, columns)?.cost(Some(memory))
}

/// Halo of a tile in pixels of the finest latent's grid: the receptive-field radius of the local stage. With that many
/// pixels beyond each of its edges a tile has the bits of the whole picture.
///
/// # Errors
/// The receptive field is unbounded, which no valid `arch` has.
pub fn halo(arch: &Arch) -> Result<usize> {
    let graph = decoder::local_graph(arch, 1, 1, 1)?;
    let radius = graph.outputs().iter().try_fold(0, |most, &picture| {
        let radius = graph.radius(picture)?;
        Some(radius.max(most))
    });
    let radius = radius.ok_or_else(|| {
        Error::model("decoder.local_stage.radius", "unbounded", "a finite receptive field")
    })?;
    Ok(radius.div_ceil(arch.finest_factor()))
}
