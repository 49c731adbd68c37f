"""Conversions between messages and the package's types. Answers of a server are checked before they are used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import google_crc32c
import numpy as np
import numpy.typing as npt
from google.protobuf.timestamp_pb2 import Timestamp

from tessera_client import _png, events
from tessera_client._proto import image_pb2 as image
from tessera_client._proto import job_service_pb2 as api
from tessera_client._proto import model_service_pb2 as models
from tessera_client.errors import (
    InternalError,
    InvalidArgumentError,
    JobCancelledError,
    JobFailedError,
    kind_of_code,
    sanitize,
)
from tessera_client.types import (
    DamagedJob,
    JobInfo,
    JobState,
    Level,
    Model,
    Picture,
    Pixels,
    Preview,
    Quote,
    Rect,
    Sampler,
    Spec,
    Tile,
)

MAX_EXTENT = 16384
"""Largest width or height of a picture."""
TILE_SIZES = range(64, 1025)
"""Sides of tiles."""
MAX_REQUEST_ID = 128
"""Most characters of a request's identifier."""
_CHUNK = 32 << 10
"""Bytes of an uploaded picture per message."""
_MAX_METADATA = 1 << 18
"""Most characters of generation metadata and descriptions."""

Source: TypeAlias = "str | PathLike[str] | bytes | npt.ArrayLike"
"""A picture to upload: a path or the bytes of a file, or samples of shape (height, width, 3)."""

_M = TypeVar("_M")


def job_name(name: str) -> str:
    """`jobs/ID` of a name or an id."""
    return name if name.startswith("jobs/") else f"jobs/{name}"


def model_name(name: str) -> str:
    """`models/ID` of a name or an id."""
    return name if name.startswith("models/") else f"models/{name}"


def required(message: _M, field: str) -> Any:
    """The field of an answer that has to be there."""
    if not cast(Any, message).HasField(field):
        raise InternalError(f"the server's answer has no {field}")
    return getattr(message, field)


def _set(field: str, value: object, assign: Callable[[], object]) -> None:
    """Assigns a value of the caller; protobuf's errors do not name the field."""
    try:
        assign()
    except (ValueError, OverflowError):
        raise InvalidArgumentError.of(field, value, "a value in the range of its field") from None
    except TypeError:
        raise TypeError(f"{field} is {value!r}, which is not of its type") from None


def spec_message(
    *,
    seed: int,
    model: str | None,
    width: int | None,
    height: int | None,
    steps: int | None,
    sampler: Sampler | None,
    tile_size: int | None,
    bits: int | None,
    strength: float | None = None,
    labels: Mapping[str, str] | None,
    guidance: float | None,
    group_steps: Mapping[str, int] | None,
) -> api.JobSpec:
    """The message of a spec; None is the default of the server."""
    spec = api.JobSpec()
    if model:
        spec.model = model_name(model)
    numbers = {
        "seed": seed,
        "width": width,
        "height": height,
        "steps": steps,
        "tile_size": tile_size,
        "bits": bits,
        "strength": strength,
        "guidance": guidance,
    }
    for field, value in numbers.items():
        if value is not None:
            _set(field, value, lambda field=field, value=value: setattr(spec, field, value))  # type: ignore[misc]
    if sampler is not None:
        number = api.Sampler.DESCRIPTOR.values_by_name.get(f"SAMPLER_{str(sampler).upper()}")
        if number is None:
            raise InvalidArgumentError.of("sampler", sampler, "one of dpmpp, heun, ddim")
        spec.sampler = cast(api.Sampler.ValueType, number.number)
    if labels is not None:
        _set("labels", labels, lambda: spec.labels.update(labels))
    if group_steps is not None:
        _set("group_steps", group_steps, lambda: spec.group_steps.update(group_steps))
    return spec


def request_message(
    spec: api.JobSpec,
    request_id: str,
    deadline: datetime | timedelta | None,
    viewport: tuple[int, int, int, int] | None,
) -> api.CreateJobRequest:
    """The message of a request for a picture."""
    if len(request_id) > MAX_REQUEST_ID:
        raise InvalidArgumentError.of(
            "request_id", f"{len(request_id)} characters long", f"at most {MAX_REQUEST_ID} characters"
        )
    request = api.CreateJobRequest(spec=spec, request_id=request_id)
    if isinstance(deadline, timedelta):
        deadline = datetime.now(UTC) + deadline
    if deadline is not None:
        # Without a time zone it is a local time.
        request.deadline.FromDatetime(deadline.astimezone(UTC))
    if viewport is not None:
        request.viewport.CopyFrom(rect_message(viewport))
    return request


def rect_message(rect: tuple[int, int, int, int]) -> image.Rect:
    """The message of a rectangle."""
    message = image.Rect()
    for field, value in zip(("x", "y", "width", "height"), rect, strict=True):
        _set(f"viewport.{field}", value, lambda field=field, value=value: setattr(message, field, value))  # type: ignore[misc]
    return message


def file_of(source: Source) -> bytes:
    """The bytes of the picture's file; samples become a PNG.

    Raises:
        InvalidArgumentError: Samples are not of shape (height, width, 3) or not uint8 or uint16.
        OSError: The file can't be read.
    """
    if isinstance(source, (str, PathLike)):
        return Path(source).read_bytes()
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    pixels = np.asarray(source)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype not in (np.uint8, np.uint16) or not pixels.size:
        found = f"an array of shape {pixels.shape} of {pixels.dtype}"
        raise InvalidArgumentError.of(
            "picture", found, "a path, bytes of a file, or (height, width, 3) of uint8 or uint16"
        )
    return _png.encode(pixels)


def upload(request: api.CreateJobRequest, file: bytes) -> Iterator[api.EditPictureRequest]:
    """The messages of an upload."""
    yield api.EditPictureRequest(job=request)
    for start in range(0, len(file), _CHUNK):
        yield api.EditPictureRequest(data=file[start : start + _CHUNK])


def _time(message: Any, field: str) -> datetime | None:
    """A point in time; None if it is absent or not in the calendar."""
    if not message.HasField(field):
        return None
    stamp: Timestamp = getattr(message, field)
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def _rect(message: image.Rect) -> Rect:
    return Rect(message.x, message.y, message.width, message.height)


def spec(message: api.JobSpec) -> Spec:
    """Converts a spec."""
    name = api.Sampler.Name(message.sampler) if message.sampler in api.Sampler.values() else "SAMPLER_DPMPP"
    return Spec(
        model=sanitize(message.model),
        seed=message.seed,
        width=message.width,
        height=message.height,
        steps=message.steps,
        sampler=cast(Sampler, name.removeprefix("SAMPLER_").lower()),
        tile_size=message.tile_size,
        bits=message.bits,
        strength=message.strength if message.HasField("strength") else None,
        labels={sanitize(name): sanitize(value) for name, value in message.labels.items()},
        guidance=message.guidance if message.HasField("guidance") else None,
        group_steps={sanitize(name): steps for name, steps in message.group_steps.items()},
    )


def quote(message: api.Quote) -> Quote:
    """Converts a quote."""
    return Quote(
        memory_bytes=message.memory_bytes,
        disk_bytes=message.disk_bytes,
        flops=message.flops,
        compute_time=message.compute_time.ToTimedelta(),
        tiles=message.tiles,
        notices=tuple(sanitize(notice) for notice in message.notices),
    )


def job(message: api.Job) -> JobInfo:
    """Converts a job."""
    known = message.state in api.JobState.values() and message.state != api.JOB_STATE_UNSPECIFIED
    state = api.JobState.Name(message.state).removeprefix("JOB_STATE_").lower() if known else "unknown"
    return JobInfo(
        name=sanitize(message.name),
        spec=spec(message.spec),
        state=JobState(state),
        create_time=_time(message, "create_time"),
        end_time=_time(message, "end_time"),
        sequence=message.sequence,
        steps_done=message.steps_done,
        tiles_done=message.tiles_done,
        tile_columns=message.tile_columns,
        tile_rows=message.tile_rows,
        error=sanitize(message.error),
        quote=quote(message.quote),
        viewport=_rect(message.viewport) if message.HasField("viewport") else None,
        owner=sanitize(message.owner),
        paused=sanitize(message.paused),
    )


def damaged_job(message: api.DamagedJob) -> DamagedJob:
    """Converts a damaged job."""
    return DamagedJob(directory=sanitize(message.directory), reason=sanitize(message.reason))


def model(message: models.Model) -> Model:
    """Converts a model."""
    return Model(
        name=sanitize(message.name),
        sha256=sanitize(message.sha256),
        width=message.width,
        height=message.height,
        size_multiple=message.size_multiple,
        max_extent=message.max_extent,
        levels=tuple(Level(factor=level.factor, channels=level.channels) for level in message.levels),
        labels={sanitize(label.name): tuple(map(sanitize, label.values)) for label in message.labels},
        groups={sanitize(group.name): tuple(group.levels) for group in message.groups},
        sizes=tuple((size.width, size.height) for size in message.sizes),
    )


def preview(message: image.Preview) -> Preview | None:
    """Converts a preview; None if it is not a PNG."""
    if message.format != image.IMAGE_FORMAT_PNG:
        return None
    return Preview(level=message.level, width=message.width, height=message.height, data=message.data)


class DamagedTileError(Exception):
    """A tile does not have its length or checksum."""


class Layout:
    """Size and tiling of a picture, checked."""

    def __init__(self, info: JobInfo) -> None:
        spec = info.spec
        ranges = {"width": range(1, MAX_EXTENT + 1), "height": range(1, MAX_EXTENT + 1), "tile_size": TILE_SIZES}
        for field, values in ranges.items():
            if getattr(spec, field) not in values:
                expected = f"from {values.start} to {values.stop - 1}"
                raise InternalError(f"the server's {field} is {getattr(spec, field)}; expected a number {expected}")
        if spec.bits not in (8, 16):
            raise InternalError(f"the server's bits is {spec.bits}; expected 8 or 16")
        self.width, self.height, self.side = spec.width, spec.height, spec.tile_size
        self.columns, self.rows = -(-self.width // self.side), -(-self.height // self.side)
        self.dtype = np.dtype("<u2") if spec.bits == 16 else np.dtype(np.uint8)
        if (info.tile_columns, info.tile_rows) != (self.columns, self.rows):
            found = f"{info.tile_columns} x {info.tile_rows}"
            raise InternalError(f"the server's tiles are {found}; expected {self.columns} x {self.rows}")

    def rect(self, message: image.Tile) -> Rect:
        """The checked place of a tile."""
        if message.column >= self.columns or message.row >= self.rows or message.level != 0:
            raise InternalError(
                f"the server's tile in column {message.column}, row {message.row} is not of the picture"
            )
        x, y = message.column * self.side, message.row * self.side
        expected = Rect(x, y, min(self.side, self.width - x), min(self.side, self.height - y))
        if _rect(message.rect) != expected:
            found = f"{tuple(_rect(message.rect))}; expected {tuple(expected)}"
            raise InternalError(f"the server's tile in column {message.column}, row {message.row} is at {found}")
        return expected

    def tile(self, message: image.Tile) -> Tile:
        """Converts a tile.

        Raises:
            DamagedTileError: Its length or CRC32C is wrong.
        """
        rect = self.rect(message)
        place = f"the tile in column {message.column}, row {message.row}"
        if message.format != image.IMAGE_FORMAT_RAW:
            raise InternalError(f"{place} has no raw samples")
        length = rect.width * rect.height * 3 * self.dtype.itemsize
        if len(message.data) != length:
            raise DamagedTileError(f"{place} has {len(message.data)} bytes instead of {length}")
        found = google_crc32c.value(message.data)
        if found != message.crc32c:
            raise DamagedTileError(f"{place} has the CRC32C {found:08x} instead of {message.crc32c:08x}")
        pixels = np.frombuffer(message.data, self.dtype).reshape(rect.height, rect.width, 3)
        if self.dtype.itemsize == 2:
            pixels = pixels.astype(np.uint16, copy=False)
            pixels.flags.writeable = False
        return Tile(column=message.column, row=message.row, rect=rect, pixels=cast(Pixels, pixels))


class Canvas:
    """A picture that is put together from tiles."""

    def __init__(self, info: JobInfo) -> None:
        layout = Layout(info)
        self._info = info
        self._there = np.zeros((layout.rows, layout.columns), bool)
        self.pixels = cast(Pixels, np.zeros((layout.height, layout.width, 3), layout.dtype.newbyteorder("=")))

    def put(self, tile: Tile) -> None:
        """Adds a tile."""
        self.pixels[tile.rect.slices] = tile.pixels
        self._there[tile.row, tile.column] = True

    def finish(self, event: events.Finished) -> Picture:
        """The finished picture."""
        missing = int(np.count_nonzero(~self._there))
        if missing:
            raise InternalError(
                f"{self._info.name} is finished, but {missing} of {self._there.size} tiles have not arrived"
            )
        return Picture(
            job=self._info.name,
            spec=self._info.spec,
            description=event.description,
            receipt=event.receipt,
            pixels=self.pixels,
        )


def event(message: api.JobEvent, layout: Layout, tile: Tile | None) -> events.Event:
    """Converts an event, with its checked tile."""
    sequence, time = message.sequence, _time(message, "time")
    match message.WhichOneof("event"):
        case "queued":
            return events.Queued(sequence=sequence, time=time, info=job(message.queued.job))
        case "started":
            return events.Started(sequence=sequence, time=time, device=sanitize(message.started.device))
        case "step":
            step = message.step
            estimate = preview(step.estimate) if step.HasField("estimate") else None
            return events.Step(
                sequence=sequence, time=time, step=step.step, of=step.of, sigma=step.sigma, estimate=estimate
            )
        case "level_settled":
            settled = message.level_settled
            return events.LevelSettled(
                sequence=sequence,
                time=time,
                level=settled.level,
                rows=settled.rows,
                columns=settled.columns,
                preview=preview(settled.preview) if settled.HasField("preview") else None,
            )
        case "tile":
            decoded = message.tile
            return events.TileDecoded(
                sequence=sequence,
                time=time,
                column=decoded.column,
                row=decoded.row,
                rect=layout.rect(decoded),
                tile=tile,
            )
        case "finished":
            return events.Finished(
                sequence=sequence,
                time=time,
                receipt=_receipt(message.finished.receipt),
                description=_limited("description", message.finished.description),
            )
        case "failed":
            failed = message.failed
            return events.Failed(
                sequence=sequence, time=time, kind=kind_of_code(failed.code), message=sanitize(failed.message)
            )
        case "cancelled":
            return events.Cancelled(sequence=sequence, time=time)
        case _:
            return events.Unknown(sequence=sequence, time=time)


def _limited(field: str, text: str) -> str:
    if len(text) > _MAX_METADATA:
        raise InternalError(f"the server's {field} has {len(text)} characters; expected at most {_MAX_METADATA}")
    return text


def _receipt(text: str) -> Mapping[str, Any]:
    try:
        receipt = json.loads(_limited("receipt", text))
    except (ValueError, RecursionError) as error:
        raise InternalError("the server's receipt is not JSON") from error
    if not isinstance(receipt, dict):
        raise InternalError("the server's receipt is not a JSON object")
    return receipt


def is_last(event: events.Event) -> bool:
    """True for the last event of a job."""
    return isinstance(event, events.Finished | events.Failed | events.Cancelled)


def failure(job: str, event: events.Event) -> JobFailedError | JobCancelledError | None:
    """The error of a job whose last event is `event`; None if it is not a failure."""
    error: JobFailedError | JobCancelledError
    match event:
        case events.Failed():
            error = JobFailedError(f"{job} failed: {event.message}", kind=event.kind)
        case events.Cancelled():
            error = JobCancelledError(f"{job} was cancelled")
        case _:
            return None
    error.job = job
    return error
