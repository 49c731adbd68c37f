"""Promises of the measures of quality and of the report."""

from __future__ import annotations

import math

import pytest
import torch
from pictures import smooth, write_array
from tessera_train import __main__ as cli
from tessera_train.data.pictures import Pictures
from tessera_train.eval import metrics
from tessera_train.export import fixtures
from tessera_train.nets.autoencoder import Autoencoder
from tessera_train.nets.unet import UNet
from tessera_train.training.config import Config
from test_weights import exported


def pictures(count: int, seed: int, size: int = 64) -> torch.Tensor:
    """Smooth ones with a fine texture, [count, 3, size, size]."""
    x = torch.from_numpy(smooth(count, size, size, seed)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))).clamp(-1, 1)


def swd(a: torch.Tensor, b: torch.Tensor) -> list[float]:
    """Per level."""
    levels = zip(metrics.laplacian(a), metrics.laplacian(b))
    return [metrics.sliced_wasserstein(metrics.descriptors(x, 1), metrics.descriptors(y, 2), 3) for x, y in levels]


def test_the_laplacian_pyramid_adds_up():
    """Its levels, put together again, are the picture."""
    x = pictures(2, 0)
    levels = metrics.laplacian(x)
    assert [level.shape[2] for level in levels] == [64, 32, 16]
    total = levels[-1]
    for level in reversed(levels[:-1]):
        total = level + torch.nn.functional.interpolate(total, level.shape[2:], mode="bilinear", align_corners=False)
    assert torch.allclose(total, x, atol=1e-5)


def test_sliced_wasserstein_sees_the_level_that_differs():
    """Blurred pictures are far at the finest level and near at the coarsest, two draws of one kind near at both."""
    a, b = pictures(32, 1), pictures(32, 2)
    same, blurred = swd(a, b), swd(metrics.smooth(a), b)
    assert blurred[0] > 3 * same[0] and blurred[0] > 3 * blurred[-1]
    assert swd(a, a)[0] < 0.1 * blurred[0]


def test_sliced_wasserstein_of_a_known_shift():
    """A set moved by d standard deviations in every sample is at the mean of |sum of a direction| times d."""
    x = torch.randn(8, 128, 147, generator=torch.Generator().manual_seed(0))
    expected = 0.5 * math.sqrt(2 / math.pi)  # a direction's sum is about N(0, 1)
    assert abs(metrics.sliced_wasserstein(x + 0.5, x, 0) - expected) < 0.05
    assert metrics.sliced_wasserstein(x, x, 0) == 0


def test_ssim_and_psnr_of_known_cases():
    """1 for equal pictures, less for noise; a difference of 0.2 everywhere is 20 dB."""
    x = pictures(1, 3)
    assert metrics.ssim(x, x) == pytest.approx(1, abs=1e-6)
    assert metrics.ssim(x, torch.randn(x.shape).clamp(-1, 1)) < 0.3
    assert metrics.decibels(0.1**2) == pytest.approx(20)


def test_the_power_spectrum_finds_a_wave_at_its_frequency():
    """Also in a picture that is wider than high."""
    for width in (64, 128):
        wave = torch.sin(2 * math.pi * 10 * torch.arange(width) / 64).expand(1, 3, 64, width)
        assert int(metrics.power_spectrum(wave).argmax()) in (9, 10)


def test_the_colour_histogram_counts_pixels():
    """All of one colour in one cell."""
    histogram = metrics.colour_histogram(torch.full((2, 3, 4, 4), 1.0))
    assert histogram[-1] == 1 and histogram.sum() == 1


def test_the_nearest_picture_is_found():
    """Itself, at no distance."""
    x = pictures(5, 4, 32)
    found, distance = metrics.nearest(x[[3, 1]], x)
    assert found.tolist() == [3, 1] and float(distance.max()) < 1e-3


def test_a_thumbnail_is_the_mean_over_areas():
    """In one pass where the sizes divide, as interpolation does it where they do not."""
    rows = Pictures(smooth(4, 96, 64), "smooth")
    for width, height in ((12, 8), (32, 16), (10, 7)):
        whole = torch.nn.functional.interpolate(rows.whole(1, 96, 64), (height, width), mode="area")
        assert torch.allclose(rows.thumbnail(1, width, height), whole, atol=1e-5)


def test_a_report_says_everything(tmp_path, capsys):
    """Tables of finite numbers, pictures beside it; the same call gives the same text; too few pictures are an error."""
    torch.set_num_threads(1)
    arch = Config("tiny").arch
    nets = Autoencoder(arch), UNet(arch)
    for i, net in enumerate(nets):
        fixtures.Draw(f"report {i}").fill(net).float()
    model = exported(tmp_path / "m.safetensors", arch, *nets)
    words = ["evaluate", "--model", str(model), "--pictures", str(write_array(tmp_path / "p", 9)), "--device", "cpu"]
    words += ["--samples", "3", "--sample-steps", "2", "--batch", "2", "--out", str(tmp_path / "r.md")]
    assert cli.main([*words, "--control", str(model), "--held-out", str(write_array(tmp_path / "h", 3))]) == 0
    text = (tmp_path / "r.md").read_text()
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]

    def rows(name: str) -> list[list[str]]:
        return [figures for first, *figures in lines if first == name]

    assert rows("samples")[:2] == rows("control")[1:] and rows("samples / floor") == rows("control / floor")
    assert rows("4 x 1/8, 8 x 1/32, 16 x 1x1") != rows("16 x 1x1") and "3 held out" in text
    assert text.count("training pictures (floor)") == 2 and "The control: tiny." in text and "32 to 64" in text
    made_again = rows("training pictures, reconstructed")
    assert len(made_again) == 2 and all(row not in rows("samples") + rows("training pictures (floor)") for row in made_again)
    assert cli.main(words) == 0
    text = (tmp_path / "r.md").read_text()
    assert "4 x 1/8, 8 x 1/32, 16 x 1x1" in text and "SWD 256x128" in text and "nan" not in text and "inf" not in text
    assert (tmp_path / "r.samples.png").exists() and (tmp_path / "r.neighbours.png").exists()
    assert cli.main(words) == 0 and (tmp_path / "r.md").read_text() == text
    capsys.readouterr()
    words[4] = str(write_array(tmp_path / "few", 2))
    assert cli.main(words) == 2 and "at least 4 are needed" in capsys.readouterr().err
