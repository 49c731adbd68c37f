"""Promises of the reader of labels and of the distance in its features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tessera_train import __main__ as cli
from tessera_train.data.pictures import Pictures
from tessera_train.eval.reader import Reader, frechet, met


def labelled(folder: Path, count: int) -> Path:
    """Pictures of two colours and, apart from that, bright or dark; labels say which; one label is missing."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    colours, light = rng.integers(0, 2, count), rng.integers(0, 2, count)
    rows = np.array([[200, 60, 50], [50, 60, 200]])[colours][:, None, None, :] * np.array([0.4, 1.0])[light][:, None, None, None]
    rows = rows + rng.normal(0, 12, (count, 64, 128, 3))
    np.save(folder / "pictures.npy", rows.clip(0, 255).astype(np.uint8))
    pictures = [{"colour": ("red", "blue")[c], "light": ("dark", "bright")[b]} for c, b in zip(colours, light)]
    pictures[0].pop("light")
    schema = [{"name": "colour", "values": ["blue", "red"]}, {"name": "light", "values": ["bright", "dark"]}]
    (folder / "labels.json").write_text(json.dumps({"labels": schema, "pictures": pictures}))
    return folder


def test_reader_learns_labels_and_reads_them_from_its_file(tmp_path, monkeypatch):
    """Both labels of pictures that are held out, at another size than they are stored in."""
    monkeypatch.setattr("tessera_train.eval.reader.SIDE", 32)
    folder, out = labelled(tmp_path / "p", 80), tmp_path / "r.safetensors"
    assert cli.main(["reader", "--pictures", str(folder), "--out", str(out), "--steps", "30", "--threads", "1"]) == 0
    reader, pictures = Reader.open(out), Pictures.open(folder)
    held_out = list(range(pictures.training, len(pictures.rows)))
    read = torch.cat([reader.read(pictures.whole(i, 64, 32))[1] for i in held_out])
    assert min(met(read, torch.from_numpy(pictures.labels.rows[held_out]))) > 0.9


def test_reader_refuses_pictures_without_labels_and_other_files(tmp_path, capsys):
    """By what is missing."""
    np.save(tmp_path / "pictures.npy", np.zeros((4, 32, 64, 3), np.uint8))
    words = ["reader", "--pictures", str(tmp_path), "--out", str(tmp_path / "r.safetensors"), "--steps", "1"]
    assert cli.main(words) == 2 and "have no labels" in capsys.readouterr().err
    fixture = Path(__file__).parents[2] / "tests" / "fixtures" / "net-a.safetensors"
    with pytest.raises(ValueError, match="was not written by the reader command"):
        Reader.open(fixture)


def test_frechet_distance_is_that_of_normal_distributions():
    """0 for equal features; the squared shift of means; the exact value for diagonal covariances, to the error of sampling."""
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    assert abs(frechet(x, x)) < 1e-4
    assert frechet(x, x + torch.tensor([3.0, 0.0, 4.0])) == pytest.approx(25, rel=1e-4)
    scales = torch.tensor([1.0, 2.0, 0.5])
    other = torch.randn(4000, 3, generator=torch.Generator().manual_seed(1)) * scales
    assert frechet(x, other) == pytest.approx(float((scales - 1).square().sum()), abs=0.1)


def test_labels_met_counts_what_was_asked_for():
    """A label that nobody asked for has no share."""
    shares = met(torch.tensor([[1, 2, 1], [2, 2, 1]]), torch.tensor([[1, 0, 0], [1, 2, 0]]))
    assert shares[:2] == [0.5, 1.0] and np.isnan(shares[2])
