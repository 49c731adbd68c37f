"""Parameters and arithmetic of a model."""

from __future__ import annotations

from collections.abc import Callable

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


def describe(arch: Arch) -> str:
    """Lines of parameters and GFLOP per picture of the default size; nothing is computed."""
    with torch.device("meta"):
        encoder, decoder = Encoder(arch), Decoder(arch)
        unets = [UNet(arch, group) for group in range(len(arch.groups))]
        picture = torch.empty(1, 3, arch.height, arch.width)
        grids = zip(arch.levels, arch.grids(arch.width, arch.height))
        z = [torch.empty(1, level.channels, h, w) for level, (h, w) in grids]
        c_noise = torch.empty(1)
    rows = [
        ("encoder", encoder, gflop(lambda: encoder(picture))),
        ("decoder", decoder, gflop(lambda: decoder(z))),
    ]
    for group, unet in zip(arch.groups, unets):
        first, last = group.levels[0], group.levels[-1] + 1
        context = Context(tuple(z[last:]))
        name = "U-Net" if len(unets) == 1 else f"U-Net of {group.name}"
        rows.append((name, unet, gflop(lambda: unet(z[first:last], c_noise, context))))
    size = f"at {arch.width}x{arch.height}"
    return "\n".join(f"{name}: {millions(net):.2f} M parameters, {cost:.1f} GFLOP {size}" for name, net, cost in rows)
