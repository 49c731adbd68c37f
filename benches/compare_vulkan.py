"""Times this project's WGSL convolutions and ncnn's Vulkan ones side by side, in turns, on the same driver and shapes.

    pip install ncnn numpy
    python benches/compare_vulkan.py [--rounds N] [--cpu-time] [--nets PROGRAM] [--before PROGRAM]

Both compute a chain of four times the same convolution with bias, upload and download included, in f32; ncnn also with
its defaults (f16 where it deems fit), and this project's also in f16 where the driver has cooperative matrices. Under `winograd`
1x1 layers are computed as by `tiled`. Rounds alternate between all, so that other load on the machine meets all; the best time of
all rounds counts. With `--cpu-time` seconds on a core count in place of the wall's, times two cores: what a
software driver costs on a machine that has other work. `--before` is a program that answers as `nets` does, for another state of
this project: it is asked for each shape by the name `chain`. The loader chooses the driver (`VK_DRIVER_FILES`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import ncnn
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CHAIN = 4
VARIANTS = ["winograd", "subgroup", "tiled", "cooperative"]
# Those that compute in f32, as ncnn's f32 does.
F32_VARIANTS = 3

# (channels, kernel, rows, columns): the U-Net's stages at 2048x1024, then the decoder's.
CONVOLUTIONS = [
    (128, 3, 32, 64),
    (160, 3, 16, 32),
    (160, 3, 8, 16),
    (128, 3, 4, 8),
    (160, 1, 16, 32),
    (160, 1, 8, 16),
    (96, 3, 64, 128),
    (48, 3, 128, 256),
    (24, 3, 256, 512),
]


NETS = ["cargo", "bench", "--quiet", "--locked", "--bench", "nets", "--"]


class Tessera:
    """The Rust side: a process that times what it is told."""

    def __init__(self, command: list[str], cpu_time: bool) -> None:
        self.process = subprocess.Popen(
            command + (["--cpu-time"] if cpu_time else []),
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )

    def ask(self, *command: object) -> dict:
        assert self.process.stdin and self.process.stdout
        print(*command, file=self.process.stdin, flush=True)
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit("the benchmark ended early")

    def best(self, command: str, channels: int, kernel: int, rows: int, columns: int) -> float:
        return min(self.ask(command, channels, channels, kernel, rows, columns)["seconds"], default=float("inf"))

    def ceiling(self, cores: int) -> float:
        """GFLOP/s of multiply-adds on registers."""
        answer = self.ask("fma")
        return 1e-9 * answer["flops"] * cores / min(answer["seconds"])


class Ncnn:
    """A net of ncnn that is the chain."""

    def __init__(self, channels: int, kernel: int, rows: int, columns: int, f16: bool) -> None:
        lines = ["Input x0 0 1 x0"]
        size = channels * channels * kernel * kernel
        for i in range(CHAIN):
            parameters = f"0={channels} 1={kernel} 4={kernel // 2} 5=1 6={size}"
            lines.append(f"Convolution c{i} 1 1 x{i} x{i + 1} {parameters}")
        text = f"7767517\n{len(lines)} {len(lines)}\n" + "\n".join(lines) + "\n"
        random = np.random.default_rng(1)
        weights = b""
        for _ in range(CHAIN):
            weights += bytes(4) + random.uniform(-0.03, 0.03, size).astype("<f4").tobytes()
            weights += random.uniform(-1, 1, channels).astype("<f4").tobytes()
        self.net = ncnn.Net()
        self.net.opt.use_vulkan_compute = True
        for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
            setattr(self.net.opt, option, f16)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "chain.param").write_text(text)
            (Path(folder) / "chain.bin").write_bytes(weights)
            if self.net.load_param(f"{folder}/chain.param") or self.net.load_model(f"{folder}/chain.bin"):
                raise SystemExit("ncnn does not load the chain")
        data = random.uniform(-1, 1, (channels, rows, columns)).astype(np.float32)
        self.input, self.output = ncnn.Mat(data), f"x{CHAIN}"
        self.run()

    def run(self) -> None:
        extractor = self.net.create_extractor()
        extractor.input("x0", self.input)
        code, _ = extractor.extract(self.output)
        if code:
            raise SystemExit(f"ncnn fails with {code}")

    def best(self, cpu_time: bool) -> float:
        now = time.process_time if cpu_time else time.perf_counter
        self.run()
        times, begin = [], time.perf_counter()
        while time.perf_counter() - begin < 0.3 or len(times) < 3:
            started = now()
            self.run()
            times.append(now() - started)
        return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--nets", help="the benchmark `nets`, already built")
    parser.add_argument("--before", help="such a program of another state of the project")
    options = parser.parse_args()
    ncnn.create_gpu_instance()
    cores = 2 if options.cpu_time else 1
    tessera = Tessera([options.nets] if options.nets else NETS, options.cpu_time)
    before = Tessera([options.before], options.cpu_time) if options.before else None
    ceiling = max(tessera.ceiling(cores) for _ in range(options.rounds))
    print(f"Nothing but multiply-adds on registers: {ceiling:.1f} GFLOP/s.")
    head = ["channels", "kernel", "grid", *VARIANTS, "ncnn f32", "ncnn", "to ncnn f32", "to the better"]
    head += ["before", "to before"] if before else []
    print(f"{ncnn.get_gpu_info(0).device_name()}, ncnn {ncnn.__version__}; GFLOP/s of a chain of {CHAIN}")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for channels, kernel, rows, columns in CONVOLUTIONS:
        gflop = 2e-9 * CHAIN * channels * channels * kernel * kernel * rows * columns * cores
        peers = [Ncnn(channels, kernel, rows, columns, f16) for f16 in (False, True)]
        best = [float("inf")] * (len(VARIANTS) + len(peers) + 1)
        for _ in range(options.rounds):
            times = [tessera.best(f"chain:{v}", channels, kernel, rows, columns) for v in VARIANTS]
            times += [peer.best(options.cpu_time) for peer in peers]
            times.append(before.best("chain", channels, kernel, rows, columns) if before else float("inf"))
            best = [min(pair) for pair in zip(best, times)]
        *speeds, earlier = [gflop / seconds for seconds in best]
        own, f32, f16 = max(speeds[:F32_VARIANTS]), speeds[-2], speeds[-1]
        row = [str(channels), f"{kernel}x{kernel}", f"{columns}x{rows}", *(f"{s:.1f}" for s in speeds)]
        row += [f"{own / f32:.1f}", f"{own / max(f32, f16):.1f}"]
        row += [f"{earlier:.1f}", f"{own / earlier:.1f}"] if before else []
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
