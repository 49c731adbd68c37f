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


def coarse_psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Of the means of squares of 32 pixels, in dB."""
    means = [picture.reshape(4, 32, 8, 32, 3).mean((1, 3)) for picture in (a, b)]
    return 10 * np.log10(255**2 / np.mean((means[0] - means[1]) ** 2))


def check_layout(program: str, model: str) -> None:
    """Fails if pictures with a given layout and details of other seeds are not more like it than like other pictures: by 6 dB
    for the median of the seeds. Of ten steps the last eight are those of the detail, so an edit of strength 0.8 keeps the layout.
    """
    options = ["--model", model, "--device", "cpu", "--steps", "layout=2,detail=8"]
    with tempfile.TemporaryDirectory() as folder:

        def picture(seed: int, words: list[str]) -> np.ndarray:
            out = words[-1] if words[0] == "edit" else f"{folder}/{seed}.png"
            words = [*words, *options, "--seed", str(seed)]
            words += [] if words[0] == "edit" else ["--out", out]
            subprocess.run([program, *words], check=True, capture_output=True)
            return np.asarray(Image.open(out)).astype(float)

        given = [picture(seed, ["generate", "--label", f"folder={('red', 'blue')[seed % 2]}"]) for seed in range(10)]
        nearer = []
        for seed, own in enumerate(given):
            made = picture(100 + seed, ["edit", "--strength", "0.8", f"{folder}/{seed}.png", f"{folder}/edited.png"])
            others = [coarse_psnr(made, other) for other in given if other is not own]
            nearer.append(coarse_psnr(made, own) - float(np.mean(others)))
    print("given layouts: nearer than others by " + ", ".join(f"{difference:.1f}" for difference in nearer) + " dB")
    assert np.median(nearer) >= 6, "at least 6 dB"


match sys.argv[1:]:
    case ["draw", folder]:
        draw(Path(folder))
    case ["check", program, model]:
        check(program, model)
        check_layout(program, model)
    case _:
        sys.exit(__doc__)
