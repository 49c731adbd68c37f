"""EDM preconditioning (Karras et al. 2022, table 1), with a sigma of its own for every level of the pyramid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .arch import Noise
from .blocks import at_least_f32
from .unet import Context, UNet


def level_sigma(noise: Noise, level: int, sigma: Tensor) -> Tensor:
    """sigma of `level` at the shared `sigma`: max(sigma * exp(shift), sigma_min)."""
    return (sigma * math.exp(noise.shift[level])).clamp(min=noise.sigma_min)


class Denoiser(nn.Module):
    """D(z; sigma) per level of a group = c_skip z + c_out F(c_in z; c_noise), c_noise = ln(shared sigma) / 4."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.noise, self.unet = unet.shape.group.noise, unet

    def forward(self, z: list[Tensor], sigma: Tensor, context: Context = Context()) -> list[Tensor]:
        """`z`: noisy normalised latents of the group, finest first; `sigma` [N]: the shared one."""
        sd = self.noise.sigma_data
        sigmas = [level_sigma(self.noise, level, sigma).view(-1, 1, 1, 1) for level in range(len(z))]
        scaled = [x / torch.sqrt(s**2 + sd**2) for x, s in zip(z, sigmas)]
        raw = self.unet(scaled, torch.log(sigma) / 4, context)
        return [
            x * (sd**2 / (s**2 + sd**2)) + at_least_f32(f) * (s * sd / torch.sqrt(s**2 + sd**2))
            for x, s, f in zip(z, sigmas, raw)
        ]
