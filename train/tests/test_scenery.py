"""Promises of the scenery generator."""

import argparse
import json
import math
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
from tessera_train.scenery.noise import Draw
from tessera_train.scenery.scene import plan

# Winter woods before mountains, a low sun over hills, and the last seed: a coast at night.
SEEDS = (0, 6, 2**32 - 1)
MANY = 2000


@pytest.fixture(scope="module")
def plans() -> list[dict[str, str]]:
    """The labels of the first seeds."""
    return [scenery.labels(seed) for seed in range(MANY)]


def seeds_with(plans, count: int, **wanted: str) -> list[int]:
    """The first seeds whose labels are the wanted ones."""
    found = [seed for seed, its in enumerate(plans) if all(its[name] == value for name, value in wanted.items())]
    assert len(found) >= count
    return found[:count]


def brightness(seed: int) -> torch.Tensor:
    return scenery.render(seed, 128, 64).float().mean(2)


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
    # A larger picture shows finer detail, so means over squares are compared. Of 255: detail costs 0.3 to 1.0, a shift
    # of the whole picture by a square 3 and more, another scene 20.
    assert (F.avg_pool2d(big, 16) - F.avg_pool2d(small, 8)).abs().mean() < 1.5


@pytest.mark.parametrize("seed", SEEDS)
def test_a_narrower_picture_is_the_middle_of_the_wide_one(seed):
    wide = scenery.render(seed, 512, 256)[:, 128:384]
    squares = [F.avg_pool2d(x.permute(2, 0, 1)[None].float(), 8) for x in (wide, scenery.render(seed, 256, 256))]
    assert (squares[0] - squares[1]).abs().mean() < 0.5


@pytest.mark.parametrize("width, height", [(33, 64), (64, 32), (301, 199)])
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
    for seed in range(8):
        scenery.render(seed, 64, 32)
    assert seen == [True] * 8


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
    labels = json.loads((tmp_path / "labels.json").read_text())
    assert labels["labels"] == [{"name": name, "values": list(values)} for name, values in scenery.SCHEMA]
    assert labels["pictures"] == [scenery.labels(seed, 64, 32) for seed in range(40, 43)]
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
    assert (tmp_path / "cut" / "labels.json").read_bytes() == (tmp_path / "whole" / "labels.json").read_bytes()


def test_a_disk_that_is_too_small_or_fills_up_is_an_error(tmp_path, monkeypatch):
    """On a real one, of 18 MiB: what is needed and free is said at once; one that fills on the way keeps its rows, and
    with space the same call ends with the bytes of an undisturbed one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=18m", "tmpfs", str(disk)], capture_output=True, check=False
    ).returncode:
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
        with pytest.raises(
            OSError, match="No space left on device after 2 pictures; with more space the same command continues"
        ):
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
    assert (
        scenery.run(arguments("--out", str(tmp_path), "--count", "2", "--size", "64x32", "--seed", "8", "--format", "png")) == 0
    )
    read = np.asarray(Image.open(tmp_path / "0000000009.png"))
    assert np.array_equal(read, scenery.render(9, 64, 32).numpy())
    assert json.loads((tmp_path / "0000000009.json").read_text()) == scenery.labels(9, 64, 32)


def test_a_picture_can_be_drawn_into_a_row_of_a_batch():
    batch = torch.zeros(2, 64, 128, 3, dtype=torch.uint8)
    scenery.render(7, 128, 64, out=batch[1])
    assert torch.equal(batch[1], scenery.render(7, 128, 64)) and not batch[0].any()


def test_labels_follow_the_schema_and_every_value_is_frequent(plans):
    for its in plans:
        assert list(its) == [name for name, _ in scenery.SCHEMA]
    assert 5 <= len(scenery.SCHEMA) <= 8
    for name, values in scenery.SCHEMA:
        counts = {value: sum(its[name] == value for its in plans) for value in values}
        assert sum(counts.values()) == MANY, name
        assert min(counts.values()) >= 0.02 * MANY, (name, counts)


def test_the_schema_is_the_one_that_models_are_trained_with():
    assert scenery.SCHEMA == (
        ("scene", ("alpine", "valley", "forest", "coast", "dunes", "canyon")),
        ("time", ("day", "golden", "dusk", "night")),
        ("sky", ("clear", "scattered", "broken", "overcast")),
        ("disc", ("none", "sun", "moon")),
        ("water", ("none", "lake", "sea")),
        ("mountains", ("none", "hills", "rocky", "snowy")),
        ("trees", ("none", "few", "conifers", "broadleaf")),
        ("season", ("summer", "autumn", "winter")),
    )


def test_night_is_rare_and_mountains_are_in_half_of_the_pictures(plans):
    share = lambda name, *values: sum(its[name] in values for its in plans) / MANY
    assert share("time", "night") <= 0.12
    assert min(share("time", "day"), share("time", "golden")) > share("time", "dusk")
    assert share("mountains", "rocky", "snowy") >= 0.5


def test_labels_need_no_other_size_but_for_the_disc(plans):
    """A narrower frame shows the same things; only the disc may fall outside."""
    for seed in range(200):
        narrow = scenery.labels(seed, 1024, 1024)
        assert {**narrow, "disc": ""} == {**plans[seed], "disc": ""}
        assert narrow["disc"] in ("none", plans[seed]["disc"])


def test_hours_differ_in_brightness(plans):
    mean = {
        time: np.mean([brightness(seed).mean() for seed in seeds_with(plans, 4, time=time, season="summer")])
        for time in ("day", "dusk", "night")
    }
    assert mean["night"] < 0.8 * mean["dusk"] and mean["dusk"] < 0.7 * mean["day"]


@pytest.mark.parametrize("disc", ["sun", "moon"])
def test_a_named_disc_is_the_brightest_spot_of_the_sky(plans, disc):
    """Free of land, plants and thick cloud, where the plan has it."""
    for seed in seeds_with(plans, 5, disc=disc):
        light = plan(Draw(seed, torch.device("cpu"))).light
        horizon = plan(Draw(seed, torch.device("cpu"))).horizon
        grey = scenery.render(seed, 256, 128).float().mean(2)
        row, column = round((horizon - light.e) * 128), round(light.u * 128 + 128)
        spot = grey[row - 1 : row + 1, column - 1 : column + 1].mean()
        assert spot >= torch.quantile(grey, 0.98) and spot > (235.0 if disc == "sun" else 150.0), seed


def test_a_clear_sky_is_smooth_and_a_clouded_one_is_not(plans):
    def unrest(seed: int) -> float:
        top = scenery.render(seed, 128, 64).float()[:20]
        return float(
            (top - F.avg_pool2d(top.permute(2, 0, 1)[None], 7, 1, 3, count_include_pad=False)[0].permute(1, 2, 0)).abs().mean()
        )

    day = {"time": "day", "disc": "none"}
    clear = [unrest(seed) for seed in seeds_with(plans, 4, sky="clear", **day)]
    broken = [unrest(seed) for seed in seeds_with(plans, 4, sky="broken", **day)]
    assert max(clear) < min(broken)


def test_winter_is_whiter_on_the_ground(plans):
    def white(seed: int) -> float:
        low = scenery.render(seed, 128, 64).float()[44:]
        return float(low.min(2).values.mean())

    wanted = {"time": "day", "water": "none", "scene": "alpine"}
    winter = [white(seed) for seed in seeds_with(plans, 4, season="winter", **wanted)]
    summer = [white(seed) for seed in seeds_with(plans, 4, season="summer", **wanted)]
    assert min(winter) > max(summer)


@pytest.fixture
def drawn(monkeypatch):
    """Draws a seed's middle square and returns the share of water, and the logarithm of the depth, of each pixel."""
    from tessera_train.scenery import picture

    seen = {}
    pixels = picture._pixels
    monkeypatch.setattr(picture, "_pixels", lambda *a: seen.setdefault("land", pixels(*a)))

    def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        seen.clear()
        scenery.render(seed, 96, 96)
        land = seen["land"]
        return land[3], land[-2] / land[-1].clamp_min(1e-4), land[-1]

    return draw


def test_water_is_seen_where_the_labels_name_it_and_nowhere_else(plans, drawn):
    for water, least, most in (("none", 0.0, 0.0), ("lake", 0.02, 1.0), ("sea", 0.03, 1.0)):
        for seed in seeds_with(plans, 5, water=water):
            share = float(drawn(seed)[0].sum()) / 96**2
            assert least <= share <= most, (water, seed)


def test_mountains_rise_where_the_labels_name_them_and_nowhere_else(plans, drawn):
    for mountains in ("none", "rocky", "snowy"):
        for seed in seeds_with(plans, 5, mountains=mountains):
            if plans[seed]["scene"] == "canyon":
                continue  # its mesas are high and far as well
            _, depth, cover = drawn(seed)
            # From the horizon up to the row that is 6 % of the height above it all may be plain.
            below = 96 - round(plan(Draw(seed, torch.device("cpu"))).horizon * 96)
            rows = cover.shape[0] - below - 6
            high = (cover[:rows] > 0.5) & (depth[:rows] > math.log(70.0))
            assert bool(high.any()) == (mountains != "none"), (mountains, seed)
