"""Measured quality of an exported model on prepared pictures, as a report in Markdown with two pictures beside it."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from . import metrics, record
from .checkpoint import replace_file
from .data import Pictures
from .images import save_grid, shrink
from .loop import choose_device
from .model import Model

NEIGHBOUR_WIDTH = 32
SHOWN = 8
Table = list[list[str]]


@dataclass
class Summary:
    """What is kept of a set of pictures: descriptors per pyramid level, and the pictures at a size to look at."""

    descriptors: list[Tensor]
    small: Tensor
    spectrum: Tensor
    colours: Tensor

    @staticmethod
    def of(pictures: Iterator[Tensor], seed: int) -> Summary:
        """Of pictures [1, 3, H, W], one after the other, so that large ones need not be held together."""
        rows, small, spectra, colours = [], [], [], []
        for i, picture in enumerate(pictures):
            x = picture.float().cpu().clamp(-1, 1)
            rows.append([metrics.descriptors(level, seed + i) for level in metrics.laplacian(x)])
            small.append(shrink(x, 256))
            spectra.append(10 ** metrics.power_spectrum(x))
            colours.append(metrics.colour_histogram(x))
        levels = [torch.cat(level) for level in zip(*rows)]
        return Summary(levels, torch.cat(small), torch.stack(spectra).mean(0).log10(), torch.stack(colours).mean(0))

    def distances(self, other: Summary, seed: int) -> list[float]:
        """Sliced Wasserstein per level (times 1000), spectrum in dB, colours: how far this set is from `other`."""
        swd = [1000 * metrics.sliced_wasserstein(a, b, seed) for a, b in zip(self.descriptors, other.descriptors)]
        spectrum = float(10 * (self.spectrum - other.spectrum).abs().mean())
        return [*swd, spectrum, float((self.colours - other.colours).abs().sum() / 2)]


def table(head: list[str], rows: Table) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def reconstructions(model: Model, pictures: Pictures) -> Table:
    """PSNR and SSIM over the held-out pictures with the coarsest k levels only, for every k; the others at their mean
    over the training pictures."""
    arch, levels = model.arch, len(model.arch.levels)
    sums = torch.zeros(levels, 2, dtype=torch.float64)
    held_out = range(pictures.training, pictures.training + pictures.held_out)
    for i in held_out:
        x = pictures.whole(i, arch.width, arch.height)
        z = model.encode(x)
        for finest in range(levels):
            means = [mean.to(model.device).view(1, -1, 1, 1).expand_as(level) for mean, level in zip(model.latents.mean, z)]
            kept = [level if n >= finest else mean for n, (level, mean) in enumerate(zip(z, means))]
            out = next(model.decode(kept)).float().cpu().clamp(-1, 1)
            sums[finest] += torch.tensor([float(((out - x) / 2).square().mean()), metrics.ssim(out, x)], dtype=torch.float64)
    sums /= len(held_out)
    rows = []
    for finest in reversed(range(levels)):
        mse, ssim = sums[finest].tolist()
        names = [f"{lv.channels} x 1/{lv.factor}" if lv.factor else f"{lv.channels} x 1x1" for lv in arch.levels[finest:]]
        rows.append([", ".join(names), f"{metrics.decibels(mse):.2f}", f"{ssim:.4f}"])
    return rows


def neighbours(model: Model, samples: Tensor, held_out: Tensor, pictures: Pictures, path: Path) -> tuple[list[str], list[str]]:
    """Draws the samples, each over the training picture next to it; rows of the table: distance of samples, and of
    held-out pictures, which no model has seen, to their nearest training pictures."""
    arch = model.arch
    height = max(1, arch.height * NEIGHBOUR_WIDTH // arch.width)

    def tiny(x: Tensor) -> Tensor:
        return F.interpolate(x, (height, NEIGHBOUR_WIDTH), mode="area")

    training = torch.cat([tiny(pictures.whole(i, arch.width, arch.height)) for i in range(pictures.training)])
    training = torch.cat([training, training.flip(3)])
    rows = []
    for name, x in (("samples", samples), ("held-out pictures", held_out)):
        found, distance = metrics.nearest(tiny(x), training)
        rows.append([name, f"{distance.min():.4f}", f"{distance.median():.4f}"])
        if x is samples:
            views = [pictures.whole(int(i) % pictures.training, arch.width, arch.height) for i in found[:SHOWN]]
            near = [shrink(v.flip(3) if int(i) >= pictures.training else v, 256) for i, v in zip(found, views)]
            half = (len(near) + 1) // 2
            grid = [(x[a:b], torch.cat(near[a:b])) for a, b in ((0, half), (half, len(near))) if a < b]
            save_grid(path, [row for pair in grid for row in pair])
    return rows[0], rows[1]


def report(model: Model, pictures: Pictures, args: argparse.Namespace) -> str:
    """The text; pictures are written beside `args.out`."""
    arch, out = model.arch, args.out
    held_out = range(pictures.training, pictures.training + pictures.held_out)
    count = args.samples
    other = [int(i) for i in torch.randperm(pictures.training, generator=torch.Generator().manual_seed(args.seed))[: len(held_out)]]

    def some(indices: range | list[int]) -> Iterator[Tensor]:
        return (pictures.whole(i, arch.width, arch.height) for i in indices)

    def sampled() -> Iterator[Tensor]:
        for first in range(0, count, args.batch):
            yield from model.decode(model.sample(min(args.batch, count - first), args.steps, args.seed + first))

    truth = Summary.of(some(held_out), args.seed)
    floor = Summary.of(some(other), args.seed + 1_000_000)
    samples = Summary.of(sampled(), args.seed + 2_000_000)
    names = [f"SWD {arch.width >> i}x{arch.height >> i}" for i in range(len(truth.descriptors))]
    head = ["against held-out", *names, "spectrum, dB", "colours"]
    a, b = samples.distances(truth, args.seed), floor.distances(truth, args.seed)
    rows = [[name, *(f"{value:.2f}" for value in values[:-1]), f"{values[-1]:.3f}"] for name, values in (("samples", a), ("training pictures (floor)", b))]
    rows.append(["ratio", *(f"{x / y:.2f}" if y else "-" for x, y in zip(a, b))])
    save_grid(out.with_suffix(".samples.png"), [samples.small[:4], samples.small[4:8]][: (len(samples.small) + 3) // 4])
    near = neighbours(model, samples.small, truth.small, pictures, out.with_suffix(".neighbours.png"))
    code = record.code_version()
    return f"""# {arch.name}, {arch.width}x{arch.height}

Made by `python -m tessera_train {shlex.join(sys.argv[1:])}`, tessera_train {code["tessera_train"]} ({code["commit"] or "no commit"}),
torch {code["torch"]}, on {model.device}: {pictures.training} training pictures, {len(held_out)} held out, {count} samples of {args.steps} Heun steps.

## Reconstruction of held-out pictures

The latents that are not named stand at their mean.

{table(["latents", "PSNR, dB", "SSIM"], reconstructions(model, pictures))}
## Samples

Sliced Wasserstein distance (x 1000) per level of the Laplacian pyramid, finest first (Karras et al. 2018, on 7x7 patches);
mean difference of the radial power spectra; total variation distance of the colour histograms (8 x 8 x 8 cells). The floor is
as many training pictures as are held out. With {len(held_out)} of them it is as uncertain as that number is small.

{table(head, rows)}
![samples]({out.with_suffix(".samples.png").name})

## Nearest training pictures

Root mean square difference (of 2) at {NEIGHBOUR_WIDTH} pixels' width to the nearest training picture or its mirror image. Samples
much nearer than held-out pictures are would be remembered ones.

{table(["", "smallest", "median"], list(near))}
![samples, each over its nearest training picture]({out.with_suffix(".neighbours.png").name})
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--model", type=Path, required=True, help="the exported .safetensors file")
    parser.add_argument("--pictures", type=Path, required=True, help="folder that scenery or prepare has written")
    parser.add_argument("--out", type=Path, required=True, help="the report, a .md file; its pictures lie beside it")
    parser.add_argument("--samples", type=int, default=64, help="number of samples (default: 64)")
    parser.add_argument("--steps", type=int, default=18, help="of the sampler (default: 18)")
    parser.add_argument("--batch", type=int, default=8, help="samples at a time (default: 8)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: all cores)")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    """The command."""
    for name in ("samples", "steps", "batch"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} is {getattr(args, name)}, must be at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    pictures = Pictures.open(args.pictures)
    if not pictures.held_out:
        raise ValueError(f"{args.pictures}: {pictures.training} pictures, at least 4 are needed to hold one out")
    model = Model.open(args.model, choose_device(args.device))
    text = report(model, pictures, args)
    replace_file(args.out, lambda file: file.write(text.encode()))
    print(text)
