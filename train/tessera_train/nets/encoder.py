"""The encoder: lightweight, no branches, an input-skip stream beside the down-sampling one (the paper's figure 5)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .arch import Arch
from .blocks import PixelNorm, at_least_f32, conv
from .dropout import drop


class ConvNorm(nn.Module):
    """SiLU(PixelNorm(conv3x3 x)), then dropout in training."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.conv = conv(cin, cout)
        self.norm = PixelNorm(cout)
        self.dropout = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return drop(F.silu(self.norm(self.conv(x))), self.dropout, self.training)


class EncoderStage(nn.Module):
    """One resolution: enters by `down` (except the first), adds the picture through `frgb`, leaves by `head`."""

    def __init__(self, cin: int | None, channels: int, blocks: int, latent: int | None) -> None:
        super().__init__()
        self.down = ConvNorm(cin, channels) if cin else None
        self.frgb = conv(3, channels, 1)
        self.blocks = nn.ModuleList(ConvNorm(channels, channels) for _ in range(blocks))
        self.head = conv(channels, 2 * latent, 1) if latent else None

    def forward(self, h: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        if self.down is not None:
            h, r = self.down(F.avg_pool2d(h, 2)), F.avg_pool2d(r, 2)
        h = h + self.frgb(r)
        for block in self.blocks:
            h = block(h)
        return h, r


class Encoder(nn.Module):
    """Picture [N, 3, H, W] in [-1, 1] to, per level, (mean, log-variance)."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.unshuffle = arch.encoder.unshuffle
        stages = arch.encoder.stages
        self.stem = conv(3 * self.unshuffle**2, stages[0].channels)
        self.stages = nn.ModuleList()
        for i, stage in enumerate(stages):
            level = arch.level_at(self.unshuffle << i)
            latent = None if level is None else arch.levels[level].channels
            self.stages.append(EncoderStage(stages[i - 1].channels if i else None, stage.channels, stage.blocks, latent))
        self.head = conv(stages[-1].channels, 2 * arch.levels[-1].channels, 1) if arch.has_global else None

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        h = self.stem(F.pixel_unshuffle(x, self.unshuffle))
        r = F.avg_pool2d(x, self.unshuffle)
        moments = []
        for stage in self.stages:
            h, r = stage(h, r)
            if stage.head is not None:
                moments.append(stage.head(h))
        if self.head is not None:
            moments.append(self.head(h.mean((2, 3), keepdim=True)))
        out = []
        for moment in moments:
            mean, log_variance = at_least_f32(moment).chunk(2, 1)
            out.append((mean, log_variance.clamp(-30, 20)))
        return out
