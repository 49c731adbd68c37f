"""Decreasing dropout, in both readings of the paper's words: over resolutions, and over training time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..training import parallel

READINGS = ("resolution", "time", "both")


def rates(most: float, over: str, stages: int, progress: float) -> list[float]:
    """Dropout per stage, finest first. "resolution": none at the finest, `most` at the coarsest; "time": falls from
    `most` to none over the training; "both": the product. In hundredths, so that compiled networks seldom change."""
    if over not in READINGS:
        raise ValueError(f"dropout_over is {over!r}, must be one of {', '.join(READINGS)}")
    if not 0 <= most < 1:
        raise ValueError(f"dropout is {most}, must be from 0 to below 1")
    late = 1.0 if over == "resolution" else 1 - progress
    coarse = [1.0 if over == "time" else i / max(stages - 1, 1) for i in range(stages)]
    return [round(most * late * share, 2) for share in coarse]


def drop(x: Tensor, rate: float, training: bool) -> Tensor:
    """`x` [N, C, H, W] with a share `rate` of it zeroed, the rest scaled so that the mean stays; `x` itself outside of
    training. As torch's own, but of the same choice whatever the number of processes."""
    if not training or not rate:
        return x

    def kept(shape: tuple[int, ...]) -> Tensor:
        cells = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        return cells.bernoulli_(1 - rate)

    return x * parallel.draw(x.shape, kept).div_(1 - rate)


def apply(net: nn.Module, most: float, over: str, progress: float) -> None:
    """Sets the dropout of every part of `net.stages` and, at the coarsest one's rate, of `net.coarsest`."""
    per_stage = rates(most, over, len(net.stages), progress)
    parts = [*zip(net.stages, per_stage), (getattr(net, "coarsest", None), per_stage[-1])]
    for stage, rate in parts:
        for module in stage.modules() if stage is not None else ():
            if hasattr(module, "dropout"):
                module.dropout = rate
