"""The command that puts the pieces of a file together again (`pieces`)."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import pieces
from .files import replace_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with the pieces")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")


def run(args: argparse.Namespace) -> None:
    """The command."""
    number, data = pieces.joined(args.folder)
    replace_file(args.out, lambda file: file.write(data))
    print(f"{args.out}: {len(data) / 1e6:.1f} MB, round {number}")
