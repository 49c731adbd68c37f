"""Training of the U-Net of a group of levels on latents: EDM's loss at every level of the group."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..data.grid import save_grid, shrink
from ..data.latents import Latents
from ..data.pictures import step_rng
from ..export.weights import load_ema
from ..nets import dropout, sampler, spectral
from ..nets.arch import autoencoder_identity, unet_identity
from ..nets.autoencoder import Autoencoder
from ..nets.precond import Denoiser, level_sigma
from ..nets.unet import Context, UNet, Window
from . import loop, parallel
from .config import Config
from .weighting import Weighting

SAMPLES = 8
"""Pictures in a sample grid."""


@dataclass(frozen=True)
class Settings(loop.Recipe):
    """The section `[diffusion]`, and `[diffusion.GROUP]` for what is different in a group. ln(shared sigma) ~ N(p_mean + p_drift * t,
    p_std^2), t the used share of the budget: with p_drift below 0 the layout is learnt first, texture last; `level_weight`: of
    each level's loss, 1 if empty.

    Version 2: `crop`, rows and columns of the network's first grid that it is trained on (empty: all of it); `condition_noise`: most
    noise that the coarser levels get, in standard deviations (conditioning augmentation, Ho et al. 2022, arXiv 2106.15282: the
    network then tolerates the coarser network's errors); `label_dropout`: probability that one label of a picture is dropped,
    `unconditional`: that all are; `equalise`: losses are divided by their running mean at their noise level
    (`weighting.Weighting`)."""

    batch: int = 16
    p_mean: float = -0.4
    p_drift: float = 0.0
    p_std: float = 1.2
    level_weight: list[float] = field(default_factory=list)
    sample_steps: int = 18
    crop: list[int] = field(default_factory=list)
    condition_noise: float = 0.0
    label_dropout: float = 0.15
    unconditional: float = 0.1
    equalise: bool = False


@dataclass
class Batch:
    """Normalised latents of all levels, windows of the same place; labels [N, labels]; the window on the network's first grid."""

    latents: list[Tensor]
    labels: Tensor
    window: Window


class Task:
    """See `loop.Task`: the U-Net of a group of levels. `buckets` are the latents of pictures of one size each; the first one's
    statistics hold for all."""

    def __init__(
        self, config: Config, buckets: list[Latents], autoencoder: Autoencoder, seed: int, device: torch.device, group: int = 0
    ) -> None:
        self.arch, self.buckets, self.autoencoder, self.seed = config.arch, buckets, autoencoder, seed
        if self.arch.version >= 2:
            self.arch = replace(self.arch, labels=buckets[0].arch.labels)
        self.latents, self.group = buckets[0], group
        self.its = self.arch.groups[group]
        section = "diffusion" if self.arch.version == 1 else f"diffusion.{self.its.name}"
        self.recipe, self.device = config.section(section, Settings), device
        self.weights = self.recipe.level_weight or [1.0] * len(self.its.levels)
        if len(self.weights) != len(self.its.levels):
            raise ValueError(f"{config.path}: [{section}] level_weight needs {len(self.its.levels)} numbers")
        self.own()
        self.p_mean = self.recipe.p_mean
        self.model = UNet(self.arch, group)
        self.shape = self.model.shape
        self.check_crop(config, section)
        self.adversary = None
        self.weighting = Weighting(len(self.its.levels), device) if self.recipe.equalise else None
        if self.recipe.spectral_norm:
            spectral.normalise(spectral.unet_convolutions(self.model))
        self.identity, self.prefix = unet_identity(self.arch, group), self.arch.prefix(group)

    def check_crop(self, config: Config, section: str) -> None:
        """ValueError if the windows of `crop` do not lie on the grids of all levels with a finite factor."""
        crop, step = self.recipe.crop, self.arch.coarsest_factor // self.shape.factor(0)
        if not crop:
            return
        if self.shape.has_global or len(crop) != 2 or any(side < step or side % step for side in crop):
            raise ValueError(f"{config.path}: [{section}] crop is {crop}, must be two multiples of {step}, in a group without the 1x1 level")

    def batch(self, step: int, progress: float) -> Batch:
        rng = step_rng(self.seed, step)
        counts = [bucket.training for bucket in self.buckets]
        bucket = self.buckets[rng.choice(len(counts), p=np.array(counts) / sum(counts))] if len(counts) > 1 else self.buckets[0]
        entries = rng.integers(bucket.training, size=self.recipe.batch)[self.own()]
        latents, labels = bucket.read(entries)
        z = self.latents.normalise(latents)
        return self.crop(Batch(z, labels, self.whole(z)), rng)

    def whole(self, z: list[Tensor]) -> Window:
        """The window that is all of the network's first grid, for latents of all levels."""
        rows, columns = (side // self.its.unet.unshuffle for side in z[self.its.levels[0]].shape[2:])
        return Window(0, 0, (rows, columns))

    def crop(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """A window of the recipe's size at a random place, or `batch` itself."""
        if not self.recipe.crop:
            return batch
        first, step = self.shape.factor(0), self.arch.coarsest_factor // self.shape.factor(0)
        sides = [min(side, whole) for side, whole in zip(self.recipe.crop, batch.window.whole)]
        top, left = (step * int(rng.integers((whole - side) // step + 1)) for side, whole in zip(sides, batch.window.whole))
        windows = []
        for level, x in zip(self.arch.levels, batch.latents):
            if level.factor:
                y0, x0, rows, columns = (at * first // level.factor for at in (top, left, *sides))
                x = x[..., y0 : y0 + rows, x0 : x0 + columns]
            windows.append(x)
        return Batch(windows, batch.labels, Window(top, left, batch.window.whole))

    def own(self) -> slice:
        """This process's part of the batch."""
        return parallel.own(self.recipe.batch, "[diffusion] batch")

    def parts_to_compile(self) -> list[nn.Module]:
        return [self.model]

    def begin(self, progress: float) -> None:
        dropout.apply(self.model, self.recipe.dropout, self.recipe.dropout_over, progress)
        self.p_mean = self.recipe.p_mean + self.recipe.p_drift * progress

    def dropped(self, labels: Tensor) -> Tensor:
        """`labels` as a network sees them in training: some, or all of a picture's, not given."""
        one = parallel.draw(labels.shape, lambda shape: torch.rand(shape, device=labels.device)) >= self.recipe.label_dropout
        every = parallel.draw((len(labels), 1), lambda shape: torch.rand(shape, device=labels.device)) >= self.recipe.unconditional
        return labels * (one & every)

    def losses(self, unet: nn.Module, batch: Batch, p_mean: float, training: bool = False) -> tuple[Tensor, Tensor]:
        """EDM's loss [levels of the group, N]: mean of (s^2 + sd^2) / (s sd)^2 * (D - z)^2, s the level's sigma; and the shared
        sigmas [N]. These are spread evenly over their distribution, from a random start (Kingma et al. 2021, appendix I.1): the
        loss, and so the gradient, varies less than with independent ones. `training`: labels are dropped, the condition has
        noise."""
        noise = self.its.noise
        z = [x.to(self.device).contiguous(memory_format=torch.channels_last) for x in batch.latents]
        last = self.its.levels[-1] + 1
        z, condition = [z[i] for i in self.its.levels], z[last:]
        labels = batch.labels.to(self.device)

        def normal(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, device=self.device)

        def spread(shape: tuple[int, ...]) -> Tensor:
            (count,) = shape
            share = (torch.arange(count, device=self.device) + torch.rand(1, device=self.device)) / count
            return torch.special.ndtri(share.clamp(1e-4, 1 - 1e-4))

        sigma = (parallel.draw((len(z[0]),), spread) * self.recipe.p_std + p_mean).exp()
        sigmas = [level_sigma(noise, level, sigma).view(-1, 1, 1, 1) for level in range(len(z))]
        noisy = [x + s * parallel.draw(x.shape, normal) for x, s in zip(z, sigmas)]
        if training and self.arch.labels:
            labels = self.dropped(labels)
        if training and condition and self.recipe.condition_noise:
            share = parallel.draw((len(z[0]), 1, 1, 1), lambda shape: torch.rand(shape, device=self.device))
            amount = share * self.recipe.condition_noise * noise.sigma_data
            condition = [x + amount * parallel.draw(x.shape, normal) for x in condition]
        context = Context(tuple(condition), labels if self.arch.labels else None, batch.window)
        denoised = Denoiser(unet)(noisy, sigma, context)
        sd = noise.sigma_data
        terms = [((s**2 + sd**2) / (s * sd) ** 2 * (d - x) ** 2).mean((1, 2, 3)) for d, x, s in zip(denoised, z, sigmas)]
        return torch.stack(terms), sigma

    def loss(self, batch: Batch) -> tuple[Tensor, int, dict[str, Tensor]]:
        losses, sigma = self.losses(self.model, batch, self.p_mean, training=True)
        weighted = losses if self.weighting is None else self.weighting(losses, sigma)
        total = sum(weight * loss for weight, loss in zip(self.weights, weighted.mean(1))) / sum(self.weights)
        return total, len(batch.labels), {f"level{i}": loss for i, loss in zip(self.its.levels, losses.detach().mean(1))}

    def evaluate(self, ema: nn.Module, picture: Path) -> dict[str, float]:
        """Loss on held-out latents with noise that is the same each time; the grid shows eight samples of the noise that is the
        same each time, then a part of the first at 100 %. Coarser levels are those of held-out pictures, finer ones the mean."""
        count = len(self.latents.levels[0])
        held_out = range(self.latents.training, count, 2)
        chosen = [*held_out, *(i % count for i in range(SAMPLES))][:SAMPLES]
        known = self.latents.normalised(chosen)
        labels = torch.from_numpy(self.latents.labels[chosen]).to(self.device) if self.arch.labels else None
        coarser = [x.to(self.device) for x in known[self.its.levels[-1] + 1 :]]
        size = self.arch.sizes[0]
        settings = (SAMPLES, self.recipe.sample_steps, 1.0, size)
        z = sampler.sample_group(Denoiser(ema), self.arch, self.group, coarser, labels, *settings) + coarser
        finer = [torch.zeros_like(x, device=self.device) for x in known[: self.its.levels[0]]]
        save_samples(picture, self.autoencoder.decoder, self.latents.raw(finer + z))
        numbers = {}
        if held_out:
            latents = self.latents.normalised(held_out)
            batch = Batch(latents, torch.from_numpy(self.latents.labels[list(held_out)]), self.whole(latents))
            losses, _ = self.losses(ema, batch, self.recipe.p_mean)
            numbers = {f"held_out{i}": float(loss) for i, loss in zip(self.its.levels, losses.mean(1))}
        return numbers


def save_samples(path: Path, decoder: nn.Module, z: list[Tensor]) -> None:
    """A PNG of the pictures that eight latents (not normalised) decode to, then a part of the first at 100 %."""
    pictures = [decoder([x[i : i + 1] for x in z]).float() for i in range(SAMPLES)]
    small = torch.cat([shrink(x, 512) for x in pictures])
    height, width = (min(size, most) for size, most in zip(pictures[0].shape[2:], (512, 4 * small.shape[3])))
    save_grid(path, [small[:4], small[4:], pictures[0][:, :, -height:, :width]])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--latents", type=Path, required=True, nargs="+", help="folders that the latents command has written, one a size")
    parser.add_argument("--group", help="the group of levels to train, of a model of version 2 (default: the first)")
    parser.add_argument("--autoencoder", type=Path, required=True, help="run folder of the autoencoder command, or an exported file")
    loop.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """The command."""
    device = loop.prepare(args)
    config, buckets = Config(args.config), [Latents.open(folder) for folder in args.latents]
    for folder, latents in zip(args.latents, buckets):
        if latents.arch.levels != config.arch.levels:
            raise SystemExit(f"{folder}: the latents are of another model than the configuration's")
        if latents.arch.labels != buckets[0].arch.labels:
            raise SystemExit(f"{folder}: its labels are not those of {args.latents[0]}")
    group = config.arch.group_named(args.group) if args.group else 0
    loop.describe(config.arch)
    autoencoder = Autoencoder(config.arch)
    load_ema(args.autoencoder, autoencoder, autoencoder_identity(config.arch), device)
    torch.manual_seed(args.seed)
    return loop.Loop(Task(config, buckets, autoencoder, args.seed, device, group), args, device).run()
