//! The list of parameters of an architecture: what its checkpoint must hold, no more and no less. It comes from
//! the networks' graphs.

use crate::{
    error::Result,
    graph::GraphBuilder,
    model::{arch::Arch, decoder, encoder, sampler::latent_shapes, unet},
    ops::Shape,
};

/// Names of the statistics of level `level`: mean and standard deviation, [`channels`] each.
///
/// [`channels`]: crate::model::arch::Level::channels
pub fn latent_stats(level: usize) -> [String; 2] {
    [format!("latents.{level}.mean"), format!("latents.{level}.std")]
}

/// Names and shapes of all parameters: encoder, decoder, U-Nets, tables of labels, statistics of the latents.
///
/// # Errors
/// When `arch` does not fit together; one from [`Arch::from_json`] does.
pub fn params(arch: &Arch) -> Result<Vec<(String, Vec<usize>)>> {
    let side = arch.coarsest_factor();
    let mut g = GraphBuilder::new();
    let picture = g.input(Shape::new(1, side, side, 3))?;
    encoder::encode(&mut g, arch, picture)?;
    let latents = latent_shapes(arch, 1, side, side);
    let z = g.inputs(&latents)?;
    let (h, r) = decoder::global_stage(&mut g, arch, &z)?;
    decoder::local_stage(&mut g, arch, h, r)?;
    for shape in arch.group_shapes() {
        let inputs = unet::Inputs::add(&mut g, arch, shape, &latents)?;
        unet::predict(&mut g, arch, shape, &inputs)?;
    }
    let mut params = g.finish([]).cost(None)?.params;
    params.extend(arch.group_shapes().flat_map(|shape| unet::label_tables(arch, shape)));
    for (l, level) in arch.levels.iter().enumerate() {
        params.extend(latent_stats(l).map(|name| (name, vec![level.channels])));
    }
    Ok(params)
}
