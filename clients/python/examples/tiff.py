"""Orders a picture from a Tessera server, shows its progress, and writes a TIFF.

    python tiff.py --seed 7 --size 1024x512 --out picture.tiff

With `--check-against FILE` it compares the pixels with those of a TIFF from `tessera generate` or `tessera fetch`: the
same seed, size, steps and kind of device give the same pixels. The exit code is 1 if a pixel differs.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import tifffile

from tessera_client import Client, Picture, TesseraError, events


def size(text: str) -> tuple[int, int]:
    """Parses width and height, as in 2048x1024."""
    try:
        width, height = (int(side) for side in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a width and a height, such as 2048x1024") from None
    return width, height


def generate(args: argparse.Namespace) -> Picture:
    """Orders the picture and collects its tiles."""
    width, height = args.size or (None, None)
    with Client(args.server, ca=args.ca) as client:
        job = client.generate(
            seed=args.seed, width=width, height=height, steps=args.steps, tile_size=args.tile, bits=args.bits
        )
        print(f"{job.name}  {job.spec.width} x {job.spec.height}  seed {job.spec.seed}  {job.spec.steps} steps")
        for event in job.watch(tiles=False, previews=False):
            match event:
                case events.Started():
                    print(f"on {event.device}")
                case events.Step():
                    print(f"step {event.step} of {event.of}")
                case events.TileDecoded():
                    print("tile {2} x {3} at {0},{1}".format(*event.rect))
        return job.picture()


def write(path: Path, picture: Picture) -> None:
    """Writes the file under a temporary name and renames it, so that it is complete or does not exist."""
    partial = path.with_name(f".{path.name}.partial")
    tiles = {"tile": (256, 256), "compression": "zlib", "metadata": None}
    try:
        tifffile.imwrite(partial, picture.pixels, photometric="rgb", description=picture.description, **tiles)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check(picture: Picture, path: Path) -> None:
    """Compares the pixels with those of a file."""
    expected = tifffile.imread(path)
    if expected.shape != picture.pixels.shape or expected.dtype != picture.pixels.dtype:
        found = f"{picture.pixels.shape} {picture.pixels.dtype}"
        raise SystemExit(f"{path} is {expected.shape} {expected.dtype}, not {found}")
    differing = np.count_nonzero((expected != picture.pixels).any(axis=2))
    if differing:
        raise SystemExit(f"{differing} pixels differ from {path}")
    print(f"all {expected.shape[0] * expected.shape[1]} pixels equal those of {path}")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", help="address (default: that of TESSERA_SERVER, or this machine)")
    parser.add_argument("--ca", metavar="FILE", help="certificate authority of the server, PEM")
    parser.add_argument("--seed", type=int, default=0, help="key of the noise")
    parser.add_argument("--size", type=size, metavar="WxH", help="default: the model's own")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: %(default)s)")
    parser.add_argument("--tile", type=int, default=512, help="side of a tile in pixels (default: %(default)s)")
    parser.add_argument("--bits", type=int, default=8, choices=(8, 16), help="bits of a sample")
    parser.add_argument("--out", type=Path, default=Path("picture.tiff"), help="file to write (default: %(default)s)")
    parser.add_argument("--check-against", type=Path, metavar="FILE", help="compare the pixels with a TIFF's")
    args = parser.parse_args()
    try:
        picture = generate(args)
    except TesseraError as error:
        raise SystemExit(str(error)) from None
    write(args.out, picture)
    print(f"{args.out}  {picture.description}  model {picture.receipt['model_sha256'][:12]}")
    if args.check_against:
        check(picture, args.check_against)


if __name__ == "__main__":
    main()
