"""PNG grids of samples."""

from __future__ import annotations

import io
from pathlib import Path

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..export.files import replace_file


def shrink(x: Tensor, width: int) -> Tensor:
    """[N, 3, H, W] averaged down to at most `width`, aspect kept."""
    if x.shape[3] <= width:
        return x
    return F.interpolate(x, (max(1, x.shape[2] * width // x.shape[3]), width), mode="area")


def save_grid(path: Path, rows: list[Tensor]) -> None:
    """Rows of pictures [N, 3, H, W] in [-1, 1] (each row with its own N, H and W) one below the other, left-aligned."""
    strips = [row.float().cpu().permute(2, 0, 3, 1).flatten(1, 2) for row in rows]  # [H, N * W, 3]
    strips = [strip.clamp(-1, 1).add(1).mul(127.5).round().byte().numpy() for strip in strips]
    canvas = Image.new("RGB", (max(s.shape[1] for s in strips), sum(s.shape[0] for s in strips)))
    top = 0
    for strip in strips:
        canvas.paste(Image.fromarray(strip), (0, top))
        top += strip.shape[0]
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    replace_file(path, lambda file: file.write(buffer.getvalue()))
