"""The networks of an exported model as ONNX graphs, for other runtimes: encoder, both stages of the decoder, and the denoiser of
each group of levels. Tensors are f32 and NCHW; `docs/src/onnx.md` describes inputs, outputs and metadata."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..nets.decoder import Decoder, GivenNoise
from ..nets.encoder import Encoder
from ..nets.precond import Denoiser
from ..nets.unet import Context
from .files import replace_file
from .model import Model

FORMAT = "tessera-onnx"
"""Value of `format` in the metadata of a graph."""
OPSET = 17
"""Version of the operators: that of 2022, which every runtime has."""
TRACED = (2, 3)
"""Rows and columns of the coarsest grid while a graph is recorded; it computes any other size as well."""


@dataclass(frozen=True)
class Port:
    """An input or output of a graph. An axis is a length, or the name of one that is free and its length while the graph is
    recorded."""

    name: str
    axes: tuple[int | tuple[str, int], ...]
    meaning: str
    dtype: torch.dtype = torch.float32

    @property
    def free(self) -> dict[int, str]:
        """The names of the axes that are free."""
        return {i: axis[0] for i, axis in enumerate(self.axes) if isinstance(axis, tuple)}

    def example(self) -> Tensor:
        """Ones of the lengths at recording, which every input may be."""
        return torch.ones([axis[1] if isinstance(axis, tuple) else axis for axis in self.axes], dtype=self.dtype)


BATCH = ("batch", 2)


@dataclass(frozen=True)
class Graph:
    """A network with the names of its inputs and outputs; `facts` are its own entries of the metadata."""

    name: str
    net: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    facts: dict[str, str]


class MeanEncoder(nn.Module):
    """Picture to the latents' means, finest first."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        return tuple(mean for mean, _ in self.encoder(picture))


class GlobalStage(nn.Module):
    """Latents, finest first, then noise of the stages `noisy` to features and RGB stream at the finest latent's grid."""

    def __init__(self, decoder: Decoder, noisy: Sequence[int]) -> None:
        super().__init__()
        self.decoder, self.noisy = decoder, noisy

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        levels = len(self.decoder.arch.levels)
        return self.decoder.global_stage(list(inputs[:levels]), GivenNoise(dict(zip(self.noisy, inputs[levels:]))))


class LocalStage(nn.Module):
    """A window of features and RGB stream, then noise of the stages `noisy`, to pixels."""

    def __init__(self, decoder: Decoder, noisy: Sequence[int]) -> None:
        super().__init__()
        self.decoder, self.noisy = decoder, noisy

    def forward(self, features: Tensor, rgb: Tensor, *noise: Tensor) -> Tensor:
        return self.decoder.local_stage(features, rgb, GivenNoise(dict(zip(self.noisy, noise))))


class GroupDenoiser(nn.Module):
    """Noisy latents of a group, the shared sigma, labels if the model has some, coarser latents to denoised latents."""

    def __init__(self, denoiser: Denoiser, labels: bool) -> None:
        super().__init__()
        self.denoiser, self.labels = denoiser, labels

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        levels = len(self.denoiser.unet.shape.levels)
        z, sigma, rest = list(inputs[:levels]), inputs[levels], inputs[levels + 1 :]
        labels, condition = (rest[0], rest[1:]) if self.labels else (None, rest)
        return tuple(self.denoiser(z, sigma, Context(condition, labels)))


def graphs(model: Model) -> Iterator[Graph]:
    """The graphs of a model."""
    arch, autoencoder = model.arch, model.autoencoder
    decoder = autoencoder.decoder
    factor, coarsest = arch.levels[0].factor, arch.coarsest_factor

    def grid(factor: int) -> tuple[tuple[str, int], ...]:
        """Axes of the grid at a factor, 1 for pixels."""
        names = ("height", "width") if factor == 1 else (f"height/{factor}", f"width/{factor}")
        return tuple((name, count * coarsest // factor) for name, count in zip(names, TRACED))

    def latent(kind: str, level: int, meaning: str) -> Port:
        its = arch.levels[level]
        return Port(f"{kind}.{level}", (BATCH, its.channels, *(grid(its.factor) if its.factor else (1, 1))), meaning)

    def window(times: int) -> tuple[tuple[str, int], ...]:
        """Axes of a window, in pixels of which so many are a pixel of the finest latent's grid."""
        names = ("rows", "columns") if times == 1 else (f"{times}*rows", f"{times}*columns")
        return tuple((name, count * times) for name, count in zip(names, TRACED))

    def noise(stage: int, axes: tuple[tuple[str, int], ...]) -> Port:
        return Port(f"noise.{stage}", (BATCH, 1, *axes), f"noise of decoder stage {stage}, at factor {arch.decoder.shuffle << stage}")

    raw = "latent, not normalised"
    latents = tuple(latent("latent", level, raw) for level in range(len(arch.levels)))
    pixels = "sRGB, black at -1 and white at 1"
    picture = Port("picture", (BATCH, 3, *grid(1)), pixels)
    yield Graph("encoder", MeanEncoder(autoencoder.encoder), (picture,), latents, {})

    def between(axes: tuple[tuple[str, int], ...]) -> tuple[Port, Port]:
        channels = arch.decoder.stages[decoder.first_local].channels
        return Port("features", (BATCH, channels, *axes), "features"), Port("rgb", (BATCH, 3, *axes), "RGB stream")

    noisy = [i for i, stage in enumerate(arch.decoder.stages) if stage.noise]
    whole, part = [i for i in noisy if i >= decoder.first_local], [i for i in noisy if i < decoder.first_local]
    noises = tuple(noise(i, grid(arch.decoder.shuffle << i)) for i in whole)
    yield Graph("decoder-global", GlobalStage(decoder, whole), latents + noises, between(grid(factor)), {})

    noises = tuple(noise(i, window(factor // (arch.decoder.shuffle << i))) for i in part)
    facts = {"factor": str(factor), "halo": str(decoder.halo())}
    tile = Port("picture", (BATCH, 3, *window(factor)), pixels)
    yield Graph("decoder-local", LocalStage(decoder, part), between(window(1)) + noises, (tile,), facts)

    for index, group in enumerate(arch.groups):
        z = [latent("noisy", level, "normalised latent with noise") for level in group.levels]
        inputs = [*z, Port("sigma", (BATCH,), "the shared sigma")]
        if arch.labels:
            inputs.append(Port("labels", (BATCH, len(arch.labels)), "0: not given, else 1 + index of the value", torch.int64))
        inputs += [latent("condition", level, "normalised latent") for level in range(group.levels[-1] + 1, len(arch.levels))]
        denoised = [latent("denoised", level, "normalised latent") for level in group.levels]
        document: dict[str, Any] = {"name": group.name, "levels": group.levels, "noise": vars(group.noise), "guidance": group.guidance}
        net = GroupDenoiser(Denoiser(model.unets[index]), bool(arch.labels))
        name = "unet" if arch.version == 1 else f"unet-{group.name}"
        if Path(name).name != name:
            raise ValueError(f"arch: groups[{index}].name is {group.name!r}, must be possible in the name of a file")
        yield Graph(name, net, tuple(inputs), tuple(denoised), {"group": json.dumps(document)})


def check(folder: Path) -> None:
    """ValueError if `write` can't make the folder, or the package onnx is missing."""
    try:
        import onnx  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError("onnx: the package onnx is missing, install it by pip install './train[onnx]'") from error
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"onnx: {folder} is a file, must be a folder")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"onnx: {folder} holds files, must be a new or an empty folder")


def write(file: Path, folder: Path) -> list[Path]:
    """Writes the graphs of the exported model `file` into `folder`, which must be new or empty: all of them, or none. Returns their
    paths."""
    check(folder)
    model = Model.open(file, torch.device("cpu"))
    latents = {key: [x.tolist() for x in values] for key, values in (("mean", model.latents.mean), ("std", model.latents.std))}
    with open(file, "rb") as data:
        sha256 = hashlib.file_digest(data, "sha256").hexdigest()
    facts = {"format": FORMAT, "model": model.arch.name, "model_sha256": sha256, "arch": model.arch.to_json()}
    facts |= {"latents": json.dumps(latents)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        names = [record(graph, temporary, facts) for graph in graphs(model)]
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [folder / name for name in names]


@torch.no_grad()
def record(graph: Graph, folder: Path, facts: dict[str, str]) -> str:
    """Writes a graph into `folder`, with its own `facts` and those of the model; returns the file's name."""
    import onnx

    path, ports = folder / f"{graph.name}.onnx", (*graph.inputs, *graph.outputs)
    with warnings.catch_warnings():
        # The exporter that records by torch.jit is said to be old. The new one takes ten times as long (DESIGN.md).
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.net,
            tuple(port.example() for port in graph.inputs),
            str(path),
            input_names=[port.name for port in graph.inputs],
            output_names=[port.name for port in graph.outputs],
            dynamic_axes={port.name: port.free for port in ports},
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load(str(path))
    meanings = {port.name: port.meaning for port in ports}
    for value in (*model.graph.input, *model.graph.output):
        value.doc_string = meanings[value.name]
    model.graph.name = graph.name
    onnx.helper.set_model_props(model, facts | {"network": graph.name} | graph.facts)
    onnx.checker.check_model(model, full_check=True)
    replace_file(path, lambda out: out.write(model.SerializeToString(deterministic=True)))
    return path.name
