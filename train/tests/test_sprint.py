"""The sprint: a whole model whenever it ends, from nothing and from earlier weights."""

import argparse
import itertools

import pytest
import torch
from pictures import smooth
from tessera_train.data.pictures import Pictures
from tessera_train.export import pieces
from tessera_train.export.files import replace_file
from tessera_train.export.model import Model
from tessera_train.export.weights import exported
from tessera_train.nets.decoder import Place
from tessera_train.training import autoencoder, sprint
from tessera_train.training.config import Config


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pictures that need no drawing, and a clock on which a step takes a second and all else nothing."""
    now, step = 0.0, sprint.Run.step

    def timed(self, part, progress):
        nonlocal now
        now += 1
        return step(self, part, progress)

    monkeypatch.setattr(sprint.Run, "step", timed)
    monkeypatch.setattr(sprint, "monotonic", lambda: now)
    monkeypatch.setattr(sprint, "age", lambda: 0.0)
    monkeypatch.setattr(sprint, "drawn_pictures", lambda first, count, width, height, *_: iter_of(smooth(6, width, height)))
    monkeypatch.setattr(sprint, "HOST_BYTES", 4 << 20)


def iter_of(pictures):
    """A generator, which can be closed, of the pictures again and again."""
    yield from itertools.cycle(pictures)


def arguments(out, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    sprint.add_arguments(parser)
    words = ["--seconds", "60", "--save-seconds", "16", "--device", "cpu", "--out", str(out / "weights"), *more]
    return parser.parse_args(words)


def model(out) -> tuple[int, dict[str, torch.Tensor], Model]:
    number, data = pieces.joined(out / "weights")
    file = out / "model.safetensors"
    replace_file(file, lambda f: f.write(data))
    return number, exported(file)[0], Model.open(file, torch.device("cpu"))


@pytest.mark.parametrize("config", ["tiny", "tiny-2"])
def test_a_sprint_leaves_a_model_that_samples(tmp_path, config, capsys):
    """Every network is trained, several rounds were written, and the last one is a whole model."""
    samples = tmp_path / "samples.png"
    assert sprint.run(arguments(tmp_path, "--config", config, "--samples", str(samples))) == 0
    number, tensors, whole = model(tmp_path)
    assert number >= 3 and samples.stat().st_size > 0
    assert all(torch.isfinite(x.float()).all() for x in tensors.values())
    z = whole.sample(1, 2, 3, whole.draw_labels(1, 3))
    assert all(torch.isfinite(x).all() for x in z)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    trained = exported(tmp_path / "model.safetensors")[2]
    for section, numbers in trained.items():
        assert numbers["step"] > 3 and any(line.startswith(f"| {section} |") for line in table)
    assert all((std > 2e-4).all() for std in whole.latents.std)


def test_a_sprint_from_a_model_keeps_its_encoder(tmp_path):
    """From a model's file the encoder and the latents' statistics stay as they are, the decoder and the U-Net learn."""
    assert sprint.run(arguments(tmp_path / "a", "--config", "tiny", "--seconds", "24")) == 0
    _, before, _ = model(tmp_path / "a")
    assert sprint.run(arguments(tmp_path / "b", "--config", "tiny", "--seconds", "24", "--from", str(tmp_path / "a" / "model.safetensors"))) == 0
    _, after, _ = model(tmp_path / "b")
    for name, x in before.items():
        same = torch.equal(x, after[name])
        assert same == name.startswith(("encoder.", "latents.")) or name.endswith(("bias", "norm.weight", "norm1.weight")), name


def test_a_signal_ends_a_sprint_with_a_model(tmp_path, monkeypatch):
    """After SIGTERM the weights of that moment are written, and the exit code says so."""
    part = sprint.Sprint.part

    def stopped(self, *arguments):
        self.stop(15, None)
        part(self, *arguments)

    monkeypatch.setattr(sprint.Sprint, "part", stopped)
    assert sprint.run(arguments(tmp_path, "--config", "tiny")) == 128 + 15
    assert model(tmp_path)[0] == 1


def test_a_loss_that_is_no_number_costs_one_report(tmp_path, monkeypatch, capsys):
    """Training goes on from the weights of the report before."""
    step, calls = sprint.Run.step, itertools.count()

    def broken(self, part, progress):
        loss = step(self, part, progress)
        if next(calls) == 14:
            with torch.no_grad():
                next(part.loop.model.decoder.parameters()).fill_(float("nan"))
                next(part.loop.ema.decoder.parameters()).fill_(float("nan"))
            return loss * float("nan")
        return loss

    monkeypatch.setattr(sprint.Run, "step", broken)
    assert sprint.run(arguments(tmp_path, "--config", "tiny")) == 0
    assert "training goes on" in capsys.readouterr().out
    assert all(torch.isfinite(x.float()).all() for x in model(tmp_path)[1].values())


def test_windows_of_the_same_places_are_decoded_together():
    """Their pixels are those of windows that are decoded one by one, and belong to their pictures."""
    config = Config("tiny-2")
    pictures = Pictures(smooth(6, 256, 128), "smooth")
    task = autoencoder.Task(config, pictures, 0, torch.device("cpu"))
    batch = task.batch(0, 0.0)
    z = [mean for mean, _ in task.model.encoder(batch.pictures)]
    h, streams = task.model.decoder.streams(z, Place(batch.seeds))
    own = torch.tensor([True, False, True, False])
    places = [(0, 0), (3, 5)]
    batch.windows = [(n, y, x) for n in range(4) for y, x in places]
    calls = []
    decode = autoencoder.decode_window
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(autoencoder, "decode_window", lambda *a: calls.append(len(a[1])) or decode(*a))
        together = task.windows(batch, h, streams[-1], batch.seeds, batch.pictures, own)
        batch.windows = [(n, y, x) for y, x in places for n in range(4)]
        alone = task.windows(batch, h, streams[-1], batch.seeds, batch.pictures, own)
    assert calls == [4, 4] + [1] * 8
    for a, b in zip(together, alone):
        assert torch.allclose(a.float(), b.float(), atol=1e-5)


def test_compiling_has_to_pay():
    """It does where the time that it saves is more than the time that it takes."""
    measured = sprint.Measured(plain=0.1, compiled=0.05, compiling=30.0)
    assert measured.pays(61.0) and not measured.pays(59.0)
    assert not sprint.Measured(0.1, 0.11, 1.0).pays(1000.0)


def test_pictures_that_cannot_be_drawn_are_an_error(tmp_path, monkeypatch):
    """It names what went wrong."""

    def scenes(*_):
        raise RuntimeError("no memory on the device")
        yield

    monkeypatch.setattr(sprint, "drawn_pictures", scenes)
    with pytest.raises(OSError, match="no memory on the device"):
        sprint.run(arguments(tmp_path, "--config", "tiny"))
