"""LPIPS (Zhang et al. 2018) on VGG16's features; the weights are the user's own file, none come with the package."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

# torchvision's numbers of VGG16's convolutions, block by block, and their widths.
BLOCKS = (((0, 2), 64), ((5, 7), 128), ((10, 12, 14), 256), ((17, 19, 21), 512), ((24, 26, 28), 512))
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """Distance of pictures [N, 3, H, W] in [-1, 1], a mean over pictures; frozen.

    `file`: VGG16's `features.<i>.weight` and `.bias` as torchvision names them; with `lin<k>.model.1.weight` (those of
    the lpips package) channels have their learned weights, else equal ones.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        try:
            with safe_open(file, "pt") as tensors:
                held = {name: tensors.get_tensor(name).float() for name in tensors.keys()}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"lpips_weights: {file} can't be read: {error}") from error

        def take(name: str, *shape: int) -> Tensor:
            if name not in held or held[name].shape != shape:
                raise ValueError(f"lpips_weights: {file} has no {name} of shape {list(shape)}, as VGG16 has in torchvision")
            return held[name]

        cin = 3
        for k, (numbers, width) in enumerate(BLOCKS):
            for i in numbers:
                self.register_buffer(f"weight{i}", take(f"features.{i}.weight", width, cin, 3, 3))
                self.register_buffer(f"bias{i}", take(f"features.{i}.bias", width))
                cin = width
            learned = f"lin{k}.model.1.weight"
            self.register_buffer(f"lin{k}", take(learned, 1, width, 1, 1) if learned in held else torch.full((1, width, 1, 1), 1 / width))
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))

    def features(self, x: Tensor) -> list[Tensor]:
        """After every block, of unit length per pixel."""
        x, out = (x - self.shift) / self.scale, []
        for k, (numbers, _) in enumerate(BLOCKS):
            x = F.max_pool2d(x, 2) if k else x
            for i in numbers:
                x = F.relu(F.conv2d(x, getattr(self, f"weight{i}"), getattr(self, f"bias{i}"), padding=1))
            out.append(F.normalize(x.float(), dim=1, eps=1e-10))
        return out

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.features(b)
        parts = [((x - y).square() * getattr(self, f"lin{k}")).sum(1).mean() for k, (x, y) in enumerate(zip(self.features(a), wanted))]
        return sum(parts)
