"""The pyramid U-Net: NCSN++ blocks, Res-Skip streams of latents, SC attention (the paper's figures 2 to 4).

In a model of version 2 there is one for each group of levels. It is conditioned on the coarser levels, which are denoised before,
on the labels of the picture and on the position in the picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arch import Arch, GroupShape
from .blocks import Block, ScAttention, at_least_f32, conv, fir_down, fir_up, make_norm, scale_shift


def fourier_features(c_noise: Tensor, size: int) -> Tensor:
    """[N] to [N, size, 1, 1]: cosines, then sines, of c_noise times pi/2 * 32**(k/(K-1)), k = 0 .. K-1, K = size/2."""
    half = size // 2
    c_noise = at_least_f32(c_noise)
    k = torch.arange(half, device=c_noise.device, dtype=c_noise.dtype) / max(half - 1, 1)
    angle = c_noise[:, None] * (math.pi / 2 * 32.0**k)
    return torch.cat([angle.cos(), angle.sin()], 1)[:, :, None, None]


@dataclass(frozen=True)
class Window:
    """A window of the grid of the U-Net's first stage: first row and column, and (rows, columns) of the whole grid."""

    top: int
    left: int
    whole: tuple[int, int]

    def coordinates(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """[1, 2, rows, columns]: x and y of pixel centres, -1 and 1 at the whole picture's edges."""
        axes = []
        for first, count, whole in ((self.left, columns, self.whole[1]), (self.top, rows, self.whole[0])):
            at = torch.arange(first, first + count, device=like.device, dtype=torch.float32)
            axes.append((2 * at + 1) / whole - 1)
        x, y = axes[0].expand(rows, columns), axes[1][:, None].expand(rows, columns)
        return torch.stack([x, y])[None].to(like.dtype)


@dataclass(frozen=True)
class Context:
    """What a U-Net is conditioned on: `condition`, the coarser levels' normalised latents, finest first, windows of them that
    belong to the window of the input (empty for the coarsest group); `labels` int64 [N, labels], 0: not given, else 1 + the index
    of the value (None: none given); `window` (None: the whole picture)."""

    condition: tuple[Tensor, ...] = ()
    labels: Tensor | None = None
    window: Window | None = None


class ToLatent(nn.Module):
    """Features to the change of a latent: conv3x3(SiLU(norm x)), zero at the start."""

    def __init__(self, channels: int, latent: int, norm: str, kernel: int = 3) -> None:
        super().__init__()
        self.norm = make_norm(norm, channels)
        self.conv = conv(channels, latent, kernel, zero=True)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.silu(self.norm(h)))


class UNetStage(nn.Module):
    """Both halves of one resolution."""

    def __init__(self, shape: GroupShape, ratio: str, i: int) -> None:
        super().__init__()
        unet = shape.group.unet
        stages, emb, norm = unet.stages, unet.embedding, unet.norm
        c, blocks, last = stages[i].channels, stages[i].blocks, i == len(stages) - 1
        latent, residual, joined = shape.latent(i), unet.skip != "input", shape.joined(i)

        def block(cin: int, resample: str | None = None) -> Block:
            return Block(cin, c, norm, resample, emb, residual=residual)

        self.down = block(stages[i - 1].channels, "fir_down") if i else None
        self.frgb = conv(latent, c, 1) if i and joined else None
        self.encoder = nn.ModuleList(block(c) for _ in range(blocks))
        self.encoder_attention = ScAttention(c, ratio) if stages[i].attention else None
        self.up = None if last else block(stages[i + 1].channels, "fir_up")
        self.decoder = nn.ModuleList(block(c if last or j else 2 * c) for j in range(blocks))
        self.decoder_attention = ScAttention(c, ratio) if stages[i].attention else None
        self.trgb = ToLatent(c, latent, norm) if joined else None


class GlobalStage(nn.Module):
    """The 1x1 level: joins the mean over the coarsest grid, hands a scale and shift back to it."""

    def __init__(self, shape: GroupShape) -> None:
        super().__init__()
        unet = shape.group.unet
        c, g, latent = unet.stages[-1].channels, unet.global_channels, shape.levels[-1].channels
        self.down = conv(c, g, 1)
        self.frgb = conv(latent, g, 1)
        self.block = Block(g, g, "group", None, unet.embedding, kernel=1, residual=unet.skip != "input")
        self.trgb = ToLatent(g, latent, "group", kernel=1)
        self.up = conv(g, 2 * c, 1, zero=True)


class Condition(nn.Module):
    """The coarser levels on the way in: a stream of features from the coarsest one, enlarged by FIR to the U-Net's first grid,
    and the 1x1 level as a part of the embedding."""

    def __init__(self, shape: GroupShape) -> None:
        super().__init__()
        unet = shape.group.unet
        finite = [level for level in shape.condition if level.factor]
        self.factors = [level.factor for level in finite]
        self.first = shape.factor(0)
        self.levels = nn.ModuleList(conv(level.channels, unet.stages[0].channels, 1) for level in finite)
        self.coarsest = conv(shape.condition[-1].channels, unet.embedding, 1) if shape.condition[-1].factor == 0 else None

    def stream(self, z: tuple[Tensor, ...]) -> Tensor:
        """Features [N, C, h, w] on the grid of the first stage."""
        r, factor = None, 0
        for z_level, enter, its in reversed(list(zip(z, self.levels, self.factors))):
            while r is not None and factor > its:
                r, factor = fir_up(r), factor // 2
            r, factor = (enter(z_level) if r is None else r + enter(z_level)), its
        while factor > self.first:
            r, factor = fir_up(r), factor // 2
        return r


class UNet(nn.Module):
    """Scaled latents c_in * z_t of a group (finest first) and c_noise [N] to the raw prediction F per level."""

    def __init__(self, arch: Arch, group: int = 0) -> None:
        super().__init__()
        shape = arch.shape(group)
        unet = shape.group.unet
        emb, first = unet.embedding, unet.stages[0].channels
        self.shape = shape
        self.time1, self.time2 = conv(emb, emb, 1), conv(emb, emb, 1)
        self.labels = nn.ModuleList(nn.Embedding(1 + len(label.values), emb) for label in arch.labels)
        for table in self.labels:
            nn.init.zeros_(table.weight)
        self.enter = conv(shape.latent(0), first)
        self.coordinates = conv(2, first, 1) if unet.coordinates else None
        self.condition = Condition(shape) if shape.condition else None
        self.stages = nn.ModuleList(UNetStage(shape, arch.attention_ratio, i) for i in range(len(unet.stages)))
        self.coarsest = GlobalStage(shape) if shape.has_global else None

    def embed(self, c_noise: Tensor, context: Context) -> Tensor:
        """The embedding [N, E, 1, 1] of noise level, labels and the 1x1 level."""
        e = F.silu(self.time1(fourier_features(c_noise, self.shape.group.unet.embedding)))
        e = self.time2(e)
        for i, table in enumerate(self.labels):
            row = table.weight[:1] if context.labels is None else table(context.labels[:, i])
            e = e + row.to(e.dtype)[:, :, None, None]
        if self.condition is not None and self.condition.coarsest is not None:
            e = e + self.condition.coarsest(context.condition[-1])
        return F.silu(e)

    def forward(self, z: list[Tensor], c_noise: Tensor, context: Context = Context()) -> list[Tensor]:
        shape, unshuffle = self.shape, self.shape.group.unet.unshuffle
        e = self.embed(c_noise, context)
        r = F.pixel_unshuffle(z[0], unshuffle)
        h, skips = self.enter(r), []
        if self.coordinates is not None:
            rows, columns = h.shape[2:]
            window = context.window or Window(0, 0, (rows, columns))
            h = h + self.coordinates(window.coordinates(rows, columns, h))
        if self.condition is not None:
            h = h + self.condition.stream(context.condition)
        for i, stage in enumerate(self.stages):
            if i:
                h = stage.down(h, e)
            if stage.frgb is not None:
                level = shape.level(i)
                r = fir_down(r) if level is None else z[level]
                h = h + stage.frgb(r)
            for block in stage.encoder:
                h = block(h, e)
            if stage.encoder_attention is not None:
                h = stage.encoder_attention(h)
            skips.append(h)
        out: list[Tensor | None] = [None] * len(shape.levels)
        if self.coarsest is not None:
            s = self.coarsest
            g = s.block(s.down(h.mean((2, 3), keepdim=True)) + s.frgb(z[-1]), e)
            out[-1] = s.trgb(g)
            h = scale_shift(h, s.up(g))
        r = None  # a stream starts at the coarsest stage of its level and runs to the level's own grid
        for i in range(len(self.stages) - 1, -1, -1):
            stage, level = self.stages[i], shape.level(i)
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
