//! [`Arch`]: the architecture of a pyramid diffusion model, as a JSON document. A value that came from
//! [`Arch::from_json`] is consistent: every network can be built from it. The Python package `tessera_train` reads the
//! same document.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// One latent of the pyramid: `channels` at 1/`factor` of the picture's size; factor 0: one pixel for the whole
/// picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    /// Picture pixels per latent pixel, a power of two, or 0.
    pub factor: usize,
    /// Channels of the latent.
    pub channels: usize,
}

/// Convolutions at one resolution of the encoder: `blocks` of them after the one that enters it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderStage {
    /// Width.
    pub channels: usize,
    /// Convolutions.
    pub blocks: usize,
}

/// Residual blocks at one resolution of the decoder or U-Net.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Width.
    pub channels: usize,
    /// Residual blocks, without the one that changes the resolution.
    pub blocks: usize,
    /// True if spatial-channel attention follows the blocks.
    pub attention: bool,
}

/// The encoder; stage i works at factor `unshuffle` * 2^i, the last one at the coarsest spatial_levels factor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encoder {
    /// Pixel-unshuffle at the input.
    pub unshuffle: usize,
    /// Stages, finest first.
    pub stages: Vec<EncoderStage>,
}

/// Normalisation of the decoder's global stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Norm {
    /// GroupNorm.
    Group,
    /// Per-pixel RMS norm.
    Pixel,
}

/// The decoder; stage i works at factor `shuffle` * 2^i. Stages finer than the finest latent are the local stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decoder {
    /// Pixel-shuffle at the output.
    pub shuffle: usize,
    /// Normalisation of the global stage; the local stage has per-pixel RMS norm.
    pub global_norm: Norm,
    /// Stages, finest first.
    pub stages: Vec<Stage>,
}

/// The U-Net; stage i works at factor `levels[0].factor` * `unshuffle` * 2^i.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UNet {
    /// Width of the time embedding.
    pub embedding: usize,
    /// Width at the 1x1 level.
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
}

/// Connections of the U-Net: Res-Skip of the paper's figure 4, or one half of it alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// A whole model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arch {
    /// Version of this document; this program reads 1.
    pub version: u32,
    /// Name of the model.
    pub name: String,
    /// Width it was trained for, in pixels.
    pub width: usize,
    /// Height it was trained for, in pixels.
    pub height: usize,
    /// Latents, finest first.
    pub levels: Vec<Level>,
    /// Picture to latents.
    pub encoder: Encoder,
    /// Latents to picture.
    pub decoder: Decoder,
    /// Denoiser of the latents.
    pub unet: UNet,
    /// Noise levels.
    pub noise: Noise,
    /// Ratio of SC attention.
    pub attention_ratio: AttentionRatio,
}

/// Largest width of any layer: bounds the memory that a hostile document can ask for.
pub const MAX_CHANNELS: usize = 8192;
/// Largest number of blocks of a stage.
pub const MAX_BLOCKS: usize = 64;
/// Largest factor of a level.
pub const MAX_FACTOR: usize = 4096;

impl Arch {
    /// Reads and checks the document.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidModel`] when it is not JSON of this form or its parts do not fit together.
    pub fn from_json(text: &str) -> Result<Self> {
        let arch: Self = serde_json::from_str(text).map_err(|e| {
            Error::model("arch", "malformed", "an architecture of this version").with_source(e)
        })?;
        arch.validate()?;
        Ok(arch)
    }

    /// Levels with a grid (all but the 1x1 one), finest first.
    pub fn spatial_levels(&self) -> &[Level] {
        match self.levels.last() {
            Some(Level { factor: 0, .. }) => &self.levels[..self.levels.len() - 1],
            _ => &self.levels,
        }
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

    /// The level that supplies the latents at `factor`: the coarsest one with a grid that is not coarser than `factor`.
    pub fn level_of_factor(&self, factor: usize) -> usize {
        self.spatial_levels().iter().rposition(|level| level.factor <= factor).unwrap_or(0)
    }

    /// The factor that stage `stage` of the U-Net works at.
    pub fn unet_factor(&self, stage: usize) -> usize {
        (self.finest_factor() * self.unet.unshuffle) << stage
    }

    /// The level whose latent enters and leaves at stage `stage` of the U-Net; the finest one does so at stage 0,
    /// unshuffled.
    pub fn unet_level(&self, stage: usize) -> Option<usize> {
        if stage == 0 { Some(0) } else { self.level_at(self.unet_factor(stage)) }
    }

    /// True if latents enter and leave the U-Net at stage `stage`.
    pub fn stage_has_latent_io(&self, stage: usize) -> bool {
        self.unet.skip != Skip::Residual || self.unet_level(stage).is_some()
    }

    /// Channels of the latents that enter and leave at stage `stage` of the U-Net.
    pub fn stage_latent_channels(&self, stage: usize) -> usize {
        let level = self.level_of_factor(self.unet_factor(stage));
        let unshuffle = if level == 0 { self.unet.unshuffle } else { 1 };
        self.levels[level].channels * unshuffle * unshuffle
    }

    fn validate(&self) -> Result<()> {
        let need = |ok: bool, field: &str, value: &dyn fmt::Display, expected: String| match ok {
            true => Ok(()),
            false => Err(Error::model(format!("arch.{field}"), value, expected)),
        };
        need(self.version == 1, "version", &self.version, "1".into())?;
        let factors: Vec<usize> = self.spatial_levels().iter().map(|level| level.factor).collect();
        need(!factors.is_empty(), "levels", &0, "at least one with a factor".into())?;
        for &f in &factors {
            let ok = f.is_power_of_two() && (2..=MAX_FACTOR).contains(&f);
            need(ok, "levels.factor", &f, format!("a power of two from 2 to {MAX_FACTOR}"))?;
        }
        need(
            factors.is_sorted_by(|a, b| a < b),
            "levels.factor",
            &format!("{factors:?}"),
            "increasing factors".into(),
        )?;
        let coarsest = self.coarsest_factor();
        for (name, extent) in [("width", self.width), ("height", self.height)] {
            let ok = extent > 0 && extent % coarsest == 0 && extent <= 1 << 20;
            need(ok, name, &extent, format!("a multiple of {coarsest} up to {}", 1 << 20))?;
        }
        let stages = [
            ("encoder", self.encoder.unshuffle, self.encoder.stages.len()),
            ("decoder", self.decoder.shuffle, self.decoder.stages.len()),
            ("unet", factors[0].saturating_mul(self.unet.unshuffle), self.unet.stages.len()),
        ];
        for (name, first, count) in stages {
            need(
                first.is_power_of_two() && first <= coarsest,
                &format!("{name} first factor"),
                &first,
                format!("a power of two up to {coarsest}"),
            )?;
            let wanted = (coarsest / first).ilog2() as usize + 1;
            need(
                count == wanted,
                &format!("{name}.stages"),
                &format!("{count} entries"),
                format!("{wanted} for factors {first} to {coarsest}"),
            )?;
        }
        for (name, value) in [
            ("encoder.unshuffle", self.encoder.unshuffle),
            ("decoder.shuffle", self.decoder.shuffle),
        ] {
            need(value <= factors[0], name, &value, format!("at most {}", factors[0]))?;
        }
        let (first, unshuffle) = (factors[0], self.unet.unshuffle);
        need(
            factors.get(1).is_none_or(|&next| first * unshuffle < next),
            "unet.unshuffle",
            &unshuffle,
            format!("less than takes the finest level, {first}, to the next one's factor"),
        )?;
        let local = (factors[0] / self.decoder.shuffle).ilog2() as usize;
        for (i, stage) in self.decoder.stages.iter().take(local).enumerate() {
            let field = format!("decoder.stages[{i}].attention");
            need(!stage.attention, &field, &true, "false in the local stage".into())?;
        }
        for (i, stage) in self.unet.stages.iter().enumerate() {
            let field = format!("unet.stages[{i}].blocks");
            need(stage.blocks >= 1, &field, &stage.blocks, "at least 1".into())?;
        }
        let widths = (self.levels.iter().map(|l| (l.channels, 0)))
            .chain(self.encoder.stages.iter().map(|s| (s.channels, s.blocks)))
            .chain(
                self.decoder.stages.iter().chain(&self.unet.stages).map(|s| (s.channels, s.blocks)),
            )
            .chain([(self.unet.embedding, 0), (self.unet.global_channels, 0)]);
        for (channels, blocks) in widths {
            let ok = (1..=MAX_CHANNELS).contains(&channels);
            need(ok, "channels", &channels, format!("from 1 to {MAX_CHANNELS}"))?;
            need(blocks <= MAX_BLOCKS, "blocks", &blocks, format!("at most {MAX_BLOCKS}"))?;
        }
        let embedding = self.unet.embedding;
        need(embedding.is_multiple_of(2), "unet.embedding", &embedding, "an even number".into())?;
        let noise = &self.noise;
        need(
            noise.shift.len() == self.levels.len(),
            "noise.shift",
            &format!("{} entries", noise.shift.len()),
            format!("one for each of {} levels", self.levels.len()),
        )?;
        for (name, value) in
            [("sigma_data", noise.sigma_data), ("sigma_min", noise.sigma_min), ("rho", noise.rho)]
        {
            let field = format!("noise.{name}");
            need(value.is_finite() && value > 0.0, &field, &value, "a positive number".into())?;
        }
        need(
            noise.sigma_max.is_finite() && noise.sigma_max > noise.sigma_min,
            "noise.sigma_max",
            &noise.sigma_max,
            format!("more than sigma_min, {}", noise.sigma_min),
        )?;
        for &shift in &noise.shift {
            let ok = shift.is_finite() && shift.abs() <= 20.0;
            need(ok, "noise.shift", &shift, "from -20 to 20".into())?;
        }
        Ok(())
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
