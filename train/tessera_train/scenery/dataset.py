"""Many pictures in one file that training maps into memory, and the command line.

`pictures.npy` holds uint8 [count, H, W, 3]; until all are made it is called `pictures.npy.part`. `labels.json` names what
each of them shows: {"labels": [{"name": ..., "values": [...]}, ...], "pictures": [{name: value, ...}, ...]}, one entry of
`pictures` per row; it is whole before the first row. `pictures.json` says what the array is and how many rows, from the
first on, are finished. The count is written after the rows are on the disk, so an interrupted writing resumes where it
stood.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..data.npy_writer import RowWriter, check_space
from .labels import SCHEMA, labels
from .picture import VERSION, check_seed, check_size, render

ROWS_BETWEEN_SYNCS = 64
MAX_COUNT = 10_000_000


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one hears it too, and ends it
    torch.set_num_threads(1)


def _picture(job: tuple[int, int, int, str]) -> np.ndarray:
    return render(*job).cpu().numpy()


def pictures(first_seed: int, count: int, width: int, height: int, processes: int, device: str = "cpu"):
    """Yields the pictures [H, W, 3] of `count` seeds in order, made on `device` by `processes` processes of one thread each."""
    jobs = ((first_seed + i, width, height, device) for i in range(count))
    with multiprocessing.get_context("spawn").Pool(processes, _start_worker) as pool:
        yield from pool.imap(_picture, jobs)


def _check(first_seed: int, count: int, width: int, height: int, processes: int) -> None:
    check_size(width, height)
    if not 1 <= count <= MAX_COUNT:
        raise ValueError(f"count is {count}, must be from 1 to {MAX_COUNT}")
    check_seed(first_seed, count)
    limit = 4 * (os.cpu_count() or 1)
    if not 1 <= processes <= limit:
        raise ValueError(f"processes is {processes}, must be from 1 to {limit}")


def _replace(path: Path, text: str) -> None:
    """Replaces a small file whole: a reader sees the old text or the new one."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def labels_text(first_seed: int, count: int, width: int, height: int) -> str:
    """The content of `labels.json`: the names and values of `SCHEMA`, and the labels of each picture, one a line."""
    schema = json.dumps([{"name": name, "values": values} for name, values in SCHEMA])
    rows = ",\n".join(json.dumps(labels(first_seed + i, width, height)) for i in range(count))
    return f'{{"labels": {schema},\n"pictures": [\n{rows}\n]}}\n'


def write_dataset(path, first_seed: int, count: int, width: int, height: int, processes: int = 1) -> Path:
    """Writes the pictures of `count` seeds from `first_seed` on into the directory `path`; returns the .npy's path.

    Resumes what an earlier call with the same arguments left. Raises ValueError for arguments outside their limits,
    and where the directory already holds pictures of other seeds, size, count or generator version; OSError when the
    disk is full, or will be by what is still to be made.
    """
    _check(first_seed, count, width, height, processes)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    array_path, state_path = folder / "pictures.npy", folder / "pictures.json"
    plan = {"version": VERSION, "first_seed": first_seed, "count": count, "width": width, "height": height}
    done = 0
    if state_path.exists():
        try:
            state = json.loads(state_path.read_text())
            done = state.pop("finished")
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"out: {state_path} cannot be read as the state of a dataset: {error!r}") from error
        for field, value in plan.items():
            if state.get(field) != value:
                raise ValueError(f"out: {folder} holds pictures with {field} {state.get(field)}, not {value}")
        if not isinstance(done, int) or not 0 <= done <= count:
            raise ValueError(f"out: finished is {done} in {state_path}, must be from 0 to {count}")
        if done == count and array_path.exists():
            return array_path
    elif array_path.exists():
        raise ValueError(f"out: {array_path} exists without its pictures.json; remove it first")
    with RowWriter(array_path, np.uint8, (height, width, 3), done) as rows:
        done = rows.count
        check_space(folder, (count - done) * height * width * 3)
        if not (folder / "labels.json").exists():
            _replace(folder / "labels.json", labels_text(first_seed, count, width, height))
        _replace(state_path, json.dumps(plan | {"finished": done}))
        with tqdm(total=count, initial=done, unit="picture", disable=None) as bar:
            for picture in pictures(first_seed + done, count - done, width, height, processes) if done < count else ():
                try:
                    rows.append(picture)
                except OSError as error:
                    message = (
                        f"{folder}: {error.strerror} after {rows.count} pictures; with more space the same command continues"
                    )
                    raise OSError(message) from error
                bar.update()
                if rows.count % ROWS_BETWEEN_SYNCS == 0 or rows.count == count:
                    rows.sync()
                    _replace(state_path, json.dumps(plan | {"finished": rows.count}))
        rows.finish()
    return array_path


def write_png(path, first_seed: int, count: int, width: int, height: int, processes: int = 1) -> None:
    """Writes one PNG per seed into the directory `path`, named by seed, and its labels beside it in a JSON file of that name;
    those already there are kept."""
    from PIL import Image

    _check(first_seed, count, width, height, processes)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    done = 0
    while done < count and (folder / f"{first_seed + done:010d}.png").exists():
        done += 1
    with tqdm(total=count, initial=done, unit="picture", disable=None) as bar:
        for picture in pictures(first_seed + done, count - done, width, height, processes) if done < count else ():
            target = folder / f"{first_seed + done:010d}.png"
            temporary = target.with_suffix(".tmp")
            _replace(target.with_suffix(".json"), json.dumps(labels(first_seed + done, width, height)) + "\n")
            Image.fromarray(picture).save(temporary, format="png")
            os.replace(temporary, target)
            done += 1
            bar.update()


def parse_size(text: str) -> tuple[int, int]:
    """'2048x1024' to (2048, 1024)."""
    width, _, height = text.partition("x")
    if not (width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
        raise ValueError(f"size is {text!r}, must be WIDTHxHEIGHT, as 2048x1024")
    return int(width), int(height)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scenery`."""
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to write into; an interrupted writing resumes")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="number of pictures, seeds S to S+N-1 (default 1)")
    parser.add_argument("--size", default="2048x1024", metavar="WxH", help="width x height (default 2048x1024)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="first seed (default 0)")
    parser.add_argument("--format", choices=("npy", "png"), default="npy", help="one array, or a PNG per seed (default npy)")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, metavar="P", help="processes (default: one per core)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs `scenery`; returns the exit code: 0, or 2 with a message on standard error for a bad argument."""
    write = write_dataset if args.format == "npy" else write_png
    try:
        width, height = parse_size(args.size)
        write(args.out, args.seed, args.count, width, height, args.processes)
    except ValueError as error:
        print(f"scenery: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"scenery: out: {error}", file=sys.stderr)
        return 2
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="scenery", description="Procedural landscapes, one per seed.")
    add_arguments(parser)
    return run(parser.parse_args())
