"""A whole trained model, out of the file that `export` wrote: what the Rust program also has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.latents import Latents
from ..nets import sampler
from ..nets.arch import Arch
from ..nets.autoencoder import Autoencoder
from ..nets.decoder import Place
from ..nets.precond import Denoiser
from ..nets.unet import UNet
from .weights import exported


@dataclass(frozen=True)
class Model:
    """Networks in f32, ready for inference; `latents` holds the statistics and no entries."""

    arch: Arch
    autoencoder: Autoencoder
    unets: tuple[UNet, ...]
    """One for each group of levels, in the order of denoising."""
    latents: Latents
    device: torch.device

    @staticmethod
    def open(file: Path, device: torch.device) -> Model:
        """Reads the exported file. ValueError if its tensors are not those of its architecture."""
        tensors, arch, _ = exported(file)
        tensors = {name: x.float() for name, x in tensors.items()}
        autoencoder, unets = Autoencoder(arch), [UNet(arch, group) for group in range(len(arch.groups))]
        try:
            autoencoder.load_state_dict({n: x for n, x in tensors.items() if n.startswith(("encoder.", "decoder."))})
            for group, unet in enumerate(unets):
                prefix = arch.prefix(group)
                unet.load_state_dict({n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)})
            mean, std = ([tensors[f"latents.{i}.{key}"] for i in range(len(arch.levels))] for key in ("mean", "std"))
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{file}: the tensors are not those of its architecture") from error
        for net in (autoencoder, *unets):
            net.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        rows = tensors["labels.rows"].numpy().astype(np.int64) if "labels.rows" in tensors else np.zeros((0, len(arch.labels)), np.int64)
        return Model(arch, autoencoder, tuple(unets), Latents(arch, [], 0, mean, std, rows), device)

    @torch.no_grad()
    def sample(
        self, count: int, steps: int, seed: int, labels: Tensor | None = None, scale: float = 1.0, size: tuple[int, int] | None = None
    ) -> list[Tensor]:
        """Latents of `count` samples by EDM's Heun sampler, not normalised, finest first; `labels` int64 [count, labels] as in
        `Context`, with guidance of `scale`."""
        torch.manual_seed(seed)
        labels = None if labels is None else labels.to(self.device)
        denoisers = [Denoiser(unet) for unet in self.unets]
        return self.latents.raw(sampler.latents(denoisers, self.arch, count, steps, labels, scale, size))

    def draw_labels(self, count: int, seed: int) -> Tensor | None:
        """Labels int64 [count, labels] of random training pictures; None for a model without labels."""
        rows = self.latents.labels
        if not len(rows):
            return None
        return torch.from_numpy(rows[np.random.default_rng(seed).integers(len(rows), size=count)])

    @torch.no_grad()
    def decode(self, z: list[Tensor], seed: int = 0) -> Iterator[Tensor]:
        """Picture after picture [1, 3, H, W], not clamped; picture i with the decoder's noise of `seed` + i."""
        for i in range(len(z[0])):
            place = Place(torch.tensor([seed + i], device=self.device))
            yield self.autoencoder.decoder([x[i : i + 1] for x in z], place)

    @torch.no_grad()
    def encode(self, picture: Tensor) -> list[Tensor]:
        """Mean latents of pictures [N, 3, H, W] in [-1, 1]."""
        picture = picture.to(self.device).contiguous(memory_format=torch.channels_last)
        return [mean for mean, _ in self.autoencoder.encoder(picture)]
