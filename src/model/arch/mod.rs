//! [`Arch`]: the architecture of a pyramid diffusion model, as a JSON document. A value that came from
//! [`Arch::from_json`] is consistent: every network can be built from it. The Python package `tessera_train` reads the
//! same document.
//!
//! The document has two versions. Version 1 has one denoiser over all levels (`unet`, `noise`), one trained size and a
//! decoder without noise. Version 2 has `groups` of levels with a denoiser each, `labels`, a list of trained `sizes`,
//! and in the decoder `rgb` and the stages' `noise`. In memory a model of version 1 is one group over all levels.

mod document;
mod validate;

use std::ops::Range;

use serde::{Deserialize, Serialize};

pub use self::validate::{MAX_BLOCKS, MAX_CHANNELS, MAX_FACTOR, MAX_LABELS, MAX_VALUES};

/// One latent of the pyramid: `channels` at 1/`factor` of the picture's size; factor 0: one pixel for the whole
/// picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    /// Picture pixels per latent pixel, a power of two, or 0.
    pub factor: usize,
    /// Channels of the latent.
    pub channels: usize,
}

/// Convolutions at one resolution of the encoder: `blocks` of them after the one that enters it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderStage {
    /// Width.
    pub channels: usize,
    /// Convolutions.
    pub blocks: usize,
}

/// Residual blocks at one resolution of the decoder or U-Net.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Width.
    pub channels: usize,
    /// Residual blocks, without the one that changes the resolution.
    pub blocks: usize,
    /// True if spatial-channel attention follows the blocks.
    pub attention: bool,
    /// True if noise that is keyed by place enters the stage; decoder of version 2 only. False in documents without it.
    #[serde(default)]
    pub noise: bool,
}

/// The encoder; stage i works at factor `unshuffle` * 2^i, the last one at the coarsest spatial_levels factor.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encoder {
    /// Pixel-unshuffle at the input.
    pub unshuffle: usize,
    /// Stages, finest first.
    pub stages: Vec<EncoderStage>,
}

/// Normalisation of the decoder's global stage, or of a U-Net.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Norm {
    /// GroupNorm.
    #[default]
    Group,
    /// Per-pixel RMS norm.
    Pixel,
}

/// Upsampling of the decoder's RGB stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RgbUpsampling {
    /// Nearest-neighbour, as in version 1.
    #[default]
    Nearest,
    /// FIR `[1,3,3,1]`, as the output skips of StyleGAN2.
    Fir,
}

/// The decoder; stage i works at factor `shuffle` * 2^i. Stages finer than the finest latent are the local stage.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decoder {
    /// Pixel-shuffle at the output.
    pub shuffle: usize,
    /// Normalisation of the global stage; the local stage has per-pixel RMS norm.
    pub global_norm: Norm,
    /// Stages, finest first.
    pub stages: Vec<Stage>,
    /// Upsampling of the RGB stream; nearest-neighbour in documents without it.
    #[serde(default)]
    pub rgb: RgbUpsampling,
}

/// The U-Net of a group of levels; stage i works at factor f * `unshuffle` * 2^i with the factor f of the group's finest
/// level.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UNet {
    /// Width of the time embedding.
    pub embedding: usize,
    /// Width at the 1x1 level; unused without one.
    pub global_channels: usize,
    /// Stages, finest first.
    pub stages: Vec<Stage>,
    /// Space to depth of the finest latent, where most pixels are: a quarter of them pays for wider stages. 1 in
    /// documents without it.
    #[serde(default = "one")]
    pub unshuffle: usize,
    /// Connections between stages; [`Skip::ResSkip`] in documents without it.
    #[serde(default)]
    pub skip: Skip,
    /// Normalisation; with [`Norm::Pixel`] its receptive field is finite. GroupNorm in documents without it.
    #[serde(default)]
    pub norm: Norm,
    /// True if two input channels hold the position in the picture. False in documents without it.
    #[serde(default)]
    pub coordinates: bool,
}

/// Connections of the U-Net: Res-Skip of the paper's figure 4, or one half of it alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Skip {
    /// Residual blocks, and streams of latents that enter and leave at every stage.
    #[default]
    ResSkip,
    /// The streams alone: blocks have no branch.
    Input,
    /// Residual blocks alone: latents enter and leave at their own stages only.
    Residual,
}

fn one() -> usize {
    1
}

/// EDM's constants (Karras et al. 2022) and, per level, the shift of ln(sigma) against the shared one.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noise {
    /// Standard deviation of normalised latents.
    pub sigma_data: f64,
    /// Smallest sigma: a level that reaches it is settled.
    pub sigma_min: f64,
    /// Largest shared sigma.
    pub sigma_max: f64,
    /// Exponent of the sigma schedule.
    pub rho: f64,
    /// ln(sigma of level l) - ln(shared sigma).
    pub shift: Vec<f64>,
}

/// Ratio of spatial to channel attention in spatial-channel attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttentionRatio {
    /// Spatial share N / (N + C), N pixels and C channels.
    Linear,
    /// Spatial share ln(1 + N) / (ln(1 + N) + ln(1 + C)).
    Log,
    /// Spatial share sigmoid(`ratio`), a parameter.
    Learned,
    /// Spatial attention alone.
    Spatial,
}

/// Consecutive levels that are denoised together by one U-Net. All coarser levels are denoised before, and condition it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Its name, such as `layout`.
    pub name: String,
    /// Indices into [`Arch::levels`], increasing.
    pub levels: Vec<usize>,
    /// Denoiser of the latents.
    pub unet: UNet,
    /// Noise levels; a shift for each of `levels`.
    pub noise: Noise,
    /// The shared sigmas at which labels guide, as `[low, high]`: low < sigma <= high (Kynkäänniemi et al. 2024, arXiv
    /// 2404.07724). `None`, as in documents without it: all sigmas.
    #[serde(default)]
    pub guidance: Option<[f64; 2]>,
}

impl Group {
    /// True if labels guide at the shared sigma `sigma`.
    pub fn guided_at(&self, sigma: f64) -> bool {
        self.guidance.is_none_or(|[low, high]| low < sigma && sigma <= high)
    }
}

/// An attribute of a picture that can be asked for, such as `time`, and its values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// Its name.
    pub name: String,
    /// Its values.
    pub values: Vec<String>,
}

/// A whole model.
#[derive(Clone, Debug, PartialEq)]
pub struct Arch {
    /// Version of the document, 1 or 2.
    pub version: u32,
    /// Name of the model.
    pub name: String,
    /// Widths and heights that it was trained for, in pixels; the first is the default.
    pub sizes: Vec<[usize; 2]>,
    /// Latents, finest first.
    pub levels: Vec<Level>,
    /// Picture to latents.
    pub encoder: Encoder,
    /// Latents to picture.
    pub decoder: Decoder,
    /// Denoisers in the order in which they run, that of the coarsest levels first.
    pub groups: Vec<Group>,
    /// Attributes that can be asked for.
    pub labels: Vec<Label>,
    /// Ratio of SC attention.
    pub attention_ratio: AttentionRatio,
}

/// The shapes of one group's U-Net.
#[derive(Clone, Copy, Debug)]
pub struct GroupShape<'a> {
    arch: &'a Arch,
    index: usize,
    /// The group.
    pub group: &'a Group,
}

impl<'a> GroupShape<'a> {
    /// Prefix of the group's parameters in a checkpoint: `unet.` in version 1, else `groups.INDEX.`.
    pub fn prefix(&self) -> String {
        match self.arch.version {
            1 => "unet.".into(),
            _ => format!("groups.{}.", self.index),
        }
    }

    /// Index of the group in [`Arch::groups`].
    pub fn index(&self) -> usize {
        self.index
    }

    /// The group's levels as a range of [`Arch::levels`].
    pub fn range(&self) -> Range<usize> {
        let first = self.group.levels.first().copied().unwrap_or(0);
        first..first + self.group.levels.len()
    }

    /// The group's levels, finest first.
    pub fn levels(&self) -> &'a [Level] {
        &self.arch.levels[self.range()]
    }

    /// The coarser levels that the network is conditioned on, finest first.
    pub fn condition(&self) -> &'a [Level] {
        &self.arch.levels[self.range().end..]
    }

    /// The group's levels with a grid, finest first.
    pub fn spatial_levels(&self) -> &'a [Level] {
        spatial(self.levels())
    }

    /// True if the 1x1 level is in the group.
    pub fn has_global(&self) -> bool {
        self.levels().last().is_some_and(|level| level.factor == 0)
    }

    /// The factor that stage `stage` works at.
    pub fn factor(&self, stage: usize) -> usize {
        let finest = self.levels().first().map_or(1, |level| level.factor);
        (finest * self.group.unet.unshuffle) << stage
    }

    /// The level of the group whose latent enters and leaves at stage `stage`; the finest one does so at stage 0,
    /// unshuffled.
    pub fn level(&self, stage: usize) -> Option<usize> {
        match stage {
            0 => Some(0),
            _ => self.levels().iter().position(|level| level.factor == self.factor(stage)),
        }
    }

    /// True if latents enter and leave at stage `stage`.
    pub fn has_latent_io(&self, stage: usize) -> bool {
        self.group.unet.skip != Skip::Residual || self.level(stage).is_some()
    }

    /// Channels of the latents that enter and leave at stage `stage`: those of the coarsest level with a grid that is
    /// not coarser than the stage.
    pub fn latent_channels(&self, stage: usize) -> usize {
        let factor = self.factor(stage);
        let owner = self.spatial_levels().iter().rposition(|level| level.factor <= factor);
        let owner = owner.unwrap_or(0);
        let unshuffle = if owner == 0 { self.group.unet.unshuffle } else { 1 };
        self.levels()[owner].channels * unshuffle * unshuffle
    }
}

/// Those of `levels` that have a grid: all but the 1x1 one.
fn spatial(levels: &[Level]) -> &[Level] {
    match levels.split_last() {
        Some((Level { factor: 0, .. }, finer)) => finer,
        _ => levels,
    }
}

impl Arch {
    /// Default width in pixels.
    pub fn width(&self) -> usize {
        self.sizes[0][0]
    }

    /// Default height in pixels.
    pub fn height(&self) -> usize {
        self.sizes[0][1]
    }

    /// The shapes of the U-Net of group `index`.
    pub fn group(&self, index: usize) -> GroupShape<'_> {
        GroupShape { arch: self, index, group: &self.groups[index] }
    }

    /// The shapes of all groups' U-Nets, in the order in which they run.
    pub fn group_shapes(&self) -> impl Iterator<Item = GroupShape<'_>> {
        (0..self.groups.len()).map(|index| self.group(index))
    }

    /// Standard deviation of normalised latents, the same for all groups.
    pub fn sigma_data(&self) -> f64 {
        self.groups[0].noise.sigma_data
    }

    /// Levels with a grid (all but the 1x1 one), finest first.
    pub fn spatial_levels(&self) -> &[Level] {
        spatial(&self.levels)
    }

    /// True if the coarsest level is the 1x1 one.
    pub fn has_global(&self) -> bool {
        self.levels.last().is_some_and(|level| level.factor == 0)
    }

    /// Largest factor of a level with a grid: both sides of a picture must be multiples of it.
    pub fn coarsest_factor(&self) -> usize {
        self.spatial_levels().last().map_or(1, |level| level.factor)
    }

    /// Factor of the finest latent, where the decoder's local stage begins.
    pub fn finest_factor(&self) -> usize {
        self.levels.first().map_or(1, |level| level.factor)
    }

    /// (rows, columns) of every level's latent for a picture of `width` x `height` pixels.
    pub fn grids(&self, width: usize, height: usize) -> Vec<(usize, usize)> {
        let grid = |f: usize| Some((height.checked_div(f)?, width.checked_div(f)?));
        self.levels.iter().map(|level| grid(level.factor).unwrap_or((1, 1))).collect()
    }

    /// The level whose factor is `factor`.
    pub fn level_at(&self, factor: usize) -> Option<usize> {
        self.levels.iter().position(|level| level.factor == factor)
    }
}

/// Groups of a GroupNorm: the largest divisor of `channels` that is at most min(channels / 4, 32), as in NCSN++ and EDM
/// (at least four channels a group).
///
/// ```
/// # use tessera::model::arch::norm_groups;
/// assert_eq!(norm_groups(128), 32);
/// assert_eq!(norm_groups(24), 6);
/// assert_eq!(norm_groups(3), 1);
/// ```
pub fn norm_groups(channels: usize) -> usize {
    let most = (channels / 4).clamp(1, 32);
    (1..=most).rev().find(|g| channels.is_multiple_of(*g)).unwrap_or(1)
}
