"""Values that the client returns: jobs, quotes, models, tiles, previews and pictures."""

from __future__ import annotations

import enum
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tessera_client import _png

if TYPE_CHECKING:
    import PIL.Image
    import xarray

Pixels: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""Samples of shape (height, width, 3): red, green, blue; uint8 or, for jobs of 16 bits, uint16."""

Sampler: TypeAlias = Literal["dpmpp", "heun", "ddim"]
"""DPM-Solver++(2M), EDM's second-order Heun, or DDIM."""


class Rect(NamedTuple):
    """A rectangle of a picture, in pixels; (0, 0) is the upper left corner."""

    x: int
    y: int
    width: int
    height: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns: `picture[rect.slices]` are the pixels of the rectangle."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)


class JobState(enum.StrEnum):
    """State of a job."""

    UNKNOWN = "unknown"
    """A state that this version of the client does not know."""
    QUEUED = "queued"
    DENOISING = "denoising"
    DECODING = "decoding"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """True if the job has finished, failed or was cancelled."""
        return self in (JobState.FINISHED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Specification of a picture, with defaults filled in by the server."""

    model: str
    """`models/ID`."""
    seed: int
    width: int
    """In pixels."""
    height: int
    """In pixels."""
    steps: int
    """Denoising steps of all groups of levels together."""
    sampler: Sampler
    tile_size: int
    """Side of a tile in pixels."""
    bits: int
    """Bits per sample, 8 or 16."""
    strength: float | None
    """Of an edited picture: amount of change, from 0 to 1."""
    labels: Mapping[str, str]
    """Values of the model's labels by their names, those that the seed has drawn too."""
    guidance: float | None
    """Guidance by the labels, for a model with labels."""
    group_steps: Mapping[str, int]
    """Denoising steps of each of the model's groups of levels, by the groups' names."""


@dataclass(frozen=True, kw_only=True)
class Quote:
    """Cost of a job."""

    memory_bytes: int
    """Peak memory, weights included."""
    disk_bytes: int
    """Most disk space until the job is deleted; an uploaded picture comes on top."""
    flops: int
    """Floating-point operations."""
    compute_time: timedelta
    """Time on an otherwise idle device of the server, at its measured speed."""
    tiles: int
    notices: tuple[str, ...]
    """Such as that the model was not trained for the size."""


@dataclass(frozen=True, kw_only=True)
class JobInfo:
    """A job as it was when the server answered."""

    name: str
    """`jobs/ID`."""
    spec: Spec
    state: JobState
    create_time: datetime | None
    end_time: datetime | None
    sequence: int
    """Sequence number of the newest event."""
    steps_done: int
    tiles_done: int
    tile_columns: int
    tile_rows: int
    error: str
    """Description of the error of a failed job."""
    quote: Quote
    viewport: Rect | None
    """Part of the picture that is decoded first."""
    owner: str
    """Client that created the job; empty if the server had no tokens then."""
    paused: str
    """Reason why the job does not go on at this time; empty: none."""


@dataclass(frozen=True, kw_only=True)
class DamagedJob:
    """A directory of a job that the server could not read when it started."""

    directory: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Level:
    """One latent of a model's pyramid."""

    factor: int
    """Pixels of the picture per pixel of the latent, along an axis; 0: one pixel for the whole picture."""
    channels: int


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of a server."""

    name: str
    """`models/ID`."""
    sha256: str
    """Of its file, in hexadecimal."""
    width: int
    """Of pictures if not chosen otherwise."""
    height: int
    """Of pictures if not chosen otherwise."""
    size_multiple: int
    """Divisor of the width and height of pictures."""
    max_extent: int
    """Largest width or height."""
    levels: tuple[Level, ...]
    """Its latents, finest first."""
    labels: Mapping[str, tuple[str, ...]]
    """Labels that can be asked for: their values by their names."""
    groups: Mapping[str, tuple[int, ...]]
    """Groups of levels in the order of their denoising: indices into `levels` by the groups' names."""
    sizes: tuple[tuple[int, int], ...]
    """Widths and heights that it was trained for."""


class _Array:
    """Something with pixels, which is an array to numpy and a picture to Jupyter."""

    pixels: Pixels

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if dtype is None or np.dtype(dtype) == self.pixels.dtype:
            return self.pixels.copy() if copy else self.pixels
        if copy is False:
            raise ValueError(f"pixels are {self.pixels.dtype}; as {np.dtype(dtype)} they have to be copied")
        return self.pixels.astype(dtype)

    def to_pil(self) -> PIL.Image.Image:
        """A Pillow image; 16-bit samples are rounded to 8 bits. Needs Pillow."""
        import PIL.Image

        return PIL.Image.fromarray(_png.eight_bits(self.pixels))

    def _repr_png_(self) -> bytes:
        return _png.encode(_png.reduced(_png.eight_bits(self.pixels), _png.SHOWN))


@dataclass(frozen=True, kw_only=True, eq=False)
class Tile(_Array):
    """A decoded tile, which has its checksum. `numpy.asarray(tile)` are its pixels."""

    column: int
    """Column of tiles, from 0."""
    row: int
    """Row of tiles, from 0."""
    rect: Rect
    """Its place in the picture."""
    pixels: Pixels = field(repr=False)
    """Samples of shape (height, width, 3), read-only."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Preview:
    """A small picture decoded from latents, as the PNG that the server has sent."""

    level: int
    """Finest latent level that it was decoded from; 0 is the finest of the model."""
    width: int
    height: int
    data: bytes = field(repr=False)
    """The PNG."""

    def to_pil(self) -> PIL.Image.Image:
        """A Pillow image. Needs Pillow."""
        import PIL.Image

        return PIL.Image.open(io.BytesIO(self.data), formats=["PNG"])

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """Samples of shape (height, width, 3). Needs Pillow."""
        return np.asarray(self.to_pil().convert("RGB"))

    def _repr_png_(self) -> bytes:
        return self.data


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture(_Array):
    """A finished picture. `numpy.asarray(picture)` are its pixels."""

    job: str
    """Name of its job."""
    spec: Spec
    description: str
    """Description for people, as in the picture's file."""
    receipt: Mapping[str, Any]
    """Generation metadata, as in the picture's file."""
    pixels: Pixels = field(repr=False)
    """Samples of shape (height, width, 3)."""

    def _attributes(self) -> dict[str, str]:
        return {"description": self.description, "receipt": json.dumps(self.receipt)}

    def to_xarray(self) -> xarray.DataArray:
        """An array with the dimensions y, x and channel (R, G, B), and the metadata as attributes. Needs xarray."""
        import xarray

        return xarray.DataArray(
            self.pixels,
            dims=("y", "x", "channel"),
            coords={"channel": ["R", "G", "B"]},
            name="picture",
            attrs=self._attributes(),
        )

    def to_zarr(self, store: Any) -> Any:
        """Writes a Zarr array with a chunk for each tile to a path or store, and returns it. Needs zarr 3."""
        import zarr

        side = self.spec.tile_size
        height, width, channels = self.pixels.shape
        array = zarr.create_array(
            store=store,
            data=self.pixels,
            chunks=(min(side, height), min(side, width), channels),
            dimension_names=("y", "x", "channel"),
        )
        array.attrs.update(self._attributes())
        return array
