"""Latents of every picture, computed once by a trained encoder; what the U-Net is trained on.

A folder of `level.<l>.npy` (f16 means, [2 * pictures, C, h, w], memory-mapped; entry 2i is picture i, entry 2i + 1 its
mirror image), `variance.<l>.npy` (f32, [2 * pictures, C], the posterior's variance averaged over pixels) and
`latents.json` (the Arch, how many pictures are held out, and per level the mean and standard deviation of every channel
over the training pictures: of samples of the posterior, so that a channel which the decoder does not read stays small).
"""

from __future__ import annotations

import argparse
import hashlib
import json
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..export.files import replace_file
from ..export.weights import load_ema
from ..nets.arch import Arch, autoencoder_identity
from ..nets.autoencoder import Autoencoder
from ..training import precision
from ..training.config import Config
from ..training.loop import choose_device
from ..scenery.dataset import parse_size
from .npy_writer import RowWriter
from .pictures import Pictures

SMALLEST_STD = 1e-4
LABELS = "labels.npy"


@dataclass(frozen=True)
class Latents:
    """An open folder. `mean`, `std`: per level [C], f32; `labels`: int64 [entries, labels of the Arch], 0 where a picture has none,
    else 1 + the index of the value."""

    arch: Arch
    levels: list[np.ndarray]
    held_out: int
    mean: list[Tensor]
    std: list[Tensor]
    labels: np.ndarray

    @staticmethod
    def open(folder: Path) -> "Latents":
        """Maps the arrays of `folder`."""
        doc = json.loads((folder / "latents.json").read_text())
        arch = Arch.from_json(json.dumps(doc["arch"]))
        levels = [np.load(folder / f"level.{i}.npy", mmap_mode="r") for i in range(len(arch.levels))]
        statistics = [[torch.tensor(x) for x in doc[key]] for key in ("mean", "std")]
        path = folder / LABELS
        labels = np.load(path) if path.exists() else np.zeros((len(levels[0]), len(arch.labels)), np.int64)
        if labels.shape != (len(levels[0]), len(arch.labels)):
            raise ValueError(f"{path}: is {labels.shape}, must be {(len(levels[0]), len(arch.labels))}")
        return Latents(arch, levels, doc["held_out"], *statistics, labels)

    @property
    def training(self) -> int:
        """Entries to train on; those after them are held out."""
        return len(self.levels[0]) - 2 * self.held_out

    def read(self, entries: np.ndarray) -> tuple[list[Tensor], Tensor]:
        """Latents of these entries, per level [N, C, h, w] and not normalised, and labels [N, labels]."""
        entries = np.asarray(entries)
        return [torch.from_numpy(level[entries]).float() for level in self.levels], torch.from_numpy(self.labels[entries])

    def normalised(self, entries: np.ndarray) -> list[Tensor]:
        """Of these entries, per level [N, C, h, w]."""
        return self.normalise(self.read(entries)[0])

    def normalise(self, z: list[Tensor]) -> list[Tensor]:
        """(z - mean) / std * sigma_data."""
        return [(x - offset) / factor for x, (factor, offset) in zip(z, self.scales(z))]

    def raw(self, z: list[Tensor]) -> list[Tensor]:
        """The inverse of `normalise`, for the decoder."""
        return [x * factor + offset for x, (factor, offset) in zip(z, self.scales(z))]

    def scales(self, z: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Per level of `z` (std / sigma_data, mean), each [1, C, 1, 1]."""
        sd = self.arch.sigma_data
        return [(std.to(x).view(1, -1, 1, 1) / sd, mean.to(x).view(1, -1, 1, 1)) for x, mean, std in zip(z, self.mean, self.std)]


class Moments:
    """Running sum and sum of squares per channel, in f64."""

    def __init__(self, channels: int) -> None:
        self.count, self.sum, self.squares = 0, np.zeros(channels), np.zeros(channels)

    def add(self, z: np.ndarray) -> None:
        """Takes [N, C, h, w] in."""
        z = z.astype(np.float64)
        self.count += z.size // z.shape[1]
        self.sum += z.sum((0, 2, 3))
        self.squares += np.square(z).sum((0, 2, 3))

    def mean_std(self, variance: np.ndarray) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of every channel whose values have `variance` about them; the latter at least
        1e-4."""
        mean = self.sum / self.count
        std = np.sqrt(np.maximum(self.squares / self.count - mean**2, 0) + variance)
        return mean.tolist(), np.maximum(std, SMALLEST_STD).tolist()


def key_of(arch: Arch, model: Autoencoder, pictures: Pictures, bf16: bool) -> str:
    """Names what the latents are computed from: the encoder's weights, the size, the pictures' number, the precision."""
    plan = (arch.levels, arch.width, arch.height, arch.labels, len(pictures.rows), bf16)
    hash = hashlib.sha256(repr(plan).encode() + pictures.labels.rows.tobytes())
    for _, weight in sorted(model.encoder.state_dict().items()):
        hash.update(weight.cpu().contiguous().numpy().tobytes())
    return hash.hexdigest()


def write(
    arch: Arch,
    model: Autoencoder,
    pictures: Pictures,
    out: Path,
    device: torch.device,
    bf16: bool,
    size: tuple[int, int] | None = None,
) -> None:
    """Encodes every picture and its mirror image at `size` (the default one if None) into `out`; `latents.json` comes last.
    Continues what an interrupted call with the same arguments left, and does nothing where it is all there. A model of version 2
    takes the labels of the pictures."""
    if arch.version >= 2:
        arch = replace(arch, labels=pictures.labels.schema)
    if size:
        arch = replace(arch, sizes=(size,))
    key, done, begun = key_of(arch, model, pictures, bf16), out / "latents.json", out / "begun"
    if done.exists() and json.loads(done.read_text()).get("key") == key:
        return
    done.unlink(missing_ok=True)
    count = len(pictures.rows)
    keep = 2 * count if begun.exists() and begun.read_text() == key else 0
    replace_file(begun, lambda file: file.write(key.encode()))
    grids = zip(arch.levels, arch.grids(arch.width, arch.height))
    with ExitStack() as stack:
        files = [
            stack.enter_context(RowWriter(out / f"level.{i}.npy", np.float16, (level.channels, h, w), keep))
            for i, (level, (h, w)) in enumerate(grids)
        ] + [
            stack.enter_context(RowWriter(out / f"variance.{i}.npy", np.float32, (level.channels,), keep))
            for i, level in enumerate(arch.levels)
        ]
        first = min(file.count for file in files) // 2
        for file in files:
            file.truncate(2 * first)
        for i in tqdm(range(first, count), "latents", count, initial=first, unit="picture", disable=None):
            x = pictures.whole(i, arch.width, arch.height).to(device)
            for view in (x, x.flip(3)):
                with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    encoded = model.encoder(view.contiguous(memory_format=torch.channels_last))
                means = [mean[0].to("cpu", torch.float16) for mean, _ in encoded]
                variances = [log_variance[0].exp().mean((1, 2)).float().cpu() for _, log_variance in encoded]
                for file, row in zip(files, (x.numpy() for x in means + variances)):
                    if not np.isfinite(row).all():
                        raise SystemExit(f"a latent of picture {i} is not finite in f16")
                    file.append(row)
        for file in files:
            file.finish()
    labels = np.repeat(pictures.labels.rows, 2, 0) if arch.labels else np.zeros((2 * count, 0), np.int64)
    replace_file(out / LABELS, lambda file: np.save(file, labels))
    mean, std = zip(*(statistics(out, level, 2 * pictures.training) for level in range(len(arch.levels))))
    doc = {"arch": json.loads(arch.to_json()), "held_out": pictures.held_out, "key": key, "mean": mean, "std": std}
    replace_file(done, lambda file: file.write(json.dumps(doc).encode()))
    begun.unlink()


def statistics(folder: Path, level: int, count: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every channel of a level, over the first `count` entries."""
    rows = np.load(folder / f"level.{level}.npy", mmap_mode="r")
    moments = Moments(rows.shape[1])
    for start in range(0, count, 64):
        moments.add(rows[start : min(start + 64, count)])
    return moments.mean_std(np.load(folder / f"variance.{level}.npy")[:count].mean(0, dtype=np.float64))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--pictures", type=Path, required=True, help="folder that scenery or prepare has written")
    parser.add_argument("--autoencoder", type=Path, required=True, help="run folder of the autoencoder command, or an exported file")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--config", default="scenery", help="scenery, tiny or a TOML file (default: scenery)")
    parser.add_argument("--size", metavar="WxH", help="of the pictures (default: the configuration's first)")
    parser.add_argument("--precision", choices=("f32", "bf16"), help="default: bf16 where it works")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: all cores)")


def run(args: argparse.Namespace) -> None:
    """The command."""
    if args.threads:
        torch.set_num_threads(args.threads)
    arch, device = Config(args.config).arch, choose_device(args.device)
    model = Autoencoder(arch)
    load_ema(args.autoencoder, model, autoencoder_identity(arch), device)
    bf16 = args.precision == "bf16" or (args.precision is None and precision.bf16_works(device))
    write(arch, model, Pictures.open(args.pictures), args.out, device, bf16, parse_size(args.size) if args.size else None)
