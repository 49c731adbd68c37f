"""`Arch`: the shape of a pyramid diffusion model, as JSON; the same document that `src/model/arch.rs` reads.

Version 1 has one denoiser over all levels (`unet`, `noise`), one trained size and a decoder without noise. Version 2 has
`groups` of levels, each with a denoiser of its own, `labels`, a list of trained `sizes`, and in the decoder `rgb` and the
stages' `noise`. In memory a version 1 model is one group over all levels.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

VERSIONS = (1, 2)
SKIPS = ("res-skip", "input", "residual")
NORMS = ("group", "pixel")
RGB_RESAMPLING = ("nearest", "fir")
RATIOS = ("linear", "log", "learned", "spatial")


@dataclass(frozen=True)
class Level:
    """One latent of the pyramid: `channels` at 1/`factor` of the picture's size; factor 0: one pixel for all of it."""

    factor: int
    channels: int


@dataclass(frozen=True)
class EncoderStage:
    """Convolutions at one resolution of the encoder: `blocks` of them after the one that enters it."""

    channels: int
    blocks: int


@dataclass(frozen=True)
class Stage:
    """Residual blocks at one resolution of the decoder or U-Net. `noise`, decoder of version 2 only: place-keyed noise enters
    the stage (`nets.place_noise`), with a gain per channel."""

    channels: int
    blocks: int
    attention: bool = False
    noise: bool = False


@dataclass(frozen=True)
class Encoder:
    """Stage i works at factor `unshuffle * 2**i`; the last one at the coarsest finite factor."""

    unshuffle: int
    stages: tuple[EncoderStage, ...]


@dataclass(frozen=True)
class Decoder:
    """Stage i works at factor `shuffle * 2**i`. Stages finer than the finest latent are the local stage. `rgb`: enlarging of
    the RGB stream, "nearest" (version 1) or "fir" (FIR [1,3,3,1], as the output skips of StyleGAN2)."""

    shuffle: int
    global_norm: str
    stages: tuple[Stage, ...]
    rgb: str = "nearest"


@dataclass(frozen=True)
class UNet:
    """Denoiser of a group of levels. Stage i works at factor `f * unshuffle * 2**i`, f the factor of the group's finest level;
    `global_channels` is the width at the 1x1 level (unused without one).

    `unshuffle`: space to depth of the finest latent, where most pixels are: a quarter of them pays for wider stages.
    `skip`: "res-skip", residual blocks and streams of latents beside them (the paper's figure 4); its halves alone are
    "input", the streams with blocks that have no branch, and "residual", latents that enter and leave at their own
    stages only. `norm`: "group", or "pixel" for a finite receptive field. `coordinates`: two input channels hold the position
    in the picture. `coordinates` and "pixel" need version 2.
    """

    embedding: int
    global_channels: int
    stages: tuple[Stage, ...]
    unshuffle: int = 1
    skip: str = "res-skip"
    norm: str = "group"
    coordinates: bool = False


@dataclass(frozen=True)
class Noise:
    """EDM's constants and, per level of the group, the shift of ln(sigma) relative to the shared one."""

    sigma_data: float
    sigma_min: float
    sigma_max: float
    rho: float
    shift: tuple[float, ...]


@dataclass(frozen=True)
class Group:
    """Consecutive `levels` (indices into `Arch.levels`, finest first) that are denoised together by one U-Net. All coarser levels
    are denoised before and condition it. `guidance`: (low, high), the shared sigmas low < sigma <= high at which labels guide
    (Kynkaanniemi et al. 2024, arXiv 2404.07724), None for all; the network is the same for any of them."""

    name: str
    levels: tuple[int, ...]
    unet: UNet
    noise: Noise
    guidance: tuple[float, float] | None = field(default=None, repr=False)

    def guided_at(self, sigma: float) -> bool:
        """True if labels guide at the shared `sigma`."""
        return self.guidance is None or self.guidance[0] < sigma <= self.guidance[1]


@dataclass(frozen=True)
class Label:
    """An attribute of a picture that can be asked for, such as `time`, and its values. A network's table has one row more, the
    first, for an attribute that is not given."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class GroupShape:
    """The shapes of one group's U-Net."""

    group: Group
    levels: tuple[Level, ...]
    condition: tuple[Level, ...]
    """The coarser levels that the network is conditioned on, finest first."""

    @property
    def finite(self) -> tuple[Level, ...]:
        """The group's levels with a grid, finest first."""
        return tuple(level for level in self.levels if level.factor)

    @property
    def has_global(self) -> bool:
        """True if the 1x1 level is in the group."""
        return self.levels[-1].factor == 0

    def factor(self, stage: int) -> int:
        """The factor that a stage works at."""
        return self.levels[0].factor * self.group.unet.unshuffle << stage

    def level(self, stage: int) -> int | None:
        """The group's level that enters and leaves at a stage; the finest one does at the first, unshuffled."""
        if stage == 0:
            return 0
        return next((i for i, level in enumerate(self.levels) if level.factor == self.factor(stage)), None)

    def joined(self, stage: int) -> bool:
        """True if the stream of latents enters and leaves at a stage."""
        return self.group.unet.skip != "residual" or self.level(stage) is not None

    def latent(self, stage: int) -> int:
        """Channels of the stream of latents at a stage: those of the coarsest level that is not coarser than the stage."""
        owner = max((i for i, level in enumerate(self.finite) if level.factor <= self.factor(stage)), default=0)
        return self.levels[owner].channels * (1 if owner else self.group.unet.unshuffle**2)


@dataclass(frozen=True)
class Arch:
    """A whole model. `sizes`: (width, height) in pixels that it was trained for, the default first; `groups` in the order in
    which they are denoised, coarse first."""

    name: str
    sizes: tuple[tuple[int, int], ...]
    levels: tuple[Level, ...]
    encoder: Encoder
    decoder: Decoder
    groups: tuple[Group, ...]
    attention_ratio: str = "linear"
    labels: tuple[Label, ...] = ()
    version: int = 1

    def __post_init__(self) -> None:
        self.validate()

    @property
    def width(self) -> int:
        """Default width in pixels."""
        return self.sizes[0][0]

    @property
    def height(self) -> int:
        """Default height in pixels."""
        return self.sizes[0][1]

    @property
    def sigma_data(self) -> float:
        """Standard deviation of normalised latents, the same for all groups."""
        return self.groups[0].noise.sigma_data

    @property
    def finite(self) -> tuple[Level, ...]:
        """The levels with a grid, finest first."""
        return tuple(level for level in self.levels if level.factor)

    @property
    def has_global(self) -> bool:
        """True if the coarsest level is the 1x1 one."""
        return self.levels[-1].factor == 0

    @property
    def coarsest_factor(self) -> int:
        """Picture sizes must be multiples of it."""
        return self.finite[-1].factor

    def grids(self, width: int, height: int) -> list[tuple[int, int]]:
        """(rows, columns) of every level's latent for a picture of `width` x `height` pixels."""
        return [(height // lv.factor, width // lv.factor) if lv.factor else (1, 1) for lv in self.levels]

    def level_at(self, factor: int) -> int | None:
        """The level whose factor is `factor`."""
        return next((i for i, level in enumerate(self.levels) if level.factor == factor), None)

    def shape(self, group: int) -> GroupShape:
        """The shapes of the U-Net of a group."""
        its = self.groups[group]
        coarser = self.levels[its.levels[-1] + 1 :]
        return GroupShape(its, tuple(self.levels[i] for i in its.levels), coarser)

    def prefix(self, group: int) -> str:
        """The prefix of a group's parameters in a checkpoint."""
        return "unet." if self.version == 1 else f"groups.{group}."

    def group_named(self, name: str) -> int:
        """The index of a group. ValueError, with the list, if there is none of this name."""
        for i, group in enumerate(self.groups):
            if group.name == name:
                return i
        raise ValueError(f"group is {name!r}, must be one of {', '.join(group.name for group in self.groups)}")

    def validate(self) -> None:
        """Raises ValueError, naming the field, when the parts do not fit together."""

        def need(ok: bool, message: str) -> None:
            if not ok:
                raise ValueError(f"arch: {message}")

        need(self.version in VERSIONS, f"version is {self.version}, this program reads 1 and 2")
        factors = [level.factor for level in self.finite]
        need(bool(factors), "levels needs at least one with a factor")
        need(all(lv.factor for lv in self.levels[:-1]), "only the last of levels may have factor 0")
        for factor in factors:
            need(factor >= 2 and factor & (factor - 1) == 0, f"levels factor {factor} is not a power of two")
        need(factors == sorted(set(factors)), f"levels factors {factors} do not increase")
        need(bool(self.sizes), "sizes is empty")
        for size in self.sizes:
            for name, extent in zip(("width", "height"), size):
                need(extent > 0 and extent % factors[-1] == 0, f"{name} is {extent}, not a multiple of {factors[-1]}")
        for name, first, stages in (
            ("encoder", self.encoder.unshuffle, self.encoder.stages),
            ("decoder", self.decoder.shuffle, self.decoder.stages),
        ):
            last = first << (len(stages) - 1)
            need(last == factors[-1], f"{name}.stages end at factor {last}, levels at {factors[-1]}")
        need(self.encoder.unshuffle <= factors[0], "encoder.unshuffle is above the finest factor")
        for i, stage in enumerate(self.decoder.stages):
            if self.decoder.shuffle << i < factors[0]:
                need(not stage.attention, f"decoder.stages[{i}] is in the local stage and can't have attention")
        need(self.decoder.global_norm in NORMS, f"decoder.global_norm is {self.decoder.global_norm!r}")
        need(self.decoder.rgb in RGB_RESAMPLING, f"decoder.rgb is {self.decoder.rgb!r}, not one of {', '.join(RGB_RESAMPLING)}")
        if self.version == 1:
            plain = self.decoder.rgb == "nearest" and not any(stage.noise for stage in self.decoder.stages)
            one = len(self.groups) == 1 and len(self.sizes) == 1 and not self.labels
            unet = self.groups[0].unet
            need(plain and one and unet.norm == "group" and not unet.coordinates, "version is 1, this model needs version 2")
        need(self.attention_ratio in RATIOS, f"attention_ratio is {self.attention_ratio!r}, not one of {', '.join(RATIOS)}")
        covered = [i for group in reversed(self.groups) for i in group.levels]
        need(covered == list(range(len(self.levels))), f"groups cover levels {covered}, must be each once, coarse groups first")
        need(len({group.name for group in self.groups}) == len(self.groups), "groups have equal names")
        for i in range(len(self.groups)):
            self.validate_group(i, need)
        need(len({label.name for label in self.labels}) == len(self.labels), "labels have equal names")
        for label in self.labels:
            need(len(label.values) >= 1 and len(set(label.values)) == len(label.values), f"labels {label.name}: values repeat or are none")

    def validate_group(self, index: int, need: Any) -> None:
        """The part of `validate` for one group."""
        shape = self.shape(index)
        group, unet = shape.group, shape.group.unet
        prefix = "" if self.version == 1 else f"groups[{index}]."
        name = f"{prefix}unet"
        need(bool(shape.finite), f"{prefix}levels needs one with a factor")
        factors = [level.factor for level in shape.finite]
        last = shape.factor(len(unet.stages) - 1)
        exact = last == factors[-1] if self.version == 1 or shape.has_global else last >= factors[-1]
        need(exact, f"{name}.stages end at factor {last}, levels at {factors[-1]}")
        need(last <= self.coarsest_factor, f"{name}.stages end at factor {last}, above the model's coarsest, {self.coarsest_factor}")
        need(
            len(factors) == 1 or factors[0] * unet.unshuffle < factors[1],
            f"{name}.unshuffle {unet.unshuffle} takes the finest level, {factors[0]}, to the next one's factor",
        )
        need(unet.skip in SKIPS, f"{name}.skip is {unet.skip!r}, not one of {', '.join(SKIPS)}")
        need(unet.norm in NORMS, f"{name}.norm is {unet.norm!r}, not one of {', '.join(NORMS)}")
        need(not any(stage.noise for stage in unet.stages), f"{name}.stages can't have noise inputs")
        if unet.norm == "pixel":
            need(not any(stage.attention for stage in unet.stages), f"{name}.norm is pixel, its stages can't have attention")
            need(not shape.has_global, f"{name}.norm is pixel, the 1x1 level can't be in it")
        need(len(group.noise.shift) == len(group.levels), f"{prefix}noise.shift needs one number per level")
        need(group.noise.sigma_data == self.sigma_data, f"{prefix}noise.sigma_data differs from the first group's")
        low, high = group.guidance or (0.0, 1.0)
        need(0 <= low < high < math.inf, f"{prefix}guidance is {[low, high]}, must be [low, high] with 0 <= low < high")
        first = shape.condition[0].factor if shape.condition else 0
        need(not first or first >= shape.factor(0), f"{name}.unshuffle takes the first stage beyond the next coarser level")

    def to_json(self) -> str:
        """The document that travels in the checkpoint's metadata."""
        return json.dumps(document(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Arch:
        """Reads `to_json`'s document."""
        return from_document(json.loads(text))


def document(arch: Arch) -> dict[str, Any]:
    """The JSON document of a model; version 1 has no field that version 1 did not have."""
    second = arch.version >= 2

    def stage(it: Stage, noise: bool) -> dict[str, Any]:
        plain = {"channels": it.channels, "blocks": it.blocks, "attention": it.attention}
        return plain | ({"noise": it.noise} if noise else {})

    def unet(it: UNet) -> dict[str, Any]:
        first = {"embedding": it.embedding, "global_channels": it.global_channels, "stages": [stage(x, False) for x in it.stages]}
        first |= {"unshuffle": it.unshuffle, "skip": it.skip}
        return first | ({"norm": it.norm, "coordinates": it.coordinates} if second else {})

    def noise(it: Noise) -> dict[str, Any]:
        return vars(it) | {"shift": list(it.shift)}

    def group(it: Group) -> dict[str, Any]:
        guidance = {} if it.guidance is None else {"guidance": list(it.guidance)}
        return {"name": it.name, "levels": list(it.levels), "unet": unet(it.unet), "noise": noise(it.noise)} | guidance

    doc: dict[str, Any] = {"name": arch.name}
    doc |= {"sizes": [list(size) for size in arch.sizes]} if second else {"width": arch.width, "height": arch.height}
    doc["levels"] = [vars(level) for level in arch.levels]
    doc["encoder"] = {"unshuffle": arch.encoder.unshuffle, "stages": [vars(x) for x in arch.encoder.stages]}
    decoder = arch.decoder
    doc["decoder"] = {"shuffle": decoder.shuffle, "global_norm": decoder.global_norm, "stages": [stage(x, second) for x in decoder.stages]}
    if second:
        doc["decoder"]["rgb"] = decoder.rgb
        doc["groups"] = [group(g) for g in arch.groups]
        doc["labels"] = [{"name": label.name, "values": list(label.values)} for label in arch.labels]
    else:
        doc |= {"unet": unet(arch.groups[0].unet), "noise": noise(arch.groups[0].noise)}
    return doc | {"attention_ratio": arch.attention_ratio, "version": arch.version}


def from_document(doc: dict[str, Any]) -> Arch:
    """The model of a document as `document` makes it. ValueError for fields that are missing or unknown."""

    def unet(it: dict[str, Any]) -> UNet:
        return UNet(**{**it, "stages": tuple(Stage(**x) for x in it["stages"])})

    def noise(it: dict[str, Any]) -> Noise:
        return Noise(**{**it, "shift": tuple(it["shift"])})

    def group(it: dict[str, Any]) -> Group:
        parts = {"levels": tuple(it["levels"]), "unet": unet(it["unet"]), "noise": noise(it["noise"])}
        if it.get("guidance") is not None:
            low, high = it["guidance"]
            parts["guidance"] = (float(low), float(high))
        return Group(**{**it, **parts})

    try:
        its = dict(doc)
        version = its.get("version", 1)
        if version not in VERSIONS:
            raise ValueError(f"arch: version is {version!r}, this program reads {' and '.join(map(str, VERSIONS))}")
        its["levels"] = tuple(Level(**x) for x in its["levels"])
        encoder, decoder = its["encoder"], its["decoder"]
        its["encoder"] = Encoder(**{**encoder, "stages": tuple(EncoderStage(**x) for x in encoder["stages"])})
        its["decoder"] = Decoder(**{**decoder, "stages": tuple(Stage(**x) for x in decoder["stages"])})
        if version == 1:
            its["sizes"] = ((its.pop("width"), its.pop("height")),)
            its["groups"] = (joint(len(its["levels"]), unet(its.pop("unet")), noise(its.pop("noise"))),)
        else:
            its["sizes"] = tuple((width, height) for width, height in its["sizes"])
            its["groups"] = tuple(group(g) for g in its["groups"])
            its["labels"] = tuple(Label(x["name"], tuple(x["values"])) for x in its.get("labels", ()))
        return Arch(**its)
    except (KeyError, TypeError) as error:
        raise ValueError(f"arch: a field is missing or unknown: {error}") from error


def joint(levels: int, unet: UNet, noise: Noise) -> Group:
    """The one group of a version 1 model of `levels` levels."""
    return Group("unet", tuple(range(levels)), unet, noise)


def autoencoder_identity(arch: Arch) -> str:
    """Identifies the AutoEncoder of a checkpoint; independent of the U-Nets."""
    return f"autoencoder {(arch.levels, arch.encoder, arch.decoder, arch.attention_ratio)}"


def unet_identity(arch: Arch, group: int = 0) -> str:
    """Identifies the U-Net of a group in a checkpoint."""
    return f"unet {(arch.levels, arch.groups[group], arch.labels, arch.attention_ratio)}"


def norm_groups(channels: int) -> int:
    """Groups of a GroupNorm: the largest divisor of `channels` that is at most min(channels / 4, 32)."""
    most = max(1, min(channels // 4, 32))
    return next(g for g in range(most, 0, -1) if channels % g == 0)


def spatial_share(ratio: str, pixels: Any, channels: int) -> Any:
    """Share of spatial attention in SC attention for the fixed ratios that mix: N/(N+C), or with logarithms of 1+N and 1+C. A
    number for a number of `pixels`, a scalar tensor for a scalar tensor."""
    n, c = pixels, channels
    if ratio == "log":
        n, c = (math.log1p(pixels) if isinstance(pixels, int) else pixels.log1p()), math.log1p(channels)
    return n / (n + c)
