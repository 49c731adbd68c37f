"""PSNR of pictures against the first one, and all of them, averaged down to half, one below the other in a PNG.

    python scripts/gpu/pictures.py OUT.png FIRST.png OTHER.png...
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def main(out: str, *files: str) -> None:
    pictures = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    for file, picture in zip(files[1:], pictures[1:]):
        error = np.square(picture.astype(np.float64) - pictures[0]).mean()
        decibels = 10 * math.log10(255**2 / error) if error else math.inf
        print(f"picture {Path(file).stem}: {decibels:.1f} dB from {Path(files[0]).stem}")
    halves = [Image.fromarray(picture).reduce(2) for picture in pictures]
    sheet = Image.new("RGB", (halves[0].width, sum(half.height for half in halves)))
    for i, half in enumerate(halves):
        sheet.paste(half, (0, i * half.height))
    sheet.save(out)


main(*sys.argv[1:])
