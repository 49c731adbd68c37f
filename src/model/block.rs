//! Layers and blocks that encoder, decoder and U-Net share.

use std::f32::consts::FRAC_1_SQRT_2;

use crate::{
    error::Result,
    model::arch::{AttentionRatio, Norm, norm_groups},
    ops::{Conv2d, Domain, GroupNorm, Ops, PixelNorm},
};

/// Change of resolution in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resample {
    /// [`Ops::upsample_nearest2`].
    NearestUp,
    /// [`Ops::fir_up2`].
    FirUp,
    /// [`Ops::fir_down2`].
    FirDown,
}

impl Resample {
    fn apply<O: Ops>(self, o: &mut O, x: &O::Tensor) -> Result<O::Tensor> {
        match self {
            Self::NearestUp => o.upsample_nearest2(x),
            Self::FirUp => o.fir_up2(x),
            Self::FirDown => o.fir_down2(x),
        }
    }
}

/// The convolution `name` with `kernel` 1 or 3, x [n, h, w, in] -> [n, h, w, out].
pub(crate) fn conv<O: Ops>(
    o: &mut O,
    domain: Domain,
    x: &O::Tensor,
    name: String,
    out_channels: usize,
    kernel: usize,
) -> Result<O::Tensor> {
    let in_channels = o.shape(x).c;
    o.conv2d(x, &Conv2d { name, in_channels, out_channels, kernel, domain })
}

/// The norm `name`, then SiLU if `silu`, x [n, h, w, c] -> [n, h, w, c].
pub(crate) fn norm<O: Ops>(
    o: &mut O,
    x: &O::Tensor,
    name: String,
    kind: Norm,
    silu: bool,
) -> Result<O::Tensor> {
    let channels = o.shape(x).c;
    match kind {
        Norm::Group => {
            let groups = norm_groups(channels);
            o.group_norm(x, &GroupNorm { name, channels, groups, silu })
        }
        Norm::Pixel => o.pixel_norm(x, &PixelNorm { name, channels, silu }),
    }
}

/// a + b, a, b [n, h, w, c] -> [n, h, w, c].
pub(crate) fn add<O: Ops>(o: &mut O, a: &O::Tensor, b: &O::Tensor) -> Result<O::Tensor> {
    o.weighted_add(a, b, 1.0, 1.0)
}

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
    /// The backend's.
    pub fn run<O: Ops>(
        &self,
        o: &mut O,
        x: O::Tensor,
        embedding: Option<&O::Tensor>,
    ) -> Result<O::Tensor> {
        let layer = |part: &str| format!("{}.{part}", self.name);
        let mut h = norm(o, &x, layer("norm1"), self.norm, true)?;
        if let Some(resample) = self.resample {
            h = resample.apply(o, &h)?;
        }
        h = conv(o, self.domain, &h, layer("conv1"), self.channels, self.kernel)?;
        h = norm(o, &h, layer("norm2"), self.norm, embedding.is_none())?;
        if let Some(embedding) = embedding {
            let pair = conv(o, self.domain, embedding, layer("time"), 2 * self.channels, 1)?;
            h = o.scale_shift(&h, &pair, true)?;
        }
        h = conv(o, self.domain, &h, layer("conv2"), self.channels, self.kernel)?;
        if !self.residual {
            return Ok(h);
        }
        let mut x = x;
        if self.resample == Some(Resample::FirDown) {
            x = o.fir_down2(&x)?;
        }
        if o.shape(&x).c != self.channels {
            x = conv(o, self.domain, &x, layer("shortcut"), self.channels, 1)?;
        }
        if let Some(up @ (Resample::FirUp | Resample::NearestUp)) = self.resample {
            x = up.apply(o, &x)?;
        }
        o.weighted_add(&x, &h, FRAC_1_SQRT_2, FRAC_1_SQRT_2)
    }
}

/// Spatial-channel attention, x [n, h, w, c] -> [n, h, w, c] (the paper's figures 2 and 3; the arithmetic is the
/// project's reconstruction).
///
/// S attends over pixels, T over channels; out = (x + W_o[share * S + (1 - share) * T]) / sqrt(2). With
/// [`AttentionRatio::Spatial`] there is no T.
///
/// # Errors
/// The backend's.
pub fn sc_attention<O: Ops>(
    o: &mut O,
    domain: Domain,
    x: &O::Tensor,
    name: &str,
    ratio: AttentionRatio,
) -> Result<O::Tensor> {
    let layer = |part: &str| format!("{name}.{part}");
    let channels = o.shape(x).c;
    let share = spatial_share(o, name, ratio, o.shape(x).pixels(), channels)?;
    let mixed = {
        let h = norm(o, x, layer("norm"), Norm::Group, false)?;
        let q = conv(o, domain, &h, layer("q"), channels, 1)?;
        let k = conv(o, domain, &h, layer("k"), channels, 1)?;
        let v = conv(o, domain, &h, layer("v"), channels, 1)?;
        drop(h);
        let spatial = o.spatial_attention(&q, &k, &v)?;
        match share {
            Some(share) => {
                let channel = o.channel_attention(&q, &k, &v)?;
                o.weighted_add(&spatial, &channel, share as f32, (1.0 - share) as f32)?
            }
            None => spatial,
        }
    };
    let out = conv(o, domain, &mixed, layer("out"), channels, 1)?;
    o.weighted_add(x, &out, FRAC_1_SQRT_2, FRAC_1_SQRT_2)
}

/// Share of spatial attention: N / (N + C), or with logarithms of 1 + N and 1 + C, or learned; none where it is alone.
fn spatial_share<O: Ops>(
    o: &mut O,
    name: &str,
    ratio: AttentionRatio,
    pixels: usize,
    channels: usize,
) -> Result<Option<f64>> {
    let (n, c) = (pixels as f64, channels as f64);
    Ok(match ratio {
        AttentionRatio::Linear => Some(n / (n + c)),
        AttentionRatio::Log => Some(libm::log1p(n) / (libm::log1p(n) + libm::log1p(c))),
        AttentionRatio::Learned => {
            let logit = f64::from(o.scalar(&format!("{name}.ratio"))?);
            Some(1.0 / (1.0 + libm::exp(-logit)))
        }
        AttentionRatio::Spatial => None,
    })
}
