"""Training data in the memory of the training device, added to while it is trained on: pictures, and their latents.

Training never waits here for the device. Another thread may add: an entry counts once it is complete.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..nets.arch import Arch
from .latents import SMALLEST_STD, Latents
from .pictures import Pictures
from .transfer import to_device


def scaled(picture: Tensor) -> Tensor:
    """uint8 [H, W, 3] to f32 [1, 3, H, W] in [-1, 1]."""
    return (picture.float() / 127.5 - 1).permute(2, 0, 1)[None]


class ResidentPictures(Pictures):
    """Pictures uint8 [capacity, height, width, 3] on `device`; the first `training` are there, none is held out."""

    def __init__(self, capacity: int, width: int, height: int, device: torch.device) -> None:
        self.rows = torch.empty(capacity, height, width, 3, dtype=torch.uint8, device=device)
        self.training = self.held_out = 0

    @property
    def full(self) -> bool:
        """True if no more fit."""
        return self.training == len(self.rows)

    def add(self, picture: Tensor, settle: Callable[[], None]) -> None:
        """Appends uint8 [height, width, 3]; `settle` waits until it is copied."""
        self.rows[self.training].copy_(picture)
        settle()
        self.training += 1

    def window(self, i: int, y: int, x: int, height: int, width: int) -> Tensor:
        return scaled(self.rows[i, y : y + height, x : x + width])

    def whole(self, i: int, width: int, height: int) -> Tensor:
        picture = scaled(self.rows[i])
        return picture if picture.shape[2:] == (height, width) else F.interpolate(picture, (height, width), mode="area")


class ResidentLatents:
    """Latents f16 [capacity, C, h, w] per level and labels [capacity, labels] on `device`, of pictures and their mirror images;
    the first `training` are there. Normalised by `statistics`, which has no entries of its own."""

    def __init__(self, arch: Arch, capacity: int, device: torch.device) -> None:
        self.arch, self.device, self.training, self.measured = arch, device, 0, False
        grids = zip(arch.levels, arch.grids(arch.width, arch.height))
        self.levels = [torch.empty(capacity, level.channels, h, w, dtype=torch.float16, device=device) for level, (h, w) in grids]
        self.labels = torch.zeros(capacity, len(arch.labels), dtype=torch.int64, device=device)
        self.variances = [torch.zeros(level.channels, device=device) for level in arch.levels]
        mean, std = ([torch.full((level.channels,), x, device=device) for level in arch.levels] for x in (0.0, 1.0))
        self.statistics = Latents(arch, [], 0, mean, std, np.zeros((0, len(arch.labels)), np.int64))

    @property
    def full(self) -> bool:
        """True if no more fit."""
        return self.training + 2 > len(self.levels[0])

    def add(self, moments: list[tuple[Tensor, Tensor]], labels: Tensor, settle: Callable[[], None]) -> None:
        """Appends the (mean, log-variance) per level of one picture and its mirror image, [2, C, h, w], and their labels;
        `settle` waits until they are copied."""
        its = slice(self.training, self.training + 2)
        for level, total, (mean, log_variance) in zip(self.levels, self.variances, moments):
            level[its].copy_(mean)
            total += log_variance.float().exp().mean((0, 2, 3))
        self.labels[its] = labels
        settle()
        self.training += 2

    def measure(self) -> None:
        """Sets the statistics to those of the entries: of samples of the posterior, as `latents.write` does."""
        count = self.training
        for level, total, mean, std in zip(self.levels, self.variances, self.statistics.mean, self.statistics.std):
            z = level[:count].float()
            mean.copy_(z.mean((0, 2, 3)))
            variance = z.var((0, 2, 3), unbiased=False) + total / (count / 2)
            std.copy_(variance.sqrt().clamp_min(SMALLEST_STD))
        self.measured = True

    def take_statistics(self, weights: dict[str, Tensor]) -> None:
        """Takes over the statistics of an exported file, if all of them are among its `weights`."""
        found = [[weights.get(f"latents.{i}.{kind}") for i in range(len(self.levels))] for kind in ("mean", "std")]
        if any(x is None for values in found for x in values):
            return
        for own, values in zip((self.statistics.mean, self.statistics.std), found):
            for x, y in zip(own, values):
                x.copy_(y)
        self.measured = True

    def read(self, entries: np.ndarray) -> tuple[list[Tensor], Tensor]:
        """As `Latents.read`."""
        index = to_device(torch.from_numpy(entries), self.device)
        return [level.index_select(0, index).float() for level in self.levels], self.labels.index_select(0, index)

    def normalise(self, z: list[Tensor]) -> list[Tensor]:
        """As `Latents.normalise`."""
        return self.statistics.normalise(z)

    def raw(self, z: list[Tensor]) -> list[Tensor]:
        """As `Latents.raw`."""
        return self.statistics.raw(z)
