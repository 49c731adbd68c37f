"""The blocking client.

Written by `generate.py` from `_async.py`. Change that file.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self, TypeVar

import grpc

from tessera_client import _convert, events
from tessera_client._connect import OPTIONS, Pem, Settings, below
from tessera_client._convert import Canvas, DamagedTileError, Layout, Source
from tessera_client._display import Screen
from tessera_client._proto import job_service_pb2 as api
from tessera_client._proto import model_service_pb2 as models
from tessera_client._proto.job_service_pb2_grpc import JobServiceStub
from tessera_client._proto.model_service_pb2_grpc import ModelServiceStub
from tessera_client._retry import Backoff, Retry
from tessera_client.errors import DamagedError, Failure, InternalError, NotFoundError, TesseraError
from tessera_client.types import DamagedJob, JobInfo, Model, Picture, Preview, Quote, Rect, Sampler, Spec, Tile

_log = logging.getLogger("tessera_client")
_R = TypeVar("_R")
_PAGE = 1000
"""Jobs per page of a list."""


class Client:
    """A connection to a server. It is made at the first call, and again when it breaks.

    Args:
        server: Address, such as `http://127.0.0.1:50051` (the default) or `https://example.org`; with the path under
            which a proxy offers the service, if any. The environment variable TESSERA_SERVER replaces the default.
        token: Bearer token of every call; by default that of the environment variable TESSERA_TOKEN.
        ca: Authority of the server's certificate, as a path or the bytes of PEM; by default the list of gRPC.
        cert: Certificate of this client, for mutual TLS, as a path or the bytes of PEM.
        key: Key of `cert`.
        retry: Pauses before failed calls are repeated.
        timeout: Seconds after which a call has failed. Watches and uploads may take longer.

    Raises:
        InvalidArgumentError: An argument can't be used.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        token: str | None = None,
        ca: Pem | None = None,
        cert: Pem | None = None,
        key: Pem | None = None,
        retry: Retry | None = None,
        timeout: float = 60.0,
    ) -> None:
        settings = Settings.of(server, token, ca, cert, key)
        self.server = settings.address.url
        self._metadata = settings.metadata
        self._retry = retry or Retry()
        self._timeout = timeout
        target, credentials = settings.address.target, settings.credentials
        if credentials is None:
            self._channel = grpc.insecure_channel(target, OPTIONS)
        else:
            self._channel = grpc.secure_channel(target, credentials, OPTIONS)
        channel = below(self._channel, settings.address.path)
        self._jobs = JobServiceStub(channel)
        self._models = ModelServiceStub(channel)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.server!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection. Jobs go on."""
        self._channel.close()

    def generate(
        self,
        *,
        seed: int = 0,
        labels: Mapping[str, str] | None = None,
        width: int | None = None,
        height: int | None = None,
        model: str | None = None,
        steps: int | None = None,
        group_steps: Mapping[str, int] | None = None,
        guidance: float | None = None,
        sampler: Sampler | None = None,
        tile_size: int | None = None,
        bits: int | None = None,
        deadline: datetime | timedelta | None = None,
        viewport: tuple[int, int, int, int] | None = None,
        request_id: str | None = None,
    ) -> Job:
        """Creates a job that makes a picture. The job yields its tiles, and ends with the picture.

        Args:
            seed: Key of the noise. The same seed and arguments give the same picture on the same kind of device.
            labels: Values of the model's labels by their names (`Model.labels`); the seed draws the others.
            width: In pixels, a multiple of the model's `size_multiple`; by default the model's own.
            height: As `width`.
            model: One of the server's models; by default its first.
            steps: Denoising steps, by default 25.
            group_steps: Denoising steps of each of the model's groups of levels, by their names (`Model.groups`).
            guidance: Guidance by the labels, from 1 (none) to 20; by default 2 for a model with labels.
            sampler: By default DPM-Solver++(2M).
            tile_size: Side of a tile in pixels, by default 512. It does not change the picture.
            bits: Bits per sample, 8 (the default) or 16.
            deadline: The job fails if it has not ended by then, or after that time.
            viewport: Part of the picture to decode first: x, y, width and height in pixels.
            request_id: The same text gives the same job again; by default it is new.

        Raises:
            InvalidArgumentError: An argument is not accepted; `field` and `expected` say which one and why.
            NotFoundError: The server does not have the model.
            ExhaustedError: The job is too large for the server, or too many jobs are waiting.
        """
        spec = _convert.spec_message(
            seed=seed,
            model=model,
            width=width,
            height=height,
            steps=steps,
            sampler=sampler,
            tile_size=tile_size,
            bits=bits,
            labels=labels,
            guidance=guidance,
            group_steps=group_steps,
        )
        # With an identifier a repeated request gives the same job.
        request = _convert.request_message(spec, request_id or str(uuid.uuid4()), deadline, viewport)
        answer = self._retried(lambda: self._jobs.CreateJob(request, timeout=self._timeout, metadata=self._metadata))
        return Job(self, _convert.job(_convert.required(answer, "job")))

    def edit(
        self,
        picture: Source,
        *,
        strength: float | None = None,
        seed: int = 0,
        labels: Mapping[str, str] | None = None,
        model: str | None = None,
        steps: int | None = None,
        group_steps: Mapping[str, int] | None = None,
        guidance: float | None = None,
        sampler: Sampler | None = None,
        tile_size: int | None = None,
        bits: int | None = None,
        deadline: datetime | timedelta | None = None,
        viewport: tuple[int, int, int, int] | None = None,
        request_id: str | None = None,
    ) -> Job:
        """Uploads a picture and creates a job that edits it: the picture gets noise, and is denoised again.

        Args:
            picture: Path of a JPEG, PNG, TIFF or WebP file, its bytes, or an array (a Picture or Tile too) of uint8 or
                uint16 of shape (height, width, 3).
            strength: Amount of change, from 0 (the picture is only encoded and decoded) to 1 (an unrelated picture); by
                default 0.5.
            seed: As the others, see `generate`.
            labels: See `generate`.
            model: See `generate`.
            steps: See `generate`.
            group_steps: See `generate`.
            guidance: See `generate`.
            sampler: See `generate`.
            tile_size: See `generate`.
            bits: See `generate`.
            deadline: See `generate`.
            viewport: See `generate`.
            request_id: See `generate`.

        Raises:
            InvalidArgumentError: The picture can't be read, or another argument is not accepted.
            ExhaustedError: The picture is too large, or too many uploads are in progress.
            OSError: The file can't be read.
        """
        spec = _convert.spec_message(
            seed=seed,
            model=model,
            width=None,
            height=None,
            steps=steps,
            sampler=sampler,
            tile_size=tile_size,
            bits=bits,
            strength=strength,
            labels=labels,
            guidance=guidance,
            group_steps=group_steps,
        )
        request = _convert.request_message(spec, request_id or str(uuid.uuid4()), deadline, viewport)
        file = _convert.file_of(picture)
        answer = self._retried(lambda: self._jobs.EditPicture(_convert.upload(request, file), metadata=self._metadata))
        return Job(self, _convert.job(_convert.required(answer, "job")))

    def quote(
        self,
        *,
        width: int | None = None,
        height: int | None = None,
        model: str | None = None,
        steps: int | None = None,
        group_steps: Mapping[str, int] | None = None,
        guidance: float | None = None,
        sampler: Sampler | None = None,
        tile_size: int | None = None,
        bits: int | None = None,
    ) -> Quote:
        """What a job would cost, without creating it. For the arguments see `generate`.

        Raises:
            InvalidArgumentError: An argument is not accepted.
            ExhaustedError: The server would never accept the job.
        """
        spec = _convert.spec_message(
            seed=0,
            model=model,
            width=width,
            height=height,
            steps=steps,
            sampler=sampler,
            tile_size=tile_size,
            bits=bits,
            labels=None,
            guidance=guidance,
            group_steps=group_steps,
        )
        request = api.QuoteJobRequest(spec=spec)
        answer = self._retried(lambda: self._jobs.QuoteJob(request, timeout=self._timeout, metadata=self._metadata))
        return _convert.quote(_convert.required(answer, "quote"))

    def job(self, name: str) -> Job:
        """The job with the name `jobs/ID` or the id `ID`.

        Raises:
            NotFoundError: There is no such job, or it belongs to another client.
        """
        return Job(self, self._job(name))

    def jobs(self) -> Iterator[Job]:
        """Yields the jobs that this client may see, oldest first."""
        token = ""
        while True:
            page = self._jobs_page(token)
            for job in page.jobs:
                yield Job(self, _convert.job(job))
            # A page that refers to itself would be an endless list.
            if page.next_page_token in ("", token):
                return
            token = page.next_page_token

    def damaged_jobs(self) -> list[DamagedJob]:
        """The directories of jobs that the server could not read when it started."""
        request = api.ListDamagedJobsRequest()
        answer = self._retried(
            lambda: self._jobs.ListDamagedJobs(request, timeout=self._timeout, metadata=self._metadata)
        )
        return [_convert.damaged_job(job) for job in answer.jobs]

    def models(self) -> list[Model]:
        """The models of the server, the default first."""
        request = models.ListModelsRequest()
        answer = self._retried(lambda: self._models.ListModels(request, timeout=self._timeout, metadata=self._metadata))
        return [_convert.model(model) for model in answer.models]

    def model(self, name: str) -> Model:
        """The model with the name `models/ID` or the id `ID`.

        Raises:
            NotFoundError: The server does not have it.
        """
        request = models.GetModelRequest(name=_convert.model_name(name))
        answer = self._retried(lambda: self._models.GetModel(request, timeout=self._timeout, metadata=self._metadata))
        return _convert.model(_convert.required(answer, "model"))

    def _job(self, name: str) -> JobInfo:
        request = api.GetJobRequest(name=_convert.job_name(name))
        answer = self._retried(lambda: self._jobs.GetJob(request, timeout=self._timeout, metadata=self._metadata))
        return _convert.job(_convert.required(answer, "job"))

    def _jobs_page(self, token: str) -> api.ListJobsResponse:
        request = api.ListJobsRequest(page_size=_PAGE, page_token=token)
        return self._retried(lambda: self._jobs.ListJobs(request, timeout=self._timeout, metadata=self._metadata))

    def _tile(self, name: str, column: int, row: int, layout: Layout) -> Tile:
        """A tile by a call of its own; asked for again once if it arrives damaged."""
        request = api.GetTileRequest(name=name, column=column, row=row)
        damage = ""
        for _ in range(2):
            answer = self._retried(lambda: self._jobs.GetTile(request, timeout=self._timeout, metadata=self._metadata))
            message = _convert.required(answer, "tile")
            if (message.column, message.row) != (column, row):
                raise InternalError(
                    f"the server's tile is in column {message.column}, row {message.row}; not {column}, {row}"
                )
            try:
                return layout.tile(message)
            except DamagedTileError as error:
                damage = str(error)
        raise DamagedError(f"{name}: {damage}", fields={"resource": "tile", "name": name})

    def _retried(self, call: Callable[[], _R]) -> _R:
        """Repeats a call while its failure may pass."""
        backoff = Backoff(self._retry)
        attempt = 1
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                failure = Failure(error)
            pause = backoff.pause(failure.retry_after) if failure.is_transient else None
            if pause is None or attempt >= self._retry.attempts:
                raise failure.error(self.server)
            attempt += 1
            time.sleep(pause)


class Job:
    """A job of a server, which makes one picture. Iterating over it yields its tiles."""

    def __init__(self, client: Client, info: JobInfo) -> None:
        self._client = client
        self._tiles: Tiles | None = None
        self.info = info
        """The job as the server has reported it last; see `refresh`."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self.info.state}>"

    @property
    def name(self) -> str:
        """`jobs/ID`."""
        return self.info.name

    @property
    def spec(self) -> Spec:
        """Its specification, with defaults filled in."""
        return self.info.spec

    @property
    def quote(self) -> Quote:
        """Its cost at admission."""
        return self.info.quote

    def __iter__(self) -> Tiles:
        self._tiles = self.tiles()
        return self._tiles

    def tiles(self) -> Tiles:
        """Its tiles as they are decoded, from the first one on, whether they are decoded already or not yet."""
        return Tiles(self, self.watch(previews=False))

    def picture(self) -> Picture:
        """The finished picture; waits for the end of the job.

        Tiles that an iteration over the job has yielded are not sent again.

        Raises:
            JobFailedError: The job has failed.
            JobCancelledError: The job was cancelled.
        """
        if self._tiles is None:
            self._tiles = self.tiles()
        return self._tiles.picture()

    def show(self) -> None:
        """Shows the picture in a notebook while it is made: previews, then tiles. Needs IPython.

        `picture` returns it afterwards; its tiles are not sent again.

        Raises:
            JobFailedError: The job has failed.
            JobCancelledError: The job was cancelled.
        """
        with Screen(self.info) as screen:
            self._tiles = Tiles(self, self.watch(estimates=True), screen.add)
            screen.finish(self._tiles.picture())

    def watch(self, *, after: int = 0, tiles: bool = True, previews: bool = True, estimates: bool = False) -> Watch:
        """Yields the job's events, each once and in order, past ones first, until the job ends.

        Args:
            after: Sequence number; only later events are yielded.
            tiles: Sends the tiles with their events.
            previews: Sends previews of the settled levels.
            estimates: Sends previews of the denoised estimate with some steps.
        """
        options = api.StreamOptions(without_tile_data=not tiles, without_previews=not previews, estimates=estimates)
        return Watch(self._client, self.info, after, options)

    def wait(self) -> JobInfo:
        """Waits until the job has ended, however it ends, and returns it."""
        with self.watch(after=self.info.sequence, tiles=False, previews=False) as watch:
            for _ in watch:
                pass
        return self.refresh()

    def refresh(self) -> JobInfo:
        """Asks for the job's present state, and keeps it as `info`."""
        self.info = self._client._job(self.name)
        return self.info

    def tile(self, column: int, row: int) -> Tile:
        """A decoded tile.

        Raises:
            NotReadyError: It is not decoded yet.
        """
        return self._client._tile(self.name, column, row, Layout(self.info))

    def preview(self) -> Preview:
        """The newest preview. Later ones are made from now on.

        Raises:
            NotReadyError: There is none yet.
        """
        client, request = self._client, api.GetPreviewRequest(name=self.name)
        answer = client._retried(
            lambda: client._jobs.GetPreview(request, timeout=client._timeout, metadata=client._metadata)
        )
        preview = _convert.preview(_convert.required(answer, "preview"))
        if preview is None:
            raise InternalError("the server's preview is not a PNG")
        return preview

    def set_viewport(self, viewport: tuple[int, int, int, int] | None) -> JobInfo:
        """Sets the part of the picture whose tiles are decoded first: x, y, width and height; None: no part."""
        client, request = self._client, api.SetViewportRequest(name=self.name)
        if viewport is not None:
            request.viewport.CopyFrom(_convert.rect_message(Rect(*viewport)))
        answer = client._retried(
            lambda: client._jobs.SetViewport(request, timeout=client._timeout, metadata=client._metadata)
        )
        self.info = _convert.job(_convert.required(answer, "job"))
        return self.info

    def cancel(self) -> JobInfo:
        """Cancels the job. A job that has ended is unchanged."""
        client, request = self._client, api.CancelJobRequest(name=self.name)
        answer = client._retried(
            lambda: client._jobs.CancelJob(request, timeout=client._timeout, metadata=client._metadata)
        )
        self.info = _convert.job(_convert.required(answer, "job"))
        return self.info

    def delete(self) -> None:
        """Deletes the job with its pixels, and cancels it before if necessary."""
        client, request = self._client, api.DeleteJobRequest(name=self.name)
        attempts = 0

        def call() -> api.DeleteJobResponse:
            nonlocal attempts
            attempts += 1
            return client._jobs.DeleteJob(request, timeout=client._timeout, metadata=client._metadata)

        try:
            client._retried(call)
        except NotFoundError:
            # The response of the first attempt was lost.
            if attempts == 1:
                raise


class Watch:
    """Events of a job, each once and in order, over as many connections as are needed."""

    def __init__(self, client: Client, info: JobInfo, after: int, options: api.StreamOptions) -> None:
        self._client = client
        self._name = info.name
        self._layout = Layout(info)
        self._options = options
        self._stream: grpc.Call | None = None
        self._messages: Iterator[api.WatchJobResponse] | None = None
        self._backoff = Backoff(client._retry)
        self._logged = False
        self._ended = False
        self.last_sequence = after
        """Sequence number of the last event that was yielded."""

    def __iter__(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the watch. The job goes on."""
        self._ended = True
        self._disconnect()

    def __next__(self) -> events.Event:
        while not self._ended:
            failure = None
            try:
                message = self._receive()
            except grpc.RpcError as error:
                failure, message = Failure(error), None
            if message is None:
                if not self._ended:
                    self._pause(failure)
            elif message.event.sequence > self.last_sequence:
                return self._accept(message.event)
        raise StopIteration

    def _receive(self) -> api.WatchJobResponse | None:
        """The next message of the stream, which is opened if necessary; None: it ended."""
        client = self._client
        if self._messages is None:
            request = api.WatchJobRequest(name=self._name, after_sequence=self.last_sequence, options=self._options)
            stream = client._jobs.WatchJob(request, metadata=client._metadata)
            self._stream, self._messages = stream, iter(stream)
            stream.initial_metadata()
            self._backoff.answered()
        message = next(self._messages, None)
        if message is None:
            self._disconnect()
            # There is no event left if the last one was yielded before.
            answer = client._jobs.GetJob(
                api.GetJobRequest(name=self._name), timeout=client._timeout, metadata=client._metadata
            )
            job = _convert.job(answer.job)
            self._ended = job.state.ended and job.sequence <= self.last_sequence
        return message

    def _accept(self, message: api.JobEvent) -> events.Event:
        """Converts the next event."""
        if message.sequence != self.last_sequence + 1:
            raise InternalError(
                f"{self._name}: the server's event is {message.sequence}; expected {self.last_sequence + 1}"
            )
        tile = None
        if message.HasField("tile") and not self._options.without_tile_data:
            try:
                tile = self._layout.tile(message.tile)
            except DamagedTileError as error:
                _log.warning("%s: %s; asking for it again", self._name, error)
                # If the call is interrupted, the stream begins with this event again.
                self._disconnect()
                tile = self._client._tile(self._name, message.tile.column, message.tile.row, self._layout)
        event = _convert.event(message, self._layout, tile)
        self.last_sequence = message.sequence
        self._backoff.reset()
        self._logged = False
        if _convert.is_last(event):
            self.close()
        return event

    def _pause(self, failure: Failure | None) -> None:
        """Waits before the next connection; raises an error that does not pass."""
        self._disconnect()
        if failure is not None and not failure.is_transient:
            raise failure.error(self._client.server)
        why = failure.message if failure else "the stream ended before the job"
        if not self._logged:
            self._logged = True
            _log.warning("%s: %s; resuming after event %d", self._name, why, self.last_sequence)
        pause = self._backoff.pause(failure.retry_after if failure else None)
        if pause is None:
            error = failure.error(self._client.server) if failure else InternalError(f"{self._name}: {why}")
            error.add_note(f"{self._name}: no progress for {self._client._retry.give_up} s")
            raise error
        time.sleep(pause)

    def _disconnect(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
        self._stream = self._messages = None


class Tiles:
    """Tiles of a job as they are decoded, and then its picture."""

    def __init__(self, job: Job, watch: Watch, seen: Callable[[events.Event], None] = lambda event: None) -> None:
        self.job = job
        """The job."""
        self._watch = watch
        self._seen = seen
        self._canvas = Canvas(job.info)
        self._picture: Picture | None = None
        self._error: TesseraError | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Tile:
        if self._error is not None:
            raise self._error
        for event in self._watch:
            self._seen(event)
            if isinstance(event, events.TileDecoded) and event.tile is not None:
                self._canvas.put(event.tile)
                return event.tile
            if isinstance(event, events.Finished):
                self._picture = self._canvas.finish(event)
            self._error = _convert.failure(self.job.name, event)
            if self._error is not None:
                raise self._error
        raise StopIteration

    def picture(self) -> Picture:
        """The finished picture; collects the tiles that were not yielded yet.

        Raises:
            JobFailedError: The job has failed.
            JobCancelledError: The job was cancelled.
        """
        for _ in self:
            pass
        if self._picture is None:
            raise InternalError(f"{self.job.name}: the watch ended before the job")
        return self._picture

    def close(self) -> None:
        """Ends the transfer. The job goes on."""
        self._watch.close()
