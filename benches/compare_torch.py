"""Times this project and PyTorch (channels_last) side by side, in turns: on the CPU, in f32 and bf16, or on the GPU, in f32 and f16.

    python benches/compare_torch.py [--gpu] [--compile [SECONDS]] [--model FILE...] [--config NAME...] [--size WxH] [--steps N]
        [--threads N] [--rounds N] [--precision f32 bf16 f16] [--networks] [--variants] [--ceilings] [--only REGEX] [--median]
        [--cpu-time] [--seconds N] [--program NETS]

Operators one by one, then a U-Net step, a decode (whole, not tiled) and all of `generate` (that many U-Net steps, then the
decode; on this project's side with sampler and tiles; its networks with upload and download) of the same weights: checkpoints', or random ones of
the training package's configurations. GFLOP are counted from the networks' convolutions and products; norms and copies are
counted in bytes read and written. The ceiling is the best of all sides' large product, or copy, in the same run; with
`--ceilings` a larger product and a larger copy by PyTorch alone come first.

bf16 and f16 are compared with PyTorch's bf16, in networks by autocast (tried in a process of its own first on a CPU: some
builds stop at instructions that a machine half has). With `--compile` PyTorch's work is timed by `torch.compile` too, and the
better of its two times counts in p/t; what takes longer to compile than so many SECONDS is left out. With `--gpu` this project
computes on its best Vulkan, Metal or DX12 device and PyTorch on CUDA (or `--torch-device`), both in runs of 16 for a single
operator; two more rows are the cost of a submission and of a dispatch, and a column has the dispatches of a network. With
`--variants` single convolutions are also timed by each variant that there is, in f32.

Both get the same number of threads. Rounds alternate between the two, so that other load on the machine meets both; the best
time of all rounds counts, and with --median the median. On a machine that has other work, `--threads 1 --cpu-time` compares
the seconds that were spent on a core. With `--seconds` no row is begun later than that; with `--program` nothing is built. The
output is a table in Markdown, of which each row is printed when it is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "train"))
from tessera_train.nets.arch import Arch, norm_groups  # noqa: E402
from tessera_train.export.files import save_safetensors  # noqa: E402
from tessera_train.export.model import Model  # noqa: E402
from tessera_train.training.config import Config  # noqa: E402
from tessera_train.nets.cost import gflop  # noqa: E402
from tessera_train.nets.decoder import Decoder, GivenNoise  # noqa: E402
from tessera_train.nets.encoder import Encoder  # noqa: E402
from tessera_train.nets.unet import Context, UNet  # noqa: E402

# (input channels, output channels, kernel, rows, columns): layers that may see a window of their grid, then such that see all of it.
CONVOLUTIONS = [
    (64, 64, 3, 256, 256),
    (48, 48, 3, 64, 128),
    (96, 96, 3, 64, 128),
    (256, 256, 3, 64, 64),
    (192, 192, 3, 16, 32),
    (256, 256, 3, 4, 8),
    (32, 32, 3, 512, 512),
    (24, 24, 3, 512, 1024),
    (16, 16, 3, 1024, 1024),
    (128, 96, 1, 64, 128),
    (8, 96, 1, 64, 128),
    (32, 3, 1, 512, 512),
    (512, 512, 1, 1, 1),
]
WHOLE = [(128, 128, 3, 32, 64), (160, 160, 3, 16, 32), (160, 160, 3, 8, 16)]
# On a GPU: of the default model and of pdm-2k at their own sizes.
GPU_CONVOLUTIONS = [
    (96, 96, 3, 128, 256),
    (48, 48, 3, 256, 512),
    (24, 24, 3, 512, 1024),
    (512, 512, 3, 64, 64),
    (96, 96, 3, 512, 512),
    (192, 384, 1, 64, 64),
]
GPU_WHOLE = [*WHOLE, (160, 160, 1, 16, 32), (192, 192, 3, 128, 128), (384, 384, 3, 64, 64), (768, 768, 3, 16, 16)]
VARIANTS = ["winograd", "subgroup", "tiled"]
# Runs of an operator before its result is waited for, on a GPU.
RUNS = 16
# (channels, rows, columns)
NORMS = [(128, 64, 128), (160, 16, 32)]
ATTENTIONS = [(160, 16, 32), (160, 32, 64)]
GEMM = (2048, 2048, 1, 32, 64)
GPU_GEMM = (4096, 4096, 1, 64, 64)
COPY = 256
GPU_COPY = 96
# Of PyTorch alone, with --ceilings: rows and columns of the factors of a product, MiB of a copy.
CUDA_CEILINGS = 8192, 4096
CEILINGS = 1024, 256
# Dispatches of a run, to time one.
DISPATCHES = 1024


class Tessera:
    """The Rust side: a process that times what it is told."""

    def __init__(self, program: Path, model: Path, threads: int, flags: list[str]) -> None:
        env = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
        env.pop("LD_PRELOAD", None)  # what helps PyTorch is not for this side
        self.dispatches: dict[str, int] = {}
        self.process = subprocess.Popen(
            [program, model, *flags], cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def time(self, command: str) -> list[float]:
        """Seconds of every repetition."""
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                answer = json.loads(line)
                if answer["lack"]:
                    print(f"{command}: {answer['lack']}", file=sys.stderr)
                if answer["dispatches"]:
                    self.dispatches[command] = answer["dispatches"]
                return answer["seconds"]
        raise SystemExit("the benchmark ended early")


def build() -> Path:
    """The program `nets`, built by cargo."""
    command = ["cargo", "bench", "--bench", "nets", "--no-run", "--message-format=json"]
    out = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    messages = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return Path(next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "nets"))


def compiled(f: Callable, call: Callable[[Callable], object], seconds: float) -> Callable | None:
    """`f` by torch.compile, after `call` has called it once; None where that fails or takes longer than `seconds`."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"takes longer than {seconds:.0f} s")

    fast, before = torch.compile(f), signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds if math.isfinite(seconds) else 0)
    try:
        call(fast)
    except Exception as error:  # the compiler wraps whatever ends it
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(f"torch.compile is left out: {reason[0]}", file=sys.stderr)
        torch._dynamo.reset()
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return fast


def torch_time(work, cpu_time: bool, device: str) -> list[float]:
    """Seconds of `work`, of several batches that are long enough for the clocks, after two that warm caches."""
    clock = time.process_time if cpu_time else time.perf_counter
    settle = torch.cuda.synchronize if device == "cuda" else lambda: None
    work()
    settle()
    begin = time.perf_counter()
    work()
    settle()
    batch = math.ceil(0.02 / (time.perf_counter() - begin))
    start, seconds = time.perf_counter(), []
    while time.perf_counter() - start < 0.3 or len(seconds) < 3:
        begin = clock()
        for _ in range(batch):
            work()
        settle()
        seconds.append((clock() - begin) / batch)
    return seconds


def has_bf16() -> bool:
    """Whether PyTorch's bf16 convolutions work here."""
    trial = "import torch; torch.nn.Conv2d(64, 64, 3).bfloat16()(torch.ones(1, 64, 9, 9).bfloat16())"
    return subprocess.run([sys.executable, "-c", trial], stderr=subprocess.DEVNULL).returncode == 0


def torch_conv(place: dict, cin: int, cout: int, kernel: int, rows: int, columns: int):
    layer = nn.Conv2d(cin, cout, kernel, padding=kernel // 2).to(**place, memory_format=torch.channels_last)
    x = torch.randn(1, cin, rows, columns).to(**place, memory_format=torch.channels_last)
    return lambda: layer(x)


def torch_norm(place: dict, channels: int, rows: int, columns: int):
    layer = nn.GroupNorm(norm_groups(channels), channels).to(**place)
    x = torch.randn(1, channels, rows, columns).to(**place, memory_format=torch.channels_last)
    return lambda: F.silu(layer(x))


def torch_attention(place: dict, channels: int, rows: int, columns: int):
    x = torch.randn(1, 1, rows * columns, channels).to(**place)
    return lambda: F.scaled_dot_product_attention(x, x, x)


def torch_copy(device: str, mebibytes: int):
    source = torch.ones(mebibytes << 18, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def torch_product(place: dict, side: int):
    a, b = (torch.randn(side, side, **place) for _ in range(2))
    return lambda: a @ b


def torch_dispatches(device: str, count: int):
    """`count` kernels of four values, one after the other, and the way back to the host."""
    first = torch.full((4,), 0.5, device=device)

    def run():
        x = first
        for _ in range(count):
            x = F.silu(x)
        x.cpu()

    return run


def random_model(config: str, path: Path) -> None:
    """Writes a checkpoint of random weights in f16, also where training starts from zero."""
    arch = Config(config).arch
    torch.manual_seed(1)
    arrays = {}
    unets = [(arch.prefix(group), UNet(arch, group)) for group in range(len(arch.groups))]
    for prefix, net in (("encoder.", Encoder(arch)), ("decoder.", Decoder(arch)), *unets):
        for name, value in net.state_dict().items():
            if name.endswith("weight") and value.dim() == 4 and not value.any():
                nn.init.kaiming_normal_(value, nonlinearity="linear")
            arrays[f"{prefix}{name}"] = value.half().numpy()
    if arch.labels:
        arrays["labels.rows"] = np.zeros((1, len(arch.labels)), np.uint8)
    for i, level in enumerate(arch.levels):
        arrays |= {f"latents.{i}.{name}": np.ones(level.channels, np.float16) for name in ("mean", "std")}
    save_safetensors(path, arrays, {"format": "tessera", "arch": arch.to_json()})


def latents(arch: Arch, width: int, height: int) -> list[Tensor]:
    """Random ones for a picture of that size."""
    grids = zip(arch.levels, arch.grids(width, height))
    return [torch.randn(1, lv.channels, *grid).to(memory_format=torch.channels_last) for lv, grid in grids]


@dataclass
class Case:
    """A row of the table."""

    name: str
    command: str | None
    """What the Rust side is told; None: there is nothing to time there."""
    count: float | None
    """Operations, or bytes, in 10^9 of which a second `unit` counts."""
    unit: str
    work: Callable[[], object]
    """PyTorch's."""
    runs: int = 1
    """How often PyTorch does its work before the result is waited for."""
    parts: int = 1
    """By how many its seconds are divided."""
    ceiling: bool = False
    """Whether others are measured by it."""
    fast: Callable[[float], Callable | None] | None = None
    """PyTorch's work by torch.compile within so many seconds, if not what is to be had of `work`."""

    def peers(self, compiling: float | None) -> list[Callable | None]:
        """PyTorch's work as it is and, with seconds for it, by torch.compile."""
        if compiling is None:
            return [self.work]
        return [self.work, self.fast(compiling) if self.fast else compiled(self.work, lambda f: f(), compiling)]


def ceilings(place: dict) -> Iterator[Case]:
    """PyTorch's large product and copy."""
    side, mebibytes = CUDA_CEILINGS if place["device"] == "cuda" else CEILINGS
    yield Case(f"product {side} {side} {side}", None, 2 * side**3, "GFLOP/s", torch_product(place, side), ceiling=True)
    yield Case(f"large copy {mebibytes}", None, 2 * mebibytes << 20, "GB/s", torch_copy(place["device"], mebibytes), ceiling=True)


def launches(device: str) -> Iterator[Case]:
    """A submission of nothing but the way back to the host, and one dispatch of a run of many."""
    yield Case("submit", "submit", None, "", torch_dispatches(device, 0))
    yield Case(f"dispatch {DISPATCHES}", f"dispatch {DISPATCHES}", None, "", torch_dispatches(device, DISPATCHES), parts=DISPATCHES)


def operators(place: dict, gpu: bool, variants: bool) -> Iterator[Case]:
    """Single operators."""
    mebibytes = GPU_COPY if gpu else COPY
    runs = RUNS if gpu else 1

    def case(command: str, count: float, unit: str, work: Callable[[], object], ceiling: bool = False) -> Case:
        return Case(command, command, count, unit, work, runs, ceiling=ceiling)

    yield case(f"copy {mebibytes}", 2 * mebibytes << 20, "GB/s", torch_copy(place["device"], mebibytes), True)
    gemm = GPU_GEMM if gpu else GEMM
    shapes = [("conv", *gemm), *(("conv", *shape) for shape in (GPU_CONVOLUTIONS if gpu else CONVOLUTIONS))]
    for command, cin, cout, kernel, rows, columns in [*shapes, *(("whole", *shape) for shape in (GPU_WHOLE if gpu else WHOLE))]:
        count = 2 * cin * cout * kernel**2 * rows * columns
        work = torch_conv(place, cin, cout, kernel, rows, columns)
        for suffix in ["", *(f":{variant}" for variant in VARIANTS if variants)]:
            name = f"{command}{suffix} {cin} {cout} {kernel} {rows} {columns}"
            yield case(name, count, "GFLOP/s", work, (cin, cout, kernel, rows, columns) == gemm)
    for channels, rows, columns in NORMS:
        # PyTorch's values may be smaller; both are counted as f32 values read twice and written once.
        count = 12 * channels * rows * columns
        yield case(f"norm {channels} {rows} {columns}", count, "GB/s", torch_norm(place, channels, rows, columns))
    for channels, rows, columns in ATTENTIONS:
        flops = 4 * channels * (rows * columns) ** 2
        yield case(f"attention {channels} {rows} {columns}", flops, "GFLOP/s", torch_attention(place, channels, rows, columns))


class Networks:
    """PyTorch's side of a model: its networks, in the order in which a picture needs them, with random inputs on `device`."""

    def __init__(self, path: Path, size: str | None, device: str, half: bool) -> None:
        self.device, self.half = device, half
        model = Model.open(path, torch.device(device))
        arch, decoder = model.arch, model.autoencoder.decoder
        self.width, self.height = map(int, size.split("x")) if size else (arch.width, arch.height)
        z = [latent.to(device) for latent in latents(arch, self.width, self.height)]
        c_noise = torch.tensor([0.3]).to(device)
        labels = torch.zeros(1, len(arch.labels), dtype=torch.int64, device=device) if arch.labels else None
        self.groups = len(arch.groups)
        self.names = [f"unet {group.name}" for group in arch.groups] if self.groups > 1 else ["unet"]
        self.inputs: list[tuple] = []
        for group, unet in enumerate(model.unets):
            levels = arch.groups[group].levels
            context = Context(tuple(z[levels[-1] + 1 :]), labels)
            self.inputs.append(([z[i] for i in levels], c_noise, context))
        sides = {i: (self.height // (arch.decoder.shuffle << i), self.width // (arch.decoder.shuffle << i)) for i in range(len(arch.decoder.stages))}
        noise = GivenNoise({i: torch.randn(1, 1, *sides[i]).to(device) for i, stage in enumerate(arch.decoder.stages) if stage.noise})
        self.inputs.append((z, noise))
        self.nets: list[nn.Module] = [*model.unets, decoder]
        self.compiled: dict[int, Callable | None] = {}

    def run(self, nets: list[Callable | None], steps: list[int]) -> Tensor | None:
        """Each U-Net so many times, then the decoder and the way back to the host; those that are None are left out."""
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.half):
            for net, inputs, count in zip(nets[:-1], self.inputs, steps):
                for _ in range(0 if net is None else count):
                    net(*inputs)
            picture = None if nets[-1] is None else nets[-1](*self.inputs[-1])
            return picture.cpu() if all(net is not None for net in nets) else picture

    def alone(self, index: int, net: Callable | None) -> tuple[list[Callable | None], list[int]]:
        """As arguments of `run`."""
        return [net if i == index else None for i in range(len(self.nets))], [1] * self.groups

    def fast(self, index: int, seconds: float) -> Callable | None:
        """A network by torch.compile."""
        if index not in self.compiled:
            self.compiled[index] = compiled(self.nets[index], lambda net: self.run(*self.alone(index, net)), seconds)
        return self.compiled[index]

    def fast_alone(self, index: int, seconds: float) -> Callable | None:
        net = self.fast(index, seconds)
        return None if net is None else partial(self.run, *self.alone(index, net))

    def fast_picture(self, steps: list[int], seconds: float) -> Callable | None:
        nets = [self.fast(index, seconds) for index in range(len(self.nets))]
        return None if None in nets else partial(self.run, nets, steps)

    def cases(self, model: str, steps: int) -> Iterator[Case]:
        """A step of each group, a decode and a picture of so many steps, of which later groups have a third as in `Steps::of_groups`."""
        size, total = f"{self.width} {self.height}", 0.0
        others = self.groups - 1
        later = max(steps // 3, others) if others else 0
        shares = [steps - later, *(later * (i + 1) // others - later * i // others for i in range(others))]
        for index, (name, share) in enumerate(zip([*self.names, "decoder"], [*shares, 1])):
            work = partial(self.run, *self.alone(index, self.nets[index]))
            count = 1e9 * gflop(work)
            total += count * share
            command = f"decoder {size}" if index == self.groups else f"unet {size} 1 {index}"
            yield Case(f"{name} {size}, {model}", command, count, "GFLOP/s", work, fast=partial(self.fast_alone, index))
        work = partial(self.run, self.nets, shares)
        name = f"generate {size} {steps}"
        yield Case(f"{name}, {model}", name, total, "GFLOP/s", work, fast=partial(self.fast_picture, shares))


def ms(seconds: float) -> str:
    """In milliseconds, with three digits or more."""
    return f"{1e3 * seconds:.2f}" if seconds >= 1e-3 else f"{1e3 * seconds:.3g}"


class Table:
    """Rows in Markdown, each printed at once."""

    def __init__(self, compiled: bool) -> None:
        self.sides = ["t", "p", *(["p compiled"] if compiled else [])]
        self.ceilings: dict[str, float] = {}
        head = ["operator and shape", "precision", *(f"{side} ms" for side in self.sides), "p/t"]
        head += [*(f"{side} rate" for side in self.sides), "unit", "t of ceiling", "dispatches"]
        print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)

    def row(self, case: Case, precision: str, took: list[float | None], dispatches: int | None) -> None:
        """`took`: seconds of every side, None where there are none."""
        rates = [case.count / seconds / 1e9 if seconds and case.count else None for seconds in took]
        if case.ceiling:
            self.ceilings[case.unit] = max(self.ceilings.get(case.unit, 0.0), *(rate for rate in rates if rate))
        own, peers = took[0], [seconds for seconds in took[1:] if seconds]
        share = f"{100 * rates[0] / self.ceilings[case.unit]:.0f} %" if rates[0] and case.unit in self.ceilings else ""
        cells = [case.name, precision, *(ms(seconds) if seconds else "" for seconds in took)]
        cells += [f"{min(peers) / own:.2f}" if own and peers else "", *(f"{rate:.1f}" if rate else "" for rate in rates)]
        print("| " + " | ".join([*cells, case.unit, share, str(dispatches or "")]) + " |", flush=True)


def measure(case: Case, ours: Tessera, own: list[Callable | None], args: argparse.Namespace, device: str) -> list[float | None] | None:
    """Seconds of every side, in turns; None where this project does not have it here (it has said why)."""
    times: list[list[float]] = [[] for _ in range(1 + len(own))]
    for _ in range(args.rounds):
        if case.command is not None:
            times[0] += ours.time(case.command)
            if not times[0]:
                return None
        for took, work in zip(times[1:], own):
            if work is not None:
                # The clocks of both sides are read after so many runs.
                many = work if case.runs == 1 else lambda work=work: [work() for _ in range(case.runs)]
                took += [seconds / (case.runs * case.parts) for seconds in torch_time(many, args.cpu_time, device)]
    pick = statistics.median if args.median else min
    return [pick(seconds) if seconds else None for seconds in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="on the GPU")
    parser.add_argument("--torch-device", help="PyTorch's device (default: cuda with --gpu, else cpu)")
    parser.add_argument(
        "--compile", type=float, nargs="?", const=math.inf, metavar="SECONDS", help="torch.compile too, where it takes at most so long"
    )
    parser.add_argument("--model", type=Path, nargs="+", default=[], metavar="FILE", help="checkpoints")
    parser.add_argument("--config", nargs="+", metavar="NAME", help="configurations of random weights (default, without a checkpoint: scenery-2)")
    parser.add_argument("--size", help="of the pictures, WIDTHxHEIGHT (default: each model's own)")
    parser.add_argument("--steps", type=int, default=25, help="of generate (default: %(default)s)")
    parser.add_argument("--precision", nargs="+", choices=["f32", "bf16", "f16"], help="default: f32 bf16, with --gpu f32 f16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--median", action="store_true", help="the median of all repetitions, not the best")
    parser.add_argument("--cpu-time", action="store_true", help="seconds on a core; for one thread")
    parser.add_argument("--networks", action="store_true", help="leave out the single operators")
    parser.add_argument("--variants", action="store_true", help="single convolutions by each variant too; with --gpu")
    parser.add_argument("--ceilings", action="store_true", help="first a larger product and a larger copy, by PyTorch alone")
    parser.add_argument("--only", type=re.compile, default=re.compile(""), help="what is timed, by the table's first column")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no row later than this")
    parser.add_argument("--program", type=Path, metavar="NETS", help="the benchmark `nets` (default: cargo builds it)")
    args = parser.parse_args()
    end = time.monotonic() + args.seconds
    device = args.torch_device or ("cuda" if args.gpu else "cpu")
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    program = (args.program or build()).resolve()
    print(f"{args.threads} threads; t: Tessera, p: PyTorch {torch.__version__} on {device}", end="")
    print(f" ({torch.cuda.get_device_name()})" if device == "cuda" else "", end="\n\n")
    table = Table(args.compile is not None)
    precisions = [name for name in args.precision or ["f32", "f16" if args.gpu else "bf16"] if name == "f32" or device != "cpu" or has_bf16()]
    with tempfile.TemporaryDirectory() as folder:
        random = [] if args.model and args.config is None else args.config or ["scenery-2"]
        for number, model in enumerate([*args.model, *random]):
            if time.monotonic() > end:
                print(f"{model}: left out, {args.seconds:.0f} s are over", file=sys.stderr)
                continue
            if isinstance(model, str):
                random_model(model, path := Path(folder) / f"{model}.safetensors")
            else:
                path, model = model, model.stem
            for precision in precisions:
                half = precision != "f32"
                flags = [*(["--gpu"] if args.gpu else []), *(["--cpu-time"] if args.cpu_time else []), *([f"--{precision}"] if half else [])]
                ours = Tessera(program, path, args.threads, flags)
                place = {"device": device, "dtype": torch.bfloat16 if half else torch.float32}
                cases: list[Iterable[Case]] = []
                if not (args.networks or number):
                    cases += [ceilings(place)] if args.ceilings else []
                    cases += [launches(device)] if args.gpu else []
                    cases += [operators(place, args.gpu, args.variants and not half)]
                for case in chain(*cases, Networks(path, args.size, device, half).cases(model, args.steps)):
                    if not args.only.search(case.name):
                        continue
                    if time.monotonic() > end:
                        print(f"{case.name} {precision}: left out, {args.seconds:.0f} s are over", file=sys.stderr)
                        continue
                    if took := measure(case, ours, case.peers(args.compile), args, device):
                        table.row(case, precision, took, ours.dispatches.get(case.command))
                ours.process.kill()
                ours.process.wait()


if __name__ == "__main__":
    main()
