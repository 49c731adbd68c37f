"""Training by the processes of torchrun, which hold the same weights and share every batch in equal parts.

A step's random numbers are drawn for the whole batch in every process, which takes its own rows of them; gradients are
averaged over all. So the result does not depend on the number of processes, except for the order of sums. Without
torchrun there is one process, and nothing here communicates.

(`DistributedDataParallel` is not used: it expects one call of one network, and the AutoEncoder's step makes many, with
an adaptive weight between them that is computed from gradients.)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(hours=1)
"""Time limit for processes that wait for another one, such as process 0 while it draws sample grids."""


def asked() -> bool:
    """True if torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """This process's number; only process 0 writes files and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def begin(device: torch.device) -> torch.device:
    """Joins torchrun's other processes, if there are any; returns the device of this one."""
    if not asked():
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    with together():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return device


def end() -> None:
    """Leaves the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def together() -> Iterator[None]:
    """Names what it means when processes that should act together do not."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise OSError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} lost another one, which failed or was killed ({reason}); "
            "the same command resumes from the last checkpoint"
        ) from error


def own(batch: int, name: str) -> slice:
    """This process's rows of a batch; ValueError, with the batch's `name`, if the processes can't share it equally."""
    if batch % size():
        raise ValueError(f"{name} is {batch}, must be a multiple of the number of processes, {size()}")
    rows = batch // size()
    return slice(rank() * rows, (rank() + 1) * rows)


def draw(shape: torch.Size | tuple[int, ...], numbers: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
    """Random numbers of `shape`, whose first axis counts this process's pictures: rows of what `numbers` gives for the
    shape of the whole batch."""
    rows, *rest = shape
    return numbers((rows * size(), *rest))[rank() * rows : (rank() + 1) * rows]


def mean(x: Tensor) -> Tensor:
    """`x` averaged over the processes, in place where there are several."""
    if size() > 1:
        with together():
            dist.all_reduce(x)
        x /= size()
    return x


def mean_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Averages all gradients over the processes."""
    if size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = mean(torch.cat([g.flatten() for g in gradients]))
    for g, part in zip(gradients, flat.split([g.numel() for g in gradients])):
        g.copy_(part.view_as(g))


def mean_numbers(numbers: dict[str, float], device: torch.device) -> dict[str, float]:
    """Numbers of the same names averaged over the processes."""
    if size() == 1:
        return numbers
    values = mean(torch.tensor(list(numbers.values()), dtype=torch.float64, device=device))
    return dict(zip(numbers, values.tolist()))


def agreed(first: float, largest: int, device: torch.device) -> tuple[float, int]:
    """Process 0's `first`, and the largest of all `largest`."""
    if size() == 1:
        return first, largest
    values = torch.tensor([first if rank() == 0 else -1.0, largest], dtype=torch.float64, device=device)
    with together():
        dist.all_reduce(values, dist.ReduceOp.MAX)
    one, other = values.tolist()
    return one, int(other)
