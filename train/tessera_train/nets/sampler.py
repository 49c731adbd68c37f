"""EDM's deterministic Heun sampler (Karras et al. 2022, algorithm 1) with a sigma of its own for every level."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .arch import Arch, Noise
from .precond import Denoiser


def schedule(noise: Noise, steps: int, start: float | None = None) -> list[float]:
    """Shared sigmas: `steps` from `start` (sigma_max if None) to sigma_min, evenly spaced in sigma^(1/rho), then 0."""
    first, last = (start or noise.sigma_max) ** (1 / noise.rho), noise.sigma_min ** (1 / noise.rho)
    sigmas = [(first + i / max(steps - 1, 1) * (last - first)) ** noise.rho for i in range(steps)]
    return [*sigmas, 0.0]


def level_sigmas(noise: Noise, sigma: float) -> list[float]:
    """Per level sigma * exp(shift); 0 (settled) once that is below sigma_min."""
    shifted = [sigma * math.exp(shift) for shift in noise.shift]
    return [s if s >= noise.sigma_min else 0.0 for s in shifted]


def heun(denoiser: Denoiser, z: list[Tensor], sigmas: list[float]) -> list[Tensor]:
    """Normalised latents from the noisy ones `z` [N, C, h, w] per level, which have the noise of the first of the shared
    `sigmas`; the last of these is 0."""
    noise = denoiser.noise

    def slopes(z: list[Tensor], sigma: float) -> list[Tensor]:
        """dz/ds per level; 0 for settled ones."""
        shared = torch.full((z[0].shape[0],), sigma, device=z[0].device)
        levels = level_sigmas(noise, sigma)
        return [(x - d) / s if s else torch.zeros_like(x) for x, d, s in zip(z, denoiser(z, shared), levels)]

    for now, following in zip(sigmas, sigmas[1:]):
        change = [b - a for a, b in zip(level_sigmas(noise, now), level_sigmas(noise, following))]
        d = slopes(z, now)
        euler = [x + c * g for x, c, g in zip(z, change, d)]
        if following == 0:
            return euler
        after = slopes(euler, following)
        z = [
            x + c * (g + g2) / 2 if s else e
            for x, e, c, g, g2, s in zip(z, euler, change, d, after, level_sigmas(noise, following))
        ]
    return z


def latents(denoiser: Denoiser, arch: Arch, count: int, steps: int, device: torch.device) -> list[Tensor]:
    """`count` samples: normalised latents of the trained size, from noise of torch's generator."""
    sigmas = schedule(arch.noise, steps)
    levels = zip(arch.levels, arch.grids(arch.width, arch.height), level_sigmas(arch.noise, sigmas[0]))
    return heun(denoiser, [torch.randn(count, level.channels, h, w, device=device) * s for level, (h, w), s in levels], sigmas)


def redrawn(denoiser: Denoiser, z: list[Tensor], sigma: float, steps: int) -> list[Tensor]:
    """Normalised latents `z` with noise of the shared `sigma`, and without it again: what the noise has covered is the
    denoiser's own then (SDEdit, Meng et al. 2022)."""
    levels = level_sigmas(denoiser.noise, sigma)
    return heun(denoiser, [x + s * torch.randn_like(x) for x, s in zip(z, levels)], schedule(denoiser.noise, steps, sigma))
