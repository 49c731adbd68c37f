"""The test vectors under `tests/fixtures`: operators, blocks and whole tiny networks, for the Rust interpreters.

Inputs and weights are f32 numbers from NumPy's PCG64; everything between is computed in f64, and only results are
rounded to f32. So the files are the same bytes wherever they are made. All tensors are f32 and NHWC (weights have
PyTorch's layouts); no weight is zero, whatever training starts from.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nets import blocks
from ..nets.arch import Arch, Decoder, Encoder, EncoderStage, Group, Label, Level, Noise, Stage, UNet, joint
from ..nets.decoder import Decoder as DecoderNet
from ..nets.decoder import Place
from ..nets.encoder import Encoder as EncoderNet
from ..nets.place_noise import place_noise
from ..nets.precond import Denoiser
from ..nets.unet import Context
from ..nets.unet import UNet as UNetNet
from ..nets.unet import Window
from .files import save_safetensors

Arrays = dict[str, np.ndarray]


class Draw:
    """Random numbers of one fixture, keyed by its name."""

    def __init__(self, name: str) -> None:
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))

    def tensor(self, *shape: int) -> Tensor:
        """Standard normal numbers of f32, as f64."""
        return torch.from_numpy(self.rng.standard_normal(shape).astype(np.float32)).double()

    def scalar(self, value: float) -> Tensor:
        """[1], `value` rounded to f32, as f64."""
        return torch.tensor([value], dtype=torch.float32).double()

    def fill(self, module: nn.Module) -> nn.Module:
        """Every parameter of `module`, non-zero and of a size that keeps activations near 1; f64, inference mode."""
        module = module.double().eval().requires_grad_(False)
        for name, p in sorted(module.named_parameters()):
            value = self.tensor(*p.shape)
            if p.dim() == 4:
                value = value / p[0].numel() ** 0.5
            elif "norm" in name.split(".")[-2:][0] and name.endswith("weight"):
                value = 1 + value / 5
            elif name.endswith("bias"):
                value = value / 10
            p.copy_(value.float())
        return module


def nhwc(x: Tensor) -> np.ndarray:
    """NCHW f64 to NHWC f32."""
    return x.permute(0, 2, 3, 1).float().contiguous().numpy()


def parameters(module: nn.Module, prefix: str) -> Arrays:
    """A module's parameters as f32, below `prefix`."""
    return {f"{prefix}{name}": p.detach().float().numpy() for name, p in module.state_dict().items()}


class NamedNorm(nn.Module):
    """A norm under the name that `Draw.fill` knows norms by."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm


def op_cases() -> list[tuple[str, dict, list[tuple[int, int, int, int]], nn.Module | None, Callable[..., Tensor]]]:
    """(operator, parameters, input shapes NCHW, module with weights, function of the inputs) of every operator case."""

    def act(x: Tensor, silu: bool) -> Tensor:
        return F.silu(x) if silu else x

    def flat(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda q, k, v: f(q.flatten(2), k.flatten(2), v.flatten(2)).reshape(q.shape)

    cases: list = []
    for kernel, cin, cout, n, h, w in [(3, 5, 7, 1, 9, 6), (3, 16, 8, 2, 5, 11), (3, 4, 3, 1, 1, 1)]:
        layer = blocks.conv(cin, cout, kernel)
        params = {"kernel": kernel, "in_channels": cin, "out_channels": cout}
        cases.append(("conv2d", params, [(n, cin, h, w)], layer, layer))
    for kernel, cin, cout, n, h, w in [(1, 12, 5, 1, 7, 3), (1, 6, 20, 2, 1, 1)]:
        layer = blocks.conv(cin, cout, kernel)
        params = {"kernel": kernel, "in_channels": cin, "out_channels": cout}
        cases.append(("conv2d", params, [(n, cin, h, w)], layer, layer))
    for c, silu, n, h, w in [(12, True, 1, 5, 9), (7, False, 2, 4, 3), (16, True, 2, 1, 1)]:
        layer = blocks.GroupNorm(c)
        params = {"channels": c, "groups": layer.num_groups, "silu": silu}
        cases.append(("group_norm", params, [(n, c, h, w)], layer, lambda x, m=layer, s=silu: act(m(x), s)))
    for c, silu, n, h, w in [(12, True, 1, 5, 9), (5, False, 2, 3, 4), (3, True, 1, 1, 1)]:
        layer = blocks.PixelNorm(c)
        params = {"channels": c, "silu": silu}
        cases.append(("pixel_norm", params, [(n, c, h, w)], layer, lambda x, m=layer, s=silu: act(m(x), s)))
    for shape in [(1, 5, 7, 3), (2, 3, 1, 1)]:
        cases.append(("silu", {}, [shape], None, F.silu))
    for silu, shape, pairs in [(False, (2, 5, 3, 7), 2), (True, (1, 6, 5, 2), 1), (True, (2, 3, 2, 3), 1)]:
        pair = (pairs, 2 * shape[1], 1, 1)
        f = lambda x, p, s=silu: act(blocks.scale_shift(x, p), s)  # noqa: E731
        cases.append(("scale_shift", {"silu": silu}, [shape, pair], None, f))
    for shape in [(1, 5, 7, 3), (2, 9, 1, 4), (1, 16, 1, 1)]:
        layer = nn.ParameterDict({"noise": nn.Parameter(torch.zeros(shape[1]))})
        f = lambda x, noise, m=layer: blocks.add_noise(x, noise, m["noise"])  # noqa: E731
        cases.append(("add_noise", {"channels": shape[1]}, [shape, (shape[0], 1, *shape[2:])], layer, f))
    for wa, wb, shape in [(0.5, -1.25, (1, 5, 7, 3)), (1.0, 1.0, (2, 4, 1, 1))]:
        f = lambda a, b, wa=wa, wb=wb: wa * a + wb * b  # noqa: E731
        cases.append(("weighted_add", {"wa": wa, "wb": wb}, [shape, shape], None, f))
    for a, b in [((1, 5, 3, 7), (1, 2, 3, 7)), ((2, 3, 1, 1), (2, 4, 1, 1))]:
        cases.append(("concat", {}, [a, b], None, lambda a, b: torch.cat([a, b], 1)))
    for shape in [(1, 5, 6, 10), (2, 3, 2, 2)]:
        cases.append(("avg_pool2", {}, [shape], None, lambda x: F.avg_pool2d(x, 2)))
        cases.append(("fir_down2", {}, [shape], None, blocks.fir_down))
    for shape in [(1, 5, 7, 9), (2, 3, 1, 1)]:
        cases.append(("global_avg_pool", {}, [shape], None, lambda x: x.mean((2, 3), keepdim=True)))
        cases.append(("upsample_nearest2", {}, [shape], None, blocks.nearest_up))
        cases.append(("fir_up2", {}, [shape], None, blocks.fir_up))
    for r, shape in [(2, (1, 3, 6, 10)), (4, (2, 3, 8, 4)), (1, (1, 3, 3, 2))]:
        cases.append(("pixel_unshuffle", {"r": r}, [shape], None, lambda x, r=r: F.pixel_unshuffle(x, r)))
    for r, shape in [(2, (1, 12, 3, 5)), (4, (2, 48, 2, 1)), (1, (1, 3, 3, 2))]:
        cases.append(("pixel_shuffle", {"r": r}, [shape], None, lambda x, r=r: F.pixel_shuffle(x, r)))
    for shape in [(1, 6, 5, 7), (2, 9, 3, 2), (1, 4, 1, 1)]:
        cases.append(("spatial_attention", {}, [shape] * 3, None, flat(blocks.spatial_attention)))
        cases.append(("channel_attention", {}, [shape] * 3, None, flat(blocks.channel_attention)))
    for y, x, h, w, shape in [(2, 1, 3, 4, (1, 3, 7, 6)), (0, 0, 1, 1, (2, 5, 3, 3))]:
        f = lambda t, y=y, x=x, h=h, w=w: t[:, :, y : y + h, x : x + w]  # noqa: E731
        cases.append(("crop", {"y": y, "x": x, "h": h, "w": w}, [shape], None, f))
    return cases


def ops() -> tuple[Arrays, dict[str, str]]:
    """`ops.safetensors`: tensors and metadata."""
    arrays: Arrays = {}
    listing: list[dict] = []
    for op, params, shapes, module, f in op_cases():
        name = f"{op}.{sum(case['op'] == op for case in listing)}"
        draw = Draw(name)
        if module is not None:
            draw.fill(NamedNorm(module) if op.endswith("norm") else module)
            arrays |= parameters(module, f"{name}.")
        inputs = [draw.tensor(*shape) for shape in shapes]
        arrays |= {f"{name}/in{i}": nhwc(x) for i, x in enumerate(inputs)}
        arrays[f"{name}/out"] = nhwc(f(*inputs))
        listing.append({"name": name, "op": op, "params": params})
    return arrays, {"cases": json.dumps(listing)}


def block_fixtures() -> tuple[Arrays, dict[str, str]]:
    """`blocks.safetensors`: tensors and metadata."""
    plans: list[tuple[dict, tuple[int, int, int]]] = []
    for cin, cout, norm, resample, embedding, kernel, grid in [
        (6, 6, "pixel", None, 0, 3, (2, 5, 3)),
        (8, 5, "pixel", "nearest_up", 0, 3, (1, 3, 5)),
        (8, 8, "group", "nearest_up", 0, 3, (1, 3, 2)),
        (8, 12, "group", None, 6, 3, (2, 4, 7)),
        (8, 12, "group", "fir_down", 6, 3, (1, 6, 10)),
        (12, 7, "group", "fir_up", 6, 3, (2, 3, 5)),
        (8, 8, "group", "fir_up", 4, 3, (1, 1, 1)),
        (9, 9, "group", None, 4, 1, (2, 1, 1)),
    ]:
        case = {"kind": "block", "cin": cin, "cout": cout, "norm": norm, "resample": resample, "embedding": embedding}
        plans.append((case | {"kernel": kernel}, grid))
    plans.append((plans[-1][0] | {"cout": 12, "resample": "fir_down", "kernel": 3, "residual": False}, (1, 4, 6)))
    ratios = [(8, "linear", (2, 3, 5)), (6, "log", (1, 4, 3)), (5, "learned", (1, 1, 1)), (7, "spatial", (1, 2, 3))]
    for channels, ratio, grid in ratios:
        plans.append(({"kind": "attention", "channels": channels, "ratio": ratio}, grid))
    arrays: Arrays = {}
    listing: list[dict] = []
    for case, (n, h, w) in plans:
        name = f"{case['kind']}.{sum(other['kind'] == case['kind'] for other in listing)}"
        draw = Draw(name)
        if case["kind"] == "block":
            options = {key: value for key, value in case.items() if key != "kind"}
            module, inputs = blocks.Block(**options), [draw.tensor(n, case["cin"], h, w)]
            if case["embedding"]:
                inputs.append(draw.tensor(n, case["embedding"], 1, 1))
        else:
            module = blocks.ScAttention(case["channels"], case["ratio"])
            inputs = [draw.tensor(n, case["channels"], h, w)]
        draw.fill(module)
        arrays |= parameters(module, f"{name}.") | {f"{name}/in{i}": nhwc(x) for i, x in enumerate(inputs)}
        arrays[f"{name}/out"] = nhwc(module(*inputs))
        listing.append({"name": name, **case})
    return arrays, {"cases": json.dumps(listing)}


NET_A = Arch(
    name="net-a",
    sizes=((96, 64),),
    levels=(Level(4, 4), Level(16, 6), Level(0, 8)),
    encoder=Encoder(2, (EncoderStage(4, 0), EncoderStage(6, 1), EncoderStage(8, 1), EncoderStage(8, 2))),
    decoder=Decoder(2, "group", (Stage(6, 1), Stage(8, 0), Stage(8, 1, True), Stage(12, 1, True))),
    groups=(joint(3, UNet(8, 12, (Stage(8, 1), Stage(8, 1, True), Stage(12, 2, True))), Noise(0.5, 0.002, 80.0, 7.0, (0.0, -0.7, -1.4))),),
)
NET_B = Arch(
    name="net-b",
    sizes=((36, 20),),
    levels=(Level(2, 3), Level(4, 5)),
    encoder=Encoder(1, (EncoderStage(4, 1), EncoderStage(6, 0), EncoderStage(8, 1))),
    decoder=Decoder(1, "pixel", (Stage(5, 1), Stage(8, 1, True), Stage(10, 2))),
    groups=(joint(2, UNet(6, 8, (Stage(8, 1, True), Stage(12, 1))), Noise(0.5, 0.002, 80.0, 7.0, (0.0, -0.5))),),
    attention_ratio="log",
)
NET_C = Arch(
    name="net-c",
    sizes=((16, 16),),
    levels=(Level(4, 3), Level(8, 5), Level(16, 7)),
    encoder=Encoder(4, (EncoderStage(7, 1), EncoderStage(9, 1), EncoderStage(11, 0))),
    decoder=Decoder(4, "group", (Stage(7, 1), Stage(9, 1, True), Stage(11, 1, True))),
    groups=(joint(3, UNet(6, 8, (Stage(7, 1), Stage(9, 1), Stage(11, 1, True))), Noise(0.5, 0.002, 80.0, 7.0, (0.1, -0.4, -6.0))),),
    attention_ratio="learned",
)

NET_D = Arch(
    name="net-d",
    sizes=((48, 32),),
    levels=(Level(2, 3), Level(16, 5)),
    encoder=Encoder(2, (EncoderStage(4, 1), EncoderStage(6, 0), EncoderStage(7, 0), EncoderStage(8, 1))),
    decoder=Decoder(2, "pixel", (Stage(5, 1), Stage(8, 0), Stage(9, 0), Stage(10, 1, True))),
    groups=(joint(2, UNet(6, 8, (Stage(8, 1), Stage(10, 1, True), Stage(12, 1)), unshuffle=2), Noise(0.5, 0.002, 80.0, 7.0, (0.0, -0.5))),),
)

NET_E = Arch(
    name="net-e",
    sizes=((32, 16),),
    levels=(Level(2, 3), Level(8, 4), Level(0, 5)),
    encoder=Encoder(2, (EncoderStage(4, 0), EncoderStage(5, 0), EncoderStage(6, 0))),
    decoder=Decoder(2, "pixel", (Stage(5, 0), Stage(6, 0), Stage(8, 0, True))),
    groups=(joint(3, UNet(4, 6, (Stage(6, 1), Stage(7, 1), Stage(8, 1, True)), skip="residual"), Noise(0.5, 0.002, 80.0, 7.0, (0.0, -0.5, -0.8))),),
    attention_ratio="spatial",
)
E_GROUP = NET_E.groups[0]
NET_F = dataclasses.replace(
    NET_E, name="net-f", groups=(dataclasses.replace(E_GROUP, unet=dataclasses.replace(E_GROUP.unet, skip="input")),)
)


NET_G = Arch(
    name="net-g",
    version=2,
    sizes=((96, 64), (64, 64)),
    levels=(Level(4, 3), Level(16, 5), Level(32, 4), Level(0, 6)),
    encoder=Encoder(2, (EncoderStage(4, 0), EncoderStage(6, 1), EncoderStage(7, 0), EncoderStage(8, 1), EncoderStage(8, 0))),
    decoder=Decoder(
        2,
        "pixel",
        (Stage(5, 1, noise=True), Stage(6, 0, noise=True), Stage(7, 1, noise=True), Stage(8, 1, True), Stage(9, 1, True)),
        rgb="fir",
    ),
    groups=(
        Group(
            "layout",
            (1, 2, 3),
            UNet(8, 10, (Stage(8, 1, True), Stage(12, 1, True)), coordinates=True),
            Noise(0.5, 0.01, 80.0, 7.0, (0.0, -0.4, -0.9)),
        ),
        Group(
            "detail",
            (0,),
            UNet(6, 1, (Stage(7, 1), Stage(9, 1)), unshuffle=2, norm="pixel", coordinates=True),
            Noise(0.5, 0.01, 10.0, 7.0, (0.0,)),
        ),
    ),
    labels=(Label("time", ("day", "dusk", "night")), Label("water", ("none", "lake"))),
)
SEED = 0x0123_4567_89AB_CDEF
"""Of the decoder's noise."""


def net_of_groups(arch: Arch, sigma: float) -> tuple[tuple[Arrays, dict[str, str]], tuple[Arrays, dict[str, str]]]:
    """A tiny checkpoint of version 2 and its inputs and outputs: (tensors, metadata) of both files. The decoder's window begins at
    row 4 and column 8 of the finest latent's grid and reaches its ends; the last group's window at row 4 and column 4 of its first grid."""
    draw = Draw(arch.name)
    encoder, decoder = draw.fill(EncoderNet(arch)), draw.fill(DecoderNet(arch))
    unets = [draw.fill(UNetNet(arch, group)) for group in range(len(arch.groups))]
    weights = parameters(encoder, "encoder.") | parameters(decoder, "decoder.")
    for group, unet in enumerate(unets):
        weights |= parameters(unet, arch.prefix(group))
    for i, level in enumerate(arch.levels):
        weights[f"latents.{i}.mean"] = draw.tensor(level.channels).float().numpy()
        weights[f"latents.{i}.std"] = (draw.tensor(level.channels) / 3).exp().float().numpy()
    weights["labels.rows"] = draw.rng.integers(0, [1 + len(label.values) for label in arch.labels], (7, len(arch.labels))).astype(np.float32)
    io: Arrays = {}
    grids = arch.grids(arch.width, arch.height)

    def put(name: str, tensors: list[Tensor]) -> list[Tensor]:
        io.update({f"{name}.{i}": nhwc(x) for i, x in enumerate(tensors)})
        return tensors

    picture = draw.tensor(1, 3, arch.height, arch.width) / 2
    io["encoder/in"] = nhwc(picture)
    for i, (mean, log_variance) in enumerate(encoder(picture)):
        io |= {f"encoder/mean.{i}": nhwc(mean), f"encoder/log_variance.{i}": nhwc(log_variance)}
    z = put("decoder/in", [draw.tensor(1, level.channels, *grid) for level, grid in zip(arch.levels, grids)])
    seeds = torch.tensor([SEED])
    h, r = decoder.global_stage(z, Place(seeds))
    io |= {"decoder/h": nhwc(h), "decoder/r": nhwc(r), "decoder/out": nhwc(decoder.local_stage(h, r, Place(seeds)))}
    io["decoder/window"] = nhwc(decoder.local_stage(h[..., 4:, 8:], r[..., 4:, 8:], Place(seeds, 4, 8)))
    io["noise/0"] = nhwc(place_noise(seeds, 0, 0, 0, 5, 7).double())
    io["noise/2"] = nhwc(place_noise(seeds, 2, 2**20 + 3, 2**31 - 2, 4, 6).double())
    level = draw.scalar(sigma)
    io["sigma"] = nhwc(level.view(1, 1, 1, 1))
    labels = torch.tensor([[2, 0]])
    io["labels"] = labels.float().numpy()
    for group, unet in enumerate(unets):
        its = arch.groups[group].levels
        condition = put(f"groups.{group}/condition", [draw.tensor(1, arch.levels[i].channels, *grids[i]) for i in range(its[-1] + 1, len(grids))])
        noisy = put(f"groups.{group}/in", [draw.tensor(1, arch.levels[i].channels, *grids[i]) for i in its])
        c_noise = (level.log() / 4).float().double()
        context = Context(tuple(condition), labels)
        put(f"groups.{group}/unet", unet(noisy, c_noise, context))
        put(f"groups.{group}/denoised", Denoiser(unet)(noisy, level, context))
        put(f"groups.{group}/unlabelled", Denoiser(unet)(noisy, level, Context(tuple(condition))))
    # A window of the last group: all levels cut to the same place.
    shape, top, left = unets[-1].shape, 4, 4
    first = shape.factor(0)

    def cut(x: Tensor, factor: int) -> Tensor:
        return x[..., top * first // factor :, left * first // factor :] if factor else x

    rows, columns = arch.height // first, arch.width // first
    context = Context(tuple(cut(x, lv.factor) for x, lv in zip(condition, shape.condition)), labels, Window(top, left, (rows, columns)))
    put("window", Denoiser(unets[-1])([cut(x, lv.factor) for x, lv in zip(noisy, shape.levels)], level, context))
    return (weights, {"format": "tessera", "arch": arch.to_json()}), (io, {"seed": f"{SEED}"})


def net(arch: Arch, sigma: float) -> tuple[tuple[Arrays, dict[str, str]], tuple[Arrays, dict[str, str]]]:
    """A tiny checkpoint and its inputs and outputs: (tensors, metadata) of both files."""
    draw = Draw(arch.name)
    encoder, decoder = draw.fill(EncoderNet(arch)), draw.fill(DecoderNet(arch))
    unet = draw.fill(UNetNet(arch))
    weights = parameters(encoder, "encoder.") | parameters(decoder, "decoder.") | parameters(unet, "unet.")
    for i, level in enumerate(arch.levels):
        weights[f"latents.{i}.mean"] = draw.tensor(level.channels).float().numpy()
        weights[f"latents.{i}.std"] = (draw.tensor(level.channels) / 3).exp().float().numpy()
    io: Arrays = {}

    def latents(name: str) -> list[Tensor]:
        grids = zip(arch.levels, arch.grids(arch.width, arch.height))
        z = [draw.tensor(1, level.channels, h, w) for level, (h, w) in grids]
        io.update({f"{name}.{i}": nhwc(x) for i, x in enumerate(z)})
        return z

    picture = draw.tensor(1, 3, arch.height, arch.width) / 2
    io["encoder/in"] = nhwc(picture)
    for i, (mean, log_variance) in enumerate(encoder(picture)):
        io |= {f"encoder/mean.{i}": nhwc(mean), f"encoder/log_variance.{i}": nhwc(log_variance)}
    h, r = decoder.global_stage(latents("decoder/in"))
    io |= {"decoder/h": nhwc(h), "decoder/r": nhwc(r), "decoder/out": nhwc(decoder.local_stage(h, r))}
    level = draw.scalar(sigma)
    io |= {"unet/c_noise": nhwc((level.log() / 4).view(1, 1, 1, 1)), "denoiser/sigma": nhwc(level.view(1, 1, 1, 1))}
    c_noise = torch.from_numpy(io["unet/c_noise"]).double().view(1)
    io |= {f"unet/out.{i}": nhwc(x) for i, x in enumerate(unet(latents("unet/in"), c_noise))}
    denoised = Denoiser(unet)(latents("denoiser/in"), level)
    io |= {f"denoiser/out.{i}": nhwc(x) for i, x in enumerate(denoised)}
    return (weights, {"format": "tessera", "arch": arch.to_json()}), (io, {})


def write(out: Path) -> None:
    """Writes every fixture into the folder `out`."""
    with torch.no_grad():
        files = {"ops": ops(), "blocks": block_fixtures()}
        # net-c's sigma puts its coarsest level at the floor sigma_min.
        for arch, sigma in ((NET_A, 1.7), (NET_B, 12.0), (NET_C, 0.3), (NET_D, 2.5), (NET_E, 1.0), (NET_F, 1.0)):
            files[arch.name], files[f"{arch.name}.io"] = net(arch, sigma)
        files[NET_G.name], files[f"{NET_G.name}.io"] = net_of_groups(NET_G, 1.3)
    for name, (arrays, metadata) in files.items():
        save_safetensors(out / f"{name}.safetensors", arrays, metadata)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--out", type=Path, required=True, help="folder to write the files to")


def run(args: argparse.Namespace) -> None:
    """The command."""
    write(args.out)
