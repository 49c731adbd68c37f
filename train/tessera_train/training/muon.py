"""Muon (K. Jordan et al. 2024): momentum whose matrix is made orthogonal, for the weights inside a network.

A convolution [out, in, k, k] counts as the matrix [out, in k k]. The update is scaled by 0.2 sqrt(larger side), so that its root
mean square is what Adam's usually is and one learning rate serves both (J. Liu et al., "Muon is scalable", 2025)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

SMALLEST_SIDE = 32
"""Smaller matrices are left to Adam: there is nothing to make orthogonal in a few rows."""


def split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices for [`Muon`], all others): the layers by which pictures and latents enter and leave are with the others."""
    matrices, others = [], []
    for name, p in model.named_parameters():
        sides = (p.shape[0], p.numel() // p.shape[0]) if p.ndim >= 2 else (0,)
        (matrices if min(sides) >= SMALLEST_SIDE and "rgb." not in name else others).append(p)
    return matrices, others


def orthogonal(x: Tensor) -> Tensor:
    """Nearly the orthogonal factor of matrix x's polar decomposition: five steps of a quintic Newton-Schulz iteration, after which
    singular values lie between about 0.7 and 1.2. In bf16, whose errors it corrects."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[0] > x.shape[1]
    y = (x.T if tall else x).bfloat16()
    y = y / (y.norm() + 1e-7)
    for _ in range(5):
        gram = y @ y.T
        y = torch.addmm(y, torch.addmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return (y.T if tall else y).to(x.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal; decoupled weight decay."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update; parameters without a gradient stay."""
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = self.state[p].setdefault("momentum", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - momentum)
                update = orthogonal(p.grad.lerp(mean, momentum).flatten(1))
                p.mul_(1 - rate * group["weight_decay"])
                p.add_(update.view(p.shape), alpha=-0.2 * math.sqrt(max(update.shape)) * rate)
