"""A whole trained model, out of the file that `export` wrote: what the Rust program also has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data.latents import Latents
from ..nets import sampler
from ..nets.arch import Arch
from ..nets.autoencoder import Autoencoder
from ..nets.precond import Denoiser
from ..nets.unet import UNet
from .weights import exported


@dataclass(frozen=True)
class Model:
    """Networks in f32, ready for inference; `latents` holds the statistics and no entries."""

    arch: Arch
    autoencoder: Autoencoder
    unet: UNet
    latents: Latents
    device: torch.device

    @staticmethod
    def open(file: Path, device: torch.device) -> Model:
        """Reads the exported file."""
        tensors, arch, _ = exported(file)
        tensors = {name: x.float() for name, x in tensors.items()}
        autoencoder, unet = Autoencoder(arch), UNet(arch)
        autoencoder.load_state_dict({n: x for n, x in tensors.items() if n.startswith(("encoder.", "decoder."))})
        unet.load_state_dict({n.removeprefix("unet."): x for n, x in tensors.items() if n.startswith("unet.")})
        for net in (autoencoder, unet):
            net.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        mean, std = ([tensors[f"latents.{i}.{key}"] for i in range(len(arch.levels))] for key in ("mean", "std"))
        return Model(arch, autoencoder, unet, Latents(arch, [], 0, mean, std), device)

    @torch.no_grad()
    def sample(self, count: int, steps: int, seed: int) -> list[Tensor]:
        """Latents of `count` samples by EDM's Heun sampler, not normalised, finest first."""
        torch.manual_seed(seed)
        return self.latents.raw(sampler.latents(Denoiser(self.arch, self.unet), self.arch, count, steps, self.device))

    @torch.no_grad()
    def decode(self, z: list[Tensor]) -> Iterator[Tensor]:
        """Picture after picture [1, 3, H, W], not clamped."""
        for i in range(len(z[0])):
            yield self.autoencoder.decoder([x[i : i + 1] for x in z])

    @torch.no_grad()
    def encode(self, picture: Tensor) -> list[Tensor]:
        """Mean latents of pictures [N, 3, H, W] in [-1, 1]."""
        picture = picture.to(self.device).contiguous(memory_format=torch.channels_last)
        return [mean for mean, _ in self.autoencoder.encoder(picture)]
