//! The decoder: a global stage up to the finest latent's grid, and from there to pixels a local stage whose receptive
//! field is bounded, so that it can run tile by tile.

use std::ops::Range;

use crate::{
    error::{Error, Result},
    graph::{Graph, GraphBuilder, Value},
    model::{
        arch::{Arch, Norm, RgbUpsampling},
        block::{Block, Resample, conv, norm, sc_attention},
        place_noise::place_noise,
    },
    ops::{AddNoise, Domain, Op, Rect, Shape},
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
fn stage(
    g: &mut GraphBuilder,
    arch: &Arch,
    i: usize,
    h: Value,
    r: Option<Value>,
    z: Option<Value>,
) -> Result<(Value, Value)> {
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
        h = up.run(g, h, None)?;
    }
    if let (false, Some(z)) = (coarsest, z) {
        let latent = conv(g, DOMAIN, z, format!("{name}.frgb"), spec.channels, 1)?;
        h = g.add(h, latent)?;
    }
    if spec.noise {
        let noise = g.input(g.shape(h).with_channels(1))?;
        let layer = AddNoise { name: format!("{name}.noise"), channels: spec.channels };
        h = g.operator(Op::AddNoise(layer), &[h, noise])?;
    }
    for j in 0..spec.blocks {
        h = Block::new(format!("{name}.blocks.{j}"), DOMAIN, spec.channels, kind, None)
            .run(g, h, None)?;
    }
    if spec.attention {
        h = sc_attention(g, DOMAIN, h, &format!("{name}.attention"), arch.attention_ratio)?;
    }
    let mut t = conv(g, DOMAIN, h, format!("{name}.trgb"), 3, 1)?;
    if let Some(r) = r {
        let r = upsampled_rgb(g, arch, r)?;
        t = g.add(r, t)?;
    }
    Ok((h, t))
}

/// The RGB stream [n, h, w, 3] at twice the resolution.
fn upsampled_rgb(g: &mut GraphBuilder, arch: &Arch, r: Value) -> Result<Value> {
    match arch.decoder.rgb {
        RgbUpsampling::Nearest => g.upsample_nearest2(r),
        RgbUpsampling::Fir => g.fir_up2(r),
    }
}

/// Stages of the decoder that run one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The global stage: those from the coarsest one to the finest latent's grid.
    Global,
    /// The preview of a level: see [`preview_graph`].
    Preview(usize),
    /// The local stage: those from there to pixels.
    Local,
}

impl Part {
    /// Its stages.
    fn stages(self, arch: &Arch) -> Range<usize> {
        let (local, all) = (local_stages(arch), arch.decoder.stages.len());
        match self {
            Self::Global => local..all,
            Self::Local => 0..local,
            Self::Preview(level) => {
                let coarsest = arch.coarsest_factor();
                let factor = arch.levels.get(level).map_or(coarsest, |level| level.factor);
                let factor = if factor == 0 { coarsest } else { factor };
                let stage = (factor / arch.decoder.shuffle).ilog2() as usize;
                stage.saturating_sub(1).max(local)..all
            }
        }
    }
}

/// The inputs of noise of `part`, in the order in which its graph has them, for a picture with `seed` and a window of it
/// on the finest latent's grid: shapes [1, h, w, 1] and values. Empty for a decoder without noise.
pub fn noise_inputs(arch: &Arch, part: Part, seed: u64, window: Rect) -> Vec<(Shape, Vec<f32>)> {
    let noisy = part.stages(arch).rev().filter(|&i| arch.decoder.stages[i].noise);
    let input = |i: usize| {
        let factor = arch.decoder.shuffle << i;
        let scaled = |extent: usize| extent * arch.finest_factor() / factor;
        let Rect { x, y, width, height } = window;
        let (rows, columns) = (scaled(height), scaled(width));
        let values = place_noise(seed, i, (scaled(y), scaled(x)), (rows, columns));
        (Shape::new(1, rows, columns, 1), values)
    };
    noisy.map(input).collect()
}

/// The global stage as a graph. Inputs: latents, finest first, of the shapes `latents`, [n, H/f, W/f, C] each with the
/// level's factor f and channels C, not normalised; then the [`noise_inputs`] of [`Part::Global`]. Results: features [n, H/f0, W/f0, c] and RGB stream [n, H/f0, W/f0, 3]
/// with the finest factor f0 and the width c of the first global stage.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if there is not one latent per level, or its shape does not fit.
pub fn global_graph(arch: &Arch, latents: &[Shape]) -> Result<Graph> {
    let mut g = GraphBuilder::new();
    let z = g.inputs(latents)?;
    let (features, rgb) = global_stage(&mut g, arch, &z)?;
    Ok(g.finish([features, rgb]))
}

/// Both stages without tiles as a graph. Inputs as of [`global_graph`], then
/// the noise of [`Part::Local`]. Result: pixels [n, H, W, 3], values about -1 to 1.
///
/// # Errors
/// As [`global_graph`].
pub fn graph(arch: &Arch, latents: &[Shape]) -> Result<Graph> {
    let mut g = GraphBuilder::new();
    let z = g.inputs(latents)?;
    let (features, rgb) = global_stage(&mut g, arch, &z)?;
    let picture = local_stage(&mut g, arch, features, rgb)?;
    Ok(g.finish([picture]))
}

/// Adds the global stage of [`global_graph`] to `g`: latents -> features and RGB stream.
///
/// # Errors
/// As [`global_graph`].
pub fn global_stage(g: &mut GraphBuilder, arch: &Arch, z: &[Value]) -> Result<(Value, Value)> {
    coarse_stages(g, arch, z, Part::Global.stages(arch))
}

/// A coarse preview as a graph: the global stage up to twice the grid of `level`, or to the finest latent's grid where
/// that is coarser. Inputs as of [`global_graph`], of which finer latents than that are not read, with the
/// noise of [`Part::Preview`]. Result: RGB stream
/// [n, h, w, 3] on that grid.
///
/// # Errors
/// As [`global_graph`].
pub fn preview_graph(arch: &Arch, latents: &[Shape], level: usize) -> Result<Graph> {
    let mut g = GraphBuilder::new();
    let z = g.inputs(latents)?;
    let (_, rgb) = coarse_stages(&mut g, arch, &z, Part::Preview(level).stages(arch))?;
    Ok(g.finish([rgb]))
}

/// The stages `range`, of which the last one is the coarsest.
fn coarse_stages(
    g: &mut GraphBuilder,
    arch: &Arch,
    z: &[Value],
    range: Range<usize>,
) -> Result<(Value, Value)> {
    let &[.., last] = z else {
        return Err(Error::missing("decoder latents", "one for each level"));
    };
    if z.len() != arch.levels.len() {
        let wanted = arch.levels.len().to_string();
        return Err(Error::invalid("decoder latents", z.len(), wanted));
    }
    let stages = &arch.decoder.stages;
    let width = stages[stages.len() - 1].channels;
    let mut h =
        conv(g, DOMAIN, z[arch.spatial_levels().len() - 1], "decoder.enter".into(), width, 3)?;
    if arch.has_global() {
        let pair = conv(g, DOMAIN, last, "decoder.modulate".into(), 2 * width, 1)?;
        h = g.scale_shift(h, pair, false)?;
    }
    let mut r = None;
    for i in range.rev() {
        let latent = arch.level_at(arch.decoder.shuffle << i).map(|level| z[level]);
        let (features, rgb) = stage(g, arch, i, h, r, latent)?;
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

/// The local stage as a graph, for any window of `rows` x `columns` pixels of the finest latent's grid, in `n` pictures.
/// Inputs: the global stage's features [n, rows, columns, c] and RGB stream [n, rows, columns, 3]; then the
/// [`noise_inputs`] of [`Part::Local`]. Result: pixels
/// [n, rows f0, columns f0, 3] with the finest factor f0, values about -1 to 1.
///
/// Pixels closer to a cut edge than [`halo`](crate::model::cost::halo) differ from those of the whole picture.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if the window is empty.
pub fn local_graph(arch: &Arch, n: usize, rows: usize, columns: usize) -> Result<Graph> {
    let mut g = GraphBuilder::new();
    let picture = window_stage(&mut g, arch, n, rows, columns)?;
    Ok(g.finish([picture]))
}

/// A tile as a graph: [`local_graph`] of one picture for a window of `rows` x `columns`, of which the rectangle `own` is
/// the result, in pixels from the window's first one. The halo is cropped on the device.
///
/// # Errors
/// As [`local_graph`]; [`crate::error::Kind::InvalidArgument`] if `own` is not in the window.
pub fn tile_graph(arch: &Arch, rows: usize, columns: usize, own: Rect) -> Result<Graph> {
    let mut g = GraphBuilder::new();
    let picture = window_stage(&mut g, arch, 1, rows, columns)?;
    let own = g.crop(picture, own)?;
    Ok(g.finish([own]))
}

/// Adds the inputs and the local stage of [`local_graph`] to `g`.
fn window_stage(
    g: &mut GraphBuilder,
    arch: &Arch,
    n: usize,
    rows: usize,
    columns: usize,
) -> Result<Value> {
    let stages = &arch.decoder.stages;
    let width = stages.get(local_stages(arch)).map(|stage| stage.channels).ok_or_else(|| {
        Error::model("decoder.stages", stages.len(), "a stage at the finest latent level")
    })?;
    let h = g.input(Shape::new(n, rows, columns, width))?;
    let r = g.input(Shape::new(n, rows, columns, 3))?;
    local_stage(g, arch, h, r)
}

/// Adds the local stage of [`local_graph`] to `g`: features and RGB stream -> pixels.
///
/// # Errors
/// As [`local_graph`].
pub fn local_stage(g: &mut GraphBuilder, arch: &Arch, h: Value, r: Value) -> Result<Value> {
    let (mut h, mut r) = (h, r);
    for i in (0..local_stages(arch)).rev() {
        (h, r) = stage(g, arch, i, h, Some(r), None)?;
    }
    let shuffle = arch.decoder.shuffle;
    h = norm(g, h, "decoder.norm".into(), Norm::Pixel, true)?;
    h = conv(g, DOMAIN, h, "decoder.out".into(), 3 * shuffle * shuffle, 3)?;
    h = g.pixel_shuffle(h, shuffle)?;
    for _ in 0..shuffle.ilog2() {
        r = upsampled_rgb(g, arch, r)?;
    }
    g.add(r, h)
}
