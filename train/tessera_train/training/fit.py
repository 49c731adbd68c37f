"""From a folder of pictures to a model in one command: prepare, AutoEncoder, latents, diffusion, refinement of the decoder,
export, a sample grid.

Everything lies in a run folder beside the output, `my.run` for `my.safetensors`; each part is resumed or skipped by
what is there, so the same command continues after it was stopped or killed at any moment. With a budget in steps the
result is the same bytes as without the interruption (same seed, device, number of threads and code).
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..data import latents, prepare, provenance
from ..data.labels import SOURCES, Source
from ..data.latents import Latents
from ..data.pictures import Pictures
from ..export.export import export
from ..export.files import replace_file
from ..export.model import Model
from ..export.weights import load_ema
from ..nets.arch import Arch, autoencoder_identity
from ..nets.autoencoder import Autoencoder
from ..scenery.dataset import parse_size
from . import autoencoder, diffusion, estimate, loop
from .config import Config, add_name_argument, names
from .diffusion import SAMPLES, save_samples

GRID_STEPS = 18


@dataclass(frozen=True)
class Settings:
    """The section `[fit]`: the AutoEncoder's share of the budget, that of the decoder's refinement (0: none); the U-Nets have the
    rest, in proportion to `groups` (empty: equal parts); and the budget if none is given."""

    share: float = 0.5
    refine: float = 0.0
    groups: list[float] = field(default_factory=list)
    steps: int | None = None
    minutes: float | None = None


@dataclass(frozen=True)
class Budget:
    """Of AutoEncoder, the U-Net of each group and refinement: steps, or minutes."""

    steps: tuple[int, ...] | None
    minutes: tuple[float, ...] | None

    @staticmethod
    def of(args: argparse.Namespace, settings: Settings, groups: int = 1) -> Budget:
        """From the command line or else from the configuration, for a model of so many groups of levels."""
        shares = settings.groups or [1.0] * groups
        if len(shares) != groups or min(shares) <= 0:
            raise ValueError(f"[fit] groups is {settings.groups}, must be {groups} numbers above 0")
        shares = [share / sum(shares) for share in shares]
        steps, minutes = args.steps, args.minutes
        if steps is None and minutes is None:
            steps, minutes = settings.steps, settings.minutes
        if (steps is None) == (minutes is None):
            raise ValueError("a budget is needed: --minutes or --steps, one of them")
        if min(settings.share, settings.refine) < 0 or settings.share + settings.refine >= 1:
            raise ValueError(f"[fit] share is {settings.share} and refine {settings.refine}, must be at least 0 and together below 1")
        if steps is not None:
            least = 1 + groups + bool(settings.refine)
            if steps < least:
                raise ValueError(f"steps is {steps}, must be at least {least}")
            last = min(steps - 1 - groups, max(1, round(steps * settings.refine))) if settings.refine else 0
            first = min(steps - last - groups, max(1, round(steps * settings.share)))
            rest, own = steps - first - last, []
            for i, share in enumerate(shares[:-1]):
                own.append(max(1, min(round((steps - first - last) * share), rest - (groups - 1 - i))))
                rest -= own[-1]
            return Budget((first, *own, rest, last), None)
        if minutes <= 0:
            raise ValueError(f"minutes is {minutes}, must be above 0")
        rest = 1 - settings.share - settings.refine
        return Budget(None, tuple(minutes * x for x in (settings.share, *(rest * share for share in shares), settings.refine)))

    def arguments(self, part: int) -> dict[str, float | int | None]:
        """As the trainings' arguments; part 0 is the AutoEncoder, 1 and on the U-Nets, -1 the refinement."""
        return {"steps": self.steps and self.steps[part], "minutes": self.minutes and self.minutes[part]}

    def total(self) -> dict[str, float | int]:
        """As it was given."""
        return {"steps": sum(self.steps)} if self.steps else {"minutes": round(sum(self.minutes), 6)}

    def refines(self) -> bool:
        """Whether the decoder is refined at all."""
        return bool((self.steps or self.minutes)[-1])

    def left(self, part: int, step: float, out: Path) -> float:
        """Seconds that a training still takes, at `step` seconds a step."""
        steps, elapsed = loop.used(out)
        if self.steps:
            return max(0, self.steps[part] - steps) * step
        return max(0.0, self.minutes[part] * 60 - elapsed)


@contextmanager
def held(run: Path, out: Path) -> Iterator[None]:
    """The run folder, for this process alone, without the temporary files of processes that were killed."""
    run.mkdir(parents=True, exist_ok=True)
    with open(run / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"{run}: another process is at work in it") from error
        for path in (*run.rglob(".*.tmp"), *out.parent.glob(f".{out.name}.*.tmp")):
            path.unlink(missing_ok=True)
        yield


def begin(run: Path, config: Config, args: argparse.Namespace, budget: Budget, device: torch.device) -> estimate.Speed:
    """Checks that the run folder is of these settings, or makes it one: measures speed, says what is going to happen."""
    settings = {
        "pictures": str(args.folder.resolve()),
        "config": hashlib.sha256("".join(config.texts).encode()).hexdigest(),
        "size": [config.arch.width, config.arch.height],
        "seed": args.seed,
        "budget": budget.total(),
        "device": device.type,
        "precision": args.precision,
        "labels": args.labels,
    }
    files, _ = prepare.listing(args.folder)
    if not files:
        raise ValueError(f"{args.folder}: no JPEG, PNG, TIFF or WebP in it")
    known = provenance.read(run)
    if known is None:
        print("measuring the speed of this machine, which is not part of the budget", flush=True)
        speed = estimate.measure(config, files, args, device, budget.refines())
        replace_file(run / "config.toml", lambda file: file.write(config.texts[0].encode()))
        provenance.write(run, settings | {"threads": torch.get_num_threads(), "speed": speed.as_dict()})
    else:
        for name, value in settings.items():
            if known.get(name) != value:
                other = "another configuration" if name == "config" else f"{spoken(name, known.get(name))}, not {spoken(name, value)}"
                raise ValueError(f"{run}: was begun with {other}, and a run keeps its settings; choose another --out, or remove the folder")
        if known["code"] != provenance.code_version():
            print(f"{run} was begun by another version of the code; the result may differ from that of one run", flush=True)
        speed = estimate.Speed(**known["speed"])
    count = len(files)
    times = {
        "reading pictures": 0.0 if (run / "pictures" / "pictures.json").exists() else count * speed.reading / args.threads,
        "AutoEncoder": budget.left(0, speed.autoencoder_step, run / "autoencoder"),
        "latents": 0.0 if (run / "latents" / "latents.json").exists() else count * speed.encoding,
        "diffusion": sum(
            budget.left(1 + i, seconds, path) for i, (seconds, path) in enumerate(zip(speed.diffusion_steps, diffusion_folders(run, config.arch)))
        ),
        "refinement": budget.left(-1, speed.refine_step, run / "refine"),
    }
    print(f"{count} files of pictures, {config.arch.width}x{config.arch.height}, on {device}: {estimate.sentence(times)}", flush=True)
    return speed


def spoken(name: str, value: object) -> str:
    """A setting of a run for people, such as "--steps 30"."""
    match name, value:
        case "budget", {"steps": steps}:
            return f"--steps {steps}"
        case "budget", {"minutes": minutes}:
            return f"--minutes {minutes:g}"
        case "size", [width, height]:
            return f"size {width}x{height}"
        case _, None:
            return f"{name} none"
        case _:
            return f"{name} {value}"


def run(args: argparse.Namespace) -> int:
    """The command; returns the exit code."""
    config = Config(args.config, parse_size(args.size) if args.size else None, args.name)
    arch, out = config.arch, args.out
    if out.suffix != ".safetensors":
        raise ValueError(f"out is {out}, must end with .safetensors")
    if args.labels and arch.version == 1:
        raise ValueError(f"labels: {config.path} is of version 1, which has no labels; choose a configuration of version 2")
    if out.resolve().is_relative_to(args.folder.resolve()):
        raise ValueError(f"{out}: lies within {args.folder}, must be outside")
    budget = Budget.of(args, config.section("fit", Settings), len(arch.groups))
    device = repeatable(loop.choose_device(args.device), budget)
    args.threads = args.threads or os.cpu_count() or 1
    args.start = args.adapt = None
    folder = out.with_suffix(".run")
    with held(folder, out):
        speed = begin(folder, config, args, budget, device)
        loop.describe(arch)
        source = Source(args.labels, args.folder) if args.labels else None
        prepare.prepare(args.folder, folder / "pictures", arch.width, arch.height, args.threads, source=source)
        pictures = Pictures.open(folder / "pictures")
        places = Places.within(folder, arch, out)
        code = train(config, pictures, args, budget, (speed.autoencoder_precision, speed.diffusion_precision), places, device)
        if code:
            return code
        whole = Model.open(out, device)
        with torch.no_grad():
            labels = whole.draw_labels(SAMPLES, args.seed)
            save_samples(out.with_suffix(".png"), whole.autoencoder.decoder, whole.sample(SAMPLES, GRID_STEPS, args.seed, labels))
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; samples of it in {out.with_suffix('.png')}")
    return 0


@dataclass(frozen=True)
class Places:
    """Where a model comes to be: folders, each resumed or skipped by what is in it, the model whose decoder is refined, and
    the file at last."""

    autoencoder: Path
    latents: Path
    diffusion: tuple[Path, ...]
    """One for each group of levels."""
    plain: Path
    refine: Path
    out: Path

    @staticmethod
    def within(folder: Path, arch: Arch, out: Path) -> Places:
        """All except the last in `folder`, under their usual names."""
        first, others = ("autoencoder", "latents"), ("plain.safetensors", "refine")
        return Places(*(folder / name for name in first), diffusion_folders(folder, arch), *(folder / name for name in others), out)


def diffusion_folders(folder: Path, arch: Arch) -> tuple[Path, ...]:
    """The run folders of the U-Nets."""
    return tuple(folder / ("diffusion" if arch.version == 1 else f"diffusion-{group.name}") for group in arch.groups)


def train(
    config: Config,
    pictures: Pictures,
    args: argparse.Namespace,
    budget: Budget,
    precisions: tuple[str, str],
    places: Places,
    device: torch.device,
) -> int:
    """AutoEncoder, latents, diffusion, refinement, export; returns the exit code, which is not 0 where a training was stopped."""
    arch = config.arch
    own = part(args, budget, 0, places.autoencoder, precisions[0])
    loop.prepare(own)
    code = loop.Loop(autoencoder.Task(config, pictures, args.seed, device), own, device).run()
    if code:
        return code
    model = Autoencoder(arch)
    load_ema(places.autoencoder, model, autoencoder_identity(arch), device)
    latents.write(arch, model, pictures, places.latents, device, precisions[0] == "bf16")
    stored = Latents.open(places.latents)
    for group, folder in enumerate(places.diffusion):
        own = part(args, budget, 1 + group, folder, precisions[1])
        loop.prepare(own)
        code = loop.Loop(diffusion.Task(config, [stored], model, args.seed, device, group), own, device).run()
        if code:
            return code
    export(config, places.autoencoder, places.diffusion, stored, places.plain if budget.refines() else places.out)
    if budget.refines():
        own = argparse.Namespace(**vars(part(args, budget, -1, places.refine, precisions[0])) | {"start": places.plain})
        loop.prepare(own)
        whole = Model.open(places.plain, device)
        code = loop.Loop(autoencoder.Task(config, pictures, args.seed, device, whole), own, device).run()
        if not code:
            export(config, places.refine, places.diffusion, stored, places.out)
    return code


def part(args: argparse.Namespace, budget: Budget, number: int, out: Path, precision: str) -> argparse.Namespace:
    """The arguments of one of the trainings."""
    return argparse.Namespace(**vars(args) | budget.arguments(number) | {"out": out, "precision": precision})


def repeatable(device: torch.device, budget: Budget) -> torch.device:
    """With a budget in steps, operators of which the same input gives the same bits; the fastest ones otherwise."""
    if device.type == "cuda" and budget.steps:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    return device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder tree of JPEG, PNG, TIFF or WebP files")
    parser.add_argument("--config", default="scenery", help=f"{', '.join(names())} or a TOML file (default: scenery)")
    parser.add_argument("--labels", metavar="SOURCE", help=SOURCES)
    parser.add_argument("--size", metavar="WxH", help="of the model's pictures (default: the configuration's)")
    add_name_argument(parser)
    loop.add_common_arguments(parser, "the model to write, a .safetensors file; the run folder, NAME.run, is next to it")
