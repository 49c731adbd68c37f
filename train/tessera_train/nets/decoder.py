"""The decoder: a global stage up to the finest latent's grid, a local stage of finite reach from there to pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .arch import Arch
from .blocks import Block, PixelNorm, ScAttention, conv, nearest_up, scale_shift


class DecoderStage(nn.Module):
    """One resolution: entered by `up` (but for the coarsest), joined by its latent through `frgb`, left by `trgb`."""

    def __init__(
        self, cin: int | None, channels: int, blocks: int, attention: str | None, norm: str, latent: int | None
    ) -> None:
        super().__init__()
        self.up = Block(cin, channels, norm, "nearest_up") if cin else None
        self.frgb = conv(latent, channels, 1) if latent else None
        self.blocks = nn.ModuleList(Block(channels, channels, norm) for _ in range(blocks))
        self.attention = ScAttention(channels, attention) if attention else None
        self.trgb = conv(channels, 3, 1)

    def forward(self, h: Tensor, r: Tensor | None, z: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.up is not None:
            h = self.up(h)
        if self.frgb is not None:
            h = h + self.frgb(z)
        for block in self.blocks:
            h = block(h)
        if self.attention is not None:
            h = self.attention(h)
        t = self.trgb(h)
        return h, t if r is None else nearest_up(r) + t


class Decoder(nn.Module):
    """Latents, finest first and not normalised, to a picture [N, 3, H, W] in about [-1, 1]."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        stages, shuffle = arch.decoder.stages, arch.decoder.shuffle
        self.enter = conv(arch.finite[-1].channels, stages[-1].channels)
        self.modulate = conv(arch.levels[-1].channels, 2 * stages[-1].channels, 1) if arch.has_global else None
        self.stages = nn.ModuleList()
        for i, stage in enumerate(stages):
            factor, last = shuffle << i, i == len(stages) - 1
            level = arch.level_at(factor)
            self.stages.append(
                DecoderStage(
                    None if last else stages[i + 1].channels,
                    stage.channels,
                    stage.blocks,
                    arch.attention_ratio if stage.attention else None,
                    "pixel" if factor < arch.levels[0].factor else arch.decoder.global_norm,
                    None if level is None or last else arch.levels[level].channels,
                )
            )
        self.norm = PixelNorm(stages[0].channels)
        self.out = conv(stages[0].channels, 3 * shuffle**2)
        self.first_local = sum(shuffle << i < arch.levels[0].factor for i in range(len(stages)))

    def global_stage(self, z: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Features and RGB stream at the finest latent's grid."""
        h = self.enter(z[len(self.arch.finite) - 1])
        if self.modulate is not None:
            h = scale_shift(h, self.modulate(z[-1]))
        r = None
        for i in range(len(self.stages) - 1, self.first_local - 1, -1):
            level = self.arch.level_at(self.arch.decoder.shuffle << i)
            h, r = self.stages[i](h, r, None if level is None else z[level])
        return h, r

    def local_stage(self, h: Tensor, r: Tensor) -> Tensor:
        """Any window of the global stage's output to pixels; right up to the reach of its operators from cut edges."""
        for i in range(self.first_local - 1, -1, -1):
            h, r = self.stages[i](h, r, None)
        shuffle = self.arch.decoder.shuffle
        for _ in range(shuffle.bit_length() - 1):
            r = nearest_up(r)
        return r + F.pixel_shuffle(self.out(F.silu(self.norm(h))), shuffle)

    def forward(self, z: list[Tensor]) -> Tensor:
        return self.local_stage(*self.global_stage(z))
