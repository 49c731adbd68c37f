"""Configurations: a TOML file with `[arch]`, `[autoencoder]`, `[diffusion]` and `[fit]`."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from .arch import Arch

T = TypeVar("T")
BUILT_IN = Path(__file__).parent / "configs"


class Config:
    """A configuration by path, or by the name of one of the package's own. `size`: (width, height) of the model's
    pictures in place of the file's; the phases of the AutoEncoder's training keep their share of it."""

    def __init__(self, name: str, size: tuple[int, int] | None = None) -> None:
        path = Path(name) if name.endswith(".toml") else BUILT_IN / f"{name}.toml"
        if not path.is_file():
            raise ValueError(f"config is {name!r}, must be a TOML file or one of {', '.join(names())}")
        self.path, self.text = path, path.read_text()
        self.doc = tomllib.loads(self.text)
        if size:
            resize(self.doc, *size)
        self.arch = Arch.from_json(json.dumps(self.doc["arch"]))

    def section(self, name: str, kind: type[T]) -> T:
        """The section `name` as the dataclass `kind`, whose defaults stand for what is left out."""
        values = self.doc.get(name, {})
        unknown = set(values) - set(kind.__dataclass_fields__)
        if unknown:
            raise ValueError(f"{self.path}: [{name}] has no setting {', '.join(sorted(unknown))}")
        return kind(**values)


def names() -> list[str]:
    """The package's own configurations."""
    return sorted(path.stem for path in BUILT_IN.glob("*.toml"))


def resize(doc: dict[str, Any], width: int, height: int) -> None:
    """Puts another size into the document of a configuration."""
    arch = doc["arch"]
    coarsest = max(level["factor"] for level in arch["levels"])
    for phase in doc.get("autoencoder", {}).get("phases", []):
        for side, new in (("width", width), ("height", height)):
            phase[side] = max(1, round(phase[side] / arch[side] * new / coarsest)) * coarsest
    arch["width"], arch["height"] = width, height
