"""Pictures of a user: a folder tree of files to the memory-mapped folder that training reads (`data.Pictures`).

Rows are ordered by the SHA-256 of the files' content, so the pictures that are held out (the last ones) depend on
what the pictures are, not on names or folders, and a file that is there twice counts once. `pictures.npy` and then
`pictures.json` come last; until then rows go to `pictures.npy.part` and a line for every file to `progress.jsonl`,
from which an interrupted run continues.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from ..export.files import replace_file
from ..scenery.dataset import parse_size
from . import labels
from .image_io import SUFFIXES, Unusable, read
from .labels import SOURCES, Source
from .npy_writer import RowWriter, check_space

VERSION = 1
ROWS_BETWEEN_SYNCS = 64
LISTED = 20

Skipped = list[tuple[str, str]]


def listing(folder: Path, table: Path | None = None) -> tuple[list[Path], Skipped]:
    """Files under `folder` that may be pictures by their suffix, sorted, and the others with the reason. Hidden files
    and folders are passed over, as are JSON files of a picture's name and the `table` of labels; links to folders are
    not followed."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    files, skipped = [], []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(place, name)
            if path.suffix.lower() in SUFFIXES and path.is_file():
                files.append(path)
            elif not holds_labels(path, set(names), table):
                skipped.append((shown(path, folder), "not named as a JPEG, PNG, TIFF or WebP"))
    return files, skipped


def holds_labels(path: Path, beside: set[str], table: Path | None) -> bool:
    """True for the `table` of labels and for `a.json` if `a.jpg` or another picture `a` is `beside` it."""
    if path.suffix == ".json":
        return any(Path(name).stem == path.stem and Path(name).suffix.lower() in SUFFIXES for name in beside)
    return table is not None and path.resolve() == table.resolve()


def shown(path: Path, folder: Path) -> str:
    """`path` within `folder`, as text that any terminal takes."""
    return os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")


def digest(path: Path) -> str | OSError:
    """SHA-256 of the content."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return error


def in_order(pool: ThreadPoolExecutor, f: Callable[[Any], Any], items: Iterable[Any], ahead: int) -> Iterator[Any]:
    """`f` of every item, in order, at most `ahead` of them computed before they are wanted."""
    waiting: deque = deque()
    for item in items:
        waiting.append(pool.submit(f, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def unique(folder: Path, files: list[Path], skipped: Skipped, threads: int) -> list[tuple[str, Path]]:
    """(digest, file) in the order of digests, each digest once; what falls out is added to `skipped`."""
    first: dict[str, Path] = {}
    with ThreadPoolExecutor(threads) as pool:
        digests = in_order(pool, digest, files, 4 * threads)
        for path, found in zip(files, tqdm(digests, "finding pictures", len(files), unit="file", disable=None)):
            if isinstance(found, OSError):
                skipped.append((shown(path, folder), f"cannot be read: {found.strerror}"))
            elif found in first:
                skipped.append((shown(path, folder), f"the same file as {shown(first[found], folder)}"))
            else:
                first[found] = path
    return sorted(first.items())


class Journal:
    """`progress.jsonl`: the plan's key, then for every file, in the plan's order, why it was skipped, or null."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key, self.reasons = path, key, []
        lines = path.read_text().split("\n")[:-1] if path.exists() else []  # the last line may be torn
        if lines:
            if json.loads(lines[0]) != key:
                raise ValueError(f"{path.parent}: was begun with other pictures or another size; remove it, or choose another folder")
            self.reasons = [json.loads(line) for line in lines[1:]]

    @property
    def rows(self) -> int:
        """Files that gave a row."""
        return sum(reason is None for reason in self.reasons)

    def forget(self, rows: int) -> None:
        """Drops the end, so that `rows` rows are left."""
        while self.rows > rows:
            self.reasons.pop()

    def reopen(self) -> TextIO:
        """The file, rewritten without its torn end, to append to."""
        text = "".join(json.dumps(line) + "\n" for line in (self.key, *self.reasons))
        replace_file(self.path, lambda file: file.write(text.encode()))
        return open(self.path, "a", buffering=1)


def prepare(
    folder: Path,
    out: Path,
    width: int,
    height: int,
    threads: int,
    say: Callable[[str], None] = print,
    source: Source | None = None,
) -> int:
    """Writes the pictures under `folder` into `out`, or continues to; returns how many there are.

    ValueError: no usable picture, or `out` holds others. OSError: the disk is full; what is finished so far stays
    under another name than the final one, and the same call continues.
    """
    if width < 1 or height < 1:
        raise ValueError(f"size is {width}x{height}, must be at least 1x1")
    if out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{out}: lies within {folder}, must be outside")
    files, skipped = listing(folder, source.path if source else None)
    plan = unique(folder, files, skipped, threads)
    found = [source.of(path) for _, path in plan] if source else None
    planned = [VERSION, width, height, [name for name, _ in plan], *([found] if found else [])]
    key = hashlib.sha256(json.dumps(planned).encode()).hexdigest()
    done = out / "pictures.json"
    if done.exists():
        state = json.loads(done.read_text())
        if state.get("key") != key:
            raise ValueError(f"{out}: holds other pictures or another size; choose another folder")
        return state["finished"]
    if not plan:
        raise ValueError(f"{folder}: no JPEG, PNG, TIFF or WebP in it")
    journal = Journal(out / "progress.jsonl", key)
    if (out / "pictures.npy").exists() and not journal.path.exists():
        raise ValueError(f"{out}: pictures.npy in it was not written by prepare; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with RowWriter(out / "pictures.npy", np.uint8, (height, width, 3), journal.rows) as rows:
        journal.forget(rows.count)
        check_space(out, (len(plan) - len(journal.reasons)) * width * height * 3)
        with journal.reopen() as log, ThreadPoolExecutor(threads) as pool:
            try:
                write_rows(plan, journal, rows, log, pool)
            except OSError as error:
                message = f"{out}: {error.strerror} after {rows.count} pictures; with more space the same command continues"
                raise OSError(message) from error
            finally:
                pool.shutdown(cancel_futures=True)
        skipped += [(shown(path, folder), reason) for (_, path), reason in zip(plan, journal.reasons) if reason is not None]
        tell(sorted(skipped), out / "skipped.txt", say)
        if not rows.count:
            raise ValueError(f"{folder}: none of {len(plan)} pictures can be used; {out / 'skipped.txt'} says why")
        rows.finish()
    used = [shown(path, folder) for (_, path), reason in zip(plan, journal.reasons) if reason is None]
    state = {"version": VERSION, "key": key, "width": width, "height": height, "count": len(used), "finished": len(used), "files": used}
    if found:
        labels.write(out, [its for its, reason in zip(found, journal.reasons) if reason is None])
    replace_file(done, lambda file: file.write(json.dumps(state).encode()))
    journal.path.unlink()
    return len(used)


def write_rows(plan: list, journal: Journal, rows: RowWriter, log: TextIO, pool: ThreadPoolExecutor) -> None:
    """Reads the rest of the plan's files, a row or a reason for each."""
    height, width, _ = rows.shape

    def attempt(item: tuple[str, Path]) -> np.ndarray | str:
        try:
            return read(item[1], width, height)
        except Unusable as error:
            return str(error)

    start = len(journal.reasons)
    results = in_order(pool, attempt, plan[start:], 2 * pool._max_workers)
    for result in tqdm(results, "reading", len(plan), initial=start, unit="picture", disable=None):
        reason = result if isinstance(result, str) else None
        if reason is None:
            rows.append(result)
            if rows.count % ROWS_BETWEEN_SYNCS == 0:
                rows.sync()
        log.write(json.dumps(reason) + "\n")
        journal.reasons.append(reason)


def tell(skipped: Skipped, path: Path, say: Callable[[str], None]) -> None:
    """Lists what was skipped in `path`, and the beginning of it in the terminal."""
    lines = [f"{name}: {reason}" for name, reason in skipped]
    replace_file(path, lambda file: file.write("".join(f"{line}\n" for line in lines).encode()))
    for line in lines[:LISTED]:
        say(f"skipped {line}")
    if len(lines) > LISTED:
        say(f"skipped {len(lines) - LISTED} more, see {path}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder tree of JPEG, PNG, TIFF or WebP files")
    parser.add_argument("--out", type=Path, required=True, metavar="PICTURES", help="folder to write; an interrupted writing resumes")
    parser.add_argument("--size", default="2048x1024", metavar="WxH", help="width x height of every picture (default 2048x1024)")
    parser.add_argument("--labels", metavar="SOURCE", help=SOURCES)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="files read at a time (default: one per core)")


def run(args: argparse.Namespace) -> None:
    """The command."""
    if args.threads < 1:
        raise ValueError(f"threads is {args.threads}, must be at least 1")
    source = Source(args.labels, args.folder) if args.labels else None
    count = prepare(args.folder, args.out, *parse_size(args.size), args.threads, source=source)
    print(f"{args.out}: {count} pictures of {args.size}")
