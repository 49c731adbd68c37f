"""Losses of texture: they compare distributions of detail, not pixels, so that texture need not match in phase.

A paired loss (L1, L2) is smallest at a conditional median or mean, which has no texture; these two are smallest where power
and patches of a band are distributed as in the target.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CELL = 32
"""Side of the squares, in picture pixels, in which power is compared."""
POWER_FLOOR = 1e-5
"""Added to power before the logarithm: a deviation of 0.003 in [-1, 1], less than one level of 8 bits."""
PATCH = 7


def laplacian(x: Tensor, bands: int) -> tuple[list[Tensor], Tensor]:
    """The finest `bands` bands of the Laplacian pyramid of x [N, C, H, W], finest first, and the low-pass rest. The bands
    are differences to the enlarged (nearest) average of 2x2 pixels; sides must be multiples of 2**bands."""
    found = []
    for _ in range(bands):
        low = F.avg_pool2d(x, 2)
        found.append(x - F.interpolate(low, scale_factor=2.0, mode="nearest"))
        x = low
    return found, x


def power(out: list[Tensor], target: list[Tensor]) -> Tensor:
    """Mean over bands of |log(E_out + e) - log(E_target + e)|, E the mean square over channels in cells of CELL pixels."""
    total = out[0].new_zeros(())
    for k, (a, b) in enumerate(zip(out, target)):
        cell = min(max(CELL >> k, 1), *a.shape[2:])
        logs = [(F.avg_pool2d(x.square().mean(1, keepdim=True), cell) + POWER_FLOOR).log() for x in (a, b)]
        total = total + (logs[0] - logs[1]).abs().mean()
    return total / len(out)


def patches(out: list[Tensor], target: list[Tensor], projections: Tensor) -> Tensor:
    """Mean over bands of the sliced Wasserstein distance, picture by picture, of 7x7 patches (Rabin et al. 2012), relative to
    the target's mean absolute projection; `projections` [P, C, 7, 7] are the slices."""
    total = out[0].new_zeros(())
    for a, b in zip(out, target):
        sorted_values = [F.conv2d(x, projections.to(x), stride=2).flatten(2).sort(-1).values for x in (a, b)]
        scale = sorted_values[1].abs().mean().clamp_min(1e-3)
        total = total + (sorted_values[0] - sorted_values[1]).abs().mean() / scale
    return total / len(out)


def slices(count: int, channels: int, generator: torch.Generator | None = None) -> Tensor:
    """Random unit vectors [count, channels, 7, 7]."""
    directions = torch.randn(count, channels, PATCH, PATCH, generator=generator)
    return directions / directions.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
