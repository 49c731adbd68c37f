"""Promises of the ONNX graphs: onnxruntime gives the outputs of the fixtures, which the Rust backends reproduce, and those of the
PyTorch networks at any size; a tile is the same pixels of the whole picture; a folder of graphs is whole or not there."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tessera_train import __main__ as cli
from tessera_train.export import onnx_graphs
from tessera_train.export.model import Model
from tessera_train.nets.decoder import Place
from tessera_train.nets.place_noise import place_noise
from tessera_train.nets.precond import Denoiser
from tessera_train.nets.unet import Context

FIXTURES = Path(__file__).parents[2] / "tests" / "fixtures"
TOLERANCE = 1e-4
"""Of the range of a result."""
SEED = 0x0123_4567_89AB_CDEF
Arrays = dict[str, np.ndarray]


class Graphs:
    """The graphs of a fixture's model in onnxruntime, and the model in PyTorch."""

    def __init__(self, name: str, folder: Path) -> None:
        file = FIXTURES / f"net-{name}.safetensors"
        self.model = Model.open(file, torch.device("cpu"))
        self.paths = {path.stem: path for path in onnx_graphs.write(file, folder)}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.sessions = {stem: onnxruntime.InferenceSession(path, options) for stem, path in self.paths.items()}

    def run(self, name: str, inputs: Arrays) -> Arrays:
        """Outputs of a graph by their names."""
        session = self.sessions[name]
        return dict(zip([port.name for port in session.get_outputs()], session.run(None, inputs)))

    def denoiser(self, group: int) -> str:
        """The name of a group's graph."""
        arch = self.model.arch
        return "unet" if arch.version == 1 else f"unet-{arch.groups[group].name}"

    def noise(self, name: str, seeds: torch.Tensor, top: int, left: int, rows: int, columns: int) -> Arrays:
        """Noise inputs of a decoder's graph for a window of the finest latent's grid."""
        arch, out = self.model.arch, {}
        for port in self.sessions[name].get_inputs():
            if port.name.startswith("noise."):
                stage = int(port.name.removeprefix("noise."))
                at = [x * arch.levels[0].factor // (arch.decoder.shuffle << stage) for x in (top, left, rows, columns)]
                out[port.name] = place_noise(seeds, stage, *at).numpy()
        return out


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """The graphs of a fixture's model by its name, made once."""
    torch.set_num_threads(1)
    return cache(lambda name: Graphs(name, tmp_path_factory.mktemp("onnx") / name))


def close(found: np.ndarray, wanted: np.ndarray | torch.Tensor) -> None:
    """Fails unless all numbers agree within TOLERANCE of the range of `wanted`."""
    wanted = np.asarray(wanted)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= TOLERANCE * max(np.ptp(wanted), 1e-3)


def random_latents(graphs: Graphs, count: int, rows: int, columns: int, seed: int) -> list[torch.Tensor]:
    """Normal latents; `rows` and `columns` of the coarsest grid."""
    arch = graphs.model.arch
    torch.manual_seed(seed)
    grids = arch.grids(columns * arch.coarsest_factor, rows * arch.coarsest_factor)
    return [torch.randn(count, level.channels, *grid) for level, grid in zip(arch.levels, grids)]


def named(kind: str, values: list[torch.Tensor], first: int = 0) -> Arrays:
    """Inputs KIND.FIRST, KIND.FIRST+1 ..."""
    return {f"{kind}.{first + i}": x.numpy() for i, x in enumerate(values)}


@pytest.mark.parametrize("name", ["a", "b", "g"])
def test_graphs_give_the_outputs_of_the_fixtures(graphs, name):
    """Encoder, decoder, and the denoiser of every group, which PyTorch computed in f64: versions 1 and 2, linear and logarithmic
    shares of attention, with and without a 1x1 level."""
    its = graphs(name)
    arch, io = its.model.arch, load_file(FIXTURES / f"net-{name}.io.safetensors")
    nchw = {key: value.transpose(0, 3, 1, 2) for key, value in io.items() if value.ndim == 4}

    def levels(key: str, kind: str, first: int = 0) -> Arrays:
        found = {int(k.removeprefix(f"{key}.")): x for k, x in nchw.items() if k.startswith(f"{key}.")}
        return {f"{kind}.{first + i}": x for i, x in found.items()}

    for port, value in its.run("encoder", {"picture": nchw["encoder/in"]}).items():
        close(value, nchw[port.replace("latent", "encoder/mean")])
    finest, seeds = nchw["decoder/in.0"].shape[2:], torch.tensor([SEED])
    latents = levels("decoder/in", "latent")
    between = its.run("decoder-global", latents | its.noise("decoder-global", seeds, 0, 0, *finest))
    close(between["features"], nchw["decoder/h"])
    close(between["rgb"], nchw["decoder/r"])
    picture = its.run("decoder-local", between | its.noise("decoder-local", seeds, 0, 0, *finest))["picture"]
    close(picture, nchw["decoder/out"])
    for index, group in enumerate(arch.groups):
        first, prefix, out, sigma = group.levels[0], "denoiser", "out", "denoiser/sigma"
        if arch.version == 2:
            prefix, out, sigma = f"groups.{index}", "denoised", "sigma"
        wanted = levels(f"{prefix}/{out}", "denoised", first)
        inputs = levels(f"{prefix}/in", "noisy", first) | levels(f"{prefix}/condition", "condition", group.levels[-1] + 1)
        inputs |= {"sigma": io[sigma].reshape(1)}
        inputs |= {"labels": io["labels"].astype(np.int64)} if arch.labels else {}
        found = its.run(its.denoiser(index), inputs)
        assert found.keys() == wanted.keys()
        for port, value in found.items():
            close(value, wanted[port])


@pytest.mark.parametrize("name", ["a", "b", "g"])
@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (3, 5, 1), (2, 4, 7)])
def test_graphs_take_any_size_and_batch(graphs, name, count, rows, columns):
    """All networks give what PyTorch gives, at sizes and batches that none was recorded with."""
    its = graphs(name)
    arch, model = its.model.arch, its.model
    z = random_latents(its, count, rows, columns, 10 * rows + columns)
    picture = torch.rand(count, 3, rows * arch.coarsest_factor, columns * arch.coarsest_factor) * 2 - 1
    with torch.no_grad():
        for value, wanted in zip(its.run("encoder", {"picture": picture.numpy()}).values(), model.encode(picture), strict=True):
            close(value, wanted)
        seeds, finest = torch.arange(count) + SEED, z[0].shape[2:]
        h, r = model.autoencoder.decoder.global_stage(z, Place(seeds))
        between = its.run("decoder-global", named("latent", z) | its.noise("decoder-global", seeds, 0, 0, *finest))
        close(between["features"], h)
        close(between["rgb"], r)
        picture = its.run("decoder-local", between | its.noise("decoder-local", seeds, 0, 0, *finest))["picture"]
        close(picture, model.autoencoder.decoder.local_stage(h, r, Place(seeds)))
        sigma = torch.linspace(0.3, 3, count)
        labels = torch.stack([torch.randint(0, 1 + len(label.values), (count,)) for label in arch.labels], 1) if arch.labels else None
        for index, group in enumerate(arch.groups):
            first, end = group.levels[0], group.levels[-1] + 1
            wanted = Denoiser(model.unets[index])(z[first:end], sigma, Context(tuple(z[end:]), labels))
            inputs = named("noisy", z[first:end], first) | named("condition", z[end:], end) | {"sigma": sigma.numpy()}
            inputs |= {} if labels is None else {"labels": labels.numpy()}
            for value, its_wanted in zip(its.run(its.denoiser(index), inputs).values(), wanted, strict=True):
                close(value, its_wanted)


@pytest.mark.parametrize("name", ["a", "b", "g"])
def test_a_tile_has_the_pixels_of_the_whole_picture(graphs, name):
    """A window with the halo of the metadata, at every corner and in the middle; with one pixel less it differs."""
    its = graphs(name)
    facts = its.sessions["decoder-local"].get_modelmeta().custom_metadata_map
    factor, halo = int(facts["factor"]), int(facts["halo"])
    z, seeds = random_latents(its, 1, 8, 12, 3), torch.tensor([SEED])
    rows, columns = z[0].shape[2:]
    between = its.run("decoder-global", named("latent", z) | its.noise("decoder-global", seeds, 0, 0, rows, columns))

    def decoded(top: int, left: int, height: int, width: int, halo: int) -> np.ndarray:
        """A tile, in pixels of the finest latent's grid."""
        y, x = max(top - halo, 0), max(left - halo, 0)
        bottom, right = min(top + height + halo, rows), min(left + width + halo, columns)
        window = {key: value[:, :, y:bottom, x:right] for key, value in between.items()}
        noise = its.noise("decoder-local", seeds, y, x, bottom - y, right - x)
        picture = its.run("decoder-local", window | noise)["picture"]
        inner = [slice((a - b) * factor, (a - b + n) * factor) for a, b, n in ((top, y, height), (left, x, width))]
        return picture[:, :, inner[0], inner[1]]

    whole = decoded(0, 0, rows, columns, halo)
    middle = (rows // 2, columns // 2, 2, 1)

    def error(tile: tuple[int, int, int, int], halo: int) -> float:
        top, left, height, width = (factor * x for x in tile)
        same = whole[:, :, top : top + height, left : left + width]
        return np.abs(decoded(*tile, halo) - same).max() / np.ptp(whole)

    for tile in ((0, 0, 3, 5), (rows - 4, columns - 3, 4, 3), (7, 5, 3, 6), middle):
        assert error(tile, halo) <= 1e-6
    assert error(middle, halo - 1) > 1e-4


@pytest.mark.parametrize("name", ["a", "g"])
def test_graphs_say_what_they_are(graphs, name):
    """Metadata names the model and has all that a caller needs; every input and output says what it is, and its free axes."""
    its = graphs(name)
    file = FIXTURES / f"net-{name}.safetensors"
    for stem, path in its.paths.items():
        model = onnx.load(str(path))
        facts = {entry.key: entry.value for entry in model.metadata_props}
        assert (facts["format"], facts["network"], facts["model"]) == ("tessera-onnx", stem, its.model.arch.name)
        assert facts["model_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert facts["arch"] == its.model.arch.to_json()
        latents = json.loads(facts["latents"])
        for key in ("mean", "std"):
            for value, wanted in zip(latents[key], getattr(its.model.latents, key), strict=True):
                assert np.array_equal(np.array(value, np.float32), wanted.numpy())
        for port in (*model.graph.input, *model.graph.output):
            assert port.doc_string and port.type.tensor_type.shape.dim[0].dim_param == "batch"
        if stem.startswith("unet"):
            group = json.loads(facts["group"])
            its_group = next(x for x in its.model.arch.groups if x.name == group["name"])
            assert tuple(group["levels"]) == its_group.levels and tuple(group["noise"]["shift"]) == its_group.noise.shift
        assert "noise.0" in [port.name for port in model.graph.input] or name == "a" or stem != "decoder-local"
    ports = {port.name: port.shape for port in its.sessions["decoder-global"].get_inputs()}
    assert ports["latent.0"][2:] == ["height/4", "width/4"] and ports["latent.1"][2:] == ["height/16", "width/16"]
    last = len(its.model.arch.levels) - 1
    assert ports[f"latent.{last}"][2:] == [1, 1]


def test_the_command_takes_a_file_or_trainings(tmp_path, capsys):
    """Trainings with and without --out give the same graphs as their file; what does not fit is refused in one line."""
    file = FIXTURES / "net-b.safetensors"
    model = Model.open(file, torch.device("cpu"))
    latents, config = tmp_path / "latents", tmp_path / "b.toml"
    latents.mkdir()
    document = {"arch": json.loads(model.arch.to_json()), "held_out": 0}
    document |= {key: [x.tolist() for x in getattr(model.latents, key)] for key in ("mean", "std")}
    (latents / "latents.json").write_text(json.dumps(document))
    for i in range(len(model.arch.levels)):
        np.save(latents / f"level.{i}.npy", np.zeros(1))
    config.write_text("arch = " + re.sub(r'"(\w+)":', r"\1 = ", model.arch.to_json()))  # JSON to TOML
    trainings = ["--autoencoder", file, "--diffusion", file, "--latents", latents, "--config", config]
    out, first, second, third = (tmp_path / x for x in ("out.safetensors", "one", "two", "three"))
    third.mkdir()

    def run(*words: object) -> int:
        return cli.main(["export", *map(str, words)])

    assert run(*trainings, "--out", out, "--onnx", first) == 0
    assert run(*trainings, "--onnx", second) == 0
    assert run("--model", out, "--onnx", third) == 0
    names = sorted(path.name for path in first.iterdir())
    assert names == ["decoder-global.onnx", "decoder-local.onnx", "encoder.onnx", "unet.onnx"]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes() == (third / name).read_bytes()

    (tmp_path / "file").write_text("")
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "y.safetensors", {"format": "tessera", "arch": model.arch.to_json()})
    capsys.readouterr()
    for words, message in (
        (("--model", out, "--onnx", first), f"onnx: {first} holds files, must be a new or an empty folder"),
        (("--model", out, "--onnx", tmp_path / "file"), f"onnx: {tmp_path / 'file'} is a file, must be a folder"),
        (("--model", out), "onnx: is missing, must be given with --model"),
        (("--model", out, "--onnx", tmp_path / "n", "--out", out), "out: is given, must not be with --model"),
        (("--onnx", tmp_path / "n"), "autoencoder: is missing, must be given"),
        (trainings, "out: is missing, must be given without --onnx"),
        (("--model", tmp_path / "y.safetensors", "--onnx", tmp_path / "n"), "y.safetensors: the tensors are not those of its architecture"),
        (("--model", tmp_path / "none", "--onnx", tmp_path / "n"), "No such file"),
    ):
        assert run(*words) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    with pytest.raises(SystemExit, match="not written by the export command"):
        run("--model", tmp_path / "x.safetensors", "--onnx", tmp_path / "n")
    assert not (tmp_path / "n").exists()


def test_a_folder_is_whole_or_not_there(tmp_path, monkeypatch):
    """A failure at the second graph leaves nothing."""
    record = onnx_graphs.record

    def full(graph: onnx_graphs.Graph, folder: Path, facts: dict[str, str]) -> str:
        if graph.name == "decoder-global":
            raise OSError("no space left")
        return record(graph, folder, facts)

    monkeypatch.setattr(onnx_graphs, "record", full)
    arguments = ["export", "--model", str(FIXTURES / "net-b.safetensors"), "--onnx", str(tmp_path / "a" / "b")]
    assert cli.main(arguments) == 2
    assert not list((tmp_path / "a").iterdir())
