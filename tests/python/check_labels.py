"""Labels decide what is drawn: a model is trained on two folders, of red and of blue pictures, and the program is asked for
each colour at 20 seeds.

    check_labels.py draw FOLDER             draws the pictures
    check_labels.py check PROGRAM MODEL     asks the program for pictures by MODEL, which was trained on FOLDER
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SEEDS = 20
FOLLOWED = 18  # of the seeds, at least


def draw(folder: Path) -> None:
    """40 pictures of each colour, 256x128, with soft light and shade of their own."""
    random = np.random.default_rng(7)
    for name, colour in (("red", (200, 40, 30)), ("blue", (30, 50, 210))):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(40):
            spots = Image.fromarray(random.integers(90, 255, (4, 8), np.uint8))
            light = np.asarray(spots.resize((256, 128), Image.Resampling.BICUBIC))[..., None] / 255
            Image.fromarray((light * colour).astype(np.uint8)).save(folder / name / f"{i}.png")


def colours(program: str, model: str, *options: str) -> list[str]:
    """The colours of the pictures that the program makes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "a.png"
        words = ["generate", "--model", model, "--device", "cpu", "--count", str(SEEDS), "--out", str(out), *options]
        subprocess.run([program, *words], check=True, capture_output=True)
        means = [np.asarray(Image.open(path)).mean((0, 1)) for path in sorted(Path(folder).iterdir())]
    assert len(means) == SEEDS
    return ["red" if red > blue else "blue" for red, _, blue in means]


def check(program: str, model: str) -> None:
    """Fails if a label is not followed, or if without labels one of the colours does not occur."""
    for name in ("red", "blue"):
        count = colours(program, model, "--label", f"folder={name}").count(name)
        print(f"folder={name}: {count} of {SEEDS} are {name}")
        assert count >= FOLLOWED, f"at least {FOLLOWED} of {SEEDS} must be {name}"
    drawn = colours(program, model)
    print(f"no label: {drawn.count('red')} red, {drawn.count('blue')} blue")
    assert len(set(drawn)) == 2, "both colours must occur without labels"


match sys.argv[1:]:
    case ["draw", folder]:
        draw(Path(folder))
    case ["check", program, model]:
        check(program, model)
    case _:
        sys.exit(__doc__)
