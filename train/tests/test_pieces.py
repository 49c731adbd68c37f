"""Files in pieces: put together as they were, whatever was interrupted."""

import pathlib
import random

import pytest

from tessera_train.__main__ import main
from tessera_train.export import pieces


def contents(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("size", [1, 1000, 1001, 3500])
def test_pieces_join_to_the_file(tmp_path, size):
    """The newest round is what was written last, in pieces of at most the given size, and nothing else stays."""
    folder = tmp_path / "weights"
    for number in (1, 2):
        pieces.write(folder, number, contents(number, size), piece_bytes=1000)
    files = list(folder.iterdir())
    assert len(files) == -(-size // 1000) and all(path.stat().st_size <= 1000 for path in files)
    out = tmp_path / "file"
    assert main(["join", str(folder), "--out", str(out)]) == 0
    assert out.read_bytes() == contents(2, size)


@pytest.mark.parametrize("written", [1, 2, 3])
def test_a_round_that_was_cut_leaves_the_one_before(tmp_path, monkeypatch, written):
    """A process that ends after some of a round's pieces, or within the deletion of older ones, leaves a whole round."""
    pieces.write(tmp_path, 1, contents(1, 2500), piece_bytes=1000)
    replace, unlink, count = pieces.replace_file, pathlib.Path.unlink, 0

    def cut_replace(path, write):
        nonlocal count
        if count == written:
            raise KeyboardInterrupt
        count += 1
        replace(path, write)

    def cut_unlink(path, missing_ok=False):
        if pieces.NAME.fullmatch(path.name):
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    monkeypatch.setattr(pieces, "replace_file", cut_replace)
    monkeypatch.setattr(pathlib.Path, "unlink", cut_unlink)
    with pytest.raises(KeyboardInterrupt):
        pieces.write(tmp_path, 2, contents(2, 2500), piece_bytes=1000)
    assert pieces.joined(tmp_path) == ((2, contents(2, 2500)) if written == 3 else (1, contents(1, 2500)))


def test_a_damaged_piece_is_never_joined(tmp_path):
    """A piece with another content, or none, is an error that says what there is."""
    pieces.write(tmp_path, 3, contents(3, 2500), piece_bytes=1000)
    first = next(iter(tmp_path.iterdir()))
    data = first.read_bytes()
    first.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="3 of 3 of round 3"):
        pieces.joined(tmp_path)
    first.unlink()
    with pytest.raises(ValueError, match="2 of 3 of round 3"):
        pieces.joined(tmp_path)
