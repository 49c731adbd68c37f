"""`Arch`: the shape of a pyramid diffusion model, as JSON; the same document that `src/model/arch.rs` reads."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field

SKIPS = ("res-skip", "input", "residual")
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
    """Residual blocks at one resolution of the decoder or U-Net."""

    channels: int
    blocks: int
    attention: bool = False


@dataclass(frozen=True)
class Encoder:
    """Stage i works at factor `unshuffle * 2**i`; the last one at the coarsest finite factor."""

    unshuffle: int
    stages: tuple[EncoderStage, ...]


@dataclass(frozen=True)
class Decoder:
    """Stage i works at factor `shuffle * 2**i`. Stages finer than the finest latent are the local stage."""

    shuffle: int
    global_norm: str
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class UNet:
    """Stage i works at factor `levels[0].factor * unshuffle * 2**i`; `global_channels` is the width at the 1x1 level.

    `unshuffle`: space to depth of the finest latent, where most pixels are: a quarter of them pays for wider stages.
    `skip`: "res-skip", residual blocks and streams of latents beside them (the paper's figure 4); its halves alone are
    "input", the streams with blocks that have no branch, and "residual", latents that enter and leave at their own
    stages only.
    """

    embedding: int
    global_channels: int
    stages: tuple[Stage, ...]
    unshuffle: int = 1
    skip: str = field(default="res-skip", repr=False)


@dataclass(frozen=True)
class Noise:
    """EDM's constants and, per level, the shift of ln(sigma) against the shared one."""

    sigma_data: float
    sigma_min: float
    sigma_max: float
    rho: float
    shift: tuple[float, ...]


@dataclass(frozen=True)
class Arch:
    """A whole model. `width` and `height` are the size it was trained for, in pixels."""

    name: str
    width: int
    height: int
    levels: tuple[Level, ...]
    encoder: Encoder
    decoder: Decoder
    unet: UNet
    noise: Noise
    attention_ratio: str = "linear"
    version: int = 1

    def __post_init__(self) -> None:
        self.validate()

    @property
    def finite(self) -> tuple[Level, ...]:
        """The levels with a grid, finest first."""
        return tuple(level for level in self.levels if level.factor)

    @property
    def has_global(self) -> bool:
        """Whether the coarsest level is the 1x1 one."""
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

    def owner(self, factor: int) -> int:
        """The level whose stream passes `factor`: the coarsest one that is not coarser."""
        return max(i for i, level in enumerate(self.finite) if level.factor <= factor)

    def unet_factor(self, stage: int) -> int:
        """The factor that a stage of the U-Net works at."""
        return self.levels[0].factor * self.unet.unshuffle << stage

    def unet_level(self, stage: int) -> int | None:
        """The level that enters and leaves at a stage of the U-Net; the finest one does at the first, unshuffled."""
        return self.level_at(self.unet_factor(stage)) if stage else 0

    def unet_joined(self, stage: int) -> bool:
        """Whether the stream of latents enters and leaves at a stage of the U-Net."""
        return self.unet.skip != "residual" or self.unet_level(stage) is not None

    def unet_latent(self, stage: int) -> int:
        """Channels of the stream of latents at a stage of the U-Net."""
        level = self.owner(self.unet_factor(stage))
        return self.levels[level].channels * (1 if level else self.unet.unshuffle**2)

    def validate(self) -> None:
        """Raises ValueError, naming the field, when the parts do not fit together."""

        def need(ok: bool, message: str) -> None:
            if not ok:
                raise ValueError(f"arch: {message}")

        need(self.version == 1, f"version is {self.version}, this program reads 1")
        factors = [level.factor for level in self.finite]
        need(bool(factors), "levels needs at least one with a factor")
        need(all(lv.factor for lv in self.levels[:-1]), "only the last of levels may have factor 0")
        for factor in factors:
            need(factor >= 2 and factor & (factor - 1) == 0, f"levels factor {factor} is not a power of two")
        need(factors == sorted(set(factors)), f"levels factors {factors} do not increase")
        for name, extent in (("width", self.width), ("height", self.height)):
            need(extent > 0 and extent % factors[-1] == 0, f"{name} is {extent}, not a multiple of {factors[-1]}")
        need(len(self.noise.shift) == len(self.levels), "noise.shift needs one number per level")
        for name, first, stages in (
            ("encoder", self.encoder.unshuffle, self.encoder.stages),
            ("decoder", self.decoder.shuffle, self.decoder.stages),
            ("unet", factors[0] * self.unet.unshuffle, self.unet.stages),
        ):
            last = first << (len(stages) - 1)
            need(last == factors[-1], f"{name}.stages end at factor {last}, levels at {factors[-1]}")
        need(self.encoder.unshuffle <= factors[0], "encoder.unshuffle is above the finest factor")
        need(
            len(factors) == 1 or factors[0] * self.unet.unshuffle < factors[1],
            f"unet.unshuffle {self.unet.unshuffle} takes the finest level, {factors[0]}, to the next one's factor",
        )
        for i, stage in enumerate(self.decoder.stages):
            if self.decoder.shuffle << i < factors[0]:
                need(not stage.attention, f"decoder.stages[{i}] is in the local stage and can't have attention")
        need(self.decoder.global_norm in ("group", "pixel"), f"decoder.global_norm is {self.decoder.global_norm!r}")
        need(self.unet.skip in SKIPS, f"unet.skip is {self.unet.skip!r}, not one of {', '.join(SKIPS)}")
        need(self.attention_ratio in RATIOS, f"attention_ratio is {self.attention_ratio!r}, not one of {', '.join(RATIOS)}")

    def to_json(self) -> str:
        """The document that travels in the checkpoint's metadata."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> "Arch":
        """Reads `to_json`'s document."""
        doc = json.loads(text)
        return Arch(
            **{
                **doc,
                "levels": tuple(Level(**x) for x in doc["levels"]),
                "encoder": Encoder(doc["encoder"]["unshuffle"], tuple(EncoderStage(**x) for x in doc["encoder"]["stages"])),
                "decoder": Decoder(
                    doc["decoder"]["shuffle"],
                    doc["decoder"]["global_norm"],
                    tuple(Stage(**x) for x in doc["decoder"]["stages"]),
                ),
                "unet": UNet(
                    doc["unet"]["embedding"],
                    doc["unet"]["global_channels"],
                    tuple(Stage(**x) for x in doc["unet"]["stages"]),
                    doc["unet"].get("unshuffle", 1),
                    doc["unet"].get("skip", "res-skip"),
                ),
                "noise": Noise(**{**doc["noise"], "shift": tuple(doc["noise"]["shift"])}),
            }
        )


def autoencoder_identity(arch: Arch) -> str:
    """What a checkpoint of this AutoEncoder calls itself; it does not depend on the U-Net."""
    parts = (arch.levels, arch.encoder, arch.decoder, arch.attention_ratio)
    return f"autoencoder {parts}"


def unet_identity(arch: Arch) -> str:
    """What a checkpoint of this U-Net calls itself."""
    skip = "" if arch.unet.skip == "res-skip" else f" {arch.unet.skip}"
    return f"unet {(arch.levels, arch.unet, arch.noise, arch.attention_ratio)}{skip}"


def norm_groups(channels: int) -> int:
    """Groups of a GroupNorm: the largest divisor of `channels` that is at most min(channels / 4, 32)."""
    most = max(1, min(channels // 4, 32))
    return next(g for g in range(most, 0, -1) if channels % g == 0)


def spatial_share(ratio: str, pixels: int, channels: int) -> float:
    """Share of spatial attention in SC attention for the fixed ratios that mix: N/(N+C), or with logarithms of 1+N and 1+C."""
    n, c = (float(pixels), float(channels)) if ratio == "linear" else (math.log1p(pixels), math.log1p(channels))
    return n / (n + c)
