"""Weights of the diffusion loss that equalise its size over noise levels.

EDM2 (Karras et al. 2024, arXiv 2312.02696, section 3.4) learns u(sigma) by minimising L / exp(u) + u, whose optimum is u = ln E[L].
Here E[L] is a running mean per level and interval of ln(sigma), so nothing has to be optimised.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import parallel

LOWEST, HIGHEST, BINS = -5.0, 6.0, 44
"""Of ln(sigma): intervals of a quarter."""
KEPT = 0.99
"""Share of the running mean that a full batch leaves."""


class Weighting:
    """Running mean of the loss [levels, BINS]; 1 where nothing has been seen."""

    def __init__(self, levels: int, device: torch.device) -> None:
        self.mean = torch.ones(levels, BINS, device=device)

    def __call__(self, losses: Tensor, sigma: Tensor) -> Tensor:
        """`losses` [levels, N] of the pictures' shared `sigma` [N], each divided by its running mean; takes them in."""
        place = ((sigma.log() - LOWEST) * (BINS / (HIGHEST - LOWEST))).long().clamp(0, BINS - 1)
        weighted = losses / self.mean[:, place]
        count = torch.zeros(BINS, device=sigma.device).index_add_(0, place, torch.ones_like(sigma))
        total = torch.zeros_like(self.mean).index_add_(1, place, losses.detach().float())
        count, total = parallel.mean(count), parallel.mean(total)
        keep = KEPT ** (count * BINS / len(sigma))
        self.mean = torch.where(count > 0, self.mean * keep + total / count.clamp_min(1e-6) * (1 - keep), self.mean)
        return weighted
