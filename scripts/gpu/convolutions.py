"""GFLOP/s of this project's WGSL convolutions and of PyTorch's on the GPU at hand, in turns.

    python3 scripts/gpu/convolutions.py [--rounds N]

Needs PyTorch with a GPU. Both compute a chain of four times the same convolution with bias, upload and download included;
`winograd` computes 1x1 layers as `tiled` does; `cooperative` in f16 with f32 sums (0 where the GPU has no cooperative
matrices), the other variants in f32; PyTorch in f32 and bf16, channels_last, with and without `torch.compile`. The last lines
are the device's ceilings as PyTorch reaches them: a large product and a large copy.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent.parent
CHAIN = 4
VARIANTS = ["winograd", "subgroup", "tiled", "cooperative"]
# (channels, kernel, rows, columns): of the default model and of pdm-2k at their own sizes.
CONVOLUTIONS = [
    (128, 3, 32, 64), (160, 3, 16, 32), (160, 3, 8, 16), (160, 1, 16, 32), (96, 3, 128, 256), (48, 3, 256, 512),
    (24, 3, 512, 1024), (192, 3, 128, 128), (384, 3, 64, 64), (768, 3, 16, 16), (512, 3, 64, 64), (96, 3, 512, 512),
]


def seconds(work: Callable[[], object]) -> float:
    """The best of several runs."""
    work()
    work()
    times, begin = [], time.perf_counter()
    while time.perf_counter() - begin < 0.3 or len(times) < 5:
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    command = ["cargo", "bench", "--quiet", "--locked", "--bench", "nets", "--"]
    own = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert own.stdin and own.stdout

    def tessera(variant: str, shape: tuple[int, int, int, int]) -> float:
        channels, kernel, rows, columns = shape
        print(variant, channels, channels, kernel, rows, columns, file=own.stdin, flush=True)
        while line := own.stdout.readline():
            if line.startswith("{"):
                # None where the GPU does not have the variant.
                return min(json.loads(line)["seconds"], default=float("inf"))
        raise SystemExit("the benchmark ended early")

    peers = [(dtype, compiled) for dtype in (torch.float32, torch.bfloat16) for compiled in (False, True)]
    names = [f"torch {str(dtype)[6:]}{' compiled' if compiled else ''}" for dtype, compiled in peers]
    print("| " + " | ".join(["channels", "kernel", "grid", *VARIANTS, *names]) + " |\n|" + "---|" * (5 + len(peers)))
    for shape in CONVOLUTIONS:
        channels, kernel, rows, columns = shape
        x = torch.randn(1, channels, rows, columns).to(memory_format=torch.channels_last)
        works = []
        for dtype, compiled in peers:
            layers = [nn.Conv2d(channels, channels, kernel, padding=kernel // 2) for _ in range(CHAIN)]
            net = nn.Sequential(*layers).to("cuda", dtype, memory_format=torch.channels_last).requires_grad_(False)
            run = torch.compile(net) if compiled else net
            works.append(lambda run=run, dtype=dtype: run(x.to("cuda", dtype)).cpu())
        best = [float("inf")] * (len(VARIANTS) + len(works))
        for _ in range(rounds):
            times = [tessera(variant, shape) for variant in VARIANTS] + [seconds(work) for work in works]
            best = [min(pair) for pair in zip(best, times)]
        gflop = 2e-9 * CHAIN * channels**2 * kernel**2 * rows * columns
        cells = [str(channels), f"{kernel}x{kernel}", f"{columns}x{rows}", *(f"{gflop / t:.0f}" for t in best)]
        print("| " + " | ".join(cells) + " |", flush=True)
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(8192, 8192, device="cuda", dtype=dtype)
        product = 2e-9 * 8192**3 / seconds(lambda: a @ a)
        copy = 2e-9 * a.numel() * a.element_size() / seconds(a.clone)
        print(f"{str(dtype)[6:]}: product of 8192x8192 {product:.0f} GFLOP/s, copy {copy:.0f} GB/s")


if __name__ == "__main__":
    main()
