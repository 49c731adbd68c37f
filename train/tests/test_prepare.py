"""Promises of `prepare` for usable and unusable pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pictures import smooth, write_files
from PIL import Image, ImageCms
from processes import Command
from tessera_train import __main__ as cli
from tessera_train.data import prepare as command
from tessera_train.data.image_io import Unusable, read
from tessera_train.data.pictures import Pictures
from tessera_train.data.prepare import prepare

W, H = 64, 32


def upright() -> Image.Image:
    """Red left, green right; dark at the top, bright at the bottom; twice the wanted size."""
    y, x = np.mgrid[0 : 2 * H, 0 : 2 * W]
    light = np.where(y < H, 100, 250)
    left = x < W
    return Image.fromarray(np.stack([light * left, light * ~left, light * 0], -1).astype(np.uint8))


def close(got: np.ndarray, wanted: np.ndarray, most: float = 3.0) -> bool:
    """Equal except for a mean error per sample of `most` of 255."""
    return got.shape == wanted.shape and np.abs(got.astype(float) - wanted).mean() <= most


EXPECTED = np.asarray(upright().resize((W, H), Image.Resampling.LANCZOS))


@pytest.mark.parametrize(("suffix", "options"), [("jpg", {"quality": 95}), ("png", {}), ("tif", {}), ("webp", {"quality": 95})])
def test_every_kind_of_file_is_read(tmp_path, suffix, options):
    """To the same picture."""
    upright().save(tmp_path / f"a.{suffix}", **options)
    assert close(read(tmp_path / f"a.{suffix}", W, H), EXPECTED)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_exif_orientation_is_applied(tmp_path, suffix, orientation):
    """A picture stored turned or mirrored comes out upright."""
    stored = {
        1: upright(),
        2: upright().transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright().transpose(Image.Transpose.ROTATE_180),
        4: upright().transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright().transpose(Image.Transpose.TRANSPOSE),
        6: upright().transpose(Image.Transpose.ROTATE_90),
        7: upright().transpose(Image.Transpose.TRANSVERSE),
        8: upright().transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a.{suffix}", exif=exif, **({"quality": 95} if suffix == "jpg" else {}))
    assert close(read(tmp_path / f"a.{suffix}", W, H), EXPECTED)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_greyscale_becomes_three_equal_channels(tmp_path, suffix):
    """Of the same brightness."""
    upright().convert("L").save(tmp_path / f"a.{suffix}")
    grey = np.asarray(upright().convert("L").resize((W, H), Image.Resampling.LANCZOS))
    assert close(read(tmp_path / f"a.{suffix}", W, H), np.repeat(grey[..., None], 3, -1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_rounded_to_eight(tmp_path, suffix):
    """Greyscale of 16 bits keeps its range: neither clipped nor dark."""
    ramp = np.tile(np.linspace(0, 65535, W).astype(np.uint16), (H, 1))
    Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
    got = read(tmp_path / f"a.{suffix}", W, H)
    assert np.array_equal(got[..., 0], (ramp.astype(np.int64) + 128) // 257)
    assert np.array_equal(got[..., 0], got[..., 2])


def test_sixteen_bit_colour_is_read(tmp_path):
    """A PNG of 16-bit RGB, written by hand, for Pillow writes none."""
    import struct
    import zlib

    samples = (smooth(1, W, H)[0].astype(np.uint16) * 257).astype(">u2")
    lines = b"".join(b"\0" + row.tobytes() for row in samples)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", W, H, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(png)
    assert np.array_equal(read(tmp_path / "a.png", W, H), smooth(1, W, H)[0])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_over_white(tmp_path, mode):
    """The right half is transparent, whatever colour hides under it."""
    image = upright().convert("RGBA")
    alpha = np.full((2 * H, 2 * W), 255, np.uint8)
    alpha[:, W:] = 0
    image.putalpha(Image.fromarray(alpha))
    image = image.quantize() if mode == "P" else image.convert(mode)
    image.save(tmp_path / "a.png")
    got = read(tmp_path / "a.png", W, H)
    assert (got[:, W // 2 + 3 :] == 255).all() and (got[:, : W // 2 - 3] < 255).any(-1).all()


def test_cmyk_is_converted(tmp_path):
    """JPEG and TIFF of print colours."""
    for name in ("a.jpg", "a.tif"):
        upright().convert("CMYK").save(tmp_path / name, **({"quality": 95} if name.endswith("jpg") else {}))
        assert close(read(tmp_path / name, W, H), EXPECTED)


def test_a_colour_profile_is_applied_and_a_damaged_one_ignored(tmp_path):
    """As is one for another kind of colours."""
    other = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    upright().save(tmp_path / "unfit.png", icc_profile=other.tobytes())
    upright().save(tmp_path / "damaged.png", icc_profile=b"no profile at all")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    upright().save(tmp_path / "same.png", icc_profile=srgb.tobytes())
    for name in ("unfit", "damaged", "same"):
        assert close(read(tmp_path / f"{name}.png", W, H), EXPECTED), name


def test_the_middle_is_cropped_to_the_aspect(tmp_path):
    """A square picture loses its top and bottom quarter."""
    square = np.zeros((W, W, 3), np.uint8)
    square[W // 4 : 3 * W // 4] = 200
    Image.fromarray(square).save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png", W, H) == 200).all()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: p.write_bytes(b"no picture"), "not a JPEG"),
        (lambda p: p.write_bytes(b""), "not a JPEG"),
        (lambda p: Image.new("RGB", (1, 1)).save(p), "1x1, smaller than 64x32"),
        (lambda p: Image.new("RGB", (W, H - 1)).save(p), "64x31, smaller than 64x32"),
        (lambda p: (upright().save(p), p.write_bytes(p.read_bytes()[:-40])), "cannot be read"),
    ],
    ids=["text", "empty", "one-pixel", "too-small", "corrupt"],
)
def test_what_cannot_be_used_is_skipped_with_its_reason(tmp_path, make, reason):
    """The others are taken; the list is in a file and in the terminal."""
    write_files(tmp_path / "in", 4, W, H)
    make(tmp_path / "in" / "bad.png")
    said: list[str] = []
    assert prepare(tmp_path / "in", tmp_path / "out", W, H, 2, said.append) == 4
    listed = (tmp_path / "out" / "skipped.txt").read_text()
    assert listed.startswith("bad.png: ") and reason in listed
    assert said == [f"skipped {listed.strip()}"]


def test_files_of_labels_are_passed_over(tmp_path, capsys):
    """A JSON file of a picture's name, and the table of labels in the folder; one without a picture is listed."""
    write_files(tmp_path / "in", 3, W, H)
    for path in (tmp_path / "in").rglob("*.png"):
        path.with_suffix(".json").write_text('{"time": "dusk"}')
    (tmp_path / "in" / "stray.json").write_text("{}")
    table = tmp_path / "in" / "labels.csv"
    table.write_text("file,time\n0/0.png,dusk\n")
    for i, labels in enumerate((["--labels", "json"], ["--labels", str(table)], [])):
        words = ["prepare", str(tmp_path / "in"), "--out", str(tmp_path / str(i)), "--size", f"{W}x{H}", *labels]
        assert cli.main(words) == 0
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped")]
        others = [] if str(table) in labels else ["skipped labels.csv: not named as a JPEG, PNG, TIFF or WebP"]
        assert said == [*others, "skipped stray.json: not named as a JPEG, PNG, TIFF or WebP"]


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    """The reason names the limit."""
    monkeypatch.setattr("tessera_train.data.image_io.MAX_PIXELS", 5000)
    upright().save(tmp_path / "a.png")
    with pytest.raises(Unusable, match="the limit is 5000"):
        read(tmp_path / "a.png", W, H)


def test_an_empty_folder_and_one_without_usable_pictures_are_errors(tmp_path, capsys):
    """One line, exit code 2, no pictures.npy or pictures.json."""
    out = tmp_path / "out"
    words = ["--out", str(out), "--size", f"{W}x{H}"]
    (tmp_path / "empty").mkdir()
    assert cli.main(["prepare", str(tmp_path / "empty"), *words]) == 2
    assert "no JPEG, PNG, TIFF or WebP" in capsys.readouterr().err and not out.exists()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"?")
    assert cli.main(["prepare", str(tmp_path / "bad"), *words]) == 2
    assert "none of 1 pictures can be used" in capsys.readouterr().err
    assert not (out / "pictures.npy").exists() and not (out / "pictures.json").exists()
    assert cli.main(["prepare", str(tmp_path / "nowhere"), *words]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_the_split_depends_on_content_and_not_on_names(tmp_path):
    """Renamed and moved files give the same bytes; a file that is there twice counts once."""
    write_files(tmp_path / "a", 8, W, H)
    for i, path in enumerate(sorted((tmp_path / "a").rglob("*.png"), reverse=True)):
        target = tmp_path / "b" / f"{i}.PNG"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    (tmp_path / "b" / "twice.png").write_bytes(target.read_bytes())
    said: list[str] = []
    assert prepare(tmp_path / "a", tmp_path / "pa", W, H, 1) == 8
    assert prepare(tmp_path / "b", tmp_path / "pb", W, H, 3, said.append) == 8
    assert (tmp_path / "pa" / "pictures.npy").read_bytes() == (tmp_path / "pb" / "pictures.npy").read_bytes()
    assert len(said) == 1 and "the same file as" in said[0]
    pictures = Pictures.open(tmp_path / "pa")
    assert (pictures.training, pictures.held_out) == (6, 2)


def test_an_interrupted_preparation_continues(tmp_path, monkeypatch):
    """After every number of files read: the result is the same, and nothing has a final name before."""
    write_files(tmp_path / "in", 5, W, H)
    (tmp_path / "in" / "bad.jpg").write_bytes(b"?")
    prepare(tmp_path / "in", tmp_path / "whole", W, H, 1)
    reads: list[Path] = []

    def failing(path: Path, width: int, height: int) -> np.ndarray:
        reads.append(path)
        if len(reads) == 3:
            raise KeyboardInterrupt
        return read(path, width, height)

    out = tmp_path / "parts"
    monkeypatch.setattr(command, "read", failing)
    for _ in range(8):
        reads.clear()
        try:
            prepare(tmp_path / "in", out, W, H, 1)
            break
        except KeyboardInterrupt:
            assert not (out / "pictures.npy").exists() and not (out / "pictures.json").exists()
            with open(out / "progress.jsonl", "a") as file:
                file.write('"torn')
    for name in ("pictures.npy", "pictures.json", "skipped.txt"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert sorted(p.name for p in out.iterdir()) == ["pictures.json", "pictures.npy", "skipped.txt"]


def test_other_pictures_do_not_continue_or_replace(tmp_path):
    """A finished folder of the same pictures is left as it is."""
    write_files(tmp_path / "in", 4, W, H)
    out = tmp_path / "out"
    prepare(tmp_path / "in", out, W, H, 1)
    assert prepare(tmp_path / "in", out, W, H, 1) == 4
    with pytest.raises(ValueError, match="holds other pictures or another size"):
        prepare(tmp_path / "in", out, W // 2, H // 2, 1)
    with pytest.raises(ValueError, match="must be outside"):
        prepare(tmp_path / "in", tmp_path / "in" / "out", W, H, 1)


def test_a_full_disk_is_an_error_after_which_the_command_continues(tmp_path):
    """Nothing has a final name; with space, the result is that of a run without the accident."""
    write_files(tmp_path / "in", 6, W, H)
    words = ("prepare", str(tmp_path / "in"), "--size", f"{W}x{H}", "--out")
    full = Command([*words, str(tmp_path / "out")], bytes_per_file=3 * W * H * 3).ended()
    assert full.returncode == 2 and "with more space the same command continues" in full.stderr and "Traceback" not in full.stderr
    assert not (tmp_path / "out" / "pictures.npy").exists() and not (tmp_path / "out" / "pictures.json").exists()
    assert cli.main([*words, str(tmp_path / "out")]) == 0
    assert cli.main([*words, str(tmp_path / "whole")]) == 0
    assert (tmp_path / "out" / "pictures.npy").read_bytes() == (tmp_path / "whole" / "pictures.npy").read_bytes()


def test_too_little_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
    """With both numbers."""
    write_files(tmp_path / "in", 2, W, H)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(OSError, match="17 MB are needed, 1 MB are free"):
        prepare(tmp_path / "in", tmp_path / "out", W, H, 1)


def test_pictures_stop_where_the_finished_ones_do(tmp_path):
    """Rows that `pictures.json` does not call finished are neither trained on nor held out."""
    rows = smooth(8, W, H)
    rows[5:] = 0
    np.save(tmp_path / "pictures.npy", rows)
    (tmp_path / "pictures.json").write_text(json.dumps({"finished": 5}))
    pictures = Pictures.open(tmp_path)
    assert len(pictures.rows) == 5 and (pictures.training, pictures.held_out) == (4, 1)
    for bad in ("{", "[]", '{"finished": 9}', '{"finished": "all"}'):
        (tmp_path / "pictures.json").write_text(bad)
        with pytest.raises(ValueError, match="finished"):
            Pictures.open(tmp_path)
    (tmp_path / "pictures.json").write_text('{"finished": 0}')
    with pytest.raises(ValueError, match="no pictures"):
        Pictures.open(tmp_path)
