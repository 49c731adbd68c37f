"""Choice of precision: tests whether bf16 convolutions work on this machine and are faster."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import torch

PROBE = """
import torch
x = torch.randn(1, 16, 32, 32, requires_grad=True)
w = torch.randn(16, 16, 3, 3, requires_grad=True)
cl = torch.channels_last
y = torch.nn.functional.conv2d(x.to(torch.bfloat16, memory_format=cl), w.to(torch.bfloat16, memory_format=cl), padding=1)
y.sum().backward()
z = torch.nn.functional.conv2d(x, w, padding=1)
assert torch.isfinite(w.grad).all() and (y.float() - z).norm() < 0.02 * z.norm()
"""


def bf16_works(device: torch.device) -> bool:
    """On the CPU a convolution is tried in a child process: where bf16 is half supported it ends with SIGILL."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return subprocess.run([sys.executable, "-c", PROBE], capture_output=True, check=False).returncode == 0


def choose(wanted: str, device: torch.device, step: Callable[[torch.dtype], None]) -> tuple[torch.dtype, str | None]:
    """The type to compute in and, if it was chosen here, a line that says why. `wanted`: "f32", "bf16" or "auto", which
    times `step(type)`, a whole training step, with both."""
    if wanted != "auto":
        return {"f32": torch.float32, "bf16": torch.bfloat16}[wanted], None
    if not bf16_works(device):
        return torch.float32, "f32: bf16 convolutions do not work here"
    if device.type == "cuda":
        return torch.bfloat16, "bf16: the GPU supports it"
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        step(dtype)
        start = time.process_time()  # of all threads: other programs do not count
        step(dtype)
        seconds[dtype] = time.process_time() - start
    f32, bf16 = seconds[torch.float32], seconds[torch.bfloat16]
    dtype = torch.bfloat16 if bf16 < f32 else torch.float32
    return dtype, f"{'bf16' if dtype == torch.bfloat16 else 'f32'}: a step takes {bf16:.2f} s of CPU in bf16, {f32:.2f} s in f32"
