"""Distances between pictures and between sets of pictures; none needs a trained network. Pictures are [N, 3, H, W]."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 7
PATCHES = 128
DIRECTIONS = 512
SMALLEST_LEVEL = 16


def decibels(mean_square: float) -> float:
    """PSNR of pictures in [-1, 1] from the mean of ((a - b) / 2)^2."""
    return -10 * math.log10(max(mean_square, 1e-12))


def window(size: int, sigma: float) -> Tensor:
    """A Gaussian [size] that sums to 1."""
    x = torch.arange(size) - (size - 1) / 2
    g = torch.exp(-x.square() / (2 * sigma**2))
    return g / g.sum()


def blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Each channel filtered by `kernel` along both axes, without padding."""
    c = x.shape[1]
    k = kernel.to(x)
    x = F.conv2d(x, k.view(1, 1, -1, 1).expand(c, 1, -1, 1), groups=c)
    return F.conv2d(x, k.view(1, 1, 1, -1).expand(c, 1, 1, -1), groups=c)


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity (Wang et al. 2004) of pictures in [-1, 1]: Gaussian window of 11, sigma 1.5, mean over
    channels, pixels and pictures."""
    a, b, kernel = (a + 1) / 2, (b + 1) / 2, window(11, 1.5)
    mean_a, mean_b = blur(a, kernel), blur(b, kernel)
    variance_a = blur(a * a, kernel) - mean_a.square()
    variance_b = blur(b * b, kernel) - mean_b.square()
    covariance = blur(a * b, kernel) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((top / ((mean_a.square() + mean_b.square() + c1) * (variance_a + variance_b + c2))).mean())


def smooth(x: Tensor) -> Tensor:
    """Filtered by the binomial [1, 4, 6, 4, 1] / 16 along both axes, reflected at the edges."""
    return blur(F.pad(x, (2, 2, 2, 2), mode="reflect"), torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16)


def laplacian(x: Tensor) -> list[Tensor]:
    """The Laplacian pyramid, finest first, down to sides of at least 16; the last one is the rest, low-pass."""
    levels = []
    while min(x.shape[2:]) // 2 >= SMALLEST_LEVEL:
        low = smooth(x)[:, :, ::2, ::2]
        levels.append(x - F.interpolate(low, x.shape[2:], mode="bilinear", align_corners=False))
        x = low
    return [*levels, x]


def descriptors(level: Tensor, seed: int) -> Tensor:
    """128 patches of 7x7 at random places per picture of one pyramid level: [N, 128, 147]."""
    n, _, height, width = level.shape
    draw = torch.Generator().manual_seed(seed)
    tops = torch.randint(height - PATCH + 1, (n, PATCHES), generator=draw)
    lefts = torch.randint(width - PATCH + 1, (n, PATCHES), generator=draw)
    patches = level.unfold(2, PATCH, 1).unfold(3, PATCH, 1)
    return torch.stack([patches[i][:, tops[i], lefts[i]].transpose(0, 1).flatten(1) for i in range(n)])


def sliced_wasserstein(a: Tensor, b: Tensor, seed: int) -> float:
    """Mean over 512 random directions of the Wasserstein-1 distance between the projections of two sets of
    descriptors [n, 128, d] (Karras et al. 2018), both normalised per colour channel by the second set's mean and
    standard deviation; sets of different size are compared at the same quantiles."""
    a, b = a.flatten(0, 1), b.flatten(0, 1)
    shape = (-1, 3, PATCH * PATCH)
    a, b = a.view(shape), b.view(shape)
    mean, std = b.mean((0, 2), keepdim=True), b.std((0, 2), keepdim=True).clamp_min(1e-6)
    a, b = ((x - mean).div(std).flatten(1) for x in (a, b))
    directions = F.normalize(torch.randn(a.shape[1], DIRECTIONS, generator=torch.Generator().manual_seed(seed)), dim=0)
    count = min(len(a), len(b))
    places = (torch.arange(count) + 0.5) / count

    def quantiles(x: Tensor) -> Tensor:
        ordered = (x @ directions).sort(0).values
        return ordered[(places * len(x)).long().clamp(max=len(x) - 1)]

    return float((quantiles(a) - quantiles(b)).abs().mean())


def power_spectrum(x: Tensor) -> Tensor:
    """log10 of the mean power of the grey pictures per ring of equal frequency [rings]; windowed (Hann), mean removed;
    the frequency of ring k is (k + 0.5) cycles per shorter side, whatever the aspect."""
    grey = x.mean(1)
    height, width = grey.shape[1:]
    hann = torch.hann_window(height, periodic=False)[:, None] * torch.hann_window(width, periodic=False)[None]
    power = torch.fft.fft2((grey - grey.mean((1, 2), keepdim=True)) * hann).abs().square().mean(0)
    shorter = min(height, width)
    fy, fx = torch.fft.fftfreq(height) * shorter, torch.fft.fftfreq(width) * shorter
    ring = (fy[:, None].square() + fx[None].square()).sqrt().long().flatten()
    rings = shorter // 2
    inside = ring < rings
    total = torch.zeros(rings).index_add_(0, ring[inside], power.flatten()[inside])
    number = torch.zeros(rings).index_add_(0, ring[inside], torch.ones(int(inside.sum())))
    return torch.log10(total / number.clamp_min(1) + 1e-12)


def colour_histogram(x: Tensor, bins: int = 8) -> Tensor:
    """Share of the pixels in each of bins^3 cells of RGB."""
    cell = ((x.clamp(-1, 1) + 1) / 2 * bins).long().clamp(max=bins - 1)
    index = (cell[:, 0] * bins + cell[:, 1]) * bins + cell[:, 2]
    counts = torch.bincount(index.flatten(), minlength=bins**3).float()
    return counts / counts.sum()


def nearest(queries: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Per query the index of the picture at the smallest root mean square difference, and that difference; both
    [N, 3, h, w], best made small and smooth first."""
    distance = torch.cdist(queries.flatten(1), pictures.flatten(1)) / math.sqrt(queries[0].numel())
    smallest = distance.min(1)
    return smallest.indices, smallest.values
