"""The gradients that `blocks` writes by hand are those of the operators."""

from __future__ import annotations

import pytest
import torch
from tessera_train.nets import blocks
from torch.autograd import gradcheck


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal f64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("f", [blocks.fir_down, blocks.fir_up])
def test_fir_gradients_are_exact(f):
    """In f64, by finite differences; also where rows and columns differ."""
    assert gradcheck(f, (draw(1, 2, 4, 6).requires_grad_(),))


@pytest.mark.parametrize("f", [(blocks.fir_down, blocks.fir_down_plain), (blocks.FirUpZero.apply, blocks.fir_up_zero)])
def test_fir_with_and_without_its_own_gradient_agree(f):
    """Values to the bit, gradients to rounding: autograd's of the plain operator is the truth."""
    own, plain = (draw(1, 4, 8, 8).requires_grad_() for _ in range(2))
    a, b = f[0](own), f[1](plain)
    assert torch.equal(a, b)
    weight = draw(*a.shape, seed=1)
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    assert torch.allclose(own.grad, plain.grad, rtol=0, atol=1e-12)


def test_pixel_norm_gradient_is_exact():
    """For input and gain, in f64."""
    assert gradcheck(blocks.PixelNormFunction.apply, (draw(2, 5, 3, 4).requires_grad_(), draw(5, seed=1).requires_grad_()))


@pytest.mark.parametrize("size", [(8, 8), (48, 64)])  # below and above the count from which sums are made in parts
def test_group_norm_in_bf16_is_that_of_f32(size):
    """Output and every gradient, to a relative error of 1e-2 in the L2 norm; the input is off centre."""
    def close(a: torch.Tensor, b: torch.Tensor) -> bool:
        return float((a.double() - b.double()).norm() / b.double().norm()) < 1e-2

    channels = 32
    x = (draw(2, channels, *size) * 2 + draw(1, channels, 1, 1, seed=1)).bfloat16()
    weight, bias = (1 + draw(channels, seed=2) / 5).float(), draw(channels, seed=3).float()
    grad = draw(*x.shape, seed=4).bfloat16()
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        norm = blocks.GroupNorm(channels)
        with torch.no_grad():
            norm.weight.copy_(weight)
            norm.bias.copy_(bias)
        entered = x.to(dtype, memory_format=torch.channels_last).requires_grad_()
        out = norm(entered)
        out.backward(grad.to(dtype))
        results.append((out.detach(), entered.grad, norm.weight.grad, norm.bias.grad))
    assert results[0][0].dtype == torch.bfloat16
    for own, true, name in zip(*results, ("output", "input", "weight", "bias")):
        assert close(own, true), name


def test_fir_up_keeps_a_constant_up_to_the_edges():
    """Edges are repeated, not zero."""
    assert torch.equal(blocks.fir_up(torch.full((1, 2, 3, 1), 0.7)), torch.full((1, 2, 6, 2), 0.7))
