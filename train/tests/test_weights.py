"""Promises of starting weights and export: run folders and exported files of the same model are accepted."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import write_array
from tessera_train.data.latents import Latents
from tessera_train.data.pictures import Pictures
from tessera_train.export import export, fixtures
from tessera_train.export.files import save_safetensors
from tessera_train.export.model import Model
from tessera_train.export.weights import exported_alike, load_ema
from tessera_train.nets import spectral
from tessera_train.nets.arch import Arch, autoencoder_identity, unet_identity
from tessera_train.nets.autoencoder import Autoencoder
from tessera_train.nets.unet import UNet
from tessera_train.training import loop
from tessera_train.training.autoencoder import Task
from tessera_train.training.config import Config

CPU = torch.device("cpu")


def exported(path: Path, arch: Arch, autoencoder: Autoencoder, unet: UNet) -> Path:
    """A file as `export` writes it."""
    tensors = dict(autoencoder.state_dict()) | {f"unet.{name}": x for name, x in unet.state_dict().items()}
    arrays = {name: x.to(torch.float16).numpy() for name, x in tensors.items()}
    for i, level in enumerate(arch.levels):
        arrays |= {f"latents.{i}.mean": np.zeros(level.channels, np.float16), f"latents.{i}.std": np.ones(level.channels, np.float16)}
    trained = '{"autoencoder":{"step":7,"seen":28,"elapsed":1.5},"diffusion":{"step":9,"seen":72,"elapsed":2.5}}'
    save_safetensors(path, arrays, {"format": "tessera", "arch": arch.to_json(), "trained": trained})
    return path


@pytest.fixture
def tiny(tmp_path) -> tuple[Arch, Autoencoder, UNet, Path]:
    """Random networks of the tiny configuration, and their file."""
    torch.set_num_threads(1)
    arch = Config("tiny").arch
    nets = Autoencoder(arch), UNet(arch)
    for i, net in enumerate(nets):
        fixtures.Draw(f"weights {i}").fill(net).float()
    return arch, *nets, exported(tmp_path / "m.safetensors", arch, *nets)


def test_an_exported_file_gives_its_weights(tiny):
    """Both networks' to the bit after rounding to f16; what is known of their training, but no seconds."""
    arch, autoencoder, unet, file = tiny
    for net, identity, numbers in (
        (autoencoder, autoencoder_identity(arch), {"step": 7, "seen": 28}),
        (unet, unet_identity(arch), {"step": 9, "seen": 72}),
    ):
        fresh = type(net)(arch)
        assert load_ema(file, fresh, identity, CPU) == numbers
        for name, value in net.state_dict().items():
            assert torch.equal(fresh.state_dict()[name], value.half().float()), name


def test_a_training_starts_from_an_exported_file(tiny, tmp_path):
    """--from: model and EMA begin with its weights; a checkpoint in the run folder goes before it."""
    arch, autoencoder, _, file = tiny
    parser = argparse.ArgumentParser()
    loop.add_arguments(parser)
    words = ["--out", str(tmp_path / "run"), "--config", "tiny", "--steps", "1", "--precision", "f32", "--from", str(file)]
    args = parser.parse_args(words)
    run = loop.Loop(Task(Config("tiny"), Pictures.open(write_array(tmp_path / "p")), 0, CPU), args, CPU)
    args.out.mkdir()
    run.resume()
    for net in (run.model, run.ema):
        state = {name.replace(spectral.ORIGINAL, spectral.PLAIN): x for name, x in net.state_dict().items()}
        for name, value in autoencoder.state_dict().items():
            assert torch.equal(state[name], value.half().float()), name
    assert run.step == 0


def test_a_training_adapts_another_models_file(tiny, tmp_path):
    """--adapt: model and EMA begin with the tensors of equal name and shape and keep their own for the rest; a file that has
    little of the network is refused."""
    arch, autoencoder, _, file = tiny
    config = Config("tiny")
    finest, *coarser = arch.levels
    config.arch = dataclasses.replace(arch, levels=(dataclasses.replace(finest, channels=finest.channels + 1), *coarser))
    parser = argparse.ArgumentParser()
    loop.add_arguments(parser)
    words = ["--out", str(tmp_path / "run"), "--config", "tiny", "--steps", "1", "--precision", "f32", "--adapt", str(file)]
    args = parser.parse_args(words)
    run = loop.Loop(Task(config, Pictures.open(write_array(tmp_path / "p")), 0, CPU), args, CPU)
    fresh = spectral.fold({name: x.clone() for name, x in run.ema.state_dict().items()})
    args.out.mkdir()
    run.resume()
    held, own = autoencoder.state_dict(), 0
    for net in (run.model, run.ema):
        stored = {name.replace(spectral.ORIGINAL, spectral.PLAIN): x for name, x in net.state_dict().items()}
        for name, value in spectral.fold(net.state_dict()).items():
            if name in held and held[name].shape == value.shape:
                assert torch.equal(stored[name], held[name].half().float()), name
            else:
                torch.testing.assert_close(value, fresh[name], msg=name)
                own += 1
    assert own
    with pytest.raises(ValueError, match="adapt: .* must be at least half"):
        exported_alike(file, torch.nn.Linear(3, 3))


def test_another_models_file_is_refused(tiny, tmp_path):
    """Another shape, another kind of file, half a file."""
    arch, autoencoder, unet, file = tiny
    group = arch.groups[0]
    other = dataclasses.replace(arch, groups=(dataclasses.replace(group, unet=dataclasses.replace(group.unet, embedding=48)),))
    with pytest.raises(SystemExit, match="another model"):
        load_ema(file, UNet(other), unet_identity(other), CPU)
    load_ema(file, Autoencoder(other), autoencoder_identity(other), CPU)  # the AutoEncoder is the same one
    save_safetensors(tmp_path / "x.safetensors", {"x": np.zeros(3, np.float32)}, {})
    with pytest.raises(SystemExit, match="not written by the export command"):
        load_ema(tmp_path / "x.safetensors", unet, unet_identity(arch), CPU)
    (tmp_path / "half.safetensors").write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(SystemExit, match="not a whole safetensors file"):
        load_ema(tmp_path / "half.safetensors", unet, unet_identity(arch), CPU)


def test_a_model_from_its_file_encodes_decodes_and_samples(tiny):
    """Shapes of the Arch, the same samples for the same seed."""
    arch, *_, file = tiny
    model = Model.open(file, CPU)
    z = model.encode(torch.zeros(1, 3, arch.height, arch.width))
    assert [tuple(x.shape[1:]) for x in z] == [(lv.channels, *grid) for lv, grid in zip(arch.levels, arch.grids(arch.width, arch.height))]
    assert next(model.decode(z)).shape == (1, 3, arch.height, arch.width)
    first, again = model.sample(1, 2, 5), model.sample(1, 2, 5)
    assert all(torch.equal(a, b) and torch.isfinite(a).all() for a, b in zip(first, again))


def test_a_blend_lies_between_two_autoencoders(tiny, tmp_path):
    """Every weight of encoder and decoder is the mean of both by the share, the U-Net's are untouched; a bad share is named."""
    arch, autoencoder, unet, file = tiny
    other = Autoencoder(arch)
    fixtures.Draw("another").fill(other).float()
    second = exported(tmp_path / "other.safetensors", arch, other, unet)
    statistics = [[torch.zeros(level.channels) for level in arch.levels], [torch.ones(level.channels) for level in arch.levels]]
    latents, out = Latents(arch, [], 0, *statistics, np.zeros((0, 0), np.int64)), tmp_path / "blend.safetensors"
    export.export(Config("tiny"), file, [file], latents, out, export.Blend(second, 0.25))
    blended = Model.open(out, CPU)
    for name, value in blended.autoencoder.state_dict().items():
        mean = 0.75 * autoencoder.state_dict()[name] + 0.25 * other.state_dict()[name]
        assert torch.allclose(value, mean, atol=2e-3, rtol=2e-3), name
    assert all(torch.equal(value, unet.state_dict()[name].half().float()) for name, value in blended.unets[0].state_dict().items())
    with pytest.raises(ValueError, match="blend: the share is 1.5, must be from 0 to 1"):
        export.export(Config("tiny"), file, [file], latents, out, export.Blend(second, 1.5))
