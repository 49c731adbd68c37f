"""Training of the U-Net on latents: EDM's loss at every level of the pyramid."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

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
from ..nets.unet import UNet
from . import loop, parallel
from .config import Config


@dataclass(frozen=True)
class Settings(loop.Recipe):
    """The section `[diffusion]`. ln(shared sigma) ~ N(p_mean + p_drift * t, p_std^2), t the used share of the budget: with
    p_drift below 0 the layout is learnt first, texture last; `level_weight`: of each level's loss, 1 if empty."""

    batch: int = 16
    p_mean: float = -0.4
    p_drift: float = 0.0
    p_std: float = 1.2
    level_weight: list[float] = field(default_factory=list)
    sample_steps: int = 18


class Task:
    """See `loop.Task`."""

    def __init__(self, config: Config, latents: Latents, autoencoder: Autoencoder, seed: int, device: torch.device) -> None:
        self.arch, self.latents, self.autoencoder, self.seed = config.arch, latents, autoencoder, seed
        self.recipe, self.device = config.section("diffusion", Settings), device
        self.weights = self.recipe.level_weight or [1.0] * len(self.arch.levels)
        if len(self.weights) != len(self.arch.levels):
            raise ValueError(f"{config.path}: [diffusion] level_weight needs {len(self.arch.levels)} numbers")
        self.own()
        self.p_mean = self.recipe.p_mean
        self.model = UNet(self.arch)
        self.adversary = None
        if self.recipe.spectral_norm:
            spectral.normalise(spectral.unet_convolutions(self.model))
        self.identity = unet_identity(self.arch)

    def batch(self, step: int, progress: float) -> list[Tensor]:
        entries = step_rng(self.seed, step).integers(self.latents.training, size=self.recipe.batch)
        return self.latents.normalised(entries[self.own()])

    def own(self) -> slice:
        """This process's part of the batch."""
        return parallel.own(self.recipe.batch, "[diffusion] batch")

    def parts_to_compile(self) -> list[nn.Module]:
        return [self.model]

    def begin(self, progress: float) -> None:
        dropout.apply(self.model, self.recipe.dropout, self.recipe.dropout_over, progress)
        self.p_mean = self.recipe.p_mean + self.recipe.p_drift * progress

    def losses(self, unet: nn.Module, z: list[Tensor], p_mean: float) -> list[Tensor]:
        """EDM's loss per level: mean of (s^2 + sd^2) / (s sd)^2 * (D - z)^2, s the level's sigma. The shared sigmas of a
        batch are spread evenly over their distribution, from a random start (Kingma et al. 2021, appendix I.1): the
        loss, and so the gradient, varies less than with independent ones."""
        noise = self.arch.noise
        z = [x.to(self.device).contiguous(memory_format=torch.channels_last) for x in z]

        def normal(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, device=self.device)

        def spread(shape: tuple[int, ...]) -> Tensor:
            (count,) = shape
            share = (torch.arange(count, device=self.device) + torch.rand(1, device=self.device)) / count
            return torch.special.ndtri(share.clamp(1e-4, 1 - 1e-4))

        sigma = (parallel.draw((len(z[0]),), spread) * self.recipe.p_std + p_mean).exp()
        sigmas = [level_sigma(noise, level, sigma).view(-1, 1, 1, 1) for level in range(len(z))]
        noisy = [x + s * parallel.draw(x.shape, normal) for x, s in zip(z, sigmas)]
        denoised = Denoiser(self.arch, unet)(noisy, sigma)
        sd = noise.sigma_data
        return [((s**2 + sd**2) / (s * sd) ** 2 * (d - x) ** 2).mean() for d, x, s in zip(denoised, z, sigmas)]

    def loss(self, batch: list[Tensor]) -> tuple[Tensor, int, dict[str, float]]:
        losses = self.losses(self.model, batch, self.p_mean)
        total = sum(weight * loss for weight, loss in zip(self.weights, losses)) / sum(self.weights)
        return total, len(batch[0]), {f"level{i}": float(loss.detach()) for i, loss in enumerate(losses)}

    def evaluate(self, ema: nn.Module, picture: Path) -> dict[str, float]:
        """Loss on held-out latents with noise that is the same each time; the grid shows eight samples of the noise
        that is the same each time, then a part of the first at 100 %."""
        z = sampler.latents(Denoiser(self.arch, ema), self.arch, 8, self.recipe.sample_steps, self.device)
        save_samples(picture, self.autoencoder.decoder, self.latents.raw(z))
        numbers = {}
        held_out = range(self.latents.training, len(self.latents.levels[0]), 2)
        if held_out:
            losses = self.losses(ema, self.latents.normalised(held_out), self.recipe.p_mean)
            numbers = {f"held_out{i}": float(loss) for i, loss in enumerate(losses)}
        return numbers


def save_samples(path: Path, decoder: nn.Module, z: list[Tensor]) -> None:
    """A PNG of the pictures that eight latents (not normalised) decode to, then a part of the first at 100 %."""
    pictures = [decoder([x[i : i + 1] for x in z]).float() for i in range(8)]
    small = torch.cat([shrink(x, 512) for x in pictures])
    height, width = (min(size, most) for size, most in zip(pictures[0].shape[2:], (512, 4 * small.shape[3])))
    save_grid(path, [small[:4], small[4:], pictures[0][:, :, -height:, :width]])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--latents", type=Path, required=True, help="folder that the latents command has written")
    parser.add_argument("--autoencoder", type=Path, required=True, help="run folder of the autoencoder command, or an exported file")
    loop.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """The command."""
    device = loop.prepare(args)
    config, latents = Config(args.config), Latents.open(args.latents)
    if latents.arch.levels != config.arch.levels:
        raise SystemExit(f"{args.latents} are of another model than the configuration's")
    loop.describe(config.arch)
    autoencoder = Autoencoder(config.arch)
    load_ema(args.autoencoder, autoencoder, autoencoder_identity(config.arch), device)
    torch.manual_seed(args.seed)
    return loop.Loop(Task(config, latents, autoencoder, args.seed, device), args, device).run()
