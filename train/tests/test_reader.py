"""Promises of the reader of labels and of the distance in its features."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tessera_train import __main__ as cli
from tessera_train.data.pictures import Pictures
from tessera_train.eval.reader import Reader, frechet, met
from tessera_train.export import export, fixtures
from tessera_train.nets.autoencoder import Autoencoder
from tessera_train.nets.unet import UNet
from tessera_train.training.config import Config


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


def test_report_has_labels_met_and_scales_of_guidance(tmp_path, monkeypatch):
    """For a model with the reader's labels: a share for each label, a row for each scale; the first scale is the report's."""
    monkeypatch.setattr("tessera_train.eval.reader.SIDE", 32)
    torch.manual_seed(0)
    folder = labelled(tmp_path / "p", 16)
    reader = tmp_path / "r.safetensors"
    assert cli.main(["reader", "--pictures", str(folder), "--out", str(reader), "--steps", "2", "--threads", "1"]) == 0
    pictures = Pictures.open(folder)
    arch = dataclasses.replace(Config("tiny-2").arch, labels=pictures.labels.schema)
    tensors = dict(fixtures.Draw("a").fill(Autoencoder(arch)).float().state_dict())
    for group in range(2):
        tensors |= {f"{arch.prefix(group)}{n}": x for n, x in fixtures.Draw(f"{group}").fill(UNet(arch, group)).float().state_dict().items()}
    for i, level in enumerate(arch.levels):
        tensors |= {f"latents.{i}.mean": torch.zeros(level.channels), f"latents.{i}.std": torch.full((level.channels,), 0.1)}
    tensors["labels.rows"] = torch.from_numpy(pictures.labels.rows).float()
    export.write(tmp_path / "m.safetensors", arch, tensors, {})
    words = ["evaluate", "--model", str(tmp_path / "m.safetensors"), "--pictures", str(folder), "--reader", str(reader), "--device", "cpu"]
    words += ["--samples", "4", "--sample-steps", "2", "--out", str(tmp_path / "t.md"), "--guidance", "2", "1"]
    assert cli.main(words) == 0
    text = (tmp_path / "t.md").read_text()
    assert "guidance 2." in text and "## Labels" in text and "| colour | light |" in text and "labels met" in text
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    scales = [line for line in lines if line[0] in ("1", "2")]
    assert [line[0] for line in scales] == ["2", "1"] and scales[0][1:] != scales[1][1:] and "nan" not in text
    (samples,) = [line for line in lines if line[0] == "samples" and "%" in line[-1]]
    assert scales[0][-2] == samples[2]


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
