"""Events of a job, as `Job.watch` yields them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from tessera_client.types import JobInfo, Preview, Rect, Tile


@dataclass(frozen=True, kw_only=True)
class _Event:
    """What all events have."""

    sequence: int
    """Number of the event within its job, from 1, without gaps."""
    time: datetime | None
    """Time of the event."""


@dataclass(frozen=True, kw_only=True)
class Queued(_Event):
    """The job was queued."""

    info: JobInfo
    """The job as it was queued."""


@dataclass(frozen=True, kw_only=True)
class Started(_Event):
    """A device has started or resumed the job."""

    device: str
    """Name of the device."""


@dataclass(frozen=True, kw_only=True)
class Step(_Event):
    """Denoising steps up to this one are done and durable."""

    step: int
    """Steps done."""
    of: int
    """Number of steps."""
    sigma: float
    """Shared sigma after the step."""
    estimate: Preview | None
    """Preview of the denoised estimate, with one of every few steps if `estimates` was asked for."""


@dataclass(frozen=True, kw_only=True)
class LevelSettled(_Event):
    """A level of the pyramid is final."""

    level: int
    """The level; 0 is the finest."""
    rows: int
    """Rows of its grid."""
    columns: int
    """Columns of its grid."""
    preview: Preview | None
    """Preview of the picture, if previews were asked for by the time."""


@dataclass(frozen=True, kw_only=True)
class TileDecoded(_Event):
    """A tile is decoded and durable."""

    column: int
    """Column of tiles, from 0."""
    row: int
    """Row of tiles, from 0."""
    rect: Rect
    """Its place in the picture."""
    tile: Tile | None
    """The tile; None if `tiles=False` was asked for."""


@dataclass(frozen=True, kw_only=True)
class Finished(_Event):
    """The last event: all tiles are decoded."""

    receipt: Mapping[str, Any]
    """Generation metadata of the picture."""
    description: str
    """Description for people."""


@dataclass(frozen=True, kw_only=True)
class Failed(_Event):
    """The last event: the job has failed."""

    kind: str
    """Kind of error, as `TesseraError.kind`."""
    message: str
    """Description of the error."""


@dataclass(frozen=True, kw_only=True)
class Cancelled(_Event):
    """The last event: a client has cancelled the job."""


@dataclass(frozen=True, kw_only=True)
class Unknown(_Event):
    """An event that this version of the client does not know."""


Event: TypeAlias = Queued | Started | Step | LevelSettled | TileDecoded | Finished | Failed | Cancelled | Unknown
