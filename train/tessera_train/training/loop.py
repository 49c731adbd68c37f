"""The training loop that AutoEncoder and U-Net share: budget, schedule, EMA, checkpoints, exact resume, log.

A step's random numbers depend on the seed and the step's number only, and everything else that a step depends on is
in the checkpoint; so a run that was stopped and resumed computes what it would have computed. (With a budget in
minutes the learning rate follows the clock, so only runs with a budget in steps repeat each other.)
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from ..data import provenance
from ..data.transfer import to_host
from ..export.files import replace_file
from ..export.weights import CHECKPOINT, exported_alike, read_ema
from ..nets import cost, spectral
from ..nets.arch import Arch
from . import muon, parallel, precision
from .adversarial import Adversary
from .config import names
from .weighting import Weighting


@dataclass(frozen=True)
class Recipe:
    """Settings that both sections of a configuration have. Half-lives count training pictures; `dropout`: the highest
    rate of `dropout.rates`; `optimizer`: "adam" or "muon"."""

    learning_rate: float = 1e-3
    warm_up: int = 100
    decay_from: float = 0.5
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    clip: float = 1.0
    ema_half_life: float = 500_000.0
    ema_ramp: float = 0.05
    spectral_norm: bool = False
    dropout: float = 0.0
    dropout_over: str = "resolution"
    optimizer: str = "adam"

    def optimizers(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """AdamW; or Muon for the weights inside the network and AdamW for the others."""
        matrices, others = [], list(model.parameters())
        if self.optimizer == "muon":
            matrices, others = muon.split(model)
        elif self.optimizer != "adam":
            raise ValueError(f'optimizer is "{self.optimizer}", must be "adam" or "muon"')
        fused = all(p.is_cuda for p in others)
        adam = torch.optim.AdamW(others, self.learning_rate, (self.beta1, self.beta2), weight_decay=self.weight_decay, fused=fused)
        rest = [muon.Muon(matrices, self.learning_rate, weight_decay=self.weight_decay)] if matrices else []
        return [adam, *rest]

    def rate(self, step: int, progress: float) -> float:
        """Learning rate: linear warm-up over steps, constant, then half a cosine to 0 from `decay_from` of the budget."""
        late = max(0.0, min(1.0, (progress - self.decay_from) / (1 - self.decay_from)))
        return self.learning_rate * min(1.0, (step + 1) / self.warm_up) * (1 + math.cos(math.pi * late)) / 2


class Task(Protocol):
    """What is trained."""

    model: nn.Module
    recipe: Recipe
    adversary: Adversary | None
    weighting: Weighting | None
    identity: str
    """Text that must be the same when a run is resumed."""
    prefix: str
    """The prefix of the model's parameters in an exported file."""

    def batch(self, step: int, progress: float) -> Any:
        """The data of a step, on the CPU; a function of its arguments (on accelerators made one step ahead, in a thread)."""

    def parts_to_compile(self) -> list[nn.Module]:
        """Parts of the model that are called as they are."""

    def begin(self, progress: float) -> None:
        """Called before a step's loss: sets what changes in the course of the training."""

    def loss(self, batch: Any) -> tuple[Tensor, int, dict[str, Tensor]]:
        """Loss, number of pictures, numbers for the log, of a batch that is moved to the model's device; may draw from torch's
        generator. The host does not wait for the device."""

    def evaluate(self, ema: nn.Module, picture: Path) -> dict[str, float]:
        """Writes a sample grid to `picture` and returns numbers on held-out data."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that both trainings have."""
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--from", type=Path, dest="start", help="weights to start from: a run folder or an exported file")
    start.add_argument("--adapt", type=Path, help="an exported file of another model, to start from what it has of equal name and shape")
    parser.add_argument("--config", default="scenery", help=f"{', '.join(names())} or a TOML file (default: scenery)")
    add_common_arguments(parser, "run folder; a checkpoint in it is resumed")


def add_common_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """Those of them that `fit` has too; `out` explains --out."""
    parser.add_argument("--out", type=Path, required=True, help=out)
    parser.add_argument("--minutes", type=float, help="budget in minutes of training steps, over all resumes")
    parser.add_argument("--steps", type=int, help="budget in steps")
    parser.add_argument("--save-minutes", type=float, default=3.0, help="between checkpoints (default: 3)")
    parser.add_argument("--sample-minutes", type=float, default=5.0, help="between sample grids (default: 5)")
    parser.add_argument("--precision", choices=("auto", "f32", "bf16"), default="auto", help="auto is the faster one of both by measurement (default: auto)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: all cores)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the networks by torch.compile")
    parser.add_argument("--tensorboard", action="store_true", help="log for TensorBoard too, into the run folder")


def prepare(args: argparse.Namespace) -> torch.device:
    """Applies the arguments that hold for the whole process; to be called before networks are made."""
    if args.minutes is None and args.steps is None:
        raise ValueError("a budget is needed: --minutes or --steps")
    for name in ("minutes", "steps", "threads"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name} is {value}, must be above 0")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    return parallel.begin(choose_device(args.device))


def describe(arch: Arch) -> None:
    """Prints what is going to be trained, once."""
    if parallel.rank() == 0:
        print(cost.describe(arch), flush=True)


def choose_device(wanted: str) -> torch.device:
    """`wanted`, or for "auto" the fastest kind there is: CUDA (and ROCm), then MPS, then the CPU."""
    if wanted != "auto":
        return torch.device(wanted)
    kinds = (("cuda", torch.cuda.is_available), ("mps", torch.backends.mps.is_available))
    return torch.device(next((kind for kind, there in kinds if there()), "cpu"))


def board(out: Path) -> Any:
    """A TensorBoard log in the run folder `out`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("tensorboard: is not installed; pip install tensorboard") from error
    return SummaryWriter(str(out / "tensorboard"))


def used(out: Path) -> tuple[int, float]:
    """Steps and seconds that the checkpoint of a run folder stands for; (0, 0) without one."""
    path = out / CHECKPOINT
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return state["step"], state["elapsed"]


class Loop:
    """One run: a task, its optimiser and EMA, and where it stands."""

    def __init__(self, task: Task, args: argparse.Namespace, device: torch.device) -> None:
        self.task, self.args, self.device = task, args, device
        self.model = task.model.to(device, memory_format=torch.channels_last).train()
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizers = task.recipe.optimizers(self.model)
        self.first = parallel.rank() == 0
        self.step = self.seen = 0
        self.elapsed = 0.0
        self.dtype: torch.dtype | None = None
        self.stop_signal = 0
        self.bar: tqdm | None = None
        self.board: Any = None
        self.weighting = task.weighting
        for net in task.parts_to_compile() if args.compile else ():
            net.compile()

    # -- budget ------------------------------------------------------------------------------------------------

    def progress(self, step: int) -> float:
        """Share of the budget used before `step`, in [0, 1]."""
        by_time = self.elapsed / (self.args.minutes * 60) if self.args.minutes else 0.0
        by_steps = step / self.args.steps if self.args.steps else 0.0
        return min(1.0, max(by_time, by_steps))

    # -- checkpoint --------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, bool]:
        """What a checkpoint must also agree on."""
        recipe = self.task.recipe
        return {
            "spectral_norm": recipe.spectral_norm,
            "adversary": self.task.adversary is not None,
            "muon": recipe.optimizer == "muon",
        }

    def save(self) -> None:
        """Replaces the run's checkpoint; OSError, and the old one stays, if the disk is full."""
        if not self.first:
            return
        path = self.args.out / CHECKPOINT
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seen": self.seen,
            "elapsed": self.elapsed,
            "precision": str(self.dtype).removeprefix("torch."),
            "seed": self.args.seed,
            "identity": self.task.identity,
            "parts": self.parts(),
            "adversary": self.task.adversary and self.task.adversary.state(),
            "weighting": self.weighting.mean if self.weighting is not None else None,
        }
        try:
            replace_file(path, lambda file: torch.save(state, file))
        except (OSError, RuntimeError) as error:  # torch turns a failed write into a RuntimeError
            kept = "the one from before is kept" if path.exists() else "there is none from before"
            raise OSError(f"{path}: the checkpoint of step {self.step} can't be written, {kept}: {error}") from error

    def resume(self) -> None:
        """Continues from the run's checkpoint, if there is one; else starts from the weights of `--from` or `--adapt`, if one is given."""
        path = self.args.out / CHECKPOINT
        if not path.exists():
            if self.args.start:
                weights, _ = read_ema(self.args.start, self.task.identity, self.device)
                for net in (self.model, self.ema):
                    spectral.load_plain(net, weights)
                self.say(f"weights of {self.args.start}")
            if self.args.adapt:
                found = exported_alike(self.args.adapt, spectral.folded(self.ema), self.task.prefix)
                for net in (self.model, self.ema):
                    spectral.load_plain(net, spectral.fold(net.state_dict()) | found)
                self.say(f"{sum(x.numel() for x in found.values()) / 1e6:.2f} M numbers of {self.args.adapt}")
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if (state["identity"], state["seed"]) != (self.task.identity, self.args.seed):
            raise SystemExit(f"{path} is of another model or seed; choose another --out")
        for name, value in self.parts().items():
            if state.get("parts", {}).get(name, False) != value:
                raise SystemExit(f"{path} was trained with {name} {not value}, the configuration says {value}; choose another --out")
        if self.task.adversary is not None:
            self.task.adversary.load_state(state["adversary"])
        if self.weighting is not None and state.get("weighting") is not None:
            self.weighting.mean = state["weighting"]
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for optimizer, its in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(its)
        self.step, self.seen, self.elapsed = state["step"], state["seen"], state["elapsed"]
        self.dtype = getattr(torch, state["precision"])
        self.say(f"resumed at step {self.step}, {self.elapsed / 60:.1f} minutes")

    # -- output ------------------------------------------------------------------------------------------------

    def say(self, line: str) -> None:
        """A line for people."""
        if not self.first:
            return
        if self.bar is not None:
            self.bar.write(line)
        else:
            print(line, flush=True)

    def log(self, **values: float) -> None:
        """A line for programs, in log.jsonl."""
        if not self.first:
            return
        values = {"step": self.step, "seen": self.seen, "elapsed": round(self.elapsed, 1), **values}
        with open(self.args.out / "log.jsonl", "a") as file:
            file.write(json.dumps(values) + "\n")
        for key, value in values.items() if self.board is not None else ():
            self.board.add_scalar(key, value, self.step)

    def report(self, sums: dict[str, float], steps: int, pictures: int, seconds: float) -> None:
        """Means over the last `steps`, to the log and, away from a terminal, as a line with the time left."""
        means = {key: value / steps for key, value in sums.items()}
        speed = pictures / seconds
        rate = self.optimizers[0].param_groups[0]["lr"]
        self.log(**{key: round(value, 6) for key, value in means.items()}, rate=rate, images_per_second=round(speed, 3))
        text = " ".join(f"{key} {value:.4f}" for key, value in means.items())
        if self.bar is not None:
            self.bar.set_postfix_str(f"step {self.step} {speed:.2f} images/s {text}")
        else:
            done = self.progress(self.step)
            left = self.elapsed * (1 / max(done, 1e-6) - 1) / 60
            self.say(f"step {self.step} {100 * done:.1f} % {speed:.2f} images/s, {left:.0f} min left, {text}")

    # -- training ----------------------------------------------------------------------------------------------

    def forward_backward(self, batch: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor, int, dict[str, Tensor]]:
        """Loss, norm of the gradient (clipped afterwards), number of pictures, numbers for the log; loss and numbers are
        of this process's part of the batch. The adversary, when it is at work, has its gradients too."""
        adversary = self.task.adversary
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss, pictures, numbers = self.task.loss(batch)
        loss.backward()
        parallel.mean_gradients(self.model.parameters())
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.task.recipe.clip)
        if adversary is not None and adversary.on:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                numbers["adversary"] = adversary.backward()
        return loss.detach(), norm, pictures * parallel.size(), numbers

    def update(self, pictures: int, progress: float) -> None:
        """One step of the optimiser, of the adversary's and of the EMA."""
        recipe, adversary = self.task.recipe, self.task.adversary
        rate = recipe.rate(self.step, progress)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        if adversary is not None and adversary.on:
            adversary.step(rate)
        self.step, self.seen = self.step + 1, self.seen + pictures
        half_life = min(recipe.ema_half_life, recipe.ema_ramp * self.seen)
        share = 1 - 0.5 ** (pictures / half_life)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), share)

    def evaluate(self) -> None:
        """Sample grid and held-out numbers of the EMA weights."""
        if not self.first:
            return
        torch.manual_seed(self.args.seed)
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            grid = self.args.out / f"sample-{self.step:07}.png"
            numbers = self.task.evaluate(spectral.folded(self.ema), grid)
        if self.board is not None and grid.exists():
            self.board.add_image("samples", np.asarray(Image.open(grid)), self.step, dataformats="HWC")
        self.log(**{key: round(value, 4) for key, value in numbers.items()})
        self.say(f"step {self.step} held out: " + " ".join(f"{k} {v:.3f}" for k, v in numbers.items()))

    def on_signal(self, number: int, _frame: object) -> None:
        """SIGINT and SIGTERM: finish the step, save, leave. A second SIGINT does not wait."""
        if self.stop_signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop_signal = number

    def choose_precision(self) -> str | None:
        """Sets `dtype`, by trial steps that leave no trace; returns a line that says why, except for a precision that was given."""
        first, before = self.task.batch(0, 0.0), copy.deepcopy(self.model.state_dict())
        self.task.begin(0.0)
        self.dtype, why = precision.choose(self.args.precision, self.device, lambda dtype: self.forward_backward(first, dtype))
        self.model.load_state_dict(before)  # spectral norm moves its vectors whenever it is used
        bf16, _ = parallel.agreed(float(self.dtype == torch.bfloat16), 0, self.device)
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        return why

    def run(self) -> int:
        """Trains until the budget is used, a signal comes or the loss is no number; returns the exit code. Does nothing
        where the budget was used before."""
        self.args.out.mkdir(parents=True, exist_ok=True)
        self.resume()
        if parallel.size() > 1:
            self.say(f"{parallel.size()} processes")
        if self.progress(self.step) >= 1:
            return 0
        if self.first and provenance.read(self.args.out) is None:
            arguments = {key: str(value) for key, value in vars(self.args).items()}
            provenance.write(self.args.out, {"arguments": arguments, "settings": dataclasses.asdict(self.task.recipe)})
        if self.first and self.args.tensorboard:
            self.board = board(self.args.out)
        if self.dtype is None and (why := self.choose_precision()):
            self.say(why)
        if self.first and sys.stderr.isatty():
            total = self.args.minutes * 60 if self.args.minutes else self.args.steps
            self.bar = tqdm(total=round(total), unit="s" if self.args.minutes else "step", dynamic_ncols=True)
        old = {number: signal.signal(number, self.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        pool = ThreadPoolExecutor(1)
        try:
            return self.train(self.batches(pool))
        finally:
            pool.shutdown(cancel_futures=True)
            for number, handler in old.items():
                signal.signal(number, handler)
            if self.bar is not None:
                self.bar.close()
            if self.board is not None:
                self.board.close()

    def batches(self, pool: ThreadPoolExecutor) -> Iterator[Any]:
        """The batch of every step from the present one on. For an accelerator the next one is made meanwhile; on a CPU
        that would take a core from the step, whose threads wait for each other many times."""
        if self.device.type == "cpu":
            while True:
                yield self.task.batch(self.step, self.progress(self.step))
        following = pool.submit(self.task.batch, self.step, self.progress(self.step))
        while True:
            batch = following.result()
            following = pool.submit(self.task.batch, self.step + 1, self.progress(self.step + 1))
            yield batch

    def train(self, batches: Iterator[Any]) -> int:
        """The loop itself."""
        clock = time.monotonic() - self.elapsed
        saved = sampled = reported = self.elapsed
        sums: dict[str, float] = {}
        steps = pictures_since = stop = 0
        while (progress := self.progress(self.step)) < 1 and not stop:
            batch = next(batches)
            torch.manual_seed((self.args.seed << 32) + self.step)
            self.task.begin(progress)
            loss, norm, pictures, numbers = self.forward_backward(batch, self.dtype)
            numbers = parallel.mean_numbers(to_host({"loss": loss, "gradient": norm, **numbers}), self.device)
            if bad := {key: value for key, value in numbers.items() if not math.isfinite(value)}:
                said = ", ".join(f"{key} {value}" for key, value in bad.items())
                kept = f"{CHECKPOINT} is from before" if (self.args.out / CHECKPOINT).exists() else "there is no checkpoint yet"
                self.say(f"stopped at step {self.step}: {said}; {kept}")
                return 1
            self.update(pictures, progress)
            self.elapsed, stop = parallel.agreed(time.monotonic() - clock, self.stop_signal, self.device)
            if self.bar is not None:
                self.bar.update(round(self.elapsed if self.args.minutes else self.step) - self.bar.n)
            steps, pictures_since = steps + 1, pictures_since + pictures
            for key, value in numbers.items():
                sums[key] = sums.get(key, 0.0) + value
            if self.elapsed - reported > 20:
                self.report(sums, steps, pictures_since, self.elapsed - reported)
                reported, sums, steps, pictures_since = self.elapsed, {}, 0, 0
            if self.elapsed - sampled > self.args.sample_minutes * 60:
                self.evaluate()
                self.elapsed, _ = parallel.agreed(time.monotonic() - clock, 0, self.device)
                sampled = reported = self.elapsed
                sums, steps, pictures_since = {}, 0, 0
            if self.elapsed - saved > self.args.save_minutes * 60:
                self.save()
                saved = self.elapsed
        self.save()
        if stop:
            self.say(f"stopped by {signal.Signals(stop).name} at step {self.step}; the same command resumes")
            return 128 + stop
        self.evaluate()
        # Processes leave together, and none while process 0 still draws its samples.
        parallel.agreed(self.elapsed, 0, self.device)
        return 0
