"""The pyramid U-Net: NCSN++ blocks, Res-Skip streams of latents, SC attention (the paper's figures 2 to 4)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arch import Arch
from .blocks import Block, GroupNorm, ScAttention, at_least_f32, conv, fir_down, fir_up, scale_shift


def fourier_features(c_noise: Tensor, size: int) -> Tensor:
    """[N] to [N, size, 1, 1]: cosines, then sines, of c_noise times pi/2 * 32**(k/(K-1)), k = 0 .. K-1, K = size/2."""
    half = size // 2
    c_noise = at_least_f32(c_noise)
    k = torch.arange(half, device=c_noise.device, dtype=c_noise.dtype) / max(half - 1, 1)
    angle = c_noise[:, None] * (math.pi / 2 * 32.0**k)
    return torch.cat([angle.cos(), angle.sin()], 1)[:, :, None, None]


class ToLatent(nn.Module):
    """Features to the change of a latent: conv3x3(SiLU(GroupNorm x)), zero at the start."""

    def __init__(self, channels: int, latent: int, kernel: int = 3) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.conv = conv(channels, latent, kernel, zero=True)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.silu(self.norm(h)))


class UNetStage(nn.Module):
    """Both halves of one resolution. `latent`: channels of the level whose stream passes here."""

    def __init__(self, arch: Arch, i: int) -> None:
        super().__init__()
        stages, emb = arch.unet.stages, arch.unet.embedding
        c, blocks, last = stages[i].channels, stages[i].blocks, i == len(stages) - 1
        latent = arch.unet_latent(i)
        ratio, residual, joined = arch.attention_ratio, arch.unet.skip != "input", arch.unet_joined(i)

        def block(cin: int, resample: str | None = None) -> Block:
            return Block(cin, c, "group", resample, emb, residual=residual)

        self.down = block(stages[i - 1].channels, "fir_down") if i else None
        self.frgb = conv(latent, c, 1) if i and joined else None
        self.encoder = nn.ModuleList(block(c) for _ in range(blocks))
        self.encoder_attention = ScAttention(c, ratio) if stages[i].attention else None
        self.up = None if last else block(stages[i + 1].channels, "fir_up")
        self.decoder = nn.ModuleList(block(c if last or j else 2 * c) for j in range(blocks))
        self.decoder_attention = ScAttention(c, ratio) if stages[i].attention else None
        self.trgb = ToLatent(c, latent) if joined else None


class GlobalStage(nn.Module):
    """The 1x1 level: joins the mean over the coarsest grid, hands a scale and shift back to it."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        c, g, latent = arch.unet.stages[-1].channels, arch.unet.global_channels, arch.levels[-1].channels
        self.down = conv(c, g, 1)
        self.frgb = conv(latent, g, 1)
        self.block = Block(g, g, "group", None, arch.unet.embedding, kernel=1, residual=arch.unet.skip != "input")
        self.trgb = ToLatent(g, latent, kernel=1)
        self.up = conv(g, 2 * c, 1, zero=True)


class UNet(nn.Module):
    """Scaled latents c_in * z_t (finest first) and c_noise [N] to the raw prediction F per level."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        emb = arch.unet.embedding
        self.time1, self.time2 = conv(emb, emb, 1), conv(emb, emb, 1)
        self.enter = conv(arch.unet_latent(0), arch.unet.stages[0].channels)
        self.stages = nn.ModuleList(UNetStage(arch, i) for i in range(len(arch.unet.stages)))
        self.coarsest = GlobalStage(arch) if arch.has_global else None

    def forward(self, z: list[Tensor], c_noise: Tensor) -> list[Tensor]:
        arch, unshuffle = self.arch, self.arch.unet.unshuffle
        e = F.silu(self.time1(fourier_features(c_noise, arch.unet.embedding)))
        e = F.silu(self.time2(e))
        r = F.pixel_unshuffle(z[0], unshuffle)
        h, skips = self.enter(r), []
        for i, stage in enumerate(self.stages):
            if i:
                h = stage.down(h, e)
            if stage.frgb is not None:
                level = arch.unet_level(i)
                r = fir_down(r) if level is None else z[level]
                h = h + stage.frgb(r)
            for block in stage.encoder:
                h = block(h, e)
            if stage.encoder_attention is not None:
                h = stage.encoder_attention(h)
            skips.append(h)
        out: list[Tensor | None] = [None] * len(arch.levels)
        if self.coarsest is not None:
            s = self.coarsest
            g = s.block(s.down(h.mean((2, 3), keepdim=True)) + s.frgb(z[-1]), e)
            out[-1] = s.trgb(g)
            h = scale_shift(h, s.up(g))
        r = None  # a stream starts at the coarsest stage of its level and runs to the level's own grid
        for i in range(len(self.stages) - 1, -1, -1):
            stage, level = self.stages[i], arch.unet_level(i)
            if stage.up is not None:
                h = torch.cat([stage.up(h, e), skips[i]], 1)
            for block in stage.decoder:
                h = block(h, e)
            if stage.decoder_attention is not None:
                h = stage.decoder_attention(h)
            if stage.trgb is not None:
                r = stage.trgb(h) if r is None else fir_up(r) + stage.trgb(h)
            if level is not None:
                out[level], r = r if level else F.pixel_shuffle(r, unshuffle), None
        return out
