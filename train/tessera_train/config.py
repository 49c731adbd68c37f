"""Configurations: a TOML file with `[arch]`, `[autoencoder]` and `[diffusion]`."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import TypeVar

from .arch import Arch

T = TypeVar("T")
BUILT_IN = Path(__file__).parent / "configs"


class Config:
    """A configuration by path, or by the name of one of the package's own (`scenery`, `tiny`)."""

    def __init__(self, name: str) -> None:
        path = Path(name) if name.endswith(".toml") else BUILT_IN / f"{name}.toml"
        with open(path, "rb") as file:
            self.doc = tomllib.load(file)
        self.path = path
        self.arch = Arch.from_json(json.dumps(self.doc["arch"]))

    def section(self, name: str, kind: type[T]) -> T:
        """The section `name` as the dataclass `kind`, whose defaults stand for what is left out."""
        values = self.doc.get(name, {})
        unknown = set(values) - set(kind.__dataclass_fields__)
        if unknown:
            raise ValueError(f"{self.path}: [{name}] has no setting {', '.join(sorted(unknown))}")
        return kind(**values)
