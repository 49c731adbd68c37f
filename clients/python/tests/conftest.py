"""Servers for the tests: the built program, and a folder for its jobs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tessera_client import Client

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = Path(os.environ.get("TESSERA_PROGRAM", ROOT / "target" / "release" / "tessera"))
LABELLED = ROOT / "tests" / "fixtures" / "net-g.safetensors"
"""A model of 96 x 64 with the labels `time` and `water` and two groups of levels."""


class Server:
    """`tessera serve` as a child process, on one folder and port over all its lives."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self._flags = flags
        self._listen = "127.0.0.1:0"
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        """Starts it and waits until it listens."""
        command = [PROGRAM, "serve", "--listen", self._listen, "--jobs", self.folder / "jobs"]
        command += ["--device", "cpu", "--threads", "1", "--model", LABELLED, *self._flags]
        environment = {**os.environ, "TESSERA_LOG": "error"}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("listening on "), f"the server said {line!r}"
        self.url = line.removeprefix("listening on ").strip()
        self._listen = self.url.split("://")[1]

    def kill(self) -> None:
        """Ends it as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Asks it to stop, and waits until it has."""
        assert self._process is not None
        self._process.terminate()
        assert self._process.wait() == 0

    def __enter__(self) -> Server:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Stops it; after a failure of the test it is killed, in whatever state it is."""
        if error is None:
            self.stop()
        else:
            self.kill()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that all tests share."""
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of the shared server."""
    with Client(server.url) as client:
        yield client


def tessera(*arguments: str | Path) -> None:
    """Runs the program."""
    subprocess.run([PROGRAM, *arguments], check=True, stdout=sys.stderr)
