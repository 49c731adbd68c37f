"""Commands in processes of their own, which can be killed. They are forked from a process that has imported torch, as an
import takes longer than the training of a test."""

from __future__ import annotations

import io
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
from tessera_train import __main__ as cli
from tessera_train.training import loop

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["torch._dynamo", "tessera_train.training.fit"])  # an optimiser imports torch._dynamo


@dataclass(frozen=True)
class Kill:
    """SIGKILL in the training of the run folder `run`: between step number `step` and its checkpoint, or with half of that
    checkpoint written."""

    run: Path
    step: int
    writing: bool = False

    def prepare(self) -> None:
        """Makes it come, in this process."""
        save = loop.Loop.save

        def saved(run: loop.Loop) -> None:
            if (run.args.out, run.step) == (self.run, self.step):
                if not self.writing:
                    die()
                torch.save = half_saved
            save(run)

        loop.Loop.save = saved


def half_saved(state: object, file: io.BufferedWriter, save=torch.save) -> None:
    """Writes half of what `torch.save` does, and dies."""
    whole = io.BytesIO()
    save(state, whole)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()
    die()


def die() -> NoReturn:
    """As if another process had sent SIGKILL to this one."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Command:
    """`tessera_train WORDS`, begun, in a process of its own: killed on the way, with files limited to `bytes_per_file` (the errors
    of a full disk), with more in its `environment`."""

    words: list[str]
    kill: Kill | None = None
    bytes_per_file: int | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.output = Path(self.folder.name, "out"), Path(self.folder.name, "errors")
        settings = self.words, self.output, self.kill, self.bytes_per_file, self.environment
        self.process = FORKING.Process(target=run, args=settings)
        self.process.start()

    def ended(self) -> subprocess.CompletedProcess[str]:
        """Its exit code, output and errors, when it has ended; after two minutes it is killed."""
        self.process.join(120)
        self.process.kill()
        self.process.join()
        return subprocess.CompletedProcess(self.words, self.process.exitcode, *(path.read_text() for path in self.output))


def run(
    words: list[str], output: tuple[Path, Path], kill: Kill | None, bytes_per_file: int | None, environment: dict[str, str]
) -> NoReturn:
    """What the new process does."""
    for number, path in enumerate(output, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(environment)
    if kill is not None:
        kill.prepare()
    if bytes_per_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_per_file, bytes_per_file))
    sys.exit(cli.main(words))
