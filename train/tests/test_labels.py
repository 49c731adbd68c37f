"""Promises of labels of a user's pictures: from folders, JSON or CSV, row by row beside the pictures, to the model's file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tessera_train import __main__ as cli
from tessera_train.data.labels import Labels, Source
from tessera_train.data.pictures import Pictures
from tessera_train.export.model import Model

COLOURS = {"red": (200, 40, 30), "blue": (30, 50, 210)}


def folders(root: Path, count: int) -> Path:
    """`count` pictures of each colour, in a folder of its name, and one in the root."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            light = np.array(Image.fromarray(rng.integers(90, 255, (4, 8), np.uint8)).resize((256, 128), Image.Resampling.BICUBIC))
            Image.fromarray((light[..., None] / 255 * colour).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def colour_of(pictures: Pictures, i: int) -> str:
    """The name of the picture's colour, by its mean."""
    red, _, blue = pictures.rows[i].mean((0, 1))
    return "red" if red > blue else "blue"


@pytest.mark.parametrize("kind", ["folders", "json", "csv"])
def test_every_source_labels_the_rows_of_its_pictures(tmp_path, kind):
    """Rows are in another order than files: each still has the label of its own picture; a picture without one has none."""
    root = folders(tmp_path / "in", 4)
    Image.new("RGB", (256, 128), (90, 90, 90)).save(root / "grey.png")
    files = sorted(root.rglob("*.png"))
    if kind == "json":
        for path in files:
            if path.name != "grey.png":
                path.with_suffix(".json").write_text(json.dumps({"folder": path.parent.name}))
    lines = ["file,folder", *(f"{path.relative_to(root)},{path.parent.name}" for path in files if path.name != "grey.png")]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    source = str(tmp_path / "t.csv") if kind == "csv" else kind
    words = ["prepare", str(root), "--out", str(tmp_path / "p"), "--size", "256x128", "--labels", source]
    assert cli.main(words) == 0
    pictures = Pictures.open(tmp_path / "p")
    (label,) = pictures.labels.schema
    assert label.name == "folder" and label.values == ("blue", "red")
    for i, (at,) in enumerate(pictures.labels.rows):
        grey = int(pictures.rows[i].max()) - int(pictures.rows[i].min()) == 0
        assert (at == 0) == grey and (grey or label.values[at - 1] == colour_of(pictures, i))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,time\na.png,day\n", "the first column is name, must be file"),
        ("file,time\na.png,day,more\n", "line 2 has more fields"),
        ("file,ti=me\na.png,day\n", "label is 'ti=me'"),
        ("file,time\na.png, day\n", "label is ' day'"),
    ],
)
def test_table_that_can_not_be_read_is_named(tmp_path, text, message):
    """One ValueError, with the file, the line and the value."""
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        Source(str(tmp_path / "t.csv"), tmp_path)


def test_other_sources_and_damaged_files_are_refused(tmp_path):
    """A source of no known kind; `labels.json` that is damaged or too short."""
    with pytest.raises(ValueError, match="labels is 'names', must be folders, json or a CSV file"):
        Source("names", tmp_path)
    for text, message in (("{", "is not a file of labels"), ('{"labels": [], "pictures": []}', "pictures has 0 entries, must have 3")):
        (tmp_path / "labels.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            Labels.open(tmp_path, 3)


def test_version_1_refuses_labels(tmp_path, capsys):
    """It has no place for them; nothing is written."""
    words = ["fit", str(folders(tmp_path / "in", 2)), "--out", str(tmp_path / "m.safetensors"), "--config", "tiny", "--labels", "folders"]
    assert cli.main([*words, "--steps", "9", "--device", "cpu"]) == 2
    assert "is of version 1, which has no labels" in capsys.readouterr().err and not (tmp_path / "m.run").exists()


def test_fit_makes_a_model_with_the_labels_of_its_folders(tmp_path):
    """The file holds names, values and rows; a sample has the model's sizes; the same command does nothing more."""
    out = tmp_path / "m.safetensors"
    words = ["fit", str(folders(tmp_path / "in", 10)), "--out", str(out), "--config", "tiny-2", "--labels", "folders"]
    words += ["--steps", "12", "--device", "cpu", "--precision", "f32", "--threads", "1"]
    assert cli.main(words) == 0
    before = out.read_bytes()
    assert cli.main(words) == 0 and out.read_bytes() == before
    model = Model.open(out, torch.device("cpu"))
    assert [(label.name, label.values) for label in model.arch.labels] == [("folder", ("blue", "red"))]
    assert sorted(set(model.latents.labels.ravel().tolist())) == [1, 2]
    z = model.sample(2, 3, 0, torch.tensor([[1], [2]]), 2.0)
    assert next(model.decode(z)).shape == (1, 3, 128, 256)
