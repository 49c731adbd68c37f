"""The decoder: a global stage up to the finest latent's grid, a local stage of finite reach from there to pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arch import Arch
from .blocks import Block, PixelNorm, ScAttention, add_noise, conv, fir_up, nearest_up, scale_shift
from .place_noise import place_noise

RGB_UP = {"nearest": nearest_up, "fir": fir_up}


@dataclass(frozen=True)
class Place:
    """Where features lie in their pictures: int64 `seeds` [N] of the pictures' noise, and the window's first row and column on
    the grid of the finest latent."""

    seeds: Tensor
    top: int = 0
    left: int = 0

    def noise(self, stage: DecoderStage, rows: int, columns: int) -> Tensor:
        """Noise [N, 1, rows, columns] of a stage: that of this place on the stage's grid."""
        top, left = (at * stage.finest // stage.factor for at in (self.top, self.left))
        return place_noise(self.seeds, stage.index, top, left, rows, columns)


@dataclass(frozen=True)
class GivenNoise:
    """Noise that was made elsewhere: [N, 1, h, w] of each stage that takes some, by the index of the stage."""

    of_stage: Mapping[int, Tensor]

    def noise(self, stage: DecoderStage, rows: int, columns: int) -> Tensor:
        """Noise of a stage, which must have `rows` and `columns`."""
        return self.of_stage[stage.index]


NoiseSource = Place | GivenNoise
"""The decoder's noise."""


class DecoderStage(nn.Module):
    """One resolution: entered by `up` (except the coarsest), joined by its latent through `frgb` and by noise, left by `trgb`."""

    def __init__(self, arch: Arch, i: int) -> None:
        super().__init__()
        stages, norm = arch.decoder.stages, arch.decoder.global_norm
        stage, factor, last = stages[i], arch.decoder.shuffle << i, i == len(stages) - 1
        if factor < arch.levels[0].factor:
            norm = "pixel"
        level = None if last else arch.level_at(factor)
        self.index, self.factor, self.finest = i, factor, arch.levels[0].factor
        self.rgb_up = RGB_UP[arch.decoder.rgb]
        self.up = None if last else Block(stages[i + 1].channels, stage.channels, norm, "nearest_up")
        self.frgb = None if level is None else conv(arch.levels[level].channels, stage.channels, 1)
        self.noise = nn.Parameter(torch.zeros(stage.channels)) if stage.noise else None
        self.blocks = nn.ModuleList(Block(stage.channels, stage.channels, norm) for _ in range(stage.blocks))
        self.attention = ScAttention(stage.channels, arch.attention_ratio) if stage.attention else None
        self.trgb = conv(stage.channels, 3, 1)

    def forward(self, h: Tensor, r: Tensor | None, z: Tensor | None, place: NoiseSource) -> tuple[Tensor, Tensor]:
        """Features and RGB stream (None at the coarsest stage) of the next coarser stage to those of this one."""
        if self.up is not None:
            h = self.up(h)
        if self.frgb is not None:
            h = h + self.frgb(z)
        if self.noise is not None:
            h = add_noise(h, place.noise(self, *h.shape[2:]), self.noise)
        for block in self.blocks:
            h = block(h)
        if self.attention is not None:
            h = self.attention(h)
        t = self.trgb(h)
        return h, t if r is None else self.rgb_up(r) + t


class Decoder(nn.Module):
    """Latents, finest first and not normalised, to a picture [N, 3, H, W] in about [-1, 1]."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        stages, shuffle = arch.decoder.stages, arch.decoder.shuffle
        self.enter = conv(arch.finite[-1].channels, stages[-1].channels)
        self.modulate = conv(arch.levels[-1].channels, 2 * stages[-1].channels, 1) if arch.has_global else None
        self.stages = nn.ModuleList(DecoderStage(arch, i) for i in range(len(stages)))
        self.norm = PixelNorm(stages[0].channels)
        self.out = conv(stages[0].channels, 3 * shuffle**2)
        self.first_local = sum(shuffle << i < arch.levels[0].factor for i in range(len(stages)))

    def streams(self, z: list[Tensor], place: NoiseSource | None = None) -> tuple[Tensor, list[Tensor]]:
        """The global stage: features [N, C, h, w] at the finest latent's grid, and the RGB stream [N, 3, ., .] of every stage
        from the coarsest to there."""
        place = place or still(z[0])
        h = self.enter(z[len(self.arch.finite) - 1])
        if self.modulate is not None:
            h = scale_shift(h, self.modulate(z[-1]))
        streams: list[Tensor] = []
        for i in range(len(self.stages) - 1, self.first_local - 1, -1):
            level = self.arch.level_at(self.arch.decoder.shuffle << i)
            h, r = self.stages[i](h, streams[-1] if streams else None, None if level is None else z[level], place)
            streams.append(r)
        return h, streams

    def global_stage(self, z: list[Tensor], place: NoiseSource | None = None) -> tuple[Tensor, Tensor]:
        """Features and RGB stream at the finest latent's grid."""
        h, streams = self.streams(z, place)
        return h, streams[-1]

    def local_stage(self, h: Tensor, r: Tensor, place: NoiseSource | None = None) -> Tensor:
        """A window of the global stage's output to pixels; exact except within the receptive field of cut edges."""
        place = place or still(h)
        for i in range(self.first_local - 1, -1, -1):
            h, r = self.stages[i](h, r, None, place)
        shuffle = self.arch.decoder.shuffle
        for _ in range(shuffle.bit_length() - 1):
            r = RGB_UP[self.arch.decoder.rgb](r)
        return r + F.pixel_shuffle(self.out(F.silu(self.norm(h))), shuffle)

    def halo(self) -> int:
        """Pixels of the finest latent's grid that a window of the local stage needs beyond the pixels that are wanted: the radius of
        its receptive field, rounded up."""
        enlarged = {"nearest": lambda radius: 2 * radius, "fir": lambda radius: 2 * radius + 1}[self.arch.decoder.rgb]
        h = r = 0
        for stage in reversed(self.stages[: self.first_local]):
            h = 2 * h + 2 * (1 + len(stage.blocks))  # a block has two convolutions, and enlarges before the first
            r = max(enlarged(r), h)
        shuffle = self.arch.decoder.shuffle
        for _ in range(shuffle.bit_length() - 1):
            r = enlarged(r)
        return -(-max(r, (h + 1) * shuffle) // self.arch.levels[0].factor)

    def forward(self, z: list[Tensor], place: NoiseSource | None = None) -> Tensor:
        """The whole picture; without `place` the noise of seed 0."""
        return self.local_stage(*self.global_stage(z, place), place)


def still(x: Tensor) -> Place:
    """Seed 0 for every picture of the batch `x`, from the first row and column on."""
    return Place(torch.zeros(len(x), dtype=torch.int64, device=x.device))
