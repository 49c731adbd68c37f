"""Training of all networks of a model within a number of seconds, on scenery that is drawn meanwhile.

Pictures are drawn by processes of their own, on the training device, and stay in its memory; so do their latents. The
AutoEncoder is trained first (the decoder alone, if the weights to start from have its encoder: their latents stay
valid), then the U-Net of every group, each for its share of the time. A step never waits for the device; the loss is read every
few seconds. torch.compile is tried in a process of its own while the AutoEncoder trains; a network is compiled if the gain
measured there, over the rest of its time, is larger than what compiling costs.

The weights are written every two minutes, in f16 and in pieces (`export.pieces`), so that a run that is stopped at any
moment leaves a whole model; `tessera_train join` puts the pieces together.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import torch
from torch import Tensor, nn

from ..data.labels import encoded
from ..data.resident import ResidentLatents, ResidentPictures, scaled
from ..data.transfer import to_device
from ..export import pieces
from ..export.export import MOST_ROWS, halves
from ..export.files import replace_file, safetensors
from ..export.model import Model
from ..export.weights import CHECKPOINT, exported, trained_section
from ..nets import spectral
from ..nets.arch import Label, autoencoder_identity
from ..scenery.dataset import pictures as drawn_pictures
from ..scenery.labels import SCHEMA, labels
from . import autoencoder, diffusion, loop
from .config import Config, names
from .diffusion import SAMPLES, save_samples

FIRST_SEED = 3_000_000_000
"""Of the scenes: far from those that files of pictures begin with."""
FEWEST = 4
"""Pictures that training begins with."""
MEASURED = 256
"""Pictures, at most, that are waited for to measure the latents' statistics."""
REPORT_SECONDS = 10.0
RESERVE = 0.05
"""Share of the time that is left for the last writing and the samples."""
AUTOENCODER_SHARE = {1: 0.4, 2: 0.35}
"""Of the time, by the version of the model; the U-Nets share the rest by `[fit] groups`."""
PICTURES_MEMORY, LATENTS_MEMORY = 0.2, 0.1
"""Shares of a CUDA device's free memory."""
HOST_BYTES = 1 << 29
"""Of pictures, and of latents, where the CPU trains."""
TRIAL_STEPS = 5
SAMPLE_STEPS = 18
HEAD = "| network | seconds | steps | pictures seen | a second | loss | compiled |\n" + "|---" * 7 + "|"


@dataclass
class Part:
    """A network in training, and its share of the time; `section` is its name in the metadata of an exported file."""

    section: str
    share: float
    loop: loop.Loop
    compiled: bool = False
    seconds: float = 0.0

    def weights(self) -> dict[str, Tensor]:
        """The EMA weights, under the names of an exported file."""
        prefix = self.loop.task.prefix
        return {prefix + name: x for name, x in spectral.folded(self.loop.ema).state_dict().items()}

    def load(self, weights: dict[str, Tensor]) -> None:
        """Takes over what `weights` has of equal name and shape."""
        own, prefix = self.weights(), self.loop.task.prefix
        found = {name: weights[name] for name, x in own.items() if name in weights and weights[name].shape == x.shape}
        both = {name.removeprefix(prefix): x.to(self.loop.device) for name, x in (own | found).items()}
        for net in (self.loop.model, self.loop.ema):
            spectral.load_plain(net, both)

    def row(self, loss: float) -> str:
        """A row of the table."""
        done = self.loop
        speed = done.seen / max(self.seconds, 1e-9)
        compiled = "yes" if self.compiled else "no"
        return f"| {self.section} | {self.seconds:.0f} | {done.step} | {done.seen} | {speed:.1f} | {loss:.4f} | {compiled} |"


class Drawing(threading.Thread):
    """Draws scenes and adds them to the pictures and, once there is an encoder, to the latents, until both are full or it is
    stopped."""

    def __init__(self, pictures: ResidentPictures, latents: ResidentLatents, device: torch.device, processes: int, bf16: bool) -> None:
        super().__init__(name="drawing", daemon=True)
        self.pictures, self.latents, self.device, self.bf16 = pictures, latents, device, bf16
        self.arch, self.processes = latents.arch, processes
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.settle: Callable[[], None] = self.stream.synchronize if self.stream else lambda: None
        self.encoder: nn.Module | None = None
        self.encoded = self.drawn = 0
        self.stopped = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.draw(str(self.device))
        except Exception as error:
            if self.drawn or self.device.type == "cpu":
                self.error = error  # raised where pictures are waited for
                return
            print(f"scenes can't be drawn on {self.device}, so the CPU draws: {error}", flush=True)
            self.processes = max(1, (os.cpu_count() or 1) - 2)
            try:
                self.draw("cpu")
            except Exception as second:
                self.error = second

    def draw(self, device: str) -> None:
        """Draws on `device`."""
        scenes = drawn_pictures(FIRST_SEED, 1 << 24, self.arch.width, self.arch.height, self.processes, device)
        try:
            for picture in scenes:
                if self.stopped.is_set():
                    break
                with torch.no_grad(), torch.cuda.stream(self.stream):
                    self.take(FIRST_SEED + self.drawn, torch.from_numpy(picture).to(self.device))
                self.drawn += 1
                while self.pictures.full and self.encoder is None and not self.stopped.is_set():
                    sleep(0.05)
                if self.pictures.full and self.latents.full:
                    break
        finally:
            scenes.close()

    def take(self, seed: int, picture: Tensor) -> None:
        """Adds one picture, and the latents that are still to be made."""
        keep = not self.pictures.full
        if keep:
            self.pictures.add(picture, self.settle)
        encoder = self.encoder
        while encoder is not None and self.encoded < self.pictures.training and not self.latents.full:
            self.encode(encoder, FIRST_SEED + self.encoded, self.pictures.rows[self.encoded])
            self.encoded += 1
        if encoder is not None and not keep and not self.latents.full:
            self.encode(encoder, seed, picture)

    def encode(self, encoder: nn.Module, seed: int, picture: Tensor) -> None:
        """Adds the latents of a picture and of its mirror image, which has the same labels."""
        x = scaled(picture)
        both = torch.cat([x, x.flip(3)]).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            moments = encoder(both)
        row = np.zeros((1, 0), np.int64)
        if self.arch.labels:
            row = encoded(self.arch.labels, [labels(seed, self.arch.width, self.arch.height)])
        self.latents.add(moments, to_device(torch.from_numpy(row), self.device), self.settle)

    def wait(self, held: ResidentPictures | ResidentLatents, count: int, until: float) -> None:
        """Waits until so many of `held` are there. OSError if drawing failed, or at the time `until`."""
        while held.training < count:
            if self.error is not None:
                raise OSError(f"drawing of scenes failed: {self.error}") from self.error
            if monotonic() > until:
                raise OSError(f"seconds: {held.training} of {count} pictures were drawn in time, must be all; give more seconds")
            sleep(0.02)


@dataclass(frozen=True)
class Measured:
    """Seconds of a step as it is and compiled, and of compiling."""

    plain: float
    compiled: float
    compiling: float

    def pays(self, left: float) -> bool:
        """True if compiling is worth its time in `left` seconds of training."""
        return left * (1 - self.compiled / self.plain) > self.compiling


class Trial:
    """torch.compile of every network in a process of its own, which may fail, hang or be ended; what it has compiled is in the
    compiler's cache then."""

    def __init__(self, args: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self.results: multiprocessing.Queue = context.Queue()
        self.found: dict[str, Measured] = {}
        self.process = context.Process(target=try_compiling, args=(args, self.results), daemon=True)
        self.process.start()

    def of(self, section: str) -> Measured | None:
        """What is known of a network by now."""
        try:
            while True:
                key, measured = self.results.get_nowait()
                self.found[key] = measured
        except queue.Empty:
            return self.found.get(section)

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.join()


def try_compiling(args: argparse.Namespace, results: multiprocessing.Queue) -> None:
    """The trial's process: on random pictures and latents, the U-Nets first, as the AutoEncoder is in training already."""
    run = Run(args, trial=True)
    run.pictures.rows.random_()
    for level in run.latents.levels:
        level.normal_()
    run.pictures.training, run.latents.training = len(run.pictures.rows), len(run.latents.levels[0])
    for part in (*run.parts[1:], run.parts[0]):
        plain = run.timed(part)
        begin = monotonic()
        for net in part.loop.task.parts_to_compile():
            net.compile()
        run.step(part, 0.5)
        run.settle()
        compiling = monotonic() - begin
        results.put((part.section, Measured(plain, run.timed(part), compiling)))


class Run:
    """Networks, optimisers and data of a sprint."""

    def __init__(self, args: argparse.Namespace, trial: bool = False) -> None:
        self.args, self.device = args, loop.choose_device(args.device)
        if args.threads:
            torch.set_num_threads(args.threads)
        torch.manual_seed(args.seed)
        cuda = self.device.type == "cuda"
        self.dtype = torch.bfloat16 if args.precision == "bf16" or (args.precision == "auto" and cuda) else torch.float32
        config = Config(args.config)
        self.arch = config.arch
        if self.arch.version >= 2:
            self.arch = replace(self.arch, labels=tuple(Label(name, tuple(values)) for name, values in SCHEMA))
        grids = self.arch.grids(self.arch.width, self.arch.height)
        room = torch.cuda.mem_get_info(self.device)[0] if cuda else 0
        rooms = [int(share * room) if cuda else HOST_BYTES for share in (PICTURES_MEMORY, LATENTS_MEMORY)]
        latent_bytes = 2 * sum(level.channels * h * w for level, (h, w) in zip(self.arch.levels, grids))
        counts = (FEWEST, 2 * FEWEST) if trial else (rooms[0] // (3 * self.arch.width * self.arch.height), rooms[1] // latent_bytes)
        self.pictures = ResidentPictures(counts[0], self.arch.width, self.arch.height, self.device)
        self.latents = ResidentLatents(self.arch, counts[1], self.device)
        torch.backends.cudnn.benchmark = True
        self.parts = self.networks(config, args.batch_scale or (8 if cuda else 1), whole=cuda)

    def networks(self, config: Config, scale: int, whole: bool) -> list[Part]:
        """The AutoEncoder and the U-Net of every group, with batches `scale` times the configuration's. `whole`: pictures are
        decoded whole, not in windows: a GPU has the memory, and wants few and large operators."""
        first = autoencoder.Task(config, self.pictures, self.args.seed, self.device)
        for i, phase in enumerate(first.phases if whole else ()):
            first.phases[i] = replace(phase, window=max(phase.width, phase.height), windows=1)
        groups = range(len(self.arch.groups))
        tasks = [first, *(diffusion.Task(config, [self.latents], first.model, self.args.seed, self.device, i) for i in groups)]
        for task in tasks:
            resize(task, scale)
        share = AUTOENCODER_SHARE[self.arch.version]
        weights = config.doc.get("fit", {}).get("groups") or [1.0] * len(groups)
        shares = [share, *((1 - share) * its / sum(weights) for its in weights)]
        sections = ["autoencoder", *(trained_section(self.arch, i) for i in groups)]
        options = argparse.Namespace(compile=False)
        return [Part(*its, loop.Loop(task, options, self.device)) for *its, task in zip(sections, shares, tasks)]

    def start(self, sources: list[Path]) -> bool:
        """Takes over weights of exported files and run folders, as far as names and shapes agree, the last source first. True if
        one is of this AutoEncoder: then its encoder stays as it is, and latents, with their statistics, stay valid."""
        weights: dict[str, Tensor] = {}
        first, keep = self.parts[0].loop.task, False
        for source in sources:
            if source.suffix == ".safetensors":
                tensors, arch, _ = exported(source)
                weights |= {name: x.float() for name, x in tensors.items()}
                keep = keep or autoencoder_identity(arch) == first.identity
                continue
            state = torch.load(source / CHECKPOINT, map_location="cpu", weights_only=True)
            part = next((part for part in self.parts if part.loop.task.identity == state["identity"]), None)
            if part is None:
                raise ValueError(f"from: {source} is of no network of this configuration")
            weights |= {part.loop.task.prefix + name: x for name, x in spectral.fold(state["ema"]).items()}
            keep = keep or part is self.parts[0]
        for part in self.parts:
            part.load(weights)
        if keep:
            first.recipe = replace(first.recipe, encoder_until=0.0, dropout=0.0)
            self.latents.take_statistics(weights)
        return keep

    def step(self, part: Part, progress: float) -> Tensor:
        """One step; the loss stays on the device."""
        its = part.loop
        batch = its.task.batch(its.step, progress)
        its.task.begin(progress)
        loss, _, count, _ = its.forward_backward(batch, self.dtype)
        its.update(count, progress)
        return loss

    def settle(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def timed(self, part: Part) -> float:
        """Seconds of one of several steps, after one that warms up."""
        self.step(part, 0.5)
        self.settle()
        begin = monotonic()
        for _ in range(TRIAL_STEPS):
            self.step(part, 0.5)
        self.settle()
        return (monotonic() - begin) / TRIAL_STEPS


def age() -> float:
    """Seconds since this process was started, where the system tells (Linux); else 0."""
    try:
        ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return 0.0


def resize(task: autoencoder.Task | diffusion.Task, scale: float) -> None:
    """Multiplies the batches of a task, to one picture at least."""
    if isinstance(task, diffusion.Task):
        task.recipe = replace(task.recipe, batch=max(1, int(scale * task.recipe.batch)))
    else:
        task.phases = [replace(phase, batch=max(1, int(scale * phase.batch))) for phase in task.phases]


class Writer:
    """Writes rounds of the present weights, in a thread of its own."""

    def __init__(self, run: Run, folder: Path, seconds: float) -> None:
        self.owner, self.folder, self.seconds = run, folder, seconds
        self.pool, self.pending = ThreadPoolExecutor(1), None
        self.round, self.last = 0, monotonic()

    def due(self) -> bool:
        """True if it is time for a round."""
        return monotonic() - self.last > self.seconds

    def write(self) -> Future:
        """Begins a round, after the one before."""
        if self.pending is not None:
            self.pending.result()
        run, latents = self.owner, self.owner.latents
        tensors = {name: x for part in run.parts for name, x in part.weights().items()}
        for i, (mean, std) in enumerate(zip(latents.statistics.mean, latents.statistics.std)):
            tensors |= {f"latents.{i}.mean": mean, f"latents.{i}.std": std}
        if run.arch.labels:
            tensors["labels.rows"] = latents.labels[: latents.training : 2][:MOST_ROWS]
        arrays = {name: x.to(torch.float16).cpu() for name, x in tensors.items()}
        trained = {part.section: {"step": part.loop.step, "seen": part.loop.seen} for part in run.parts}
        metadata = {"format": "tessera", "arch": run.arch.to_json(), "trained": json.dumps(trained)}
        self.round, self.last = self.round + 1, monotonic()
        self.pending = self.pool.submit(lambda n: pieces.write(self.folder, n, safetensors(halves(arrays), metadata)), self.round)
        return self.pending


class Sprint:
    """A run against the clock."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.begin = args, monotonic() - age()
        self.end = self.begin + args.seconds * (1 - RESERVE)
        self.stopped = 0
        self.run = Run(args)
        self.keeps_encoder = self.run.start(args.start)
        processes = args.processes or max(1, min(8, (os.cpu_count() or 1) - 2))
        bf16 = self.run.dtype == torch.bfloat16
        self.drawing = Drawing(self.run.pictures, self.run.latents, self.run.device, processes, bf16)
        self.writer = Writer(self.run, args.out, args.save_seconds)
        self.trial = Trial(args) if args.trial else None

    def stop(self, number: int, _frame: object) -> None:
        """SIGINT and SIGTERM: the step is finished, the weights are written."""
        self.stopped = number

    def train(self) -> int:
        """All parts one after the other; returns the exit code."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.stop)
        run = self.run
        if self.keeps_encoder:
            self.encode()
        self.drawing.start()
        print(HEAD, flush=True)
        try:
            for number, (part, done) in enumerate(zip(run.parts, itertools.accumulate(part.share for part in run.parts))):
                until = self.begin + done * (self.end - self.begin)
                if number == 0:
                    self.drawing.wait(run.pictures, FEWEST, until)
                else:
                    self.prepare_latents(until)
                self.part(part, until)
        finally:
            self.drawing.stopped.set()
            if self.trial is not None:
                self.trial.end()
        self.writer.write().result()
        print(f"{self.drawing.drawn} scenes drawn, {run.pictures.training} kept, {run.latents.training} latents", flush=True)
        if self.args.samples:
            self.sample()
        return 128 + self.stopped if self.stopped else 0

    def encode(self) -> None:
        """Gives the present encoder to the drawing thread."""
        encoder = spectral.folded(self.run.parts[0].loop.ema).encoder.eval()
        self.run.settle()
        self.drawing.encoder = encoder

    def prepare_latents(self, until: float) -> None:
        """Latents for a U-Net, with their statistics."""
        if self.drawing.encoder is None:
            self.encode()
        self.drawing.wait(self.run.latents, 2 * min(MEASURED, self.run.pictures.training), until)
        if not self.run.latents.measured:
            self.run.latents.measure()

    def part(self, part: Part, until: float) -> None:
        """Trains a part until that time, or until it is stopped."""
        begin = reported = monotonic()
        total, steps, good = torch.zeros((), device=self.run.device), 0, None
        while (now := monotonic()) < until and not self.stopped:
            due = self.writer.due()
            if self.trial is not None and not part.compiled and (measured := self.trial.of(part.section)):
                part.compiled = measured.pays(until - now)
                for net in part.loop.task.parts_to_compile() if part.compiled else ():
                    net.compile()
            try:
                total += self.run.step(part, min(1.0, (now - begin) / (until - begin)))
            except torch.cuda.OutOfMemoryError:
                print(f"{part.section}: the device's memory is exhausted; batches are halved", flush=True)
                resize(part.loop.task, 0.5)
                part.loop.model.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
                continue
            steps += 1
            if now - reported > REPORT_SECONDS or due:
                loss = float(total) / steps
                part.seconds = monotonic() - begin
                good = self.report(part, loss, good)
                reported, steps = now, 0
                total.zero_()
                if due:
                    self.writer.write()
        self.run.settle()
        part.seconds = monotonic() - begin
        if steps:
            self.report(part, float(total) / steps, good)

    def report(self, part: Part, loss: float, good: list | None) -> list:
        """A row of the table. A loss that is no number takes the weights back to those of the report before, `good`."""
        print(part.row(loss), flush=True)
        its = part.loop
        nets = (its.model, its.ema)
        if loss == loss and abs(loss) != float("inf"):
            return [{name: x.clone() for name, x in net.state_dict().items()} for net in nets]
        print(f"{part.section}: the loss is {loss}; training goes on from the weights of the report before", flush=True)
        for net, state in zip(nets, good or ()):
            net.load_state_dict(state)
        its.optimizers = its.task.recipe.optimizers(its.model)
        return good

    def sample(self) -> None:
        """A PNG of samples of the weights that were written."""
        _, data = pieces.joined(self.args.out)
        file = self.args.samples.with_suffix(".safetensors")
        try:
            replace_file(file, lambda out: out.write(data))
            model = Model.open(file, self.run.device)
        finally:
            file.unlink(missing_ok=True)
        with torch.no_grad():
            z = model.sample(SAMPLES, SAMPLE_STEPS, self.args.seed, model.draw_labels(SAMPLES, self.args.seed))
            save_samples(self.args.samples, model.autoencoder.decoder, z)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--config", default="scenery", help=f"{', '.join(names())} or a TOML file (default: scenery)")
    parser.add_argument("--seconds", type=float, required=True, help="of everything, from the start of the command to its end")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the weights, in pieces")
    parser.add_argument(
        "--from", type=Path, nargs="+", default=[], dest="start", metavar="WEIGHTS",
        help="weights to start from, as far as names and shapes agree: exported files and run folders, the last one counts most",
    )  # fmt: skip
    parser.add_argument("--samples", type=Path, metavar="PNG", help="samples of the weights at the end")
    parser.add_argument("--save-seconds", type=float, default=120.0, help="between rounds of weights (default: 120)")
    parser.add_argument("--batch-scale", type=int, help="times the configuration's batches (default: 8 on CUDA, else 1)")
    parser.add_argument("--processes", type=int, help="that draw (default: one per core but two, at most 8)")
    parser.add_argument("--trial", action="store_true", help="try torch.compile, and use it where it pays")
    parser.add_argument("--precision", choices=("auto", "f32", "bf16"), default="auto", help="auto is bf16 on CUDA, else f32")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: all cores)")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    """The command."""
    for name in ("seconds", "save_seconds", "batch_scale", "processes", "threads"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name} is {value}, must be above 0")
    return Sprint(args).train()
