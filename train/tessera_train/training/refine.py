"""Further training of the decoder, which learns from an adversary to give texture to what the U-Net generates."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..data.pictures import Pictures
from ..export.model import Model
from . import loop
from .autoencoder import Task
from .config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--pictures", type=Path, required=True, help="folder that scenery or prepare has written")
    loop.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """The command."""
    if args.start is None or args.start.suffix != ".safetensors":
        raise ValueError(f"from is {args.start}, must be an exported file: its U-Net and decoder are needed")
    device = loop.prepare(args)
    config, whole = Config(args.config), Model.open(args.start, device)
    if whole.arch != config.arch:
        raise ValueError(f"{args.start} is of another model than the configuration's")
    loop.describe(config.arch)
    return loop.Loop(Task(config, Pictures.open(args.pictures), args.seed, device, whole), args, device).run()
