"""The air between the viewer and the land: haze, and mist that lies low."""

import torch

from .noise import lerp
from .scene import Scene
from .sky import gradient


def light(scene: Scene, u: torch.Tensor) -> torch.Tensor:
    """The light of the air before far things: [3, 1, columns]."""
    return lerp(gradient(scene, u, torch.full_like(u, 0.05)), scene.light.middle[:, None, None], 0.35)


def haze(scene: Scene, u: torch.Tensor, z: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    """Share of air light between the viewer and what stands at depth z and elevation e."""
    towards = torch.exp(-(((u - scene.light.u) / 0.6) ** 2))
    up = (1.0 + e * z).clamp_min(0.0)
    path = 0.0046 * scene.haze * (1.0 + 0.5 * towards) * (z - 2.0).clamp_min(0.0) * torch.exp(-up / 55.0)
    mist = 0.05 * scene.mist * (z - 5.0).clamp_min(0.0) * torch.exp(-up / 2.2)
    return 1.0 - torch.exp(-path - mist.clamp_max(2.0))
