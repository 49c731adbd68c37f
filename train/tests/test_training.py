"""Promises of the training: exact resume, fixtures that reproduce, an Arch that survives its JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import write_array
from processes import Command
from running import same, train
from tessera_train import __main__ as cli
from tessera_train.data.pictures import Pictures
from tessera_train.export import fixtures
from tessera_train.export.files import save_safetensors
from tessera_train.nets import cost
from tessera_train.nets.arch import Arch
from tessera_train.nets.autoencoder import Autoencoder
from tessera_train.nets.unet import UNet
from tessera_train.training import autoencoder, diffusion, fit, loop
from tessera_train.training.autoencoder import Task, decode_window
from tessera_train.training.config import Config, names

FIXTURES = Path(__file__).parents[2] / "tests" / "fixtures"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_a_stopped_and_resumed_run_equals_an_unstopped_one(tmp_path):
    """Weights, EMA and optimiser state, bit for bit."""
    pictures = write_array(tmp_path / "pictures")
    whole = train(pictures, tmp_path / "whole", 6)
    train(pictures, tmp_path / "parts", 6, stop_after=2)
    parts = train(pictures, tmp_path / "parts", 6)
    assert same(whole, parts)
    assert (whole["step"], whole["seen"]) == (6, 24)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(tmp_path):
    """The checkpoint on disk is the one from before."""
    pictures = write_array(tmp_path / "pictures")
    before = train(pictures, tmp_path / "run", 4, stop_after=2)
    args = argparse.ArgumentParser()
    loop.add_arguments(args)
    args = args.parse_args(["--out", str(tmp_path / "run"), "--config", "tiny", "--steps", "4", "--precision", "f32"])
    task = Task(Config("tiny"), Pictures.open(pictures), 0, torch.device("cpu"))
    healthy = task.loss
    task.loss = lambda batch: (healthy(batch)[0] * float("nan"), 4, {})
    assert loop.Loop(task, args, torch.device("cpu")).run() == 1
    after = torch.load(tmp_path / "run" / loop.CHECKPOINT, weights_only=True)
    assert after["step"] == before["step"] == 2
    assert all(torch.isfinite(x).all() for x in after["model"].values())


def test_a_full_disk_stops_and_keeps_the_last_checkpoint(tmp_path):
    """One line, exit code 2; the checkpoint is the one from before, to the byte, and no temporary file is left."""
    pictures, run = write_array(tmp_path / "pictures"), tmp_path / "run"
    words = ["autoencoder", "--pictures", str(pictures), "--out", str(run), "--config", "tiny", "--precision", "f32"]
    words += ["--threads", "1", "--save-minutes", "0", "--steps"]
    full = Command([*words, "2"], bytes_per_file=1 << 20).ended()
    assert full.returncode == 2 and "step 1 can't be written, there is none" in full.stderr and "Traceback" not in full.stderr
    assert not (run / loop.CHECKPOINT).exists()
    assert cli.main([*words, "2"]) == 0
    before = (run / loop.CHECKPOINT).read_bytes()
    full = Command([*words, "4"], bytes_per_file=1 << 20).ended()
    assert full.returncode == 2 and "step 3 can't be written, the one from before is kept" in full.stderr
    assert (run / loop.CHECKPOINT).read_bytes() == before
    assert not list(run.glob(".*.tmp"))


def test_windows_decode_as_the_whole():
    """The local stage on a window and its halo gives the whole picture's pixels, also at edges."""
    arch = Config("tiny").arch
    decoder = Autoencoder(arch).decoder.eval()
    fixtures.Draw("windows").fill(decoder)
    grids = zip(arch.levels, arch.grids(arch.width, arch.height))
    draw = fixtures.Draw("latents")
    with torch.no_grad():
        h, r = decoder.global_stage([draw.tensor(1, level.channels, *grid) for level, grid in grids])
        whole = decoder.local_stage(h, r)
        for top, left in ((0, 0), (5, 9), (12, 28), (3, 0)):
            window = decode_window(decoder, h, r, top, left, 4, 4)
            expected = whole[..., top * 8 : top * 8 + 32, left * 8 : left * 8 + 32]
            assert torch.allclose(window, expected, rtol=0, atol=1e-11), (top, left)


def test_the_committed_fixtures_are_what_the_package_writes(tmp_path):
    """Byte for byte."""
    fixtures.write(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in FIXTURES.glob("*.safetensors"))
    for name in names:
        assert (tmp_path / name).read_bytes() == (FIXTURES / name).read_bytes(), name


def test_commands_from_pictures_to_the_exported_file(tmp_path):
    """The exported file holds every parameter in f16, the statistics and the Arch."""
    from safetensors import safe_open

    pictures, run = write_array(tmp_path / "pictures"), tmp_path
    common = ["--config", "tiny"]
    budget = ["--steps", "2", "--precision", "f32", "--device", "cpu"]
    assert cli.main(["autoencoder", *common, *budget, "--pictures", str(pictures), "--out", str(run / "ae")]) == 0
    ae = ["--autoencoder", str(run / "ae")]
    assert cli.main(["latents", *common, *ae, "--pictures", str(pictures), "--out", str(run / "z")]) == 0
    z = ["--latents", str(run / "z")]
    assert cli.main(["diffusion", *common, *budget, *ae, *z, "--out", str(run / "u")]) == 0
    out = run / "tiny.safetensors"
    assert cli.main(["export", *common, *ae, *z, "--diffusion", str(run / "u"), "--out", str(out)]) == 0
    arch = Config("tiny").arch
    with safe_open(out, "pt") as file:
        assert file.metadata()["format"] == "tessera"
        assert Arch.from_json(file.metadata()["arch"]) == arch
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    assert {str(x.dtype) for x in tensors.values()} == {"torch.float16"}
    assert {name.split(".")[0] for name in tensors} == {"encoder", "decoder", "unet", "latents"}
    for i, level in enumerate(arch.levels):
        assert tensors[f"latents.{i}.mean"].shape == tensors[f"latents.{i}.std"].shape == (level.channels,)


@pytest.mark.parametrize("name", names())
def test_every_configuration_is_whole(name):
    """Its Arch survives JSON, its sections hold known settings, phases and weights that fit."""
    config = Config(name)
    assert name.startswith(config.arch.name) and Arch.from_json(config.arch.to_json()) == config.arch
    settings = config.section("autoencoder", autoencoder.Settings)
    assert [autoencoder.Phase(**phase) for phase in settings.phases][-1].until == 1
    assert config.section("diffusion", diffusion.Settings).batch and config.section("fit", fit.Settings).share < 1


def parameters(name: str) -> float:
    """10^6 of them, counted without making them."""
    with torch.device("meta"):
        return cost.millions(Autoencoder(Config(name).arch)) + cost.millions(UNet(Config(name).arch))


def test_the_papers_scale_builds_and_traces():
    """About 400 M parameters at 2048x2048; every network runs on the meta device."""
    assert (Config("pdm-2k").arch.width, Config("pdm-2k").arch.height) == (2048, 2048)
    assert 350 < parameters("pdm-2k") < 450
    assert cost.describe(Config("pdm-2k").arch).count("2048x2048") == 3


def test_the_single_level_control_has_the_budget_of_the_pyramid():
    """Parameters and latent numbers within a few per cent."""

    def numbers(arch: Arch) -> int:
        return sum(level.channels * h * w for level, (h, w) in zip(arch.levels, arch.grids(arch.width, arch.height)))

    assert abs(parameters("scenery-single-level") / parameters("scenery") - 1) < 0.1
    assert abs(numbers(Config("scenery-single-level").arch) / numbers(Config("scenery").arch) - 1) < 0.05
    assert abs(numbers(Config("ablation-single-level").arch) / numbers(Config("ablation-pyramid").arch) - 1) < 0.1


ABLATIONS = [name for name in names() if name.startswith("ablation-")]


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_have_the_same_budget_and_differ(name):
    """Parameters within a tenth of the whole recipe's; but for that one, each says what it does without."""
    assert abs(parameters(name) / parameters("ablation-pyramid") - 1) < 0.1
    ours, whole = dict(Config(name).doc), dict(Config("ablation-pyramid").doc)
    ours["arch"] = ours["arch"] | {"name": "ablation-pyramid"}
    assert (ours == whole) == (name == "ablation-pyramid") and ours["fit"] == whole["fit"]


def test_a_configuration_extends_another(tmp_path):
    """By name or by a path beside it; its own settings hold, tables are merged, lists replaced; a circle is an error."""
    (tmp_path / "a.toml").write_text('extends = "tiny"\n[arch]\nname = "a"\n[diffusion]\nbatch = 2\n')
    (tmp_path / "b.toml").write_text('extends = "a.toml"\n[diffusion]\nlevel_weight = [1, 2, 3]\n')
    config = Config(str(tmp_path / "b.toml"))
    settings = config.section("diffusion", diffusion.Settings)
    assert (config.arch.name, settings.batch, settings.level_weight) == ("a", 2, [1, 2, 3])
    assert settings.warm_up == 20 and len(config.texts) == 3
    (tmp_path / "a.toml").write_text('extends = "b.toml"\n')
    with pytest.raises(ValueError, match="or itself"):
        Config(str(tmp_path / "b.toml"))


def test_tensorboard_gets_what_the_log_gets(tmp_path):
    """Where it is installed: scalars and the sample grid in the run folder."""
    pytest.importorskip("tensorboard")
    words = ["autoencoder", "--config", "tiny", "--steps", "1", "--precision", "f32", "--device", "cpu", "--tensorboard"]
    assert cli.main([*words, "--pictures", str(write_array(tmp_path / "p")), "--out", str(tmp_path / "run")]) == 0
    assert sum(path.stat().st_size for path in (tmp_path / "run" / "tensorboard").iterdir()) > 10_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "version is 3, this program reads 1 and 2"),
        ({"version": 2}, "a field is missing or unknown: 'sizes'"),
        ({"levels": [{"factor": 12, "channels": 4}]}, "power of two"),
        ({"levels": [{"factor": 8, "channels": 4}, {"factor": 8, "channels": 4}]}, "increase"),
        ({"attention_ratio": "cubic"}, "attention_ratio"),
        ({"unet": json.loads(Config("tiny").arch.to_json())["unet"] | {"skip": "none"}}, "unet.skip is 'none'"),
    ],
)
def test_arch_refuses_what_does_not_fit(change, message):
    """The error names the field."""
    doc = json.loads(Config("tiny").arch.to_json()) | change
    with pytest.raises(ValueError, match=message):
        Arch.from_json(json.dumps(doc))


def test_safetensors_are_replaced_whole(tmp_path):
    """A failing write leaves the old file and no other."""
    path = tmp_path / "a.safetensors"
    save_safetensors(path, {"x": np.zeros(3, np.float32)}, {})
    old = path.read_bytes()
    with pytest.raises(KeyError):
        save_safetensors(path, {"x": np.zeros(3, np.int32)}, {})
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]
