"""Spectral norm (Miyato et al. 2018): a convolution's weight is divided by its largest singular value.

A matter of training only: `fold` turns the weights of a normalised network into those of a plain one that computes
the same, and nothing but the training loop knows of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

ORIGINAL, VECTOR, PLAIN = ".parametrizations.weight.original", ".parametrizations.weight.0.u", ".weight"


class SpectralNorm(nn.Module):
    """weight / sigma(weight as [out, in * k * k]); sigma by one power iteration a step from the last step's vector."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("u", F.normalize(torch.randn(weight.shape[0]), dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.flatten(1)
            with torch.no_grad():
                v = F.normalize(matrix.T @ self.u, dim=0)
                u = F.normalize(matrix @ v, dim=0)
                if self.training:
                    self.u.copy_(u)
            return weight / (u @ (matrix @ v))


def sigma(weight: Tensor) -> Tensor:
    """The largest singular value, exact to rounding."""
    return torch.linalg.matrix_norm(weight.double().flatten(1), 2).to(weight.dtype)


def normalise(layers: Iterable[nn.Conv2d]) -> None:
    """Puts spectral norm on `layers`."""
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight))


def all_convolutions(net: nn.Module) -> list[nn.Conv2d]:
    """Every convolution of `net`: the encoder's choice."""
    return [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]


def unet_convolutions(net: nn.Module) -> list[nn.Conv2d]:
    """Of a new U-Net: 3x3 convolutions that do not start as zero, and queries, keys and values of attention."""
    layers = [(name.rpartition(".")[2], layer) for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)]
    return [layer for name, layer in layers if name in ("q", "k", "v") or (layer.kernel_size == (3, 3) and layer.weight.any())]


def fold(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of the plain network that computes what the network of `state` does."""
    plain = {}
    for name, value in state.items():
        if name.endswith(ORIGINAL):
            plain[name.removesuffix(ORIGINAL) + PLAIN] = value / sigma(value)
        elif not name.endswith(VECTOR):
            plain[name] = value
    return plain


def load_plain(net: nn.Module, plain: dict[str, Tensor]) -> None:
    """Loads the state of a plain network into `net`, normalised or not. (Layers of which sigma is not 1, as `fold`
    leaves it, then compute something else until they are trained.)"""
    state = dict(net.state_dict())
    for name, value in plain.items():
        normalised = name.removesuffix(PLAIN) + ORIGINAL
        state[normalised if name.endswith(PLAIN) and normalised in state else name] = value
    net.load_state_dict(state)


def folded(net: nn.Module) -> nn.Module:
    """`net` itself if it is plain, else a plain copy for inference that computes the same."""
    if not any(parametrize.is_parametrized(layer) for layer in net.modules()):
        return net
    plain = copy.deepcopy(net)
    for name, layer in list(plain.named_modules()):
        if parametrize.is_parametrized(layer):  # removing the parametrization would take it from the original too
            parent, _, own = name.rpartition(".")
            fresh = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
            setattr(plain.get_submodule(parent), own, fresh.to(layer.bias))
    plain.load_state_dict(fold(net.state_dict()))
    return plain.to(memory_format=torch.channels_last).train(net.training).requires_grad_(False)
