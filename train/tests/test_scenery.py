"""Promises of the scenery generator."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tessera_train import scenery
from tessera_train.scenery import dataset

# A low sun over a lake, a night, and the last seed: a lake with foreground trees.
SEEDS = (0, 21, 2**32 - 1)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    scenery.add_arguments(parser)
    return parser.parse_args(words)


def test_same_seed_gives_same_bytes_and_another_seed_another_picture():
    first = scenery.render(5, 256, 128)
    assert torch.equal(first, scenery.render(5, 256, 128))
    other = scenery.render(6, 256, 128)
    assert (first.float() - other.float()).abs().mean() > 5.0


@pytest.mark.parametrize("seed", SEEDS)
def test_another_size_shows_the_same_scene(seed):
    big = scenery.render(seed, 1024, 512).permute(2, 0, 1)[None].float()
    small = scenery.render(seed, 512, 256).permute(2, 0, 1)[None].float()
    # Of 255. Bicubic against box filtering at edges and ripples costs 0.3 to 1.0; a shift of the whole picture by
    # one pixel costs 2 to 3, another scene 20 and more.
    assert (F.avg_pool2d(big, 2) - small).abs().mean() < 1.5


@pytest.mark.parametrize("seed", SEEDS)
def test_a_narrower_picture_is_the_middle_of_the_wide_one(seed):
    wide = scenery.render(seed, 512, 256)
    assert (scenery.render(seed, 256, 256).float() - wide[:, 128:384].float()).abs().mean() < 0.5


@pytest.mark.parametrize("width, height", [(512, 256), (33, 64), (64, 32), (301, 199)])
def test_pictures_have_their_shape_and_use_the_range_of_values(width, height):
    for seed in SEEDS:
        picture = scenery.render(seed, width, height)
        assert picture.dtype == torch.uint8 and picture.shape == (height, width, 3)
        values = picture.float()
        assert 12.0 < values.mean() < 235.0 and values.std() > 8.0
        assert (picture == 255).all(2).float().mean() < 0.06


def test_light_before_tone_is_finite(monkeypatch):
    from tessera_train.scenery import picture

    seen = []
    tone = picture.compose.tone
    monkeypatch.setattr(picture.compose, "tone", lambda x: (seen.append(bool(torch.isfinite(x).all())), tone(x))[1])
    for seed in range(12):
        scenery.render(seed, 128, 64)
    assert seen == [True] * 12


@pytest.mark.parametrize("seed", SEEDS)
def test_pictures_hold_no_white_noise(seed):
    grey = scenery.render(seed, 1024, 512).float().mean(2)
    lost = grey - F.avg_pool2d(F.pad(grey[None, None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0, 0]
    # Half of all places are smooth within a level and a half: noise of any visible strength has no such places.
    assert lost.abs().median() < 1.5


@pytest.mark.parametrize(
    "width, height, named",
    [(0, 64, "width is 0"), (64, -1, "height is -1"), (4098, 2048, "4096"), (1024, 2049, "2048"), (130, 64, "128")],
)
def test_a_size_outside_the_limits_is_refused_by_name_and_limit(width, height, named):
    with pytest.raises(ValueError, match=named):
        scenery.render(1, width, height)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_outside_the_limits_is_refused(seed):
    with pytest.raises(ValueError, match=f"seed is {seed}"):
        scenery.render(seed, 64, 64)


def test_a_dataset_holds_the_pictures_of_its_seeds(tmp_path):
    path = scenery.write_dataset(tmp_path, 40, 3, 64, 32, 1)
    array = np.load(path, mmap_mode="r")
    assert array.shape == (3, 32, 64, 3) and array.dtype == np.uint8
    for row in range(3):
        assert np.array_equal(array[row], scenery.render(40 + row, 64, 32).numpy())
    state = json.loads((tmp_path / "pictures.json").read_text())
    assert state == {"version": scenery.VERSION, "first_seed": 40, "count": 3, "width": 64, "height": 32, "finished": 3}


def in_process(first_seed, count, width, height, processes):
    for seed in range(first_seed, first_seed + count):
        yield scenery.render(seed, width, height).numpy()


def test_an_interrupted_dataset_resumes_after_its_finished_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "ROWS_BETWEEN_SYNCS", 2)
    made = []

    def failing(first_seed, count, width, height, processes):
        for at, picture in enumerate(in_process(first_seed, count, width, height, processes)):
            if at == 3:
                raise KeyboardInterrupt
            yield picture

    def counting(*job):
        for picture in in_process(*job):
            made.append(1)
            yield picture

    monkeypatch.setattr(dataset, "pictures", failing)
    with pytest.raises(KeyboardInterrupt):
        scenery.write_dataset(tmp_path / "cut", 9, 5, 64, 32)
    assert json.loads((tmp_path / "cut" / "pictures.json").read_text())["finished"] == 2
    assert not (tmp_path / "cut" / "pictures.npy").exists()
    monkeypatch.setattr(dataset, "pictures", counting)
    path = scenery.write_dataset(tmp_path / "cut", 9, 5, 64, 32)
    assert len(made) == 3
    whole = scenery.write_dataset(tmp_path / "whole", 9, 5, 64, 32)
    assert path.read_bytes() == whole.read_bytes()


def test_a_disk_that_is_too_small_or_fills_up_is_an_error(tmp_path, monkeypatch):
    """On a real one, of 18 MiB: what is needed and free is said at once; one that fills on the way keeps its rows, and
    with space the same call ends with the bytes of an undisturbed one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=18m", "tmpfs", str(disk)], capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs can't be mounted here")
    try:
        with pytest.raises(OSError, match=rf"{disk}/a: 23 MB are needed, 19 MB are free"):
            scenery.write_dataset(disk / "a", 0, 1000, 64, 32)
        assert not list(disk.rglob("*.npy"))

        def filling(first_seed, count, width, height, processes):
            for at, picture in enumerate(in_process(first_seed, count, width, height, processes)):
                if at == 2:
                    with suppress(OSError):
                        (disk / "ballast").write_bytes(bytes(18 << 20))
                yield picture

        monkeypatch.setattr(dataset, "pictures", filling)
        monkeypatch.setattr(dataset, "ROWS_BETWEEN_SYNCS", 2)
        with pytest.raises(OSError, match="No space left on device after 2 pictures; with more space the same command continues"):
            scenery.write_dataset(disk / "b", 0, 5, 64, 32)
        assert json.loads((disk / "b" / "pictures.json").read_text())["finished"] == 2
        assert not (disk / "b" / "pictures.npy").exists()
        (disk / "ballast").unlink()
        monkeypatch.setattr(dataset, "pictures", in_process)
        made = scenery.write_dataset(disk / "b", 0, 5, 64, 32).read_bytes()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert made == scenery.write_dataset(tmp_path / "whole", 0, 5, 64, 32).read_bytes()


@pytest.mark.parametrize("command", ["scenery", "prepare"])
def test_an_interrupted_command_says_so_in_one_line(tmp_path, command):
    """Ctrl-C reaches all its processes: exit code 130, no traceback, nothing under its final name."""
    words = ["scenery", "--count", "5000", "--size", "64x32", "--processes", "1"]
    if command == "prepare":
        (tmp_path / "in").mkdir()
        for seed in range(400):
            array = np.random.default_rng(seed).integers(0, 256, (192, 192, 3), np.uint8)
            Image.fromarray(array).save(tmp_path / "in" / f"{seed}.png", compress_level=0)
        words = ["prepare", str(tmp_path / "in"), "--size", "128x128", "--threads", "1"]
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "tessera_train", *words, "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    deadline = time.monotonic() + 120
    part = out / "pictures.npy.part"
    while not (part.exists() and part.stat().st_size > 50_000) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert errors.strip().endswith(f"tessera_train {command}: interrupted")
    assert not (out / "pictures.npy").exists() and part.exists()


def test_a_dataset_of_other_pictures_is_not_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "pictures", in_process)
    scenery.write_dataset(tmp_path, 0, 1, 64, 32)
    with pytest.raises(ValueError, match="first_seed 0, not 1"):
        scenery.write_dataset(tmp_path, 1, 1, 64, 32)
    (tmp_path / "pictures.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        scenery.write_dataset(tmp_path, 0, 1, 64, 32)


@pytest.mark.parametrize(
    "words, named",
    [
        (("--size", "wide"), "size is 'wide'"),
        (("--size", "9000x1024"), "width is 9000, must be from 32 to 4096"),
        (("--count", "0"), "count is 0"),
        (("--seed", "-3"), "seed is -3"),
        (("--processes", "0"), "processes is 0"),
        (("--processes", "0", "--format", "png"), "processes is 0"),
    ],
)
def test_bad_arguments_end_with_code_2_and_a_named_reason(words, named, tmp_path, capsys):
    assert scenery.run(arguments("--out", str(tmp_path / "out"), *words)) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_png_pictures_are_named_by_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "pictures", in_process)
    assert scenery.run(arguments("--out", str(tmp_path), "--count", "2", "--size", "64x32", "--seed", "8", "--format", "png")) == 0
    read = np.asarray(Image.open(tmp_path / "0000000009.png"))
    assert np.array_equal(read, scenery.render(9, 64, 32).numpy())
