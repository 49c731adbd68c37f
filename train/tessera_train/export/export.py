"""The file that the Rust program reads: AutoEncoder, U-Net and latent statistics, EMA weights in f16."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ..data.latents import Latents
from ..nets.arch import Arch, autoencoder_identity, unet_identity
from ..nets.autoencoder import Autoencoder
from ..nets.unet import UNet
from ..training.config import Config, add_name_argument
from . import onnx_graphs
from .files import save_safetensors
from .weights import load_ema, read_ema, trained_section


MOST_ROWS = 1024
"""Pictures whose labels a file holds."""


@dataclass(frozen=True)
class Blend:
    """An AutoEncoder that begins where the other one did, and its share of the weights' mean (Wortsman et al. 2022, "Model
    soups"): a decoder trained with much `latent_noise` draws smoothly, one without shows every miss; between them lies a choice."""

    autoencoder: Path
    share: float


def export(
    config: Config, autoencoder: Path, diffusion: Sequence[Path], latents: Latents, out: Path, blend: Blend | None = None
) -> None:
    """Writes `out` from the runs `autoencoder` and `diffusion`, one for each group of levels; `config.arch` names the model. Its
    labels, and up to MOST_ROWS pictures' labels for what a user does not ask for, are those of `latents`."""
    arch, cpu = config.arch, torch.device("cpu")
    if arch.version >= 2:
        arch = replace(arch, labels=latents.arch.labels)
    if len(diffusion) != len(arch.groups):
        names = ", ".join(group.name for group in arch.groups)
        raise ValueError(f"diffusion: {len(diffusion)} are given, must be {len(arch.groups)}, one for each group of levels: {names}")
    first, unets = Autoencoder(arch), [UNet(arch, group) for group in range(len(arch.groups))]
    trained = {"autoencoder": load_ema(autoencoder, first, autoencoder_identity(arch), cpu)}
    for group, (unet, source) in enumerate(zip(unets, diffusion)):
        trained[trained_section(arch, group)] = load_ema(source, unet, unet_identity(arch, group), cpu)
    if blend is not None:
        if not 0 <= blend.share <= 1:
            raise ValueError(f"blend: the share is {blend.share}, must be from 0 to 1")
        other, _ = read_ema(blend.autoencoder, autoencoder_identity(arch), cpu)
        with torch.no_grad():
            for name, x in first.state_dict().items():
                x.lerp_(other[name], blend.share)
    tensors = dict(first.state_dict())
    for group, unet in enumerate(unets):
        tensors |= {f"{arch.prefix(group)}{name}": x for name, x in unet.state_dict().items()}
    for i, (mean, std) in enumerate(zip(latents.mean, latents.std)):
        tensors |= {f"latents.{i}.mean": mean, f"latents.{i}.std": std}
    if arch.labels:
        tensors["labels.rows"] = torch.from_numpy(label_rows(latents))
    write(out, arch, tensors, trained)


def label_rows(latents: Latents) -> np.ndarray:
    """Labels of at most MOST_ROWS training pictures, chosen at random from a fixed seed."""
    rows = latents.labels[: latents.training : 2]
    chosen = np.random.default_rng(0).permutation(len(rows))[:MOST_ROWS]
    return rows[np.sort(chosen)]


def halves(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The tensors in f16. SystemExit if a number is not finite in it."""
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        array = tensor.to(torch.float16).numpy()
        if not np.isfinite(array).all():
            raise SystemExit(f"{name} is not finite in f16")
        arrays[name] = array
    return arrays


def write(out: Path, arch: Arch, tensors: Mapping[str, Tensor], trained: Mapping[str, Any]) -> None:
    """Writes a model's file in f16 and reads its names back. SystemExit if a number is not finite in f16."""
    arrays = halves(tensors)
    save_safetensors(out, arrays, {"format": "tessera", "arch": arch.to_json(), "trained": json.dumps(trained)})
    with safe_open(out, "np") as file:
        if set(file.keys()) != set(arrays):
            raise SystemExit(f"{out} does not read back")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--autoencoder", type=Path, help="run folder of the autoencoder command, or an exported file")
    parser.add_argument(
        "--diffusion", type=Path, nargs="+", help="run folders of the diffusion command, or exported files: one a group"
    )
    parser.add_argument("--latents", type=Path, help="folder that the latents command has written")
    parser.add_argument("--config", default="scenery", help="scenery, tiny or a TOML file (default: scenery)")
    add_name_argument(parser)
    parser.add_argument("--blend", nargs=2, metavar=("AUTOENCODER", "SHARE"), help="mix in this share, 0 to 1, of another run's weights")
    parser.add_argument("--out", type=Path, help="the safetensors file")
    parser.add_argument("--onnx", type=Path, metavar="DIR", help="new folder for the networks as ONNX graphs, with or without --out")
    parser.add_argument("--model", type=Path, metavar="FILE", help="for --onnx, an exported file instead of trainings")


def run(args: argparse.Namespace) -> None:
    """The command."""
    if args.onnx is not None:
        onnx_graphs.check(args.onnx)
    trainings = {name: getattr(args, name) for name in ("autoencoder", "diffusion", "latents")}
    if args.model is not None:
        unused = [name for name, value in (trainings | {"blend": args.blend, "name": args.name, "out": args.out}).items() if value]
        if unused:
            raise ValueError(f"{unused[0]}: is given, must not be with --model, which is a whole model")
        if args.onnx is None:
            raise ValueError("onnx: is missing, must be given with --model")
        write_graphs(args.model, args.onnx)
        return
    missing = [name for name, value in trainings.items() if value is None]
    if missing:
        raise ValueError(f"{missing[0]}: is missing, must be given (or --model FILE, with --onnx DIR)")
    if args.out is None and args.onnx is None:
        raise ValueError("out: is missing, must be given without --onnx")
    if args.out is not None:
        from_trainings(args, args.out)
        print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")
        if args.onnx is not None:
            write_graphs(args.out, args.onnx)
        return
    with tempfile.TemporaryDirectory() as folder:
        from_trainings(args, Path(folder) / "model.safetensors")
        write_graphs(Path(folder) / "model.safetensors", args.onnx)


def write_graphs(model: Path, folder: Path) -> None:
    """Writes the ONNX graphs of an exported file and prints them."""
    for path in onnx_graphs.write(model, folder):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def from_trainings(args: argparse.Namespace, out: Path) -> None:
    """Writes the safetensors file of the runs that the arguments name."""
    try:
        blend = args.blend and Blend(Path(args.blend[0]), float(args.blend[1]))
    except ValueError as error:
        raise ValueError(f"blend: the share is {args.blend[1]!r}, must be a number") from error
    export(Config(args.config, model=args.name), args.autoencoder, args.diffusion, Latents.open(args.latents), out, blend)
