"""Short training runs for the tests, and the comparison of their checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tessera_train.data.pictures import Pictures
from tessera_train.training import loop
from tessera_train.training.autoencoder import Task
from tessera_train.training.config import Config


def train(pictures: Path, out: Path, steps: int, stop_after: int | None = None, config: str = "tiny") -> dict:
    """An AutoEncoder run of `steps`; `stop_after`: a signal comes during that step. Returns the checkpoint."""
    parser = argparse.ArgumentParser()
    loop.add_arguments(parser)
    args = parser.parse_args(["--out", str(out), "--config", config, "--steps", str(steps), "--precision", "f32"])
    device = loop.prepare(args)
    run = loop.Loop(Task(Config(config), Pictures.open(pictures), args.seed, device), args, device)
    if stop_after is not None:
        update = run.update

        def update_and_stop(count: int, progress: float) -> None:
            update(count, progress)
            if run.step == stop_after:
                run.stop_signal = 15

        run.update = update_and_stop
    code = run.run()
    assert code == (0 if stop_after is None else 128 + 15)
    return torch.load(out / loop.CHECKPOINT, weights_only=True)


def same(a: object, b: object) -> bool:
    """True if two checkpoints are equal, tensors bit for bit, except for elapsed time."""
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[key], b[key]) for key in a if key != "elapsed")
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
