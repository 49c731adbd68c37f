"""Promises of the table of ablations: same budget, no run twice, means with their spread."""

from __future__ import annotations

import json
import math

import pytest
from pictures import write_array
from tessera_train import __main__ as cli
from tessera_train.eval.ablate import ABLATIONS, Group, cell, text


def test_every_configuration_is_trained_measured_and_not_repeated(tmp_path, capsys, monkeypatch):
    """A line for each, of finite numbers; runs that are there are taken as they are, a lost one is made again to the same
    numbers; the AutoEncoder is shared where it is the same."""
    monkeypatch.setattr("sys.argv", ["tessera_train", "ablate", "..."])
    out = tmp_path / "runs"
    for name, text in (
        ("whole", 'extends = "tiny"\n[arch]\nname = "ablation-whole"\n[diffusion]\nsample_steps = 1\n[fit]\nshare = 0.4\nrefine = 0.0\n'),
        ("input", 'extends = "whole.toml"\n[arch]\nname = "ablation-input"\n[arch.unet]\nskip = "input"\n'),
        ("spatial", 'extends = "whole.toml"\n[arch]\nname = "ablation-spatial"\nattention_ratio = "spatial"\n'),
    ):
        (tmp_path / f"{name}.toml").write_text(text)
    configs = [str(tmp_path / f"{name}.toml") for name in ("whole", "input", "spatial")]
    words = ["ablate", "--pictures", str(write_array(tmp_path / "p", 9)), "--out", str(out), "--steps", "2", "--samples", "2"]
    words += ["--sample-steps", "1", "--batch", "2", "--device", "cpu", "--threads", "1", "--seeds", "1", "--configs", *configs]
    assert cli.main(words) == 0
    table = (out / "ablations.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["whole", "input", "spatial", "training pictures (floor)"]
    assert all(math.isfinite(float(x)) for row in rows[2:5] for x in row[2:]) and "python -m tessera_train" in table
    assert len(list(out.glob("autoencoder-*"))) == 2 and len(list(out.glob("*.json"))) == 3
    capsys.readouterr()
    (lost := out / "ablation-input-0.json").rename(tmp_path / "kept.json")
    assert cli.main(words) == 0 and (out / "ablations.md").read_text() == table
    assert capsys.readouterr().out.count("steps of the AutoEncoder") == 1
    assert json.loads(lost.read_text()) == json.loads((tmp_path / "kept.json").read_text())
    words[6] = "3"
    assert cli.main(words) == 2 and "was made with budget [1, 1, 0], not [1, 2, 0]" in capsys.readouterr().err


def test_stars_are_for_differences_beyond_the_spread():
    """Two standard errors of the difference; one seed has no spread and no star."""
    assert cell([1.0, 1.2, 1.1], [1.0, 1.1, 1.05]) == "1.1 ± 0.1"
    assert cell([2.0, 2.2, 2.1], [1.0, 1.1, 1.05]) == "2.1 ± 0.1 *"
    assert cell([2.0], [1.0]) == "2" and cell([4161.0], [1.0]) == "4160"


def test_the_table_names_what_it_compares():
    """Means beside the floor."""
    first = Group("1 M", [[30.0, 0.9, 5.0], [31.0, 0.9, 6.0]])
    groups = {"ablation-pyramid": first, "other": Group("2 M", [[20.0, 0.8, 9.0], [21.0, 0.8, 9.5]])}
    table = text(groups, [1.5], ["SWD"], 2, "Made so")
    assert "| pyramid | 1 M | 30.5 ± 0.71 | 0.9 ± 0 | 5.5 ± 0.71 |" in table and "20.5 ± 0.71 *" in table
    assert "| training pictures (floor) |  |  |  | 1.5 |" in table and "seeds 0 to 1." in table.replace("\n", " ")


@pytest.mark.parametrize("part", ["input-skip", "residual", "spatial", "single-level", "no-spectral-norm", "no-dropout"])
def test_the_papers_questions_have_configurations(part):
    """All are in the table unless others are asked for."""
    assert ABLATIONS[0] == "ablation-pyramid" and f"ablation-{part}" in ABLATIONS
