"""PNG of arrays, without an image library: for notebooks and for uploads."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

SHOWN = 1024
"""Longest side of pictures in notebooks, in pixels."""

_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}


def encode(pixels: npt.NDArray[Any]) -> bytes:
    """The PNG of uint8 or uint16 samples of shape (height, width, channels): 1 is grey, 3 RGB, 4 RGBA."""
    height, width, channels = pixels.shape
    big_endian = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder(">"))
    rows = np.zeros((height, 1 + width * channels * pixels.dtype.itemsize), np.uint8)
    # Rows begin with the number of their filter, 0: none.
    rows[:, 1:] = big_endian.view(np.uint8).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.dtype.itemsize, _COLOUR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def eight_bits(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Samples rounded to 8 bits."""
    if pixels.dtype == np.uint8:
        return pixels
    return ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def factor(width: int, height: int, longest: int) -> int:
    """The whole number by which a size is divided so that its longest side is at most `longest`."""
    return max(1, -(-max(width, height) // longest))


def reduced(pixels: npt.NDArray[np.uint8], longest: int) -> npt.NDArray[np.uint8]:
    """The picture at most `longest` pixels wide and high: means of squares of pixels, the last ones cut by its edge."""
    height, width, _ = pixels.shape
    by = factor(width, height, longest)
    return pixels if by == 1 else means(pixels, by)


def means(pixels: npt.NDArray[np.uint8], by: int) -> npt.NDArray[np.uint8]:
    """Means of squares of `by` x `by` pixels, the last ones cut by the edge."""
    height, width, _ = pixels.shape
    sums = np.add.reduceat(pixels.astype(np.uint32), np.arange(0, height, by), axis=0)
    sums = np.add.reduceat(sums, np.arange(0, width, by), axis=1)
    rows = np.minimum(by, height - np.arange(0, height, by))
    columns = np.minimum(by, width - np.arange(0, width, by))
    count = (rows[:, None] * columns)[..., None]
    mean: npt.NDArray[np.uint8] = ((sums + count // 2) // count).astype(np.uint8)
    return mean
