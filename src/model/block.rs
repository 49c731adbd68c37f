//! Layers and blocks that encoder, decoder and U-Net share.

use std::f32::consts::FRAC_1_SQRT_2;

use crate::{
    error::Result,
    graph::{GraphBuilder, Value},
    model::arch::{AttentionRatio, Norm, norm_groups},
    ops::{Conv2d, Domain, Factors, GroupNorm, PixelNorm, Shape},
};

/// Change of resolution in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resample {
    /// [`GraphBuilder::upsample_nearest2`].
    NearestUp,
    /// [`GraphBuilder::fir_up2`].
    FirUp,
    /// [`GraphBuilder::fir_down2`].
    FirDown,
}

impl Resample {
    fn apply(self, g: &mut GraphBuilder, x: Value) -> Result<Value> {
        match self {
            Self::NearestUp => g.upsample_nearest2(x),
            Self::FirUp => g.fir_up2(x),
            Self::FirDown => g.fir_down2(x),
        }
    }
}

/// The convolution `name` with `kernel` 1 or 3, x [n, h, w, in] -> [n, h, w, out].
pub(crate) fn conv(
    g: &mut GraphBuilder,
    domain: Domain,
    x: Value,
    name: String,
    out_channels: usize,
    kernel: usize,
) -> Result<Value> {
    let in_channels = g.shape(x).c;
    g.conv2d(x, Conv2d { name, in_channels, out_channels, kernel, domain })
}

/// The norm `name`, then SiLU if `silu`, x [n, h, w, c] -> [n, h, w, c].
pub(crate) fn norm(
    g: &mut GraphBuilder,
    x: Value,
    name: String,
    kind: Norm,
    silu: bool,
) -> Result<Value> {
    let channels = g.shape(x).c;
    match kind {
        Norm::Group => {
            let groups = norm_groups(channels);
            g.group_norm(x, GroupNorm { name, channels, groups, silu })
        }
        Norm::Pixel => g.pixel_norm(x, PixelNorm { name, channels, silu }),
    }
}

/// Factors of the sum of a branch and its shortcut.
const HALVES: Factors = Factors::Fixed(FRAC_1_SQRT_2, FRAC_1_SQRT_2);

/// Residual block: (shortcut(x) + conv2(act(norm2(conv1(resample(act(norm1 x))))))) / sqrt(2), act = SiLU.
///
/// The shortcut resamples x and, where the channel count changes, applies a 1x1 convolution, at the lower of the two
/// resolutions. With an embedding, a scale and shift from it follow norm2 (NCSN++, Song et al. 2021).
#[derive(Clone, Debug)]
pub struct Block {
    /// Prefix of the parameters' names.
    pub name: String,
    /// The part of the grid that the block runs on.
    pub domain: Domain,
    /// Output channels.
    pub channels: usize,
    /// Normalisation.
    pub norm: Norm,
    /// Change of resolution.
    pub resample: Option<Resample>,
    /// Kernel of conv1 and conv2: 3, or 1 at the 1x1 level.
    pub kernel: usize,
    /// False: no shortcut, the result is conv2's output.
    pub residual: bool,
}

impl Block {
    /// A residual block with 3x3 convolutions.
    pub fn new(
        name: impl Into<String>,
        domain: Domain,
        channels: usize,
        norm: Norm,
        resample: Option<Resample>,
    ) -> Self {
        Self { name: name.into(), domain, channels, norm, resample, kernel: 3, residual: true }
    }

    /// x [n, h, w, c], embedding [1 or n, 1, 1, E] -> [n, h', w', channels], where h' and w' are h and w, halved or
    /// doubled by `resample`.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] if the shapes do not fit.
    pub fn run(&self, g: &mut GraphBuilder, x: Value, embedding: Option<Value>) -> Result<Value> {
        let layer = |part: &str| format!("{}.{part}", self.name);
        let mut h = norm(g, x, layer("norm1"), self.norm, true)?;
        if let Some(resample) = self.resample {
            h = resample.apply(g, h)?;
        }
        h = conv(g, self.domain, h, layer("conv1"), self.channels, self.kernel)?;
        h = norm(g, h, layer("norm2"), self.norm, embedding.is_none())?;
        if let Some(embedding) = embedding {
            let pair = conv(g, self.domain, embedding, layer("time"), 2 * self.channels, 1)?;
            h = g.scale_shift(h, pair, true)?;
        }
        h = conv(g, self.domain, h, layer("conv2"), self.channels, self.kernel)?;
        if !self.residual {
            return Ok(h);
        }
        let mut x = x;
        if self.resample == Some(Resample::FirDown) {
            x = g.fir_down2(x)?;
        }
        if g.shape(x).c != self.channels {
            x = conv(g, self.domain, x, layer("shortcut"), self.channels, 1)?;
        }
        if let Some(up @ (Resample::FirUp | Resample::NearestUp)) = self.resample {
            x = up.apply(g, x)?;
        }
        g.weighted_add(x, h, HALVES)
    }
}

/// Spatial-channel attention, x [n, h, w, c] -> [n, h, w, c] (the paper's figures 2 and 3; the arithmetic is the
/// project's reconstruction).
///
/// S attends over pixels, T over channels; out = (x + W_o[share * S + (1 - share) * T]) / sqrt(2). With
/// [`AttentionRatio::Spatial`] there is no T.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if the shapes do not fit.
pub fn sc_attention(
    g: &mut GraphBuilder,
    domain: Domain,
    x: Value,
    name: &str,
    ratio: AttentionRatio,
) -> Result<Value> {
    let layer = |part: &str| format!("{name}.{part}");
    let channels = g.shape(x).c;
    let mixed = {
        let h = norm(g, x, layer("norm"), Norm::Group, false)?;
        let q = conv(g, domain, h, layer("q"), channels, 1)?;
        let k = conv(g, domain, h, layer("k"), channels, 1)?;
        let v = conv(g, domain, h, layer("v"), channels, 1)?;
        let spatial = g.spatial_attention(q, k, v)?;
        match spatial_share(ratio, name, g.shape(x)) {
            Some(shares) => {
                let channel = g.channel_attention(q, k, v)?;
                g.weighted_add(spatial, channel, shares)?
            }
            None => spatial,
        }
    };
    let out = conv(g, domain, mixed, layer("out"), channels, 1)?;
    g.weighted_add(x, out, HALVES)
}

/// Shares of attention over pixels and over channels. That over pixels is N / (N + C) for N pixels and C channels, or the
/// same with logarithms of 1 + N and 1 + C, or learned; none where it is alone.
fn spatial_share(ratio: AttentionRatio, name: &str, x: Shape) -> Option<Factors> {
    let (n, c) = (x.pixels() as f64, x.c as f64);
    let share = match ratio {
        AttentionRatio::Linear => n / (n + c),
        AttentionRatio::Log => libm::log1p(n) / (libm::log1p(n) + libm::log1p(c)),
        AttentionRatio::Learned => return Some(Factors::Learned(format!("{name}.ratio"))),
        AttentionRatio::Spatial => return None,
    };
    Some(Factors::Fixed(share as f32, (1.0 - share) as f32))
}
