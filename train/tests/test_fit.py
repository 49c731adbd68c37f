"""Promises of `fit`: from a folder to a model, even if it is killed repeatedly."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from pictures import write_files
from PIL import Image
from processes import Command, Kill
from safetensors import safe_open
from tessera_train import __main__ as cli
from tessera_train.nets.arch import Arch
from tessera_train.training import loop
from tessera_train.training.config import Config
from tessera_train.training.fit import Budget, Settings

OPTIONS = ["--config", "tiny", "--device", "cpu", "--precision", "f32", "--threads", "1"]


def test_killed_three_times_it_ends_with_the_same_bytes(tmp_path):
    """SIGKILL while the AutoEncoder and its adversary train, while a checkpoint of the U-Net is written and while the decoder and
    its adversary are refined; the bytes are those of an undisturbed `python -m tessera_train`."""
    pictures = write_files(tmp_path / "in", 8)
    whole, parts = tmp_path / "whole" / "m.safetensors", tmp_path / "parts" / "m.safetensors"
    words = ["fit", str(pictures), "--steps", "30", "--size", "64x32", *OPTIONS, "--out"]
    subprocess.run([sys.executable, "-m", "tessera_train", *words, str(whole)], check=True, capture_output=True)
    run, words = parts.with_suffix(".run"), [*words, str(parts), "--save-minutes", "0"]
    steps = {"autoencoder": 12, "diffusion": 15, "refine": 3}
    for kill in (Kill(run / "autoencoder", 10), Kill(run / "diffusion", 3, writing=True), Kill(run / "refine", 3)):
        assert Command(words, kill).ended().returncode == -signal.SIGKILL
        assert loop.used(kill.run)[0] == kill.step - 1 < steps[kill.run.name]
        assert len(list(run.rglob(".*.tmp"))) == kill.writing and not parts.exists()
    assert Command(words).ended().returncode == 0
    assert {name: loop.used(run / name)[0] for name in steps} == steps
    assert parts.read_bytes() == whole.read_bytes()
    assert parts.with_suffix(".png").read_bytes() == whole.with_suffix(".png").read_bytes()
    assert not [path for path in tmp_path.rglob(".*.tmp")]


def test_fifty_pictures_become_a_model_and_a_grid(tmp_path, capsys):
    """The file holds the configuration's Arch; the time is said before anything is trained; a finished fit is no work,
    except to write the file by another name."""
    out = tmp_path / "my.safetensors"
    words = ["fit", str(write_files(tmp_path / "in", 50)), "--out", str(out), "--steps", "20", *OPTIONS]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert said.index("50 files of pictures, 256x128, on cpu: about") < said.index("held out")
    with safe_open(out, "pt") as file:
        assert Arch.from_json(file.metadata()["arch"]) == Config("tiny").arch
        assert {name.split(".")[0] for name in file.keys()} == {"encoder", "decoder", "unet", "latents"}
    assert Image.open(tmp_path / "my.png").width == 4 * 256
    record = json.loads((tmp_path / "my.run" / "run.json").read_text())
    assert record["seed"] == 0 and record["code"]["tessera_train"] and record["budget"] == {"steps": 20}
    assert (tmp_path / "my.run" / "config.toml").read_text() == Config("tiny").texts[0]
    before = out.read_bytes()
    assert cli.main(words) == 0
    assert out.read_bytes() == before
    assert cli.main([*words, "--name", "winter-1.0"]) == 0
    with safe_open(out, "pt") as file:
        named = Arch.from_json(file.metadata()["arch"])
    assert named.name == "winter-1.0" and replace(named, name=Config("tiny").arch.name) == Config("tiny").arch
    assert cli.main([*words, "--seed", "1"]) == 2
    assert "was begun with seed 0, not seed 1" in capsys.readouterr().err
    words[words.index("20")] = "30"
    assert cli.main(words) == 2
    assert "was begun with --steps 20, not --steps 30, and a run keeps its settings; choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "2"], "steps is 2, must be at least 3"),
        (["--minutes", "0"], "minutes is 0.0, must be above 0"),
        (["--minutes", "1", "--steps", "9"], "one of them"),
        (["--size", "100x100"], "width is 100, not a multiple of 32"),
        (["--name", "a/b"], "name is 'a/b', must have at most 63 letters"),
        (["--config", "huge"], "config is 'huge', must be a TOML file or one of"),
    ],
)
def test_bad_arguments_are_named(tmp_path, capsys, words, message):
    """Exit code 2, one line, nothing written."""
    pictures = write_files(tmp_path / "in", 2)
    assert cli.main(["fit", str(pictures), "--out", str(tmp_path / "o" / "m.safetensors"), *OPTIONS, *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "o").exists()


@pytest.mark.parametrize("given", ["auto", "f32"])
def test_the_reason_of_a_precision_is_printed_once(tmp_path, capsys, monkeypatch, given):
    """For a network each, if it was measured; nothing for one that the user has given."""
    monkeypatch.setattr("tessera_train.training.precision.bf16_works", lambda _: False)
    words = [str(write_files(tmp_path / "in", 8)), "--out", str(tmp_path / "m.safetensors"), "--steps", "3"]
    assert cli.main(["fit", *words, *OPTIONS, "--precision", given]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "f32" in line or "bf16" in line]
    reason = "f32: bf16 convolutions do not work here"
    assert said == ([f"AutoEncoder in {reason}", f"U-Net in {reason}"] if given == "auto" else [])


def test_a_single_picture_is_enough(tmp_path):
    """Though there are fewer latents than the grid has samples, and none is held out."""
    words = [str(write_files(tmp_path / "in", 1)), "--out", str(tmp_path / "m.safetensors"), "--steps", "3"]
    assert cli.main(["fit", *words, *OPTIONS]) == 0
    assert Image.open(tmp_path / "m.png").width == 4 * 256


def test_an_empty_folder_trains_nothing(tmp_path, capsys):
    """And says so."""
    (tmp_path / "in").mkdir()
    assert cli.main(["fit", str(tmp_path / "in"), "--out", str(tmp_path / "m.safetensors"), *OPTIONS]) == 2
    assert "no JPEG, PNG, TIFF or WebP" in capsys.readouterr().err


def test_another_size_keeps_the_phases_shares():
    """Of the picture, in whole pixels of the coarsest level."""
    doc = Config("scenery", (1024, 1024)).doc
    assert (doc["arch"]["width"], doc["arch"]["height"]) == (1024, 1024)
    assert [(p["width"], p["height"]) for p in doc["autoencoder"]["phases"]] == [(512, 512), (1024, 1024)]
    assert [(p["width"], p["height"]) for p in doc["refine"]["phases"]] == [(1024, 1024)]


def test_the_budget_is_shared():
    """Between the trainings, at least a step each; none for a refinement that has no share."""
    import argparse

    def budget(refine: float = 0.0, **given: float) -> Budget:
        settings = Settings(share=0.25, refine=refine, minutes=8)
        return Budget.of(argparse.Namespace(**{"steps": None, "minutes": None} | given), settings)

    assert budget(steps=100).steps == (25, 75, 0) and budget(steps=2).steps == (1, 1, 0)
    assert budget(0.25, steps=100).steps == (25, 50, 25) and budget(0.25, steps=3).steps == (1, 1, 1)
    assert budget(minutes=4.0).minutes == (1.0, 3.0, 0.0) and budget(0.5).minutes == (2.0, 2.0, 4.0)
    assert budget(0.1, steps=9).refines() and not budget(minutes=1.0).refines()
    assert budget(0.7, steps=3).steps == (1, 1, 1)
    with pytest.raises(ValueError, match="share is 0.25 and refine 0.75, must be at least 0 and together below 1"):
        budget(0.75, steps=100)
