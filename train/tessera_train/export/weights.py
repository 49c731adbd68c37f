"""Trained weights: out of a run folder, or out of a file that `export` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..nets.arch import Arch, autoencoder_identity, unet_identity
from ..nets.spectral import fold

CHECKPOINT = "checkpoint.pt"


def read_ema(source: Path, identity: str, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The EMA weights of a run folder, or of a file that `export` wrote, as a plain network has them (spectral norm is
    folded in), and what is known of their training: step, pictures seen."""
    if source.suffix == ".safetensors":
        return exported_weights(source, identity)
    state = torch.load(source / CHECKPOINT, map_location=device, weights_only=True)
    if state["identity"] != identity:
        raise SystemExit(f"{source / CHECKPOINT} is of another model than the configuration's")
    return fold(state["ema"]), {key: state[key] for key in ("step", "seen")}


def load_ema(source: Path, model: nn.Module, identity: str, device: torch.device) -> dict[str, Any]:
    """Loads what `read_ema` gives into `model`, for inference on `device`; returns the training's numbers."""
    weights, numbers = read_ema(source, identity, device)
    model.load_state_dict(weights)
    model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    return numbers


def exported(file: Path) -> tuple[dict[str, Tensor], Arch, dict[str, Any]]:
    """All tensors of an exported file, its Arch, and the numbers of both trainings."""
    try:
        with safe_open(file, "pt") as tensors:
            metadata = tensors.metadata() or {}
            if metadata.get("format") != "tessera":
                raise SystemExit(f"{file} was not written by the export command")
            weights = {name: tensors.get_tensor(name) for name in tensors.keys()}
    except SafetensorError as error:
        raise SystemExit(f"{file} is not a whole safetensors file: {error}") from error
    return (
        weights,
        Arch.from_json(metadata["arch"]),
        json.loads(metadata.get("trained", "{}")),
    )


def exported_weights(file: Path, identity: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The part of an exported file that calls itself `identity`, in f32, and its training's numbers."""
    tensors, arch, trained = exported(file)
    parts = {autoencoder_identity(arch): ("autoencoder", ("encoder.", "decoder."))}
    for group in range(len(arch.groups)):
        parts[unet_identity(arch, group)] = (trained_section(arch, group), (arch.prefix(group),))
    if identity not in parts:
        raise SystemExit(f"{file} is of another model than the configuration's")
    section, prefixes = parts[identity]
    prefix = "" if section == "autoencoder" else prefixes[0]
    weights = {name.removeprefix(prefix): x.float() for name, x in tensors.items() if name.startswith(prefixes)}
    return weights, {key: value for key, value in trained.get(section, {}).items() if key != "elapsed"}


def trained_section(arch: Arch, group: int) -> str:
    """The name of a group's training in the metadata of an exported file."""
    return "diffusion" if arch.version == 1 else f"diffusion.{arch.groups[group].name}"


def exported_alike(file: Path, net: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of an exported file of another model that have the name (after `prefix`) and shape of one of the plain network
    `net`, in f32. ValueError if they are less than half of it."""
    tensors, _, _ = exported(file)
    own = net.state_dict()
    found = {
        name: x.float()
        for name, x in ((n.removeprefix(prefix), x) for n, x in tensors.items() if n.startswith(prefix))
        if name in own and own[name].shape == x.shape
    }
    share = sum(x.numel() for x in found.values()) / max(1, sum(x.numel() for x in own.values()))
    if share < 0.5:
        raise ValueError(f"adapt: {file} holds {share:.0%} of this network's numbers, must be at least half")
    return found
