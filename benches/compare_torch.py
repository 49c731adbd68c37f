"""Times this project's native CPU path and PyTorch (f32, channels_last) side by side, in turns, on the same shapes.

    python benches/compare_torch.py [--threads N] [--rounds N] [--median] [--cpu-time]

Both get the same number of threads. Rounds alternate between the two, so that other load on the machine meets both;
the best time of all rounds counts, and with --median the median. On a machine that has other work, `--threads 1
--cpu-time` compares the seconds that were spent on a core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
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

    def __init__(self, threads: int, cpu_time: bool) -> None:
        build = ["cargo", "bench", "--bench", "nets", "--no-run", "--message-format=json"]
        out = subprocess.run(build, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
        messages = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        program = next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "nets")
        env = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [program, *(["--cpu-time"] if cpu_time else [])], cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def time(self, command: str) -> list[float]:
        """Seconds of every repetition."""
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["seconds"]


def torch_time(work, cpu_time: bool) -> list[float]:
    """Seconds of every repetition, after one that warms caches."""
    clock = time.process_time if cpu_time else time.perf_counter
    work()
    start, seconds = time.perf_counter(), []
    while time.perf_counter() - start < 0.3 or len(seconds) < 3:
        begin = clock()
        work()
        seconds.append(clock() - begin)
    return seconds


def torch_conv(cin: int, cout: int, kernel: int, rows: int, columns: int):
    layer = torch.nn.Conv2d(cin, cout, kernel, padding=kernel // 2).to(memory_format=torch.channels_last)
    x = torch.randn(1, cin, rows, columns).to(memory_format=torch.channels_last)
    return lambda: layer(x)


def compare(name: str, flops: float, ours, theirs, rounds: int, pick) -> None:
    """Prints GFLOP/s of both and the ratio."""
    a, b = [], []
    for _ in range(rounds):
        a += ours()
        b += theirs()
    a, b = pick(a), pick(b)
    print(f"{name:38} {flops / a / 1e9:9.1f} {flops / b / 1e9:9.1f} {b / a:7.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--median", action="store_true", help="the median of all repetitions, not the best")
    parser.add_argument("--cpu-time", action="store_true", help="seconds on a core; for one thread")
    args = parser.parse_args()
    pick = statistics.median if args.median else min
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    ours = Tessera(args.threads, args.cpu_time)
    print(f"{args.threads} threads, GFLOP/s {'tessera':>23} {'torch':>9} {'ratio':>7}")
    for cin, cout, kernel, rows, columns in CONVOLUTIONS:
        command = f"conv {cin} {cout} {kernel} {rows} {columns}"
        work = torch_conv(cin, cout, kernel, rows, columns)
        flops = 2 * cin * cout * kernel**2 * rows * columns
        compare(command, flops, lambda c=command: ours.time(c), lambda w=work: torch_time(w, args.cpu_time), args.rounds, pick)


if __name__ == "__main__":
    main()
