"""Encoder and decoder as one network."""

from __future__ import annotations

import torch
from torch import nn

from .arch import Arch
from .decoder import Decoder
from .encoder import Encoder


class Autoencoder(nn.Module):
    """Encoder and decoder, under the prefixes that a checkpoint has."""

    def __init__(self, arch: Arch, log_variance: float = 0.0) -> None:
        """`log_variance`: bias of the posterior's log-variances of a new network."""
        super().__init__()
        self.encoder, self.decoder = Encoder(arch), Decoder(arch)
        with torch.no_grad():  # the picture is a sum over all stages; it starts near grey
            for layer in (*(stage.trgb for stage in self.decoder.stages), self.decoder.out):
                layer.weight.mul_(0.1)
            for head in (*(stage.head for stage in self.encoder.stages), self.encoder.head):
                if head is not None:
                    head.bias[len(head.bias) // 2 :] = log_variance
