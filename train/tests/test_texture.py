"""Promises of the losses of texture: blind to phase, sensitive to power and to the shape of patches."""

from __future__ import annotations

import torch
from tessera_train.training import texture


def noise(seed: int, gain: float = 1.0) -> torch.Tensor:
    """White noise [2, 3, 128, 128]."""
    return gain * torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(seed))


def both(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """(power, patches) of two finest bands."""
    (x, _), (y, _) = texture.laplacian(a, 2), texture.laplacian(b, 2)
    slices = texture.slices(32, 3, torch.Generator().manual_seed(0))
    return float(texture.power(x, y)), float(texture.patches(x, y, slices))


def test_bands_and_rest_add_up_to_the_picture():
    """The pyramid loses nothing."""
    x = noise(0)
    bands, rest = texture.laplacian(x, 3)
    for band in reversed(bands):
        rest = band + torch.nn.functional.interpolate(rest, scale_factor=2.0, mode="nearest")
    assert torch.allclose(rest, x, atol=1e-6)


def test_texture_of_another_phase_costs_little_and_a_flat_picture_much():
    """Two draws of one noise are near; a weaker one and none at all are farther, in this order."""
    target = noise(1, 0.1)
    again, weaker, flat = both(noise(2, 0.1), target), both(noise(2, 0.05), target), both(0 * target, target)
    for i in range(2):
        assert again[i] < 0.3 * weaker[i] < 0.3 * flat[i]


def test_patches_tell_stripes_from_noise_of_the_same_power():
    """A pattern with the band's power, but another shape."""
    target = noise(3, 0.1)
    rows = torch.randn(2, 3, 128, 1, generator=torch.Generator().manual_seed(4)).expand(-1, -1, -1, 128) * 0.1
    assert both(rows, target)[1] > 3 * both(noise(5, 0.1), target)[1]


def test_gradients_are_finite_where_nothing_is_there():
    """At a flat picture, where the logarithm is steepest."""
    out = torch.zeros(1, 3, 64, 64, requires_grad=True)
    (x, _), (y, _) = texture.laplacian(out, 2), texture.laplacian(noise(6)[:1, :, :64, :64], 2)
    (texture.power(x, y) + texture.patches(x, y, texture.slices(4, 3))).backward()
    assert torch.isfinite(out.grad).all()
