"""A file that is written again and again, in pieces, for places that take back small files only.

Every writing is a round. The pieces of a round are byte ranges of the file, and their names hold all that is needed to put
them together: `round-0003.9f86d081884c7d65.2-of-3` (number of the round, beginning of the file's SHA-256, piece). The
pieces of the round before are deleted when those of a round are all there, so that a process that is killed at any
moment leaves a whole round.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from .files import replace_file

PIECE_BYTES = 15 << 20
DIGITS = 16
NAME = re.compile(r"round-(\d{4,})\.([0-9a-f]{16})\.(\d+)-of-(\d+)")


@dataclass(frozen=True)
class Round:
    """Pieces that belong together, some of them possibly missing."""

    number: int
    digest: str
    count: int
    pieces: dict[int, Path]

    def data(self) -> bytes | None:
        """The file; None if a piece is missing or damaged."""
        if len(self.pieces) < self.count:
            return None
        data = b"".join(self.pieces[i].read_bytes() for i in range(1, self.count + 1))
        return data if digest(data) == self.digest else None


def digest(data: bytes) -> str:
    """The beginning of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:DIGITS]


def rounds(folder: Path) -> list[Round]:
    """What there is in `folder`, the newest round first."""
    found: dict[tuple[int, str, int], dict[int, Path]] = {}
    for path in folder.iterdir():
        if match := NAME.fullmatch(path.name):
            number, its_digest, piece, count = match.groups()
            found.setdefault((int(number), its_digest, int(count)), {})[int(piece)] = path
    return [Round(*key, pieces) for key, pieces in sorted(found.items(), reverse=True)]


def write(folder: Path, number: int, data: bytes, piece_bytes: int = PIECE_BYTES) -> None:
    """Writes `data` as round `number` into `folder`, then deletes the pieces of all other rounds."""
    folder.mkdir(parents=True, exist_ok=True)
    older = [path for round in rounds(folder) for path in round.pieces.values()]
    parts = [data[i : i + piece_bytes] for i in range(0, len(data), piece_bytes)]
    names = [f"round-{number:04}.{digest(data)}.{i}-of-{len(parts)}" for i in range(1, len(parts) + 1)]
    for name, part in zip(names, parts):
        replace_file(folder / name, lambda file, part=part: file.write(part))
    for path in older:
        if path.name not in names:
            path.unlink()


def joined(folder: Path) -> tuple[int, bytes]:
    """Number and file of the newest whole round. ValueError if there is none."""
    found = rounds(folder)
    for round in found:
        if (data := round.data()) is not None:
            return round.number, data
    listing = ", ".join(f"{len(round.pieces)} of {round.count} of round {round.number}" for round in found) or "none"
    raise ValueError(f"{folder}: holds no whole round of pieces (found: {listing})")
