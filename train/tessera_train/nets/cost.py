"""Parameters and arithmetic of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .arch import Arch
from .decoder import Decoder
from .encoder import Encoder
from .unet import Context, UNet


def gflop(f: Callable[[], object]) -> float:
    """10^9 floating point operations (a multiply-add is two) of `f`."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        f()
    return counter.get_total_flops() / 1e9


def millions(module: nn.Module) -> float:
    """10^6 parameters."""
    return sum(p.numel() for p in module.parameters()) / 1e6


@dataclass(frozen=True)
class Part:
    """A network of a model: 10^6 parameters and 10^9 operations for a picture of the default size."""

    name: str
    millions: float
    gflop: float


@cache
def parts(arch: Arch) -> tuple[Part, ...]:
    """Encoder, decoder and the U-Net of each group; nothing is computed. Counting takes half a second, so it is done once."""
    with torch.device("meta"):
        encoder, decoder = Encoder(arch), Decoder(arch)
        unets = [UNet(arch, group) for group in range(len(arch.groups))]
        picture = torch.empty(1, 3, arch.height, arch.width)
        grids = zip(arch.levels, arch.grids(arch.width, arch.height))
        z = [torch.empty(1, level.channels, h, w) for level, (h, w) in grids]
        c_noise = torch.empty(1)
    found = [
        Part("encoder", millions(encoder), gflop(lambda: encoder(picture))),
        Part("decoder", millions(decoder), gflop(lambda: decoder(z))),
    ]
    for group, unet in zip(arch.groups, unets):
        first, last = group.levels[0], group.levels[-1] + 1
        name = "U-Net" if len(unets) == 1 else f"U-Net of {group.name}"
        found.append(Part(name, millions(unet), gflop(lambda: unet(z[first:last], c_noise, Context(tuple(z[last:]))))))
    return tuple(found)


def describe(arch: Arch) -> str:
    """Lines of parameters and GFLOP per picture of the default size."""
    size = f"at {arch.width}x{arch.height}"
    return "\n".join(f"{part.name}: {part.millions:.2f} M parameters, {part.gflop:.1f} GFLOP {size}" for part in parts(arch))
