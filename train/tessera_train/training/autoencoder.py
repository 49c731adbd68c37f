"""Training of encoder and decoder on pictures."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.grid import save_grid, shrink
from ..data.pictures import Pictures, step_rng
from ..data.transfer import to_device
from ..eval.metrics import decibels
from ..export.model import Model
from ..nets import dropout, sampler, spectral
from ..nets.arch import Arch, autoencoder_identity
from ..nets.autoencoder import Autoencoder
from ..nets.decoder import Decoder, Place
from ..nets.precond import Denoiser
from . import loop, parallel, texture
from .adversarial import Adversary
from .config import Config
from .perceptual import Lpips

SLICES = 16
"""Directions a step of the patches' distance."""
REDRAWING_STEPS = 4
"""Of Heun's sampler: redrawing is a part of every training step."""


@dataclass(frozen=True)
class Phase:
    """A part of the budget: until which share of it, at which picture size, with how many pictures a step.

    `windows` windows per picture of at most `window` x `window` pixels go through the local stage and the losses.
    `crop`: probability of a part at stored size, in place of the whole picture averaged down.
    """

    until: float
    width: int
    height: int
    batch: int
    window: int
    windows: int = 1
    crop: float = 0.0

    def own(self) -> slice:
        """This process's part of the pictures."""
        return parallel.own(self.batch, "[[autoencoder.phases]] batch")


@dataclass(frozen=True)
class Settings(loop.Recipe):
    """The section `[autoencoder]`, and `[refine]`, where its values hold that are not given anew. `kl`: weight of the mean KL
    divergence per element of all levels, so that a bit has the same price at each of them (were it the mean of levels, the coarse
    ones would stay empty); `zero_levels`: probability that a picture's finest k levels are zeroed, k uniform; `bands`: of the
    Laplacian pyramid.
    `latent_noise`: most noise that a picture's latents get on top of the posterior's, in standard deviations of their channel
    (the amount is drawn uniformly from 0 on): a U-Net misses by as much, and a decoder that has never seen it shows it as
    mottled squares.
    `adversarial`: weight of the adversary (0: none), at work from the share `adversarial_from` of the budget on, with
    `adversarial_width` channels at first, for each of the `adversarial_levels` of the Laplacian pyramid (1: the picture as it
    is), and `adversarial_rate` times the decoder's learning rate. `lpips`: weight of LPIPS (0: none), with VGG16's weights
    from the safetensors file `lpips_weights`.
    `redrawn`, for `[refine]`: share of a batch whose latents get noise, of a shared sigma between `redrawn_from` and
    `redrawn_to`, and are denoised by the U-Net again: the adversary sees what samples look like, and the decoder learns to give
    them texture. There is no picture that they should be equal to, so the other losses leave them out.

    `supervision`: weight of the L1 distance of the RGB stream of every global stage from the picture averaged down (0: none); with
    it the coarse levels hold layout and colour (the paper's output skip, figure 5). `log_variance`: where the posterior's
    log-variance starts; 0 is a deviation of 1, from which it moves by about 1e-3 a step.
    `encoder_until`: share of the budget after which the encoder stays as it is, so that U-Nets can be trained on its latents while
    the decoder is trained on.
    `texture`, `patches`: weights of `texture.power` and `texture.patches` on the `texture_bands` finest bands, from the share
    `texture_from` of the budget on; the paired losses then hold the coarser bands and, with the weight `paired` (1: as before),
    the finest ones.
    `equivariance`: weight of the L1 distance of the picture decoded from the finest latent averaged down by two, the coarser
    ones zero, from the decoded picture averaged down (Kouzelis et al. 2025, arXiv 2502.09509); 0: none.
    `replay`: pictures of the decoder that the adversary remembers, half of each of its batches (0: none; Shrivastava et al.
    2017)."""

    phases: list[dict] = field(default_factory=list)
    kl: float = 1e-6
    zero_levels: float = 0.1
    latent_noise: float = 0.0
    bands: int = 4
    adversarial: float = 0.0
    adversarial_from: float = 0.6
    adversarial_width: int = 32
    adversarial_levels: int = 1
    adversarial_rate: float = 1.0
    lpips: float = 0.0
    lpips_weights: str = ""
    redrawn: float = 0.0
    redrawn_from: float = 0.1
    redrawn_to: float = 5.0
    encoder_until: float = 1.0
    supervision: float = 0.0
    log_variance: float = 0.0
    texture: float = 0.0
    patches: float = 0.0
    texture_from: float = 0.5
    texture_bands: int = 3
    paired: float = 1.0
    equivariance: float = 0.0
    replay: int = 0


def local_halo(arch: Arch) -> int:
    """Pixels of the finest latent's grid that the local stage reads around a window."""
    reach, shuffle = 1, arch.decoder.shuffle  # the last convolution, at factor `shuffle`
    for i, stage in enumerate(arch.decoder.stages):
        if shuffle << i >= arch.levels[0].factor:
            break
        reach = math.ceil((reach + 2 * stage.blocks + 2) / 2)
    return reach


def decode_window(
    decoder: Decoder, h: Tensor, r: Tensor, top: int, left: int, rows: int, columns: int, seeds: Tensor | None = None
) -> Tensor:
    """The pixels of a window of the finest latent's grid: local stage on the window and its halo, cropped. `seeds` [N] of the
    pictures' noise, 0 if None."""
    halo, factor = local_halo(decoder.arch), decoder.arch.levels[0].factor
    y, x = max(0, top - halo), max(0, left - halo)
    cut = (..., slice(y, top + rows + halo), slice(x, left + columns + halo))
    seeds = torch.zeros(len(h), dtype=torch.int64, device=h.device) if seeds is None else seeds
    out = decoder.local_stage(h[cut], r[cut], Place(seeds, y, x))
    y, x = (top - y) * factor, (left - x) * factor
    return out[..., y : y + rows * factor, x : x + columns * factor]


def pyramid_l1(difference: Tensor, bands: int, finest: int = 0, weight: float = 1.0) -> Tensor:
    """Sum over `bands` bands of the Laplacian pyramid of the mean absolute value, the `finest` of them by `weight`; the pyramid
    is linear, so the difference's bands are the bands' differences."""
    total = difference.new_zeros(())
    for k in range(bands - 1):
        if min(difference.shape[2:]) < 2:
            break
        low = F.avg_pool2d(difference, 2)
        band = (difference - F.interpolate(low, difference.shape[2:], mode="nearest")).abs().mean()
        total, difference = total + (weight if k < finest else 1.0) * band, low
    return total + difference.abs().mean()


def place_windows(rng: np.random.Generator, size: int, extent: int, shape: tuple[int, int]) -> np.ndarray:
    """Starts of windows of `extent` in `size`. Drawn from half a window beyond either end and moved inside: else hardly
    a window would touch an edge, and the decoder would leave a rim there."""
    beyond = extent // 2
    return rng.integers(-beyond, size - extent + beyond + 1, shape).clip(0, size - extent)


def supervision(streams: list[Tensor], pictures: Tensor, own: Tensor) -> Tensor:
    """Mean over the RGB `streams` of their L1 distance from `pictures` [N, 3, H, W] averaged down to their grids; of the
    pictures that `own` [N] marks."""
    total = pictures.new_zeros(())
    for stream in streams:
        wanted = F.avg_pool2d(pictures, pictures.shape[3] // stream.shape[3])
        total = total + ((stream.float() - wanted) * own.view(-1, 1, 1, 1)).abs().mean()
    return total / len(streams)


def channel_std(z: Tensor) -> Tensor:
    """Standard deviation of every channel [1, C, 1, 1] of z [N, C, h, w]; 0 where there is one value only."""
    return z.float().var((0, 2, 3), unbiased=False, keepdim=True).sqrt()


@dataclass
class Batch:
    """Pictures [N, 3, H, W]; how many of the finest levels each has zeroed; the shared sigma from which its latents are
    redrawn, 0 where they are its own; windows (picture, top, left) of `extent` (rows, columns) of the finest latent's grid;
    int64 seeds [N] of the decoder's noise."""

    pictures: Tensor
    zeroed: list[int]
    redrawn: list[float]
    windows: list[tuple[int, int, int]]
    extent: tuple[int, int]
    seeds: Tensor


class Task:
    """See `loop.Task`. With the `whole` model of a trained U-Net its decoder is refined: the encoder stays as it is, without
    spectral norm and dropout, and the latents that the U-Net has learnt stay valid."""

    def __init__(self, config: Config, pictures: Pictures, seed: int, device: torch.device, whole: Model | None = None) -> None:
        self.arch, self.pictures, self.seed, self.whole = config.arch, pictures, seed, whole
        section = "autoencoder" if whole is None else "refine"
        self.recipe = config.section(section, Settings)
        self.phases = [Phase(**phase) for phase in self.recipe.phases]
        if not self.phases or self.phases[-1].until < 1:
            raise ValueError(f"{config.path}: [[{section}.phases]] must lead to until = 1")
        for phase in self.phases:
            phase.own()
            if phase.width % self.arch.coarsest_factor or phase.height % self.arch.coarsest_factor:
                raise ValueError(f"{config.path}: a phase's size is not a multiple of {self.arch.coarsest_factor}")
        r = self.recipe
        if not 0 < r.adversarial_from < 1:
            raise ValueError(f"{config.path}: adversarial_from is {r.adversarial_from}, must be above 0 and below 1")
        if r.redrawn and (whole is None or not r.adversarial):
            raise ValueError(f"{config.path}: [{section}] redrawn is for [refine], with adversarial above 0")
        if not (0 <= r.redrawn < 1 and 0 < r.redrawn_from <= r.redrawn_to):
            raise ValueError(f"{config.path}: redrawn must be from 0 to below 1, 0 < redrawn_from <= redrawn_to")
        if not 0 <= r.texture_bands < r.bands:
            raise ValueError(f"{config.path}: texture_bands is {r.texture_bands}, must be from 0 to bands - 1, {r.bands - 1}")
        self.textured = False
        self.model = Autoencoder(self.arch, r.log_variance)
        if r.spectral_norm and whole is None:
            spectral.normalise(spectral.all_convolutions(self.model.encoder))
        self.model.encoder.requires_grad_(whole is None)
        adversary = r.adversarial_width, r.adversarial_levels, r.adversarial_rate
        self.adversary = Adversary(*adversary, device, r.replay) if r.adversarial else None
        self.weighting = None
        self.lpips = Lpips(Path(r.lpips_weights)).to(device) if r.lpips else None
        self.identity, self.prefix = autoencoder_identity(self.arch), ""

    def redraw(self, z: list[Tensor], sigma: float) -> list[Tensor]:
        """Latents [1, C, h, w] per level, redrawn from the shared `sigma`."""
        latents = self.whole.latents
        with torch.no_grad():
            denoisers = [Denoiser(unet) for unet in self.whole.unets]
            return latents.raw(sampler.redrawn(denoisers, latents.normalise(z), sigma, REDRAWING_STEPS))

    def parts_to_compile(self) -> list[nn.Module]:
        return [self.model.encoder, *self.model.decoder.stages]

    def begin(self, progress: float) -> None:
        if self.whole is None:
            dropout.apply(self.model.encoder, self.recipe.dropout, self.recipe.dropout_over, progress)
        if self.whole is None:
            self.model.encoder.requires_grad_(progress < self.recipe.encoder_until or self.recipe.encoder_until >= 1)
        self.textured = bool(self.recipe.texture or self.recipe.patches) and progress >= self.recipe.texture_from
        if self.adversary is not None:
            self.adversary.on = progress >= self.recipe.adversarial_from

    def batch(self, step: int, progress: float) -> Batch:
        phase = next(phase for phase in self.phases if progress < phase.until or phase is self.phases[-1])
        rng, factor, levels = step_rng(self.seed, step), self.arch.levels[0].factor, len(self.arch.levels)
        drawn = [self.pictures.draw(rng, phase.width, phase.height, phase.crop) for _ in range(phase.batch)]
        zero = rng.random(phase.batch) < self.recipe.zero_levels
        zeroed = np.where(zero, rng.integers(1, max(levels, 2), phase.batch), 0) if levels > 1 else zero * 0
        own_latents = phase.batch - round(self.recipe.redrawn * phase.batch)
        span = (math.log(self.recipe.redrawn_from), math.log(self.recipe.redrawn_to))
        sigmas = np.where(np.arange(phase.batch) < own_latents, 0.0, np.exp(rng.uniform(*span, phase.batch)))
        rows, columns = (min(size, phase.window) // factor for size in (phase.height, phase.width))
        tops, lefts = (
            place_windows(rng, size // factor, extent, (phase.batch, phase.windows))
            for size, extent in ((phase.height, rows), (phase.width, columns))
        )
        own = phase.own()
        windows = [(n, int(y), int(x)) for n, places in enumerate(zip(tops[own], lefts[own])) for y, x in zip(*places)]
        pictures, redrawn = torch.cat([read() for read in drawn[own]]), [float(sigma) for sigma in sigmas[own]]
        seeds = torch.from_numpy(rng.integers(0, 2**63, phase.batch)[own])
        return Batch(pictures, [int(k) for k in zeroed[own]], redrawn, windows, (rows, columns), seeds)

    def loss(self, batch: Batch) -> tuple[Tensor, int, dict[str, Tensor]]:
        device = next(self.model.parameters()).device
        zeroed, redrawn, seeds = (to_device(torch.as_tensor(x), device) for x in (batch.zeroed, batch.redrawn, batch.seeds))
        pictures = batch.pictures.to(device).contiguous(memory_format=torch.channels_last)
        z, kl = [], pictures.new_zeros(())
        with torch.set_grad_enabled(self.model.encoder.stem.weight.requires_grad):
            moments = self.model.encoder(pictures)
        amount = None
        if self.recipe.latent_noise:
            share = parallel.draw((len(pictures), 1, 1, 1), lambda shape: torch.rand(shape, device=device))
            amount = self.recipe.latent_noise * share
        for level, (mean, log_variance) in enumerate(moments):
            kl = kl + (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
            keep = (zeroed <= level).view(-1, 1, 1, 1)
            noise = parallel.draw(mean.shape, lambda shape: torch.randn(shape, device=device))
            spread = (log_variance / 2).exp()
            if amount is not None:
                spread = (spread.square() + (amount * channel_std(mean.detach())).square()).sqrt()
            z.append((mean + spread * noise) * keep)
        kl = kl / sum(x.numel() for x in z)
        for n, sigma in enumerate(batch.redrawn):
            if sigma:
                drawn = self.redraw([mean[n : n + 1].float() for mean, _ in moments], sigma)
                for x, y in zip(z, drawn):
                    x[n] = y[0]
        numbers: dict[str, Tensor] = {}
        h, streams = self.model.decoder.streams(z, Place(seeds))
        out, target, own = self.windows(batch, h, streams[-1], seeds, pictures, redrawn == 0)
        difference = (out - target) * own
        l1, settings = difference.abs().mean(), self.recipe
        finest, paired = (settings.texture_bands, settings.paired) if self.textured else (0, 1.0)
        bands = pyramid_l1(difference, settings.bands, finest, paired)
        numbers |= {"l1": l1, "bands": bands, "kl": kl}
        reconstruction = paired * l1 + bands
        if self.textured:
            reconstruction = reconstruction + self.texture(torch.where(own, out, target), target, numbers)
        if settings.supervision:
            numbers["streams"] = supervision(streams, pictures, redrawn == 0)
            reconstruction = reconstruction + settings.supervision * numbers["streams"]
        if settings.equivariance:
            numbers["equivariance"] = self.equivariance(z, seeds)
            reconstruction = reconstruction + settings.equivariance * numbers["equivariance"]
        if self.lpips is not None:
            numbers["lpips"] = self.lpips(torch.where(own, out, target), target)
            reconstruction = reconstruction + self.recipe.lpips * numbers["lpips"]
        total = reconstruction + self.recipe.kl * kl
        if self.adversary is not None and self.adversary.on:
            weight, generator = self.adversary.generator_loss(target, out, reconstruction, self.model.decoder.out.weight)
            numbers |= {"generator": generator, "adaptive": weight}
            total = total + self.recipe.adversarial * weight * generator
        return total, len(pictures), {key: value.detach() for key, value in numbers.items()}

    def windows(self, batch: Batch, h: Tensor, r: Tensor, seeds: Tensor, pictures: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The decoded windows of a batch, the windows of the pictures, and `own` [N] of their pictures as [windows, 1, 1, 1]. Where
        every picture has its windows at the same places, one place after the other, else one picture after the other."""
        (rows, columns), factor = batch.extent, self.arch.levels[0].factor
        places = [(y, x) for n, y, x in batch.windows if n == 0]
        whole = [(n, y, x) for n in range(len(pictures)) for y, x in places] == batch.windows
        cuts = [(slice(None), y, x) for y, x in places] if whole else [(slice(n, n + 1), y, x) for n, y, x in batch.windows]
        outs, targets, owns = [], [], []
        for its, y, x in cuts:
            outs.append(decode_window(self.model.decoder, h[its], r[its], y, x, rows, columns, seeds[its]).float())
            targets.append(pictures[its, :, y * factor : (y + rows) * factor, x * factor : (x + columns) * factor])
            owns.append(own[its])
        return torch.cat(outs), torch.cat(targets), torch.cat(owns).view(-1, 1, 1, 1)

    def texture(self, out: Tensor, target: Tensor, numbers: dict[str, Tensor]) -> Tensor:
        """The weighted losses of texture of windows [N, 3, h, w]; their values go into `numbers`."""
        bands, total = self.recipe.texture_bands, out.new_zeros(())
        (a, _), (b, _) = texture.laplacian(out, bands), texture.laplacian(target, bands)
        if self.recipe.texture:
            numbers["power"] = texture.power(a, b)
            total = total + self.recipe.texture * numbers["power"]
        if self.recipe.patches:
            directions = parallel.draw((SLICES, 3, texture.PATCH, texture.PATCH), lambda shape: torch.randn(shape, device=out.device))
            directions = directions / directions.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            numbers["patches"] = texture.patches(a, b, directions)
            total = total + self.recipe.patches * numbers["patches"]
        return total

    def equivariance(self, z: list[Tensor], seeds: Tensor) -> Tensor:
        """See `Settings.equivariance`: on the finest latent's grid, by the global RGB stream, which is what scales."""
        decoder, zero = self.model.decoder, [torch.zeros_like(x) for x in z[1:]]
        _, whole = decoder.streams([z[0], *zero], Place(seeds))
        half = [F.avg_pool2d(x, 2) if min(x.shape[2:]) > 1 else x for x in (z[0], *zero)]
        _, small = decoder.streams(half, Place(seeds))
        return (small[-1] - F.avg_pool2d(whole[-1], 2)).float().abs().mean()

    def evaluate(self, ema: nn.Module, picture: Path) -> dict[str, float]:
        """PSNR over the held-out pictures at the first phase's size, also without the finest level; the grid shows four of them, each over its
        reconstruction, then parts of two at 100 %, originals first."""
        phase, device = self.phases[0], next(ema.parameters()).device
        originals, results, coarse = [], [], []
        for i in range(self.pictures.training, self.pictures.training + self.pictures.held_out):
            x = self.pictures.whole(i, phase.width, phase.height).to(device)
            x = x.contiguous(memory_format=torch.channels_last)
            z = [mean for mean, _ in ema.encoder(x)]
            results.append(ema.decoder(z).float())
            coarse.append(ema.decoder([torch.zeros_like(z[0]), *z[1:]]).float())
            originals.append(x)
        if not originals:
            return {}
        a, b = torch.cat(originals), torch.cat(results)
        height, width = (min(512, n) for n in a.shape[2:])
        y, x = (a.shape[2] - height) // 2, (a.shape[3] - width) // 2
        details = torch.cat([t[:2, :, y : y + height, x : x + width] for t in (a, b)])
        save_grid(picture, [shrink(a[:4], 512), shrink(b[:4], 512), details])
        without = torch.cat(coarse)
        return {name: decibels(float(((a - x.clamp(-1, 1)) / 2).square().mean())) for name, x in (("psnr", b), ("coarse", without))}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--pictures", type=Path, required=True, help="folder that scenery or prepare has written")
    loop.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """The command."""
    device = loop.prepare(args)
    config = Config(args.config)
    loop.describe(config.arch)
    task = Task(config, Pictures.open(args.pictures), args.seed, device)
    return loop.Loop(task, args, device).run()
