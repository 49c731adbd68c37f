"""Pictures for the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def smooth(count: int, width: int, height: int, seed: int = 5) -> np.ndarray:
    """Colours that run from corner to corner, uint8 [count, height, width, 3]."""
    ramp = np.random.default_rng(seed).random((count, 2, 2, 3))
    y, x = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    parts = [ramp[:, None, None, i, j] * (y if i else 1 - y) * (x if j else 1 - x) for i in (0, 1) for j in (0, 1)]
    return (sum(parts) * 255).astype(np.uint8)


def write_array(folder: Path, count: int = 6, width: int = 256, height: int = 128) -> Path:
    """A folder as `Pictures` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "pictures.npy", smooth(count, width, height))
    return folder


def write_files(folder: Path, count: int = 6, width: int = 320, height: int = 160) -> Path:
    """A folder tree of PNG files."""
    for i, picture in enumerate(smooth(count, width, height)):
        path = folder / f"{i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return folder
