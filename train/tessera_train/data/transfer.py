"""Moving small tensors between host and device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`; on CUDA without waiting for the work that is queued there."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and x.device.type == "cpu" else x.to(device)


def to_host(numbers: Mapping[str, Tensor]) -> dict[str, float]:
    """Tensors of one element as numbers, in one transfer."""
    return dict(zip(numbers, torch.stack([x.detach().float().reshape(()) for x in numbers.values()]).tolist()))
