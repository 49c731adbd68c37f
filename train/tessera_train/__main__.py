"""`python -m tessera_train COMMAND ...`: one module per command, with `add_arguments` and `run`."""

from __future__ import annotations

import argparse
import importlib
import sys

PACKAGES = {
    "data": ("prepare", "latents"),
    "training": ("fit", "sprint", "autoencoder", "diffusion", "refine"),
    "export": ("export", "fixtures", "join"),
    "eval": ("reader", "evaluate", "ablate"),
}
"""The sub-package that holds the module of each command; `scenery` is a package of its own."""
COMMANDS = {
    "fit": "train a model on a folder of pictures, in one command",
    "sprint": "train all networks within a number of seconds, on scenery drawn at the same time",
    "scenery": "draw procedural landscapes to train on",
    "prepare": "convert your own pictures into the form used for training",
    "autoencoder": "train encoder and decoder on pictures",
    "latents": "encode the pictures once, with statistics",
    "diffusion": "train the U-Net on latents",
    "refine": "train the decoder further, with an adversary, on what the U-Net generates",
    "export": "write the trained networks to one safetensors file, or as ONNX graphs",
    "join": "put together the pieces of a file that sprint has written",
    "reader": "train the network by which evaluate reads labels",
    "evaluate": "measure an exported model on held-out pictures",
    "ablate": "measure the effect of each part of the recipe",
    "fixtures": "write the test vectors that tie this package to the Rust crate",
}
PARALLEL = ("autoencoder", "diffusion", "refine")
"""The commands that torchrun may start several times."""


def module_of(command: str) -> str:
    """The full name of the module with the command's `add_arguments` and `run`."""
    package = next((name for name, commands in PACKAGES.items() if command in commands), None)
    return f"{__package__}.{package}.{command}" if package else f"{__package__}.{command}"


def main(argv: list[str] | None = None) -> int:
    """Parses the command, loads its module, runs it; returns the exit code: 2 with one line for input that is wrong or
    a disk that is full, 130 when interrupted."""
    listing = "\n".join(f"  {name:<12} {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="tessera_train",
        description=f"commands:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="COMMAND --help lists them")
    chosen = parser.parse_args(argv)
    module = importlib.import_module(module_of(chosen.command))
    parallel = importlib.import_module(f"{__package__}.training.parallel")
    command = argparse.ArgumentParser(prog=f"tessera_train {chosen.command}", description=COMMANDS[chosen.command])
    module.add_arguments(command)
    arguments = command.parse_args(chosen.arguments)
    try:
        if parallel.asked() and chosen.command not in PARALLEL:
            raise ValueError(f"runs in one process; under torchrun run {', '.join(PARALLEL[:-1])} or {PARALLEL[-1]}")
        return module.run(arguments) or 0
    except (ValueError, OSError) as error:
        print(f"tessera_train {chosen.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"tessera_train {chosen.command}: interrupted", file=sys.stderr)
        return 130
    finally:
        parallel.end()


if __name__ == "__main__":
    sys.exit(main())
