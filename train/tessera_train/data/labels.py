"""Labels of pictures: a value, or none, for each attribute, such as `time=dusk`.

`labels.json` of a folder of pictures: {"labels": [{"name": "time", "values": ["day", "dusk"]}, ...], "pictures": [{"time":
"dusk"}, ...]}, one entry of `pictures` per row of `pictures.npy`. A model takes the names and values from there.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..export.files import replace_file
from ..nets.arch import Label

FILE = "labels.json"
MOST_LABELS, MOST_VALUES, LONGEST = 32, 255, 64
FOLDER = "folder"
"""Name of the label that `--labels folders` makes of the names of the folders."""

SOURCES = "folders (one label, folder: the name of the subfolder), json (a file next to each picture) or a CSV file"
"""Help on `--labels`."""


@dataclass(frozen=True)
class Labels:
    """The labels of a model and, int64 [pictures, labels], 0 for one that is not given, else 1 + the index of its value."""

    schema: tuple[Label, ...]
    rows: np.ndarray

    @staticmethod
    def open(folder: Path, count: int) -> Labels:
        """The labels of the first `count` pictures of `folder`; of none if it has no `labels.json`."""
        path = folder / FILE
        if not path.exists():
            return Labels((), np.zeros((count, 0), np.int64))
        try:
            doc = json.loads(path.read_text())
            schema = tuple(Label(check(x["name"], path), tuple(check(v, path) for v in x["values"])) for x in doc["labels"])
            pictures = doc["pictures"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: is not a file of labels: {error}") from error
        if len(pictures) < count:
            raise ValueError(f"{path}: pictures has {len(pictures)} entries, must have {count}")
        return Labels(schema, encoded(schema, pictures[:count]))


def check(text: object, where: object) -> str:
    """`text`, if it can be a name or value. ValueError else, naming `where` it stands."""
    if not isinstance(text, str) or not 1 <= len(text) <= LONGEST or "=" in text or not text.isprintable() or text != text.strip():
        raise ValueError(f"{where}: label is {text!r}, must be 1 to {LONGEST} printable characters without '='")
    return text


def encoded(schema: tuple[Label, ...], pictures: Iterable[Mapping[str, str]]) -> np.ndarray:
    """Rows int64 [pictures, labels] of dictionaries from names to values. ValueError for names or values outside the schema."""
    places = {label.name: {value: 1 + i for i, value in enumerate(label.values)} for label in schema}
    rows = []
    for its in pictures:
        for name, value in its.items():
            if name not in places:
                raise ValueError(f"label is {name!r}, must be one of {', '.join(places) or 'none, as the model has no labels'}")
            if value not in places[name]:
                raise ValueError(f"label {name} is {value!r}, must be one of {', '.join(places[name])}")
        rows.append([places[label.name].get(its.get(label.name), 0) for label in schema])
    return np.array(rows, np.int64).reshape(-1, len(schema))


def named(schema: tuple[Label, ...], row: Iterable[int]) -> dict[str, str]:
    """The inverse of `encoded` for one picture."""
    return {label.name: label.values[at - 1] for label, at in zip(schema, row) if at}


def drawn(rows: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels int64 [labels]: `wanted` where it is given, the rest as a random one of `rows` has it, chosen from those that agree
    with `wanted` in the most labels; so what is not asked for follows the joint distribution of the training pictures."""
    if not len(rows):
        return wanted.copy()
    agreement = ((rows == wanted) & (wanted > 0)).sum(1)
    row = rows[rng.choice(np.flatnonzero(agreement == agreement.max()))]
    return np.where(wanted > 0, wanted, row)


def write(folder: Path, pictures: list[dict[str, str]]) -> None:
    """Writes `labels.json` for `pictures`; names and values in alphabetical order. ValueError for too many of them."""
    values: dict[str, set[str]] = {}
    for its in pictures:
        for name, value in its.items():
            values.setdefault(name, set()).add(value)
    if len(values) > MOST_LABELS:
        raise ValueError(f"labels: {len(values)} names, must be at most {MOST_LABELS}")
    for name, its in values.items():
        if len(its) > MOST_VALUES:
            raise ValueError(f"labels: {name} has {len(its)} values, must be at most {MOST_VALUES}")
    schema = [{"name": name, "values": sorted(values[name])} for name in sorted(values)]
    text = json.dumps({"labels": schema, "pictures": pictures})
    replace_file(folder / FILE, lambda file: file.write(text.encode()))


class Source:
    """Where the labels of files come from: `folders` (the name of the folder right below the root), `json` (a file of the same
    name with the suffix .json beside the picture) or a CSV file (its `path`) whose first column, `file`, holds paths below the root."""

    path: Path | None

    def __init__(self, kind: str, root: Path) -> None:
        self.kind, self.root, self.table, self.path = kind, root, {}, None
        if kind in ("folders", "json"):
            return
        path = Path(kind)
        if path.suffix.lower() != ".csv":
            raise ValueError(f"labels is {kind!r}, must be folders, json or a CSV file")
        self.path = path
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = reader.fieldnames or []
            if not names or names[0] != "file":
                raise ValueError(f"{path}: the first column is {names[0] if names else 'missing'}, must be file")
            for line in reader:
                if None in line:
                    raise ValueError(f"{path}: line {reader.line_num} has more fields than the first line")
                self.table[line["file"]] = {check(n, path): check(v, path) for n, v in line.items() if n != "file" and v}

    def of(self, file: Path) -> dict[str, str]:
        """The labels of a picture; without an entry none."""
        relative = file.relative_to(self.root)
        if self.kind == "folders":
            return {FOLDER: check(relative.parts[0], file)} if len(relative.parts) > 1 else {}
        if self.kind == "json":
            path = file.with_suffix(".json")
            if not path.exists():
                return {}
            try:
                doc = json.loads(path.read_text())
            except ValueError as error:
                raise ValueError(f"{path}: is not JSON: {error}") from error
            if not isinstance(doc, dict):
                raise ValueError(f"{path}: is no object from names to values")
            return {check(name, path): check(value, path) for name, value in doc.items()}
        return self.table.get(relative.as_posix(), {})
