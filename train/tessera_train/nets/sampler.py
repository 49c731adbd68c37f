"""EDM's deterministic Heun sampler (Karras et al. 2022, algorithm 1) with a sigma of its own for every level, group by group."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .arch import Arch, Noise
from .precond import Denoiser
from .unet import Context

Denoise = Callable[[list[Tensor], Tensor], list[Tensor]]
"""Noisy normalised latents of a group and the shared sigma [N] to denoised ones."""


def schedule(noise: Noise, steps: int, start: float | None = None) -> list[float]:
    """Shared sigmas: `steps` from `start` (sigma_max if None) to sigma_min, evenly spaced in sigma^(1/rho), then 0."""
    first, last = (start or noise.sigma_max) ** (1 / noise.rho), noise.sigma_min ** (1 / noise.rho)
    sigmas = [(first + i / max(steps - 1, 1) * (last - first)) ** noise.rho for i in range(steps)]
    return [*sigmas, 0.0]


def level_sigmas(noise: Noise, sigma: float) -> list[float]:
    """Per level sigma * exp(shift); 0 (settled) once that is below sigma_min."""
    shifted = [sigma * math.exp(shift) for shift in noise.shift]
    return [s if s >= noise.sigma_min else 0.0 for s in shifted]


def heun(denoise: Denoise, noise: Noise, z: list[Tensor], sigmas: list[float]) -> list[Tensor]:
    """Normalised latents from the noisy ones `z` [N, C, h, w] per level, which have the noise of the first of the shared
    `sigmas`; the last of these is 0."""

    def slopes(z: list[Tensor], sigma: float) -> list[Tensor]:
        """dz/ds per level; 0 for settled ones."""
        shared = torch.full((z[0].shape[0],), sigma, device=z[0].device)
        levels = level_sigmas(noise, sigma)
        return [(x - d) / s if s else torch.zeros_like(x) for x, d, s in zip(z, denoise(z, shared), levels)]

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


def guided(denoiser: Denoiser, context: Context, guidance: float) -> Denoise:
    """The denoiser in its context; by classifier-free guidance (Ho and Salimans 2022) of scale `guidance`, 1 for none, at the
    group's sigmas for it. Both evaluations are one batch."""
    group = denoiser.unet.shape.group

    def denoise(z: list[Tensor], sigma: Tensor) -> list[Tensor]:
        if guidance == 1 or context.labels is None or not group.guided_at(float(sigma[0])):
            return denoiser(z, sigma, context)
        n = len(sigma)
        labels = torch.cat([context.labels, torch.zeros_like(context.labels)])
        both = replace(context, labels=labels, condition=tuple(torch.cat([x, x]) for x in context.condition))
        denoised = denoiser([torch.cat([x, x]) for x in z], torch.cat([sigma, sigma]), both)
        return [torch.lerp(d[n:], d[:n], guidance) for d in denoised]

    return denoise


def start(arch: Arch, group: int, count: int, sigma: float, size: tuple[int, int], device: torch.device) -> list[Tensor]:
    """Noise of torch's generator for `count` pictures of `size`: the latents of a group at the shared `sigma`."""
    its, grids = arch.groups[group], arch.grids(*size)
    sigmas = level_sigmas(its.noise, sigma)
    return [torch.randn(count, arch.levels[i].channels, *grids[i], device=device) * s for i, s in zip(its.levels, sigmas)]


def sample_group(
    denoiser: Denoiser,
    arch: Arch,
    group: int,
    coarser: Sequence[Tensor],
    labels: Tensor | None,
    count: int,
    steps: int,
    guidance: float,
    size: tuple[int, int],
) -> list[Tensor]:
    """Normalised latents of a group for the `coarser` levels' (finest first; none for the first group)."""
    noise, device = arch.groups[group].noise, next(denoiser.parameters()).device
    sigmas = schedule(noise, steps)
    denoise = guided(denoiser, Context(tuple(coarser), labels), guidance)
    return heun(denoise, noise, start(arch, group, count, sigmas[0], size, device), sigmas)


def latents(
    denoisers: Sequence[Denoiser],
    arch: Arch,
    count: int,
    steps: int | Sequence[int],
    labels: Tensor | None = None,
    guidance: float = 1.0,
    size: tuple[int, int] | None = None,
) -> list[Tensor]:
    """`count` samples: normalised latents of `size` (the default one if None), finest first; `steps` for every group, or a
    number for each. Guidance, by its scale, is for the first group: what it settles carries the labels to the others."""
    per_group = [steps] * len(denoisers) if isinstance(steps, int) else list(steps)
    z: list[Tensor] = []
    for group, denoiser in enumerate(denoisers):
        its = guidance if group == 0 else 1.0
        z = sample_group(denoiser, arch, group, z, labels, count, per_group[group], its, size or arch.sizes[0]) + z
    return z


def redrawn(denoisers: Sequence[Denoiser], z: list[Tensor], sigma: float, steps: int) -> list[Tensor]:
    """Normalised latents `z` with noise of the shared `sigma`, and without it again: the denoiser replaces the detail that the
    noise has covered (SDEdit, Meng et al. 2022). Group by group, each at most from its own largest sigma."""
    out: list[Tensor] = []
    for denoiser in denoisers:
        its = denoiser.unet.shape.group
        start_sigma = min(sigma, its.noise.sigma_max)
        noisy = [z[i] + s * torch.randn_like(z[i]) for i, s in zip(its.levels, level_sigmas(its.noise, start_sigma))]
        denoise = guided(denoiser, Context(tuple(out)), 1.0)
        out = heun(denoise, its.noise, noisy, schedule(its.noise, steps, start_sigma)) + out
    return out
