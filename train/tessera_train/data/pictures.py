"""Pictures from the memory-mapped array that `tessera_train scenery` and `tessera_train prepare` write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .labels import Labels

HELD_OUT = 16


def step_rng(seed: int, step: int) -> np.random.Generator:
    """The random numbers of one training step: they depend on nothing else, so a resumed run draws the same ones."""
    return np.random.default_rng([seed, step])


def to_tensor(picture: np.ndarray) -> Tensor:
    """f32 [H, W, 3] in [0, 255], which is overwritten, to [1, 3, H, W] in [-1, 1]. By numpy, like all that the loading
    thread does: torch would set both cores on it while the training step needs them."""
    picture /= 127.5
    picture -= 1
    return torch.from_numpy(picture).permute(2, 0, 1)[None]


def finished(state: Path, count: int) -> int:
    """Number of finished rows out of `count`, from the file `state`; all if there is no such file."""
    if not state.exists():
        return count
    try:
        rows = json.loads(state.read_text())["finished"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{state}: does not say how many pictures are finished") from error
    if not isinstance(rows, int) or not 0 <= rows <= count:
        raise ValueError(f"{state}: finished is {rows}, must be from 0 to {count}")
    return rows


class Pictures:
    """Rows uint8 [count, height, width, 3]; the last 16 of them (at most a quarter) are held out from training."""

    def __init__(self, rows: np.ndarray, name: str, labels: Labels | None = None) -> None:
        if rows.ndim != 4 or rows.shape[-1] != 3 or rows.dtype != np.uint8:
            raise ValueError(f"{name}: pictures.npy is {rows.dtype} {rows.shape}, not uint8 [n, h, w, 3]")
        self.rows = rows
        self.labels = labels or Labels((), np.zeros((len(rows), 0), np.int64))
        self.held_out = min(HELD_OUT, len(self.rows) // 4)
        self.training = len(self.rows) - self.held_out
        if self.training < 1:
            raise ValueError(f"{name}: no pictures")

    @staticmethod
    def open(folder: Path) -> Pictures:
        """Maps `pictures.npy` of `folder`: the rows that `pictures.json` calls finished, all without such a file."""
        try:
            rows = np.load(folder / "pictures.npy", mmap_mode="r")
        except FileNotFoundError as error:
            raise ValueError(f"{folder}: no pictures.npy in it; `prepare` or `scenery` write one") from error
        rows = rows[: finished(folder / "pictures.json", len(rows))]
        return Pictures(rows, str(folder), Labels.open(folder, len(rows)))

    def window(self, i: int, y: int, x: int, height: int, width: int) -> Tensor:
        """A rectangle of picture `i` as [1, 3, height, width] in [-1, 1]."""
        return to_tensor(self.rows[i, y : y + height, x : x + width].astype(np.float32))

    def whole(self, i: int, width: int, height: int) -> Tensor:
        """Picture `i` at `width` x `height`, averaged down by area where it is stored larger."""
        picture = self.rows[i]
        factor = picture.shape[0] // height
        if picture.shape[:2] == (height, width):
            return to_tensor(picture.astype(np.float32))
        if picture.shape[:2] == (factor * height, factor * width):
            total = np.zeros((height, width, 3), np.uint32)
            for y in range(factor):
                for x in range(factor):
                    total += picture[y::factor, x::factor]
            return to_tensor(total.astype(np.float32) / factor**2)
        return F.interpolate(to_tensor(picture.astype(np.float32)), (height, width), mode="area")

    def thumbnail(self, i: int, width: int, height: int) -> Tensor:
        """Picture `i` averaged down to `width` x `height`, many times smaller than it is stored: in one pass."""
        rows, columns, _ = self.rows[i].shape
        if rows % height or columns % width:
            return F.interpolate(self.whole(i, columns, rows), (height, width), mode="area")
        cells = self.rows[i].reshape(height, rows // height, columns, 3).sum(1, dtype=np.uint32)
        means = cells.reshape(height, width, columns // width, 3).mean(2, dtype=np.float64) / (rows // height)
        return to_tensor(means.astype(np.float32))

    def draw(self, rng: np.random.Generator, width: int, height: int, crop: float) -> Callable[[], Tensor]:
        """Chooses a training picture; the function returned reads it, [1, 3, height, width]. Half of them are mirrored:
        with probability `crop` a part of a picture at its stored size, else the whole of it."""
        i = int(rng.integers(self.training))
        cut, flip, down, right = rng.random(4)
        free_y, free_x = self.rows.shape[1] - height, self.rows.shape[2] - width

        def read() -> Tensor:
            if cut < crop and free_y >= 0 and free_x >= 0:
                picture = self.window(i, int(down * (free_y + 1)), int(right * (free_x + 1)), height, width)
            else:
                picture = self.whole(i, width, height)
            return picture.flip(3) if flip < 0.5 else picture

        return read
