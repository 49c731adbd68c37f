"""Promises of training by several processes: the weights of one process, output from one, an error when one is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pictures import write_array
from processes import Command
from tessera_train import __main__ as cli
from tessera_train.data import latents
from tessera_train.data.pictures import Pictures
from tessera_train.nets.autoencoder import Autoencoder
from tessera_train.training import loop
from tessera_train.training.config import Config
from torch.distributed import TCPStore

OPTIONS = ["--config", "tiny", "--device", "cpu", "--precision", "f32", "--threads", "1"]
TOLERANCE = 5e-5
"""Of the weights' relative L2 distance: sums are taken in another order, and Adam divides gradients by their size."""


def torchrun(*words: str) -> subprocess.Popen:
    """The command in two processes on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "tessera_train", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit code, standard output and errors, within two minutes."""
    try:
        out, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, errors


def two(*words: str) -> str:
    """What the command prints in two processes that have the environment that torchrun gives them."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    ranks = [Command(list(words), environment=common | {"RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]
    results = [rank.ended() for rank in ranks]
    assert [result.returncode for result in results] == [0, 0], [result.stderr for result in results]
    return "".join(result.stdout for result in results)


def distance(a: Path, b: Path) -> float:
    """The largest relative L2 distance between the parts of two runs' weights, averaged ones and adversaries."""
    states = [torch.load(run / loop.CHECKPOINT, weights_only=True) for run in (a, b)]
    assert states[0]["step"] == states[1]["step"] and states[0]["seen"] == states[1]["seen"]

    def flat(state: dict, part: str) -> torch.Tensor:
        tensors = (state["adversary"] or {"net": {}})["net"] if part == "adversary" else state[part]
        return torch.cat([torch.zeros(1), *(x.flatten() for x in tensors.values())])

    pairs = [[flat(state, part) for state in states] for part in ("model", "ema", "adversary")]
    return max(float((x - y).norm() / x.norm().clamp_min(1e-9)) for x, y in pairs)


def worker(launcher: int, rank: int) -> int | None:
    """The process of torchrun that has the number `rank`, once there is one."""
    try:
        children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
        return next(int(pid) for pid in children if f"\0RANK={rank}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes())
    except (OSError, StopIteration):
        return None


def test_two_processes_make_the_weights_of_one_though_one_was_killed(tmp_path):
    """The AutoEncoder with its adversary, spectral norm and dropout. Process 1 is killed on the way: torchrun ends, says
    why, and the same command goes on from the checkpoint."""
    pictures = write_array(tmp_path / "pictures")
    words = ["autoencoder", "--pictures", str(pictures), *OPTIONS, "--steps", "12", "--save-minutes", "0", "--out"]
    torch.set_num_threads(1)
    assert cli.main([*words, str(tmp_path / "one")]) == 0
    run = tmp_path / "two"
    process = torchrun(*words, str(run))
    deadline = time.monotonic() + 120
    while loop.used(run)[0] < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(worker(process.pid, 1), signal.SIGKILL)
    code, out, errors = ended(process)
    assert code != 0
    assert "SIGKILL" in errors
    # Whichever process 0 notices first: that the other one is gone, or torchrun's signal.
    assert "tessera_train autoencoder: process 0 of 2 lost another one" in errors or "stopped by SIGTERM at step" in out
    assert 2 <= loop.used(run)[0] < 12, "it ended before it could be killed"
    out = two(*words, str(run))
    assert out.count("resumed at step") == out.count("2 processes") == out.count("held out: psnr") == 1
    assert distance(tmp_path / "one", run) < TOLERANCE
    assert [path.name for path in run.glob("sample-*")] == ["sample-0000012.png"]


def test_two_processes_train_the_unet_as_one_does(tmp_path):
    """Noise and dropout are those of the whole batch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config, cpu = Config("tiny"), torch.device("cpu")
    latents.write(config.arch, Autoencoder(config.arch), Pictures.open(write_array(tmp_path / "p")), tmp_path / "z", cpu, False)
    ae = ["autoencoder", "--pictures", str(tmp_path / "p"), *OPTIONS, "--steps", "1", "--out", str(tmp_path / "ae")]
    assert cli.main(ae) == 0
    words = ["diffusion", "--latents", str(tmp_path / "z"), "--autoencoder", str(tmp_path / "ae"), *OPTIONS, "--steps", "8", "--out"]
    assert cli.main([*words, str(tmp_path / "one")]) == 0
    two(*words, str(tmp_path / "two"))
    assert distance(tmp_path / "one", tmp_path / "two") < TOLERANCE


@pytest.mark.parametrize("size", [3, 8])
def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch, tmp_path, size):
    """By its name, before anything is trained."""
    from tessera_train.training import autoencoder, parallel

    monkeypatch.setattr(parallel, "size", lambda: size)
    pictures = Pictures.open(write_array(tmp_path / "p"))
    with pytest.raises(ValueError, match=rf"phases\]\] batch is 4, must be a multiple of the number of processes, {size}"):
        autoencoder.Task(Config("tiny"), pictures, 0, torch.device("cpu"))


@pytest.mark.parametrize("command", ["fit", "latents", "export"])
def test_other_commands_refuse_torchrun(monkeypatch, capsys, command):
    """They would write the same files."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = {
        "fit": ["photos", "--out", "m.safetensors"],
        "latents": ["--pictures", "p", "--autoencoder", "a", "--out", "z"],
        "export": ["--autoencoder", "a", "--diffusion", "u", "--latents", "z", "--out", "m.safetensors"],
    }
    assert cli.main([command, *words[command]]) == 2
    assert "runs in one process; under torchrun run autoencoder, diffusion or refine" in capsys.readouterr().err
