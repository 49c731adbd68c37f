"""Place-keyed noise of the decoder: a number per pixel that depends on seed, stage and absolute position only.

So a window of a picture gets the numbers that it has in the whole picture, in any order of tiles, and every device computes
the same ones: integer operations and one exact multiplication.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASK = 0xFFFFFFFF


def mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers (held in int64) with good avalanche: the multipliers and shifts of C. Wellons' lowbias32."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & MASK
    return x ^ (x >> 16)


def bit_count(x: Tensor) -> Tensor:
    """Number of set bits of 32-bit integers held in int64."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) & MASK) >> 24


def place_noise(seeds: Tensor, stage: int, top: int, left: int, height: int, width: int) -> Tensor:
    """f32 [N, 1, height, width] for int64 `seeds` [N] and the window at (`top`, `left`) of the grid of decoder stage `stage`.

    (bit_count(h) - 16) / sqrt(8), h a hash of (seed, stage, y, x): a binomial of 32 fair bits, mean 0, variance 1.
    """
    device = seeds.device
    y = torch.arange(top, top + height, device=device).view(1, -1, 1) & MASK
    x = torch.arange(left, left + width, device=device).view(1, 1, -1) & MASK
    key = mix(mix(seeds & MASK) ^ ((seeds >> 32) & MASK))
    key = mix(key ^ stage).view(-1, 1, 1)
    bits = bit_count(mix(mix(key ^ y) ^ x))
    return ((bits - 16).float() * (1 / math.sqrt(8.0)))[:, None]
