"""A small network that reads the labels of pictures: measures whether samples have the labels they were asked for, and gives the
features of a Frechet distance (Heusel et al. 2017) that sees whole mountains, where distances of small patches do not.

It is trained on labelled pictures themselves; nothing of it goes into a model.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from tqdm import tqdm

from ..data.pictures import Pictures, step_rng
from ..export.files import save_safetensors
from ..nets.arch import Label

SIDE = 128
"""Height in pixels at which pictures are read."""
WIDTHS = (32, 64, 96, 128)
FEATURES = 64
BATCH = 32


class Net(nn.Module):
    """Pictures [N, 3, h, w] in [-1, 1] to features [N, FEATURES]; `heads` map these to the values of each label."""

    def __init__(self, schema: tuple[Label, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for cin, cout in zip((3, *WIDTHS), WIDTHS):
            down = nn.Conv2d(cin, cout, 3, stride=2, padding=1)
            same = nn.Conv2d(cout, cout, 3, padding=1)
            self.layers += [nn.Sequential(down, nn.GroupNorm(8, cout), nn.SiLU(), same, nn.GroupNorm(8, cout), nn.SiLU())]
        self.features = nn.Linear(2 * WIDTHS[-1], FEATURES)
        self.heads = nn.ModuleList(nn.Linear(FEATURES, len(label.values)) for label in schema)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        return torch.tanh(self.features(pooled))


def small(picture: Tensor) -> Tensor:
    """[N, 3, H, W] at the height SIDE, averaged by area."""
    height, width = picture.shape[2:]
    return F.interpolate(picture.float(), (SIDE, max(1, round(width * SIDE / height))), mode="area")


@dataclass(frozen=True)
class Reader:
    """A trained network and the labels that it reads."""

    schema: tuple[Label, ...]
    net: Net

    @staticmethod
    def open(file: Path) -> Reader:
        """Reads the file that `save` wrote. ValueError if it is another one."""
        with safe_open(file, "pt") as tensors:
            metadata = tensors.metadata() or {}
            if metadata.get("format") != "tessera-reader":
                raise ValueError(f"{file}: was not written by the reader command")
            schema = tuple(Label(x["name"], tuple(x["values"])) for x in json.loads(metadata["labels"]))
            net = Net(schema)
            net.load_state_dict({name: tensors.get_tensor(name) for name in tensors.keys()})
        return Reader(schema, net.eval().requires_grad_(False))

    def save(self, file: Path) -> None:
        """Writes weights and labels."""
        labels = json.dumps([{"name": label.name, "values": label.values} for label in self.schema])
        tensors = {name: x.numpy() for name, x in self.net.state_dict().items()}
        save_safetensors(file, tensors, {"format": "tessera-reader", "labels": labels})

    @torch.no_grad()
    def read(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, FEATURES] and labels int64 [N, labels], 1 + the index of the likeliest value, of pictures [N, 3, H, W]."""
        features = self.net(small(pictures.clamp(-1, 1)))
        return features, torch.stack([1 + head(features).argmax(1) for head in self.net.heads], 1)


def met(read: Tensor, asked: Tensor) -> list[float]:
    """Share of pictures, for each label, that have the value asked for; NaN for a label that nobody asked for."""
    given = asked > 0
    return [float(((read == asked) & given)[:, i].sum() / n) if (n := int(given[:, i].sum())) else float("nan") for i in range(asked.shape[1])]


def frechet(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of normal distributions with the means and covariances of features [N, F] and [M, F]."""
    a, b = a.double(), b.double()
    first, second = (x.T.cov() + 1e-6 * torch.eye(x.shape[1], dtype=x.dtype) for x in (a, b))
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + first.trace() + second.trace() - 2 * cross)


def train(pictures: Pictures, steps: int, seed: int) -> Reader:
    """A reader of the labels of `pictures`, trained on those that are not held out; the same bits for the same arguments and threads."""
    schema = pictures.labels.schema
    if not schema:
        raise ValueError("pictures: have no labels")
    torch.manual_seed(seed)
    rows, columns = SIDE, max(1, round(pictures.rows.shape[2] * SIDE / pictures.rows.shape[1]))
    shown = tqdm(range(pictures.training), "thumbnails", unit="picture", disable=None)
    thumbnails = torch.cat([(127.5 * (1 + pictures.thumbnail(i, columns, rows))).round().to(torch.uint8) for i in shown])
    labels, net = torch.from_numpy(pictures.labels.rows[: pictures.training]), Net(schema)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.01)
    for step in tqdm(range(steps), "reader", unit="step", disable=None):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * (1 + np.cos(np.pi * step / steps)) / 2
        rng = step_rng(seed, step)
        chosen = rng.integers(len(thumbnails), size=BATCH)
        x = thumbnails[chosen].float() / 127.5 - 1
        x = torch.where(torch.from_numpy(rng.random(BATCH) < 0.5).view(-1, 1, 1, 1), x.flip(3), x)
        x = x + float(rng.uniform(0, 0.1)) * torch.from_numpy(rng.standard_normal(x.shape, np.float32))
        features = net(x)
        targets = labels[chosen] - 1
        losses = [F.cross_entropy(head(features), targets[:, i], ignore_index=-1) for i, head in enumerate(net.heads) if (targets[:, i] >= 0).any()]
        optimizer.zero_grad(set_to_none=True)
        sum(losses).backward()
        optimizer.step()
    return Reader(schema, net.eval().requires_grad_(False))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--pictures", type=Path, required=True, help="labelled folder that scenery or prepare has written")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file")
    parser.add_argument("--steps", type=int, default=1500, help=f"of {BATCH} pictures (default: 1500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")


def run(args: argparse.Namespace) -> None:
    """The command."""
    if args.steps < 1:
        raise ValueError(f"steps is {args.steps}, must be at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    pictures = Pictures.open(args.pictures)
    reader = train(pictures, args.steps, args.seed)
    reader.save(args.out)
    held_out = range(pictures.training, len(pictures.rows))
    if held_out:
        read = torch.cat([reader.read(pictures.thumbnail(i, pictures.rows.shape[2] * SIDE // pictures.rows.shape[1], SIDE))[1] for i in held_out])
        shares = met(read, torch.from_numpy(pictures.labels.rows[list(held_out)]))
        print(", ".join(f"{label.name} {share:.0%}" for label, share in zip(reader.schema, shares)), "of held-out labels read")
