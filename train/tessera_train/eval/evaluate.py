"""Measures the quality of an exported model on prepared pictures; writes a Markdown report and two pictures."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..data import provenance
from ..data.grid import save_grid, shrink
from ..data.pictures import Pictures
from ..export.files import replace_file
from ..export.model import Model
from ..nets.arch import Arch
from ..training.loop import choose_device
from . import metrics
from .reader import Reader, frechet, met

NEIGHBOUR_WIDTH = 32
VIEW_WIDTH = 192
SHOWN = 8
Table = list[list[str]]


@dataclass
class Summary:
    """Statistics of a set of pictures: descriptors per pyramid level, spectrum, colours, and small versions to show."""

    descriptors: list[Tensor]
    small: Tensor
    spectrum: Tensor
    colours: Tensor
    features: Tensor
    """[count, features] of the reader; empty without one."""
    read: Tensor
    """int64 [count, labels] that the reader read; empty without one."""

    @staticmethod
    def of(pictures: Iterable[Tensor], count: int, seed: int, name: str, reader: Reader | None = None) -> Summary:
        """Summarises `count` pictures [1, 3, H, W], one after the other, so that memory holds one large picture at a
        time; `name` labels the progress bar."""
        rows, small, spectra, colours = [], [], [], []
        features, read = [torch.zeros(0, 0)], [torch.zeros(0, 0, dtype=torch.int64)]
        for i, picture in enumerate(tqdm(pictures, name, count, unit="picture", disable=None)):
            x = picture.float().cpu().clamp(-1, 1)
            rows.append([metrics.descriptors(level, seed + i) for level in metrics.laplacian(x)])
            small.append(shrink(x, VIEW_WIDTH))
            spectra.append(10 ** metrics.power_spectrum(x))
            colours.append(metrics.colour_histogram(x))
            if reader is not None:
                for found, its in zip((features, read), reader.read(x)):
                    found.append(its)
        levels = [torch.cat(level) for level in zip(*rows)]
        spectrum, histogram = torch.stack(spectra).mean(0).log10(), torch.stack(colours).mean(0)
        if reader is not None:
            features, read = features[1:], read[1:]
        return Summary(levels, torch.cat(small), spectrum, histogram, torch.cat(features), torch.cat(read))

    def distances(self, other: Summary, seed: int) -> list[float]:
        """Distances of this set from `other`: sliced Wasserstein per level (times 1000), spectrum in dB, colours."""
        swd = [1000 * metrics.sliced_wasserstein(a, b, seed) for a, b in zip(self.descriptors, other.descriptors)]
        spectrum = float(10 * (self.spectrum - other.spectrum).abs().mean())
        return [*swd, spectrum, float((self.colours - other.colours).abs().sum() / 2)]

    def octaves(self, other: Summary) -> list[float]:
        """Mean difference of the spectra per octave of frequency, in dB; the first octave is 1 to 2 cycles a side."""
        difference, edges = 10 * (self.spectrum - other.spectrum), [1]
        while edges[-1] < len(difference):
            edges.append(min(2 * edges[-1], len(difference)))
        return [float(difference[a:b].mean()) for a, b in zip(edges, edges[1:])]


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling: number of samples, steps of Heun's sampler, samples per batch, seed, scale of the guidance. Labels, where
    a model has them, are those of random training pictures."""

    count: int
    steps: int
    batch: int
    seed: int
    guidance: float = 1.0

    def labels(self, model: Model) -> Tensor | None:
        """int64 [count, labels] that `summary`'s samples are asked for; None for a model without labels."""
        first = range(0, self.count, self.batch)
        drawn = [model.draw_labels(min(self.batch, self.count - i), self.seed + i) for i in first]
        return None if drawn[0] is None else torch.cat(drawn)

    def summary(self, model: Model, name: str, reader: Reader | None = None) -> Summary:
        """Draws samples of the model and summarises them."""
        labels = self.labels(model)

        def pictures() -> Iterator[Tensor]:
            for first in range(0, self.count, self.batch):
                count, seed = min(self.batch, self.count - first), self.seed + first
                own = None if labels is None else labels[first : first + count]
                yield from model.decode(model.sample(count, self.steps, seed, own, self.guidance), seed)

        return Summary.of(pictures(), self.count, self.seed + 2_000_000, name, reader)


class Reference:
    """Pictures that were not trained on, at a model's size, and the floor: as many training pictures as there are
    samples, treated as if they were samples."""

    def __init__(
        self, pictures: Pictures, apart: Pictures | None, arch: Arch, sampling: Sampling, reader: Reader | None = None
    ) -> None:
        """The held-out pictures are the last of `pictures`, or all of `apart`, a separate folder."""
        self.reader = reader
        self.pictures, self.size, self.seed = pictures, (arch.width, arch.height), sampling.seed
        self.source = apart or pictures
        self.indices = range(len(apart.rows)) if apart else range(pictures.training, len(pictures.rows))
        if not self.indices:
            raise ValueError(f"pictures: {pictures.training} of them, at least 4 are needed to hold one out")
        order = torch.randperm(pictures.training, generator=torch.Generator().manual_seed(self.seed))
        self.others = [int(i) for i in order[: sampling.count]]
        self.truth = Summary.of(self.held_out(), len(self.indices), self.seed, "held-out pictures", reader)
        self.floor = self.trained_on("training pictures")

    def held_out(self) -> Iterator[Tensor]:
        """Yields the held-out pictures."""
        return (self.source.whole(i, *self.size) for i in self.indices)

    def trained_on(self, name: str, model: Model | None = None) -> Summary:
        """Summarises as many training pictures as there are samples; with a model, their reconstructions by it."""
        pictures = (self.pictures.whole(i, *self.size) for i in self.others)
        if model is not None:
            pictures = (next(model.decode(model.encode(x))) for x in pictures)
        return Summary.of(pictures, len(self.others), self.seed + 1_000_000, name, self.reader)

    def heads(self) -> list[str]:
        """Names of the numbers that `distances` returns."""
        width, height = self.size
        return [*(f"SWD {width >> i}x{height >> i}" for i in range(len(self.truth.descriptors))), "spectrum, dB", "colours"]

    def distances(self, summary: Summary) -> list[float]:
        """Distances of a set of pictures from the held-out ones."""
        return summary.distances(self.truth, self.seed)

    def reconstruction(self, model: Model, finest: int) -> tuple[float, float]:
        """PSNR in dB and SSIM over the held-out pictures with the levels from `finest` on; finer levels are set to their
        mean over the training pictures."""
        sums = torch.zeros(2, dtype=torch.float64)
        for x in self.held_out():
            z = model.encode(x)
            means = [mean.to(model.device).view(1, -1, 1, 1).expand_as(level) for mean, level in zip(model.latents.mean, z)]
            kept = [level if n >= finest else mean for n, (level, mean) in enumerate(zip(z, means))]
            out = next(model.decode(kept)).float().cpu().clamp(-1, 1)
            sums += torch.tensor([float(((out - x) / 2).square().mean()), metrics.ssim(out, x)], dtype=torch.float64)
        mse, ssim = (sums / len(self.indices)).tolist()
        return metrics.decibels(mse), ssim


def table(head: list[str], rows: Table) -> str:
    """Formats a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def reconstructions(models: dict[str, Model], reference: Reference) -> Table:
    """PSNR and SSIM of the first model with the coarsest k levels only, for every k, and of the others with all."""
    (_, model), *others = models.items()
    rows = []
    for finest in reversed(range(len(model.arch.levels))):
        names = [f"{lv.channels} x 1/{lv.factor}" if lv.factor else f"{lv.channels} x 1x1" for lv in model.arch.levels[finest:]]
        rows.append([", ".join(names), reference.reconstruction(model, finest)])
    rows += [[name, reference.reconstruction(other, 0)] for name, other in others]
    return [[name, f"{psnr:.2f}", f"{ssim:.4f}"] for name, (psnr, ssim) in rows]


def neighbours(samples: Tensor, reference: Reference, path: Path) -> Table:
    """Draws the samples, each above its nearest training picture. Returns rows of a table: distances of samples, and of
    held-out pictures, to their nearest training pictures."""
    pictures, (width, height) = reference.pictures, reference.size
    tiny_height = max(1, height * NEIGHBOUR_WIDTH // width)

    def tiny(x: Tensor) -> Tensor:
        return F.interpolate(x, (tiny_height, NEIGHBOUR_WIDTH), mode="area")

    count = pictures.training
    shown = tqdm(range(count), "neighbours", count, unit="picture", disable=None)
    training = torch.cat([pictures.thumbnail(i, NEIGHBOUR_WIDTH, tiny_height) for i in shown])
    training = torch.cat([training, training.flip(3)])
    rows = []
    for name, x in (("samples", samples), ("held-out pictures", reference.truth.small)):
        found, distance = metrics.nearest(tiny(x), training)
        rows.append([name, f"{distance.min():.4f}", f"{distance.median():.4f}"])
        if x is samples:
            views = [pictures.whole(int(i) % count, width, height) for i in found[:SHOWN]]
            near = [shrink(v.flip(3) if int(i) >= count else v, VIEW_WIDTH) for i, v in zip(found, views)]
            half = (len(near) + 1) // 2
            grid = [(x[a:b], torch.cat(near[a:b])) for a, b in ((0, half), (half, len(near))) if a < b]
            save_grid(path, [row for pair in grid for row in pair])
    return rows


def compared(values: dict[str, list[float]], floor: list[float]) -> Table:
    """Rows of distances, then the floor, then the distances in units of the floor."""
    rows = {**values, "training pictures (floor)": floor}
    text = [[name, *(f"{x:.2f}" for x in row[:-1]), f"{row[-1]:.3f}"] for name, row in rows.items()]
    ratios = [[f"{name} / floor", *(f"{x / y:.2f}" if y else "-" for x, y in zip(row, floor))] for name, row in values.items()]
    return text + ratios


def report(models: dict[str, Model], reference: Reference, sampling: Sampling, out: Path, scales: tuple[float, ...] = ()) -> str:
    """The report on the first model, compared with the others, and on its guidance by several `scales`; pictures are written next
    to `out`."""
    (_, model), *_ = models.items()
    made = made_by(model.device)  # before pictures next to `out` change the state of the checkout
    arch, (width, height) = model.arch, reference.size
    summaries = {name: sampling.summary(each, name, reference.reader) for name, each in models.items()}
    samples = summaries["samples"].small
    summaries["training pictures, reconstructed"] = reference.trained_on("reconstructions", model)
    distances = {name: reference.distances(each) for name, each in summaries.items()}
    octaves = {name: each.octaves(reference.truth) for name, each in {**summaries, "training pictures (floor)": reference.floor}.items()}
    cycles = [f"{1 << i} to {2 << i}" for i in range(len(octaves["samples"]))]
    save_grid(out.with_suffix(".samples.png"), [samples[:4], samples[4:SHOWN]][: (len(samples) + 3) // 4])
    near = neighbours(samples, reference, out.with_suffix(".neighbours.png"))
    control = "".join(f"The control: {each.arch.name}.\n" for name, each in models.items() if each is not model)
    return f"""# {arch.name}, {width}x{height}

{made}: {reference.pictures.training} training pictures, {len(reference.indices)} held out, {sampling.count} samples
of {sampling.steps} Heun steps, guidance {sampling.guidance:g}. {control}
## Reconstruction of held-out pictures

Latents that are not named are set to their mean.

{table(["latents", "PSNR, dB", "SSIM"], reconstructions(models, reference))}
## Samples

Sliced Wasserstein distance (x 1000) per level of the Laplacian pyramid, finest first (Karras et al. 2018, on 7x7 patches);
mean difference of the radial power spectra; total variation distance of the colour histograms (8 x 8 x 8 cells). All are distances
from the held-out pictures. The floor is that of as many training pictures as there are samples. The same pictures,
reconstructed by the AutoEncoder, separate what the decoder loses from what the U-Net misses.

{table(["", *reference.heads()], compared(distances, reference.distances(reference.floor)))}
![samples]({out.with_suffix(".samples.png").name})

Radial power spectrum relative to that of the held-out pictures, in dB, per octave of cycles per shorter side: above 0 is
too much, below 0 too little.

{table(["", *cycles], [[name, *(f"{x:+.1f}" for x in row)] for name, row in octaves.items()])}
{labels_read(models, summaries, reference, sampling)}{guided(model, summaries["samples"], reference, sampling, scales)}## Nearest training pictures

Root mean square difference (of 2) at {NEIGHBOUR_WIDTH} pixels' width to the nearest training picture or its mirror image. Samples
that are much nearer than held-out pictures would be memorised ones.

{table(["", "smallest", "median"], near)}
![samples, each over its nearest training picture]({out.with_suffix(".neighbours.png").name})
"""


def labels_read(models: dict[str, Model], summaries: dict[str, Summary], reference: Reference, sampling: Sampling) -> str:
    """The section on labels and on the distance in the reader's features; empty without a reader."""
    reader = reference.reader
    if reader is None:
        return ""
    rows = []
    held_out = reference.source.labels
    known = torch.from_numpy(held_out.rows[list(reference.indices)]) if held_out.schema == reader.schema else None
    distance = {name: frechet(each.features, reference.truth.features) for name, each in summaries.items()}
    floor = frechet(reference.floor.features, reference.truth.features)
    for name, summary in {**summaries, "training pictures (floor)": reference.floor}.items():
        model = models.get(name)
        asked = sampling.labels(model) if model is not None and model.arch.labels == reader.schema else None
        shares = met(summary.read, asked) if asked is not None else [math.nan] * len(reader.schema)
        far = distance.get(name, floor)
        rows.append([name, f"{far:.3f}", f"{far / floor:.2f}", *("-" if math.isnan(x) else f"{x:.0%}" for x in shares)])
    if known is not None:
        shares = met(reference.truth.read, known)
        rows.append(["held-out pictures", "0", "0", *("-" if math.isnan(x) else f"{x:.0%}" for x in shares)])
    return f"""## Labels

Frechet distance from the held-out pictures in the features of a network that reads labels (`tessera_train reader`), and the share of
samples in which that network reads the label they were asked for; for held-out pictures, the share that it reads right.

{table(["", "Frechet distance", "of the floor", *(label.name for label in reader.schema)], rows)}
"""


def guided(model: Model, first: Summary, reference: Reference, sampling: Sampling, scales: tuple[float, ...]) -> str:
    """The section that compares scales of guidance, of which `first` is the summary of the first; empty for one scale."""
    if len(scales) < 2:
        return ""
    rows, heads, floor = [], reference.heads(), reference.distances(reference.floor)
    for scale in scales:
        how = replace(sampling, guidance=scale)
        summary = first if scale == sampling.guidance else how.summary(model, f"guidance {scale:g}", reference.reader)
        row = [f"{x / y:.2f}" if y else "-" for x, y in zip(reference.distances(summary), floor)]
        if reference.reader is not None:
            row.append(f"{frechet(summary.features, reference.truth.features) / frechet(reference.floor.features, reference.truth.features):.2f}")
            asked = how.labels(model)
            shares = [x for x in met(summary.read, asked) if not math.isnan(x)] if asked is not None else []
            row.append(f"{sum(shares) / len(shares):.0%}" if shares else "-")
        rows.append([f"{scale:g}", *row])
    extra = ["Frechet", "labels met"] if reference.reader is not None else []
    return f"""## Guidance

Distances of the floor, by the scale of the guidance; labels met: mean over labels.

{table(["scale", *heads, *extra], rows)}
"""


def made_by(device: torch.device) -> str:
    """The running command and the version of the code."""
    code = provenance.code_version()
    command = f"python -m tessera_train {shlex.join(sys.argv[1:])}"
    return f"Made by `{command}`,\ntessera_train {code['tessera_train']} ({code['commit'] or 'no commit'}), torch {code['torch']}, on {device}"


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments for sampling and for the pictures to compare with."""
    parser.add_argument("--pictures", type=Path, required=True, help="folder written by scenery or prepare")
    parser.add_argument("--held-out", type=Path, help="folder of pictures that are not trained on (default: the last of --pictures)")
    parser.add_argument("--samples", type=int, default=64, help="number of samples (default: 64)")
    parser.add_argument("--sample-steps", type=int, default=18, help="steps of the sampler (default: 18)")
    parser.add_argument("--batch", type=int, default=8, help="samples at a time (default: 8)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")


def sampling(args: argparse.Namespace, seed: int) -> Sampling:
    """Reads the arguments; ValueError for one that is below 1."""
    for name in ("samples", "sample_steps", "batch", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, must be at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    return Sampling(args.samples, args.sample_steps, args.batch, seed)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--model", type=Path, required=True, help="the exported .safetensors file")
    parser.add_argument("--control", type=Path, help="another model of the same size, to compare with")
    parser.add_argument("--out", type=Path, required=True, help="the report, a .md file; its pictures are written next to it")
    parser.add_argument(
        "--guidance",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="SCALE",
        help="scales of the guidance by labels; the report is on the first, with a table of all (default: 1, none)",
    )
    parser.add_argument("--reader", type=Path, help="file that the reader command has written: labels met, and a distance of whole scenes")
    parser.add_argument("--seed", type=int, default=0)
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """The command."""
    scales = tuple(args.guidance)
    how, device = replace(sampling(args, args.seed), guidance=scales[0]), choose_device(args.device)
    models = {"samples": Model.open(args.model, device)}
    if args.control:
        models["control"] = Model.open(args.control, device)
    first, *others = (each.arch for each in models.values())
    for other in others:
        if (other.width, other.height) != (first.width, first.height):
            raise ValueError(f"control: is of {other.width}x{other.height}, must be of {first.width}x{first.height}")
    apart = Pictures.open(args.held_out) if args.held_out else None
    reader = Reader.open(args.reader) if args.reader else None
    reference = Reference(Pictures.open(args.pictures), apart, first, how, reader)
    text = report(models, reference, how, args.out, scales)
    replace_file(args.out, lambda file: file.write(text.encode()))
    print(text)
