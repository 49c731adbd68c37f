"""Configurations: a TOML file with `[arch]`, `[autoencoder]`, `[diffusion]`, `[refine]` and `[fit]`; `extends` names another one,
whose settings hold where the file has none of its own."""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from ..nets.arch import Arch

T = TypeVar("T")
BUILT_IN = Path(__file__).parent.parent / "configs"
DEEPEST = 8
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
"""Names that a server accepts (`is_model_name` in src/jobs/models.rs)."""
BASES = {"refine": "autoencoder"}


class Config:
    """A configuration by path, or by the name of one of the package's own. `size`: (width, height) of the model's
    pictures in place of the file's; the phases of the AutoEncoder's training keep their share of it. `model`: the model's name in
    place of the file's."""

    def __init__(self, name: str, size: tuple[int, int] | None = None, model: str | None = None) -> None:
        self.path = find(name, Path())
        self.texts, self.doc = read(self.path)
        if size:
            resize(self.doc, *size)
        if model is not None:
            if not MODEL_NAME.fullmatch(model):
                raise ValueError(
                    f"name is {model!r}, must have at most 63 letters, digits, '-', '_' and '.', the first a letter or digit"
                )
            self.doc["arch"]["name"] = model
        self.arch = Arch.from_json(json.dumps(self.doc["arch"]))

    def section(self, name: str, kind: type[T]) -> T:
        """The section `name` as the dataclass `kind`, whose defaults stand for what is left out; in `[refine]` the values of
        `[autoencoder]` do, in `[diffusion.GROUP]` those of `[diffusion]`."""
        outer, _, inner = name.partition(".")
        values = self.doc.get(BASES.get(name), {}) | self.doc.get(outer, {})
        values = {key: value for key, value in values.items() if not isinstance(value, dict)}
        values |= self.doc.get(outer, {}).get(inner, {}) if inner else {}
        unknown = set(values) - set(kind.__dataclass_fields__)
        if unknown:
            raise ValueError(f"{self.path}: [{name}] has no setting {', '.join(sorted(unknown))}")
        return kind(**values)


def find(name: str, folder: Path) -> Path:
    """The file of a configuration; a path is relative to `folder`."""
    path = folder / name if name.endswith(".toml") else BUILT_IN / f"{name}.toml"
    if not path.is_file():
        raise ValueError(f"config is {name!r}, must be a TOML file or one of {', '.join(names())}")
    return path


def read(path: Path, depth: int = 0) -> tuple[list[str], dict[str, Any]]:
    """The texts of the file and of those that it extends, its own first, and the document that they make."""
    if depth > DEEPEST:
        raise ValueError(f"{path}: extends more than {DEEPEST} files one after the other, or itself")
    text = path.read_text()
    doc = tomllib.loads(text)
    if "extends" not in doc:
        return [text], doc
    texts, base = read(find(doc.pop("extends"), path.parent), depth + 1)
    return [text, *texts], merged(base, doc)


def merged(base: dict[str, Any], doc: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `doc`; tables are merged, lists are replaced."""
    both = {key: merged(base[key], value) for key, value in doc.items() if isinstance(value, dict) and isinstance(base.get(key), dict)}
    return base | doc | both


def add_name_argument(parser: argparse.ArgumentParser) -> None:
    """The argument for the model's name."""
    parser.add_argument("--name", help="of the model, as its file states it and servers offer it (default: the configuration's)")


def names() -> list[str]:
    """The package's own configurations."""
    return sorted(path.stem for path in BUILT_IN.glob("*.toml"))


def resize(doc: dict[str, Any], width: int, height: int) -> None:
    """Puts another size into the document of a configuration."""
    arch = doc["arch"]
    if "sizes" in arch:
        old, arch["sizes"] = arch["sizes"][0], [[width, height]]
    else:
        old = [arch["width"], arch["height"]]
        arch["width"], arch["height"] = width, height
    coarsest = max(level["factor"] for level in arch["levels"])
    for phase in (phase for section in ("autoencoder", "refine") for phase in doc.get(section, {}).get("phases", [])):
        for side, before, new in (("width", old[0], width), ("height", old[1], height)):
            phase[side] = max(1, round(phase[side] / before * new / coarsest)) * coarsest
