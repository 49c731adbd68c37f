"""Estimates the duration of a training from single steps on pictures of noise."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import torch

from ..data import latents
from ..data.image_io import Unusable, read
from ..data.pictures import Pictures
from ..export.model import Model
from ..nets import spectral
from . import autoencoder, diffusion, loop
from .config import Config

TRIED = 5


@dataclass(frozen=True)
class Speed:
    """Precision of AutoEncoder and U-Net ("f32" or "bf16") and seconds: per step, per picture encoded, per picture read; 0 per
    step of a refinement that is not to be."""

    autoencoder_precision: str
    diffusion_precision: str
    autoencoder_step: float
    diffusion_steps: list[float]
    """For each group of levels."""
    encoding: float
    reading: float
    refine_step: float = 0.0

    def as_dict(self) -> dict[str, float | str | list[float]]:
        """For `run.json`."""
        return asdict(self)


def seconds(f: Callable[[], object], device: torch.device) -> float:
    """Of the second of two calls."""
    f()
    start = time.monotonic()
    f()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - start


def measure(config: Config, files: list[Path], args: argparse.Namespace, device: torch.device, refine: bool) -> Speed:
    """Chooses the precisions and times a step of everything, of the decoder's refinement if it is to be; touches nothing
    that is trained later."""
    arch = config.arch
    rows = np.random.default_rng(0).integers(0, 256, (4, arch.height, arch.width, 3), np.uint8)
    pictures = Pictures(rows, "noise")
    task = autoencoder.Task(config, pictures, args.seed, device)
    run, name = probe(task, args, device, "AutoEncoder")
    first = mean_step(run, task, device)
    ae = spectral.folded(task.model).eval()
    picture = pictures.whole(0, arch.width, arch.height).to(device)
    with torch.no_grad():
        encoding = 2 * seconds(lambda: ae.encoder(picture), device)
    with tempfile.TemporaryDirectory() as folder:
        latents.write(arch, ae, pictures, Path(folder), device, False)
        noise = latents.Latents.open(Path(folder))
        other_steps, unets, other, last = [], [], "f32", 0.0
        for group in range(len(arch.groups)):
            second = diffusion.Task(config, [noise], ae, args.seed, device, group)
            run, other = probe(second, args, device, "U-Net" if group == len(arch.groups) - 1 else None)
            batch = second.batch(0, 0.0)
            other_steps.append(seconds(lambda: step(run, batch), device))
            unets.append(spectral.folded(second.model).eval())
        if refine:
            whole = Model(arch, ae, tuple(unets), noise, device)
            task = autoencoder.Task(config, pictures, args.seed, device, whole)
            last = mean_step(probe(task, args, device, None)[0], task, device)
    return Speed(name, other, first, other_steps, encoding, reading(files, arch.width, arch.height), last)


def mean_step(run: loop.Loop, task: autoencoder.Task, device: torch.device) -> float:
    """Seconds of a step, the mean over the phases with and without the adversary."""
    mean, start = 0.0, 0.0
    for until in sorted({1.0, task.recipe.adversarial_from, *(phase.until for phase in task.phases)}):
        batch = task.batch(0, (start + until) / 2)
        task.begin((start + until) / 2)
        mean += (until - start) * seconds(lambda: step(run, batch), device)
        start = until
    return mean


def probe(task: loop.Task, args: argparse.Namespace, device: torch.device, network: str | None) -> tuple[loop.Loop, str]:
    """A loop that is never saved, and the precision that is the faster one for it; says why for a `network` that is named."""
    run = loop.Loop(task, args, device)
    why = run.choose_precision()
    if network and why:
        print(f"{network} in {why}", flush=True)
    return run, "bf16" if run.dtype == torch.bfloat16 else "f32"


def step(run: loop.Loop, batch: object) -> None:
    """A step without its checks."""
    pictures = run.forward_backward(batch, run.dtype)[2]
    run.update(pictures, 0.0)


def reading(files: list[Path], width: int, height: int) -> float:
    """Seconds for a file: the mean over the first few, whether they can be used or not."""
    start = time.monotonic()
    for path in files[:TRIED]:
        try:
            read(path, width, height)
        except Unusable:
            pass
    return (time.monotonic() - start) / max(1, min(TRIED, len(files)))


def spoken(seconds: float) -> str:
    """A duration for people."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def sentence(parts: dict[str, float]) -> str:
    """The whole, its parts and when it will be over."""
    total = sum(parts.values())
    end = datetime.now() + timedelta(seconds=total)
    each = ", ".join(f"{name} {spoken(value)}" for name, value in parts.items() if value > 0)
    return f"about {spoken(total)} ({each}): until {end:%A %H:%M}"
