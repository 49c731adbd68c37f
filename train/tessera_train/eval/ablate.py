"""The effect of each part of the recipe: every ablation configuration trained with several seeds and one budget, measured as
`evaluate` does, as a table in Markdown with mean and spread.

The folder holds a run per configuration and seed, and `CONFIGURATION-SEED.json` once it is measured; such a run is not
repeated, and one that was stopped or killed goes on. Configurations that differ in the U-Net alone share their AutoEncoder.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.pictures import Pictures
from ..export.files import replace_file
from ..export.model import Model
from ..nets import cost
from ..nets.arch import autoencoder_identity
from ..training import loop
from ..training.config import Config, names
from ..training.fit import Budget, Places, Settings, held, repeatable, train
from . import evaluate

BASE = "ablation-pyramid"
ABLATIONS = [BASE, *(name for name in names() if name.startswith("ablation-") and name != BASE)]
FLOOR = "training pictures (floor)"


@dataclass
class Group:
    """The runs of one configuration. `about`: what it is; `figures`: a row of numbers for every seed."""

    about: str
    figures: list[list[float]]


def digest(*values: Any) -> str:
    """Short text that differs where `values` do."""
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:12]


def one_run(
    config: Config, pictures: Pictures, reference: evaluate.Reference, args: argparse.Namespace, device: torch.device
) -> dict[str, Any] | int:
    """The measured run of a configuration with the seed of `args`, or the exit code of one that was stopped."""
    arch, name = config.arch, f"{config.arch.name}-{args.seed}"
    budget = Budget.of(args, config.section("fit", Settings), len(config.arch.groups))
    how = evaluate.sampling(args, args.seed)
    settings = {
        "configuration": digest(config.doc),
        "budget": list(budget.steps),
        "pictures": [len(pictures.rows), len(reference.indices), str(args.held_out)],
        "samples": [how.count, how.steps],
        "precision": args.precision,
        "device": device.type,
    }
    path = args.out / f"{name}.json"
    if path.exists():
        known = json.loads(path.read_text())
        for key, value in settings.items():
            if known["settings"].get(key) != value:
                raise ValueError(f"{path}: was made with {key} {known['settings'].get(key)}, not {value}; choose another --out")
        return known
    print(f"{name}: {budget.steps[0]} steps of the AutoEncoder, {' and '.join(map(str, budget.steps[1:-1]))} of the U-Net", flush=True)
    # What the AutoEncoder and its latents depend on, and nothing else.
    first = digest(autoencoder_identity(arch), config.doc["autoencoder"], arch.width, arch.height, settings["budget"], args.precision)
    shared = f"{first}-{args.seed}"
    common = {"autoencoder": args.out / f"autoencoder-{shared}", "latents": args.out / f"latents-{shared}"}
    places = dataclasses.replace(Places.within(args.out / name, config.arch, args.out / f"{name}.safetensors"), **common)
    precisions = (args.precision, args.precision)
    code = train(config, pictures, args, budget, precisions, places, device)
    if code:
        return code
    model = Model.open(places.out, device)
    figures = [*reference.reconstruction(model, 0), *reference.distances(how.summary(model, "samples"))]
    result = {"settings": settings, "about": about(config), "figures": figures}
    replace_file(path, lambda file: file.write(json.dumps(result, indent=1).encode()))
    return result


def about(config: Config) -> str:
    """The size of its networks."""
    parts = cost.parts(config.arch)
    return f"{sum(part.millions for part in parts):.2f} M, {sum(part.gflop for part in parts[2:]):.1f} GFLOP"


def summary(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds; no deviation is known of one."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def figure(x: float, digits: int = 3) -> str:
    """`x` to so many digits, never with an exponent."""
    return f"{float(f'{x:.{digits}g}'):.10g}"


def cell(values: list[float], base: list[float]) -> str:
    """Mean and deviation of a column, marked where it is not `base`'s by more than two standard errors of the
    difference."""
    (mean, spread), (other, others) = summary(values), summary(base)
    if math.isnan(spread):
        return figure(mean)
    error = math.sqrt(spread**2 / len(values) + others**2 / len(base)) if len(base) > 1 else math.inf
    return f"{figure(mean)} ± {figure(spread, 2)}{' *' if abs(mean - other) > 2 * error else ''}"


def text(groups: dict[str, Group], floor: list[float], heads: list[str], seeds: int, made: str) -> str:
    """The table and what is needed to read it."""
    base = next(iter(groups.values()))
    rows = []
    for name, group in groups.items():
        columns = zip(zip(*group.figures), zip(*base.figures))
        rows.append([name.removeprefix("ablation-"), group.about, *(cell(list(own), list(others)) for own, others in columns)])
    rows.append([FLOOR, "", "", "", *map(figure, floor)])
    return f"""## Ablations

{made}.

Each row differs from the first one in one part of the recipe; pictures, steps and batch are the same for all, seeds 0
to {seeds - 1}. Mean ± standard deviation over seeds. A star marks a difference from the first row of more than two standard
errors; all others are within noise, and about one star in twenty is due to chance. PSNR and SSIM: higher is better. All
others are distances from held-out pictures (sliced Wasserstein x 1000 per level, spectrum, colour histogram): lower is
better.

{evaluate.table(["", "parameters, U-Net", "PSNR, dB", "SSIM", *heads], rows)}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; the same command continues them")
    parser.add_argument("--report", type=Path, help="the table, a .md file (default: ablations.md in --out)")
    parser.add_argument("--configs", nargs="+", default=ABLATIONS, metavar="CONFIG", help="configurations; the first is the reference (default: all ablation-*)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each configuration (default: 3)")
    parser.add_argument("--steps", type=int, help="of each run, shared by both trainings (default: the configuration's)")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--save-minutes", type=float, default=3.0, help="between checkpoints (default: 3)")
    evaluate.add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """The command; returns the exit code."""
    if args.seeds < 1:
        raise ValueError(f"seeds is {args.seeds}, must be at least 1")
    how = evaluate.sampling(args, 0)
    configs = [Config(name) for name in args.configs]
    first = configs[0].arch
    for config in configs:
        if (config.arch.width, config.arch.height) != (first.width, first.height):
            raise ValueError(f"configs: {config.path} is of {config.arch.width}x{config.arch.height}, not {first.width}x{first.height}")
    for key, value in {"minutes": None, "start": None, "adapt": None, "compile": False, "tensorboard": False, "sample_minutes": math.inf}.items():
        setattr(args, key, value)
    pictures, apart = Pictures.open(args.pictures), Pictures.open(args.held_out) if args.held_out else None
    report = args.report or args.out / "ablations.md"
    budgets = Budget.of(args, configs[0].section("fit", Settings), len(first.groups))
    device = repeatable(loop.choose_device(args.device), budgets)
    groups = {config.arch.name: Group(about(config), []) for config in configs}
    with held(args.out, report):
        reference = evaluate.Reference(pictures, apart, first, how)
        floor = reference.distances(reference.floor)
        for seed in range(args.seeds):
            for config in configs:
                result = one_run(config, pictures, reference, argparse.Namespace(**vars(args) | {"seed": seed}), device)
                if isinstance(result, int):
                    return result
                groups[config.arch.name].figures.append(result["figures"])
            made = evaluate.made_by(device)
            whole = text(groups, floor, reference.heads(), seed + 1, made)
            replace_file(report, lambda file: file.write(whole.encode()))
    print(whole)
    return 0
