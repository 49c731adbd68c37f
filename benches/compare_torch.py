"""Times this project and PyTorch (channels_last) side by side, in turns: on the CPU, in f32 and bf16, or on the GPU, in f32 and f16.

    python benches/compare_torch.py [--gpu] [--compile] [--model FILE | --config NAME] [--size WxH] [--steps N] [--threads N]
        [--rounds N] [--precision f32 bf16 f16] [--networks] [--variants] [--only REGEX] [--median] [--cpu-time]

Operators one by one, then a U-Net step, a decode (whole, not tiled) and all of `generate` (that many U-Net steps, then the
decode; on this project's side with sampler and tiles; its networks with upload and download) of the same weights: a checkpoint's, or random ones of one of the
training package's configurations. GFLOP are counted from the networks' convolutions and products; norms and copies are
counted in bytes read and written. The ceiling is the best of all sides' large product, or copy, in the same run.

bf16 and f16 are compared with PyTorch's bf16, in networks by autocast (tried in a process of its own first on a CPU: some
builds stop at instructions that a machine half has). With `--compile` PyTorch's work is timed by `torch.compile` too, and the
better of its two times counts in p/t. With `--gpu` this project computes on its best Vulkan, Metal or DX12 device and PyTorch on CUDA (or
`--torch-device`), both in runs of 16 for a single operator; with `--variants` single convolutions are also timed by each variant that there
is, in f32.

Both get the same number of threads. Rounds alternate between the two, so that other load on the machine meets both; the best
time of all rounds counts, and with --median the median. On a machine that has other work, `--threads 1 --cpu-time` compares
the seconds that were spent on a core. The output is a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
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
from tessera_train.nets.arch import Arch, norm_groups  # noqa: E402
from tessera_train.export.files import save_safetensors  # noqa: E402
from tessera_train.training.config import Config  # noqa: E402
from tessera_train.nets.cost import gflop  # noqa: E402
from tessera_train.nets.decoder import Decoder  # noqa: E402
from tessera_train.nets.encoder import Encoder  # noqa: E402
from tessera_train.nets.unet import UNet  # noqa: E402

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


class Tessera:
    """The Rust side: a process that times what it is told."""

    def __init__(self, model: Path, threads: int, flags: list[str]) -> None:
        build = ["cargo", "bench", "--bench", "nets", "--no-run", "--message-format=json"]
        env = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
        env.pop("LD_PRELOAD", None)  # what helps PyTorch is not for this side
        out = subprocess.run(build, cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
        messages = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        program = next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "nets")
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
                return answer["seconds"]
        raise SystemExit("the benchmark ended early")


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


def operators(place: dict, gpu: bool, variants: bool):
    """Commands, what they count (operations, or bytes), and PyTorch's work."""
    mebibytes = GPU_COPY if gpu else COPY
    yield f"copy {mebibytes}", (2 * mebibytes << 20, "GB/s"), torch_copy(place["device"], mebibytes)
    shapes = [("conv", *(GPU_GEMM if gpu else GEMM)), *(("conv", *shape) for shape in (GPU_CONVOLUTIONS if gpu else CONVOLUTIONS))]
    for command, cin, cout, kernel, rows, columns in [*shapes, *(("whole", *shape) for shape in (GPU_WHOLE if gpu else WHOLE))]:
        count = 2 * cin * cout * kernel**2 * rows * columns, "GFLOP/s"
        work = torch_conv(place, cin, cout, kernel, rows, columns)
        for suffix in ["", *(f":{variant}" for variant in VARIANTS if variants)]:
            yield f"{command}{suffix} {cin} {cout} {kernel} {rows} {columns}", count, work
    for channels, rows, columns in NORMS:
        # PyTorch's values may be smaller; both are counted as f32 values read twice and written once.
        count = 12 * channels * rows * columns
        yield f"norm {channels} {rows} {columns}", (count, "GB/s"), torch_norm(place, channels, rows, columns)
    for channels, rows, columns in ATTENTIONS:
        flops = 4 * channels * (rows * columns) ** 2
        work = torch_attention(place, channels, rows, columns)
        yield f"attention {channels} {rows} {columns}", (flops, "GFLOP/s"), work


def whole_nets(unet: nn.Module, decoder: nn.Module, z: list[Tensor], steps: int):
    """PyTorch's work of a U-Net step, a decode, and a picture; only the last gives values back to the host."""
    c_noise = torch.tensor([0.3]).to(z[0].device)

    def generate():
        for _ in range(steps):
            unet(z, c_noise)
        return decoder(z).cpu()

    return lambda: unet(z, c_noise), lambda: decoder(z), generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="on the GPU")
    parser.add_argument("--torch-device", help="PyTorch's device (default: cuda with --gpu, else cpu)")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--model", type=Path, help="a checkpoint")
    parser.add_argument("--config", default="scenery", help="without a checkpoint: configuration of random weights")
    parser.add_argument("--size", help="of the picture, WIDTHxHEIGHT (default: the model's)")
    parser.add_argument("--steps", type=int, default=25, help="of generate (default: %(default)s)")
    parser.add_argument("--precision", nargs="+", choices=["f32", "bf16", "f16"], help="default: f32 bf16, with --gpu f32 f16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--median", action="store_true", help="the median of all repetitions, not the best")
    parser.add_argument("--cpu-time", action="store_true", help="seconds on a core; for one thread")
    parser.add_argument("--networks", action="store_true", help="leave out the single operators")
    parser.add_argument("--variants", action="store_true", help="single convolutions by each variant too; with --gpu")
    parser.add_argument("--only", type=re.compile, default=re.compile(""), help="what is timed, by the table's first column")
    args = parser.parse_args()
    pick = statistics.median if args.median else min
    device = args.torch_device or ("cuda" if args.gpu else "cpu")
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        path = args.model or Path(folder) / "random.safetensors"
        if not args.model:
            random_model(args.config, path)
        arch, unet, decoder = networks(path)
        width, height = map(int, args.size.split("x")) if args.size else (arch.width, arch.height)
        z = [latent.to(device) for latent in latents(arch, width, height)]
        nets = unet.to(device), decoder.to(device)
        names = f"unet {width} {height}", f"decoder {width} {height}", f"generate {width} {height} {args.steps}"
        works = whole_nets(*nets, z, args.steps)
        counts = [1e9 * gflop(work) for work in works[:2]]
        counts.append(args.steps * counts[0] + counts[1])
        print(f"{args.threads} threads; t: Tessera, p: PyTorch {torch.__version__} on {device}", end="")
        print(f" ({torch.cuda.get_device_name()})" if device == "cuda" else "", end="\n\n")
        sides = ["t", "p", *(["p compiled"] if args.compile else [])]
        head = ["operator and shape", "precision", *(f"{side} ms" for side in sides), "p/t"]
        head += [*(f"{side} rate" for side in sides), "unit", "t of ceiling"]
        print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
        for precision in args.precision or (["f32", "f16"] if args.gpu else ["f32", "bf16"]):
            half = precision != "f32"
            if half and device == "cpu" and not has_bf16():
                print(f"PyTorch has no bf16 convolutions here: {precision} is left out", file=sys.stderr)
                continue
            flags = [*(["--gpu"] if args.gpu else []), *(["--cpu-time"] if args.cpu_time else []), *([f"--{precision}"] if half else [])]
            ours = Tessera(path, args.threads, flags)

            def cast(work):
                def run():
                    with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
                        work()

                return run

            place = {"device": device, "dtype": torch.bfloat16 if half else torch.float32}
            cases = []
            if not args.networks:
                for name, count, work in operators(place, args.gpu, args.variants and not half):
                    cases.append((name, count, [work, *([torch.compile(work)] if args.compile else [])], RUNS if args.gpu else 1))
            peers = [works, *([whole_nets(*map(torch.compile, nets), z, args.steps)] if args.compile else [])]
            for name, count, *own in zip(names, counts, *peers):
                cases.append((name, (count, "GFLOP/s"), [cast(work) for work in own], 1))
            ceilings = {}
            for command, (count, unit), own, runs in (case for case in cases if args.only.search(case[0])):
                times: list[list[float]] = [[] for _ in sides]
                for _ in range(args.rounds):
                    times[0] += ours.time(command)
                    if not times[0]:
                        break
                    for took, work in zip(times[1:], own):
                        # The clocks of both sides are read after so many runs.
                        many = work if runs == 1 else lambda work=work, runs=runs: [work() for _ in range(runs)]
                        took += [seconds / runs for seconds in torch_time(many, args.cpu_time, device)]
                if not times[0]:
                    # This project does not have it here, and has said why.
                    continue
                took = [pick(seconds) for seconds in times]
                rates = [count / seconds / 1e9 for seconds in took]
                kind = command.split()
                if kind[0] == "copy" or tuple(map(int, kind[1:])) in (GEMM, GPU_GEMM):
                    ceilings[unit] = max(rates)
                share = f"{100 * rates[0] / ceilings[unit]:.0f} %" if unit in ceilings else ""
                cells = [command, precision, *(f"{1e3 * seconds:.2f}" for seconds in took), f"{min(took[1:]) / took[0]:.2f}"]
                cells += [*(f"{rate:.1f}" for rate in rates), unit, share]
                print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
