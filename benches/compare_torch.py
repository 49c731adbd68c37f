"""Times this project's native CPU path and PyTorch (channels_last) side by side, in turns, in f32 and in bf16.

    python benches/compare_torch.py [--model FILE | --config NAME] [--size WxH] [--steps N] [--threads N] [--rounds N]
        [--precision f32 bf16] [--networks] [--median] [--cpu-time]

Operators one by one, then a U-Net step, a decode (whole, not tiled) and all of `generate` (that many U-Net steps, then the
decode; on this project's side with sampler and tiles) of the same weights: a checkpoint's, or random ones of one of the
training package's configurations. GFLOP are counted from the networks' convolutions and products; norms and copies are
counted in bytes read and written. The ceiling is the better of the two sides' large product, or copy, in the same run.
bf16 on PyTorch's side is autocast, tried in a process of its own first: some of its builds stop at instructions that a machine
half has. Both get the same number of threads. Rounds alternate between the two, so that other load on the machine meets
both; the best time of all rounds counts, and with --median the median. On a machine that has other work, `--threads 1
--cpu-time` compares the seconds that were spent on a core. The output is a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "train"))
from tessera_train.arch import Arch, norm_groups  # noqa: E402
from tessera_train.checkpoint import save_safetensors  # noqa: E402
from tessera_train.config import Config  # noqa: E402
from tessera_train.cost import gflop  # noqa: E402
from tessera_train.decoder import Decoder  # noqa: E402
from tessera_train.encoder import Encoder  # noqa: E402
from tessera_train.unet import UNet  # noqa: E402

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
# (channels, rows, columns)
NORMS = [(128, 64, 128), (160, 16, 32)]
ATTENTIONS = [(160, 16, 32), (160, 32, 64)]
GEMM = "conv 2048 2048 1 32 64"
COPY = "copy 256"


class Tessera:
    """The Rust side: a process that times what it is told."""

    def __init__(self, model: Path, precision: str, threads: int, cpu_time: bool) -> None:
        build = ["cargo", "bench", "--bench", "nets", "--no-run", "--message-format=json"]
        env = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
        env.pop("LD_PRELOAD", None)  # what helps PyTorch is not for this side
        out = subprocess.run(build, cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
        messages = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        program = next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "nets")
        flags = [*(["--cpu-time"] if cpu_time else []), *(["--bf16"] if precision == "bf16" else [])]
        self.process = subprocess.Popen(
            [program, model, *flags], cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def time(self, command: str) -> list[float]:
        """Seconds of every repetition."""
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["seconds"]


def torch_time(work, cpu_time: bool) -> list[float]:
    """Seconds of `work`, of several batches that are long enough for the clocks, after two that warm caches."""
    clock = time.process_time if cpu_time else time.perf_counter
    work()
    begin = time.perf_counter()
    work()
    batch = math.ceil(0.02 / (time.perf_counter() - begin))
    start, seconds = time.perf_counter(), []
    while time.perf_counter() - start < 0.3 or len(seconds) < 3:
        begin = clock()
        for _ in range(batch):
            work()
        seconds.append((clock() - begin) / batch)
    return seconds


def has_bf16() -> bool:
    """Whether PyTorch's bf16 convolutions work here."""
    trial = "import torch; torch.nn.Conv2d(64, 64, 3).bfloat16()(torch.ones(1, 64, 9, 9).bfloat16())"
    return subprocess.run([sys.executable, "-c", trial], stderr=subprocess.DEVNULL).returncode == 0


def torch_conv(dtype: torch.dtype, cin: int, cout: int, kernel: int, rows: int, columns: int):
    layer = torch.nn.Conv2d(cin, cout, kernel, padding=kernel // 2).to(dtype, memory_format=torch.channels_last)
    x = torch.randn(1, cin, rows, columns).to(dtype, memory_format=torch.channels_last)
    return lambda: layer(x)


def torch_norm(dtype: torch.dtype, channels: int, rows: int, columns: int):
    layer = torch.nn.GroupNorm(norm_groups(channels), channels).to(dtype)
    x = torch.randn(1, channels, rows, columns).to(dtype, memory_format=torch.channels_last)
    return lambda: F.silu(layer(x))


def torch_attention(dtype: torch.dtype, channels: int, rows: int, columns: int):
    x = torch.randn(1, 1, rows * columns, channels).to(dtype)
    return lambda: F.scaled_dot_product_attention(x, x, x)


def torch_copy(mebibytes: int):
    source = torch.ones(mebibytes << 18)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def random_model(config: str, path: Path) -> None:
    """Writes a checkpoint of random weights, also where training starts from zero."""
    arch = Config(config).arch
    torch.manual_seed(1)
    arrays = {}
    for prefix, net in (("encoder", Encoder(arch)), ("decoder", Decoder(arch)), ("unet", UNet(arch))):
        for name, value in net.state_dict().items():
            if name.endswith("weight") and value.dim() == 4 and not value.any():
                nn.init.kaiming_normal_(value, nonlinearity="linear")
            arrays[f"{prefix}.{name}"] = value.numpy()
    for i, level in enumerate(arch.levels):
        arrays |= {f"latents.{i}.{name}": np.ones(level.channels, np.float32) for name in ("mean", "std")}
    save_safetensors(path, arrays, {"format": "tessera", "arch": arch.to_json()})


def networks(path: Path) -> tuple[Arch, nn.Module, nn.Module]:
    """Architecture, U-Net and decoder of a checkpoint, in f32 and channels_last."""
    with safe_open(path, "pt") as file:
        arch = Arch.from_json(file.metadata()["arch"])
        nets = []
        for prefix, net in (("unet.", UNet(arch)), ("decoder.", Decoder(arch))):
            names = [name for name in file.keys() if name.startswith(prefix)]
            net.load_state_dict({name.removeprefix(prefix): file.get_tensor(name).float() for name in names})
            nets.append(net.eval().to(memory_format=torch.channels_last))
    return arch, *nets


def latents(arch: Arch, width: int, height: int) -> list[Tensor]:
    """Random ones for a picture of that size."""
    grids = zip(arch.levels, arch.grids(width, height))
    return [torch.randn(1, lv.channels, *grid).to(memory_format=torch.channels_last) for lv, grid in grids]


def operators(dtype: torch.dtype):
    """Commands, what they count (operations, or bytes), and PyTorch's work."""
    yield COPY, (2 * int(COPY.split()[1]) << 20, "GB/s"), torch_copy(int(COPY.split()[1]))
    shapes = [("conv", *map(int, GEMM.split()[1:])), *(("conv", *shape) for shape in CONVOLUTIONS)]
    for command, cin, cout, kernel, rows, columns in [*shapes, *(("whole", *shape) for shape in WHOLE)]:
        flops = 2 * cin * cout * kernel**2 * rows * columns
        work = torch_conv(dtype, cin, cout, kernel, rows, columns)
        yield f"{command} {cin} {cout} {kernel} {rows} {columns}", (flops, "GFLOP/s"), work
    for channels, rows, columns in NORMS:
        # PyTorch's values may be smaller; both are counted as f32 values read twice and written once.
        count = 12 * channels * rows * columns
        yield f"norm {channels} {rows} {columns}", (count, "GB/s"), torch_norm(dtype, channels, rows, columns)
    for channels, rows, columns in ATTENTIONS:
        flops = 4 * channels * (rows * columns) ** 2
        work = torch_attention(dtype, channels, rows, columns)
        yield f"attention {channels} {rows} {columns}", (flops, "GFLOP/s"), work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a checkpoint")
    parser.add_argument("--config", default="scenery", help="without a checkpoint: configuration of random weights")
    parser.add_argument("--size", default="2048x1024", help="of the picture, WIDTHxHEIGHT (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="of generate (default: %(default)s)")
    parser.add_argument("--precision", nargs="+", choices=["f32", "bf16"], default=["f32", "bf16"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--median", action="store_true", help="the median of all repetitions, not the best")
    parser.add_argument("--cpu-time", action="store_true", help="seconds on a core; for one thread")
    parser.add_argument("--networks", action="store_true", help="leave out the single operators")
    args = parser.parse_args()
    pick = statistics.median if args.median else min
    width, height = map(int, args.size.split("x"))
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        path = args.model or Path(folder) / "random.safetensors"
        if not args.model:
            random_model(args.config, path)
        arch, unet, decoder = networks(path)
        z, c_noise = latents(arch, width, height), torch.tensor([0.3])
        print(f"{args.threads} threads; t: Tessera, p: PyTorch {torch.__version__}\n")
        print("| operator and shape | precision | t ms | p ms | p/t | t rate | p rate | unit | t of ceiling |")
        print("|---|---|---|---|---|---|---|---|---|")
        for precision in args.precision:
            if precision == "bf16" and not has_bf16():
                print("PyTorch has no bf16 convolutions here: bf16 is left out", file=sys.stderr)
                continue
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            ours = Tessera(path, precision, args.threads, args.cpu_time)

            def cast(work):
                def run():
                    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                        work()

                return run

            def generate():
                for _ in range(args.steps):
                    unet(z, c_noise)
                decoder(z)

            nets = [(f"unet {width} {height}", lambda: unet(z, c_noise)), (f"decoder {width} {height}", lambda: decoder(z))]
            nets.append((f"generate {width} {height} {args.steps}", generate))
            counts = [1e9 * gflop(work) for _, work in nets[:2]]
            counts.append(args.steps * counts[0] + counts[1])
            cases = [] if args.networks else list(operators(dtype))
            cases += [(name, (count, "GFLOP/s"), cast(work)) for (name, work), count in zip(nets, counts)]
            ceilings = {}
            for command, (count, unit), work in cases:
                a, b = [], []
                for _ in range(args.rounds):
                    a += ours.time(command)
                    b += torch_time(work, args.cpu_time)
                a, b = pick(a), pick(b)
                rates = count / a / 1e9, count / b / 1e9
                if command in (COPY, GEMM):
                    ceilings[unit] = max(rates)
                share = f"{100 * rates[0] / ceilings[unit]:.0f} %" if unit in ceilings else ""
                times = f"{1e3 * a:.2f} | {1e3 * b:.2f} | {b / a:.2f}"
                print(f"| {command} | {precision} | {times} | {rates[0]:.1f} | {rates[1]:.1f} | {unit} | {share} |", flush=True)


if __name__ == "__main__":
    main()
