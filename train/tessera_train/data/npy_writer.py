"""Arrays of rows, written one after the other: `.npy` files whose writing can be resumed and may meet a full disk."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import numpy as np

HEADER = 128
SPARE_BYTES = 16 << 20


def header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The first 128 bytes of a `.npy` file (format 1.0), whatever the number of rows."""
    text = repr({"descr": dtype.str, "fortran_order": False, "shape": shape})
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.ljust(HEADER - 11).encode() + b"\n"


def check_space(folder: Path, size: int) -> None:
    """OSError before anything is written, if `size` bytes more will not fit."""
    free = shutil.disk_usage(folder).free
    if free < size + SPARE_BYTES:
        raise OSError(f"{folder}: {(size + SPARE_BYTES) / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free")


class RowWriter:
    """Appends rows of `shape` to `path`.part and, at the end, gives the file its header and its name.

    Rows are written, not stored through a memory map: on a full disk a write fails with an error, where a store ends
    the process. `keep`: at most so many rows of an earlier, interrupted writing stay; `count` says how many did.
    """

    def __init__(self, path: Path, dtype: np.dtype, shape: tuple[int, ...], keep: int = 0) -> None:
        self.path, self.part = path, path.with_name(path.name + ".part")
        self.dtype, self.shape = np.dtype(dtype), shape
        size = self.dtype.itemsize * math.prod(shape)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not self.part.exists():  # interrupted after `finish`, before its owner took note
            os.replace(path, self.part)
        self.file = open(self.part, "r+b" if self.part.exists() else "w+b", buffering=0)
        stored = self.file.seek(0, os.SEEK_END) - HEADER
        self.count = min(keep, max(0, stored) // size)
        self.truncate(self.count)

    def truncate(self, count: int) -> None:
        """Drops the rows after the first `count`."""
        self.count = count
        self.file.truncate(HEADER + count * self.dtype.itemsize * math.prod(self.shape))
        self.file.seek(0, os.SEEK_END)

    def append(self, row: np.ndarray) -> None:
        """Writes one more row; OSError when there is no space for it."""
        if row.shape != self.shape:
            raise ValueError(f"{self.path}: a row of shape {row.shape}, must be {self.shape}")
        data = memoryview(np.ascontiguousarray(row, self.dtype)).cast("B")
        while data:
            data = data[self.file.write(data) :]
        self.count += 1

    def sync(self) -> None:
        """Waits until what is written is on the disk."""
        os.fsync(self.file.fileno())

    def finish(self) -> None:
        """Writes the header and puts the file in place."""
        self.file.seek(0)
        self.file.write(header(self.dtype, (self.count, *self.shape)))
        self.sync()
        self.file.close()
        os.replace(self.part, self.path)

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
