"""The adversary of the AutoEncoder: a PatchGAN discriminator (Isola et al. 2017) with hinge loss, weighed as in LDM
(Rombach et al. 2022): by the ratio of both losses' gradients at the decoder's last layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nets import spectral
from . import parallel

LARGEST_WEIGHT = 1e4
BAND_GAIN = 8.0
"""Of a band before a discriminator sees it: details have about an eighth of a picture's contrast."""


class Discriminator(nn.Module):
    """Pictures [N, 3, H, W] to one number per patch: `strided` 4x4 convolutions of stride 2 and two of stride 1, spectrally
    normalised; patches of 70 x 70 pixels with three of them, of 34 x 34 with two."""

    def __init__(self, width: int, strided: int) -> None:
        super().__init__()
        widths = [3, *(width * min(2**i, 8) for i in range(strided + 1)), 1]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 4, stride=2 if i < strided else 1, padding=1) for i, (a, b) in enumerate(zip(widths, widths[1:]))
        )
        spectral.normalise(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), 0.2)
        return self.layers[-1](x).float()


class Discriminators(nn.ModuleList):
    """One discriminator per level of the Laplacian pyramid (Denton et al. 2015), finest first; the last one sees what is left
    of the picture. In a whole picture texture is lost beside light and shade, and a discriminator is long in finding it.
    With one level it is the PatchGAN of 70 x 70 pixels."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__(Discriminator(width, 2 if levels > 1 else 3) for _ in range(levels))

    def forward(self, x: Tensor) -> list[Tensor]:
        """The patches' numbers per level."""
        numbers = []
        *bands, rest = self
        for net in bands:
            low = F.avg_pool2d(x, 2)
            numbers.append(net(BAND_GAIN * (x - F.interpolate(low, x.shape[2:], mode="nearest"))))
            x = low
        return [*numbers, rest(x)]


def mean(numbers: list[Tensor]) -> Tensor:
    """Mean over levels of the mean over patches."""
    return torch.stack([x.mean() for x in numbers]).mean()


class Adversary:
    """The discriminators, their optimiser at `rate` times the decoder's learning rate, and the windows that they are to
    tell apart; with a `replay` buffer of that many earlier pictures of the decoder."""

    def __init__(self, width: int, levels: int, rate: float, device: torch.device, replay: int = 0) -> None:
        self.rate, self.replay = rate, replay
        self.buffer: list[Tensor] = []
        self.net = Discriminators(width, levels).to(device, memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), betas=(0.5, 0.9), weight_decay=0.0)
        self.on = False
        self.windows: tuple[Tensor, Tensor] | None = None

    def generator_loss(self, target: Tensor, out: Tensor, reconstruction: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """(adaptive weight, -mean D(out)); `last`: the weight by whose gradients the losses are weighed."""
        self.windows = target, out.detach()
        self.net.requires_grad_(False)
        loss = -mean(self.net(out))
        wanted, own = (parallel.mean(torch.autograd.grad(x, last, retain_graph=True)[0]).norm() for x in (reconstruction, loss))
        return (wanted / (own + 1e-4)).clamp(0, LARGEST_WEIGHT).detach(), loss

    def backward(self) -> float:
        """Gradients of the discriminators on the windows of the last `generator_loss`; returns its hinge loss."""
        target, out = self.windows
        self.windows = None
        if self.replay:
            out = self.replayed(out)
        self.net.requires_grad_(True)
        self.optimizer.zero_grad(set_to_none=True)
        real, made = ([F.relu(1 - sign * x) for x in self.net(windows)] for sign, windows in ((1, target), (-1, out)))
        loss = (mean(real) + mean(made)) / 2
        loss.backward()
        parallel.mean_gradients(self.net.parameters())
        return loss.detach()

    def replayed(self, out: Tensor) -> Tensor:
        """`out` with half of its windows exchanged for buffered ones, once the buffer is full; draws from torch's generator."""
        half = len(out) // 2
        if self.buffer and self.buffer[0].shape != out.shape[1:]:  # another phase of the training
            self.buffer = []
        if len(self.buffer) < self.replay:
            self.buffer += list(out.to(torch.float16))[: self.replay - len(self.buffer)]
            return out
        places = torch.randperm(self.replay)[:half].tolist()
        old = torch.stack([self.buffer[i].to(out) for i in places]) if places else out[:0]  # autocast on the CPU stacks no f16
        for i, window in zip(places, out[:half].to(torch.float16)):
            self.buffer[i] = window
        return torch.cat([old, out[half:]])

    def step(self, rate: float) -> None:
        """Applies the gradients, `rate` being the decoder's learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * self.rate
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "buffer": self.buffer}

    def load_state(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.buffer = state.get("buffer", [])
