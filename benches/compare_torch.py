"""Times this project's native CPU path and PyTorch (f32, channels_last) side by side, in turns, on the same shapes.

    python benches/compare_torch.py [--model FILE | --config NAME] [--size WxH] [--threads N] [--rounds N] [--median] [--cpu-time]

Convolutions one by one, then a U-Net step and a decode (whole, not tiled) of the same weights: a checkpoint's, or random
ones of one of the training package's configurations. GFLOP are counted from the networks' convolutions and products.
Both get the same number of threads. Rounds alternate between the two, so that other load on the machine meets both;
the best time of all rounds counts, and with --median the median. On a machine that has other work, `--threads 1
--cpu-time` compares the seconds that were spent on a core.
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "train"))
from tessera_train.arch import Arch  # noqa: E402
from tessera_train.checkpoint import save_safetensors  # noqa: E402
from tessera_train.config import Config  # noqa: E402
from tessera_train.cost import gflop  # noqa: E402
from tessera_train.decoder import Decoder  # noqa: E402
from tessera_train.encoder import Encoder  # noqa: E402
from tessera_train.unet import UNet  # noqa: E402

# (input channels, output channels, kernel, rows, columns)
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


class Tessera:
    """The Rust side: a process that times what it is told."""

    def __init__(self, model: Path, threads: int, cpu_time: bool) -> None:
        build = ["cargo", "bench", "--bench", "nets", "--no-run", "--message-format=json"]
        out = subprocess.run(build, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
        messages = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        program = next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "nets")
        env = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [program, model, *(["--cpu-time"] if cpu_time else [])], cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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


def torch_conv(cin: int, cout: int, kernel: int, rows: int, columns: int):
    layer = torch.nn.Conv2d(cin, cout, kernel, padding=kernel // 2).to(memory_format=torch.channels_last)
    x = torch.randn(1, cin, rows, columns).to(memory_format=torch.channels_last)
    return lambda: layer(x)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a checkpoint")
    parser.add_argument("--config", default="scenery", help="without a checkpoint: configuration of random weights")
    parser.add_argument("--size", default="2048x1024", help="of the picture, WIDTHxHEIGHT (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--median", action="store_true", help="the median of all repetitions, not the best")
    parser.add_argument("--cpu-time", action="store_true", help="seconds on a core; for one thread")
    parser.add_argument("--networks", action="store_true", help="leave out the single convolutions")
    args = parser.parse_args()
    pick = statistics.median if args.median else min
    width, height = map(int, args.size.split("x"))
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        path = args.model or Path(folder) / "random.safetensors"
        if not args.model:
            random_model(args.config, path)
        ours = Tessera(path, args.threads, args.cpu_time)
        arch, unet, decoder = networks(path)
        z, c_noise = latents(arch, width, height), torch.tensor([0.3])
        cases = []
        for cin, cout, kernel, rows, columns in [] if args.networks else CONVOLUTIONS:
            work = torch_conv(cin, cout, kernel, rows, columns)
            flops = 2 * cin * cout * kernel**2 * rows * columns
            cases.append((f"conv {cin} {cout} {kernel} {rows} {columns}", flops, work))
        for name, work in (("unet", lambda: unet(z, c_noise)), ("decoder", lambda: decoder(z))):
            cases.append((f"{name} {width} {height}", 1e9 * gflop(work), work))
        print(f"{args.threads} threads, GFLOP/s {'tessera':>14} {'torch':>9} {'ratio':>7} {'ms':>9} {'ms':>9}")
        for command, flops, work in cases:
            a, b = [], []
            for _ in range(args.rounds):
                a += ours.time(command)
                b += torch_time(work, args.cpu_time)
            a, b = pick(a), pick(b)
            rates = f"{flops / a / 1e9:9.1f} {flops / b / 1e9:9.1f} {b / a:7.2f} {1e3 * a:9.2f} {1e3 * b:9.2f}"
            print(f"{command:29} {rates}", flush=True)


if __name__ == "__main__":
    main()
