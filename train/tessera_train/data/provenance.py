"""Provenance of a run folder, so that its result can be reproduced: settings, code, seed."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..export.files import replace_file

RECORD = "run.json"


def code_version() -> dict[str, str | None]:
    """Versions of this package, of its commit in a git checkout, of PyTorch and of Python."""
    place = Path(__file__).parent
    try:
        git = subprocess.run(["git", "-C", place, "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, text=True, check=False)
        commit = git.stdout.strip() or None
    except OSError:
        commit = None
    return {"tessera_train": __version__, "commit": commit, "torch": torch.__version__, "python": platform.python_version()}


def write(folder: Path, values: dict[str, Any]) -> None:
    """Writes `values` and the code's version as `run.json` of `folder`."""
    text = json.dumps(values | {"code": code_version()}, indent=1)
    replace_file(folder / RECORD, lambda file: file.write(text.encode() + b"\n"))


def read(folder: Path) -> dict[str, Any] | None:
    """`run.json` of `folder`, if there is one."""
    path = folder / RECORD
    return json.loads(path.read_text()) if path.exists() else None
