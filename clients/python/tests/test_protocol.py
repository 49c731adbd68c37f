"""The client and servers that fail, lie or break off: what it repeats, resumes, refuses and reports."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import google_crc32c
import grpc
import numpy as np
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from tessera_client import AsyncClient, Client, Retry, _png, errors, events
from tessera_client._connect import Address
from tessera_client._proto import job_service_pb2 as api
from tessera_client._proto.image_pb2 import IMAGE_FORMAT_RAW, Rect, Tile
from tessera_client._proto.job_service_pb2_grpc import JobServiceServicer, add_JobServiceServicer_to_server
from tessera_client._retry import Backoff

QUICK = Retry(attempts=4, first=0.001, most=0.002)
SIDE, COLUMNS = 64, 3
PIXELS = np.random.default_rng(1).integers(0, 256, (SIDE, COLUMNS * SIDE, 3), np.uint8)


def job() -> api.Job:
    spec = api.JobSpec(seed=1, width=COLUMNS * SIDE, height=SIDE, tile_size=SIDE, bits=8)
    return api.Job(
        name="jobs/a", spec=spec, tile_columns=COLUMNS, tile_rows=1, state=api.JOB_STATE_FINISHED, sequence=5
    )


def tile(column: int, **changes: Any) -> Tile:
    data = PIXELS[:, column * SIDE : (column + 1) * SIDE].tobytes()
    rect = Rect(x=column * SIDE, y=0, width=SIDE, height=SIDE)
    whole = Tile(column=column, rect=rect, format=IMAGE_FORMAT_RAW, data=data, crc32c=google_crc32c.value(data))
    whole.MergeFrom(Tile(**changes))
    return whole


def event(sequence: int) -> api.WatchJobResponse:
    """Event 1 is queued, 2 to 4 are tiles, 5 is the end."""
    made = api.JobEvent(sequence=sequence)
    if sequence == 1:
        made.queued.job.CopyFrom(job())
    elif sequence == 5:
        made.finished.receipt = '{"seed": "1"}'
    else:
        made.tile.CopyFrom(tile(sequence - 2))
    return api.WatchJobResponse(event=made)


def abort(context: grpc.ServicerContext, code: grpc.StatusCode, *details: Any) -> None:
    """Ends a call with a status, with google.rpc details."""
    status = status_pb2.Status(code=code.value[0], message="reason")
    for detail in details:
        packed = Packed()
        packed.Pack(detail)
        status.details.append(packed)
    context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
    context.abort(code, "reason")


def info(reason: str, **fields: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(domain="tessera", reason=reason, metadata=fields)


def soon(seconds: float) -> error_details_pb2.RetryInfo:
    return error_details_pb2.RetryInfo(retry_delay=Duration(nanos=int(seconds * 1e9)))


@contextmanager
def serving(service: JobServiceServicer) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(8))
    add_JobServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


class Watched(JobServiceServicer):
    """Streams of one job: each opening runs the next script, the last one again and again."""

    def __init__(self, *scripts: Callable[[int, grpc.ServicerContext], Iterator[api.WatchJobResponse]]) -> None:
        self.scripts = list(scripts)
        self.opened: list[int] = []
        self.tiles = 0

    def GetJob(self, request, context):
        return api.GetJobResponse(job=job())

    def GetTile(self, request, context):
        self.tiles += 1
        return api.GetTileResponse(tile=tile(request.column))

    def WatchJob(self, request, context):
        script = self.scripts[min(len(self.opened), len(self.scripts) - 1)]
        self.opened.append(request.after_sequence)
        yield from script(request.after_sequence, context)


def rest(after, context):
    """All events that are left."""
    yield from (event(n) for n in range(after + 1, 6))


def broken(after, context):
    """One event, and then the connection breaks."""
    yield event(after + 1)
    context.abort(grpc.StatusCode.UNAVAILABLE, "broken")


def cut(after, context):
    """One event, and then the stream ends as if it were complete."""
    yield event(after + 1)


def full(after, context):
    """No place for a stream."""
    abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, info("EXHAUSTED"), soon(0.001))
    yield


def repeated(after, context):
    """Events that were sent before, and the others."""
    yield from (event(n) for n in range(1, 6))


def both(service: JobServiceServicer, use: Callable[[Any], Any]) -> list[Any]:
    """Results of the blocking and of the asyncio client. `use` is a function of events of `watch`."""
    with serving(service) as url, Client(url, retry=QUICK) as client:
        blocking = use(list(client.job("a").watch()))

    async def run() -> Any:
        async with AsyncClient(url, retry=QUICK) as client:
            return use([event async for event in (await client.job("a")).watch()])

    with serving(service) as url:
        return [blocking, asyncio.run(run())]


@pytest.mark.parametrize("scripts", [(broken, cut, full, broken, rest), (rest,), (broken, repeated)])
def test_every_event_once_wherever_the_stream_is_cut(scripts, caplog):
    for result in both(Watched(*scripts), lambda seen: [event.sequence for event in seen]):
        assert result == [1, 2, 3, 4, 5]


def test_streams_are_resumed_after_the_last_event():
    service = Watched(broken, cut, full, broken, rest)
    with serving(service) as url, Client(url, retry=QUICK) as client:
        picture = client.job("a").picture()
    assert service.opened == [0, 1, 2, 2, 3]
    assert np.array_equal(picture, PIXELS)
    assert picture.receipt == {"seed": "1"}


def test_a_watch_gives_up_without_progress_and_says_since_when():
    def away(after, context):
        context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        yield

    service = Watched(broken, away)
    impatient = Retry(first=0.001, most=0.002, give_up=0.05)
    with serving(service) as url, Client(url, retry=impatient) as client:
        watch = client.job("a").watch()
        assert next(watch).sequence == 1
        with pytest.raises(errors.UnavailableError) as caught:
            next(watch)
    assert "away" in str(caught.value)
    assert caught.value.__notes__ == ["jobs/a: no progress for 0.05 s"]
    assert service.opened[0] == 0
    assert set(service.opened[1:]) == {1}


def test_backoff_doubles_with_jitter_and_counts_disconnected_time_only(monkeypatch):
    now = 0.0
    monkeypatch.setattr("tessera_client._retry.time.monotonic", lambda: now)
    backoff = Backoff(Retry(first=1.0, most=4.0, give_up=20.0))
    for most in (1.0, 2.0, 4.0, 4.0):
        pause = backoff.pause()
        assert pause is not None
        assert most / 2 <= pause <= most
        now += 2.0
        backoff.answered()
        now += 100.0
    assert backoff.pause(at_least=11.0) == 11.0
    now += 11.5
    assert backoff.pause(at_least=9.0) == 0.5
    now += 0.5
    assert backoff.pause() is None
    backoff.reset()
    assert backoff.pause() is not None
    drawn = {Backoff(Retry()).pause() for _ in range(20)}
    assert len(drawn) > 10


def test_an_omitted_event_is_an_error():
    def gap(after, context):
        yield event(1)
        yield event(3)

    with serving(Watched(gap)) as url, Client(url, retry=QUICK) as client:
        with pytest.raises(errors.InternalError, match="event is 3; expected 2"):
            list(client.job("a").watch())


@pytest.mark.parametrize("changes", [{"crc32c": 1}, {"data": b"short"}])
def test_a_damaged_tile_is_asked_for_again(changes):
    def damaged(after, context):
        for n in range(after + 1, 6):
            sent = event(n)
            if n == 3:
                sent.event.tile.MergeFrom(Tile(**changes))
            yield sent

    service = Watched(damaged)
    with serving(service) as url, Client(url, retry=QUICK) as client:
        assert np.array_equal(client.job("a").picture(), PIXELS)
    assert service.tiles == 1


@pytest.mark.parametrize(
    "changes", [{"column": 7}, {"row": 1}, {"level": 1}, {"rect": Rect(x=1)}, {"rect": Rect(width=65)}, {"format": 2}]
)
def test_a_tile_that_is_not_of_the_picture_is_refused(changes):
    def wrong(after, context):
        for n in range(after + 1, 6):
            sent = event(n)
            if n == 2:
                sent.event.tile.MergeFrom(Tile(**changes))
            yield sent

    with serving(Watched(wrong)) as url, Client(url, retry=QUICK) as client:
        with pytest.raises(errors.InternalError, match="tile in column"):
            client.job("a").picture()


@pytest.mark.parametrize("field", ["width", "height", "tile_size", "bits"])
def test_a_job_of_impossible_size_is_refused_before_memory_is_allocated(field):
    class Large(Watched):
        def GetJob(self, request, context):
            large = job()
            setattr(large.spec, field, 1 << 30)
            return api.GetJobResponse(job=large)

    with serving(Large(rest)) as url, Client(url, retry=QUICK) as client:
        with pytest.raises(errors.InternalError, match=f"the server's {field} is"):
            client.job("a").picture()


class Refusing(JobServiceServicer):
    """Refuses a call some times, then succeeds."""

    def __init__(self, times: int, refuse: Callable[[grpc.ServicerContext], None]) -> None:
        self.times, self.refuse = times, refuse
        self.ids: list[str] = []

    def _answer(self, context, answer):
        self.ids.append("")
        if len(self.ids) <= self.times:
            self.refuse(context)
        return answer

    def CreateJob(self, request, context):
        self._answer(context, None)
        self.ids[-1] = request.request_id
        return api.CreateJobResponse(job=job())

    def EditPicture(self, requests, context):
        first = next(requests)
        data = b"".join(message.data for message in requests)
        self._answer(context, None)
        self.ids[-1] = first.job.request_id
        self.data = data
        return api.EditPictureResponse(job=job())

    def GetJob(self, request, context):
        return self._answer(context, api.GetJobResponse(job=job()))

    def DeleteJob(self, request, context):
        self._answer(context, None)
        if len(self.ids) > 1:
            abort(context, grpc.StatusCode.NOT_FOUND, info("NOT_FOUND", resource="job", name="a"))
        return api.DeleteJobResponse()


def unavailable(context):
    context.abort(grpc.StatusCode.UNAVAILABLE, "draining")


def queue_full(context):
    abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, info("EXHAUSTED", resource="queued_jobs"), soon(0.01))


def proxy_failed(context):
    context.abort(grpc.StatusCode.INTERNAL, "Received RST_STREAM")


@pytest.mark.parametrize("refuse", [unavailable, queue_full, proxy_failed])
def test_failures_that_pass_are_repeated_and_others_are_not(refuse):
    service = Refusing(3, refuse)
    with serving(service) as url, Client(url, retry=QUICK) as client:
        assert client.job("a").name == "jobs/a"
    assert len(service.ids) == 4
    service = Refusing(4, refuse)
    with serving(service) as url, Client(url, retry=QUICK) as client, pytest.raises(errors.TesseraError):
        client.job("a")
    assert len(service.ids) == 4
    for code, name in ((grpc.StatusCode.RESOURCE_EXHAUSTED, "EXHAUSTED"), (grpc.StatusCode.INTERNAL, "INTERNAL")):
        service = Refusing(9, lambda context, code=code, name=name: abort(context, code, info(name)))
        with serving(service) as url, Client(url, retry=QUICK) as client, pytest.raises(errors.TesseraError):
            client.job("a")
        assert len(service.ids) == 1


def test_repeated_requests_for_a_picture_have_one_identifier():
    file = bytes(range(256)) * 300
    for use in (lambda client: client.generate(seed=1), lambda client: client.edit(file)):
        service = Refusing(2, unavailable)
        with serving(service) as url, Client(url, retry=QUICK) as client:
            use(client)
            use(client)
        assert len(service.ids) == 4
        assert service.ids[2] != service.ids[3]
    assert service.data == file


def test_a_repeated_deletion_succeeds_if_the_job_is_gone():
    service = Refusing(1, unavailable)
    with serving(service) as url, Client(url, retry=QUICK) as client:
        made = client.generate()
        service.ids.clear()
        made.delete()
        assert len(service.ids) == 2
        with pytest.raises(errors.NotFoundError):
            made.delete()


def test_details_of_a_status_become_fields():
    def refuse(context):
        bad = error_details_pb2.BadRequest(
            field_violations=[error_details_pb2.BadRequest.FieldViolation(field="job.spec.width")]
        )
        fields = {"field": "width", "value": "100\x1b[2J", "expected": "a multiple of 64", "nearest": "128"}
        abort(context, grpc.StatusCode.INVALID_ARGUMENT, info("INVALID_ARGUMENT", **fields), bad)

    with serving(Refusing(9, refuse)) as url, Client(url) as client:
        with pytest.raises(errors.InvalidArgumentError) as caught:
            client.job("a")
    assert (caught.value.path, caught.value.nearest) == ("job.spec.width", 128)
    assert caught.value.value == "100\ufffd[2J"

    def exhausted(context):
        violation = error_details_pb2.QuotaFailure.Violation(subject="queued_jobs")
        abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, error_details_pb2.QuotaFailure(violations=[violation]))

    with serving(Refusing(9, exhausted)) as url, Client(url) as client:
        with pytest.raises(errors.ExhaustedError, match="reason") as full:
            client.job("a")
    assert (full.value.resource, full.value.limit, full.value.retry_after) == ("queued_jobs", None, None)

    def missing(context):
        resource = error_details_pb2.ResourceInfo(resource_type="tessera.v1.Job", resource_name="jobs/a")
        abort(context, grpc.StatusCode.NOT_FOUND, info("NOT_FOUND", resource="job", name="a"), resource)

    with serving(Refusing(9, missing)) as url, Client(url) as client, pytest.raises(errors.NotFoundError) as lost:
        client.job("a")
    assert (lost.value.resource, lost.value.name) == ("job", "jobs/a")


def test_details_that_are_not_protobuf_leave_the_code():
    def refuse(context):
        context.set_trailing_metadata([("grpc-status-details-bin", b"\xff\xff")])
        context.abort(grpc.StatusCode.NOT_FOUND, "gone")

    with serving(Refusing(9, refuse)) as url, Client(url) as client:
        with pytest.raises(errors.NotFoundError, match=f"server {url}: gone"):
            client.job("a")


def test_a_cancelled_task_loses_no_event():
    def slow(after, context):
        for n in range(after + 1, 6):
            yield event(n)
            if n == 2 and after == 0:
                pause.wait()

    async def run() -> list[int]:
        async with AsyncClient(url, retry=QUICK) as client:
            watch = (await client.job("a")).watch()
            seen = [(await anext(watch)).sequence for _ in range(2)]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(watch), 0.05)
            pause.set()
            return seen + [event.sequence async for event in watch]

    import threading

    pause = threading.Event()
    with serving(Watched(slow)) as url:
        assert asyncio.run(run()) == [1, 2, 3, 4, 5]


def test_calls_go_below_the_path_of_a_proxy():
    called: list[str] = []

    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            called.append(details.method)
            answer = api.GetJobResponse(job=job()).SerializeToString()
            return grpc.unary_unary_rpc_method_handler(lambda request, context: answer)

    server = grpc.server(ThreadPoolExecutor(2), [Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    for path in ("/pictures/all/", "/"):
        with Client(f"http://127.0.0.1:{port}{path}") as client:
            client.job("a")

    async def run() -> None:
        async with AsyncClient(f"http://127.0.0.1:{port}/b") as client:
            await client.job("a")

    asyncio.run(run())
    server.stop(None).wait()
    method = "/tessera.v1.JobService/GetJob"
    assert called == [f"/pictures/all{method}", method, f"/b{method}"]


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:50051", "ftp://host", "http://", "https:///", "http://a b", "http://h/?q", "http://h:x", "http://u@h"],
)
def test_addresses_that_cannot_be_used_are_named(url):
    with pytest.raises(errors.InvalidArgumentError) as caught:
        Client(url)
    assert caught.value.field == "server"


def test_addresses_have_default_ports():
    assert Address.of("http://host").target == "host:80"
    assert Address.of("https://host").target == "host:443"
    assert (Address.of("http://[::1]:5").target, Address.of("http://[::1]:5").loopback) == ("[::1]:5", True)


def test_credentials_are_checked(tmp_path):
    with pytest.raises(errors.InvalidArgumentError, match="token is \\(secret\\)"):
        Client(token="a b")
    with pytest.raises(errors.InvalidArgumentError, match="ca is given"):
        Client(ca=b"PEM")
    with pytest.raises(errors.InvalidArgumentError, match="cert and key"):
        Client("https://host", cert=b"PEM")
    with pytest.raises(OSError, match="missing"):
        Client("https://host", ca=tmp_path / "missing")
    with pytest.warns(UserWarning, match="without encryption"):
        Client("http://192.0.2.1:1", token="abc").close()
    assert "abc" not in repr(Client(token="abc"))


def test_a_server_that_is_not_there_is_unavailable_soon(caplog):
    with Client("http://127.0.0.1:1", retry=QUICK) as client, pytest.raises(errors.UnavailableError):
        client.models()


def test_png_is_read_by_others_and_means_are_exact():
    import io

    import PIL.Image

    random = np.random.default_rng(2)
    for channels, dtype in ((3, np.uint8), (4, np.uint8)):
        pixels = random.integers(0, 256, (7, 5, channels), dtype)
        assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(_png.encode(pixels)))), pixels)
    pixels = random.integers(0, 256, (5, 7, 3), np.uint8)
    small = _png.means(pixels, 3)
    assert small.shape == (2, 3, 3)
    assert np.array_equal(small[1, 2], np.floor(pixels[3:, 6:].reshape(-1, 3).mean(0) + 0.5))
    assert _png.reduced(pixels, 7) is pixels
    assert _png.reduced(pixels, 6).shape == (3, 4, 3)


def test_logs_name_the_job_once_for_each_outage(caplog):
    with caplog.at_level(logging.WARNING, "tessera_client"):
        with serving(Watched(broken, full, full, rest)) as url, Client(url, retry=QUICK) as client:
            assert isinstance(list(client.job("a").watch())[-1], events.Finished)
    assert [record.getMessage() for record in caplog.records] == ["jobs/a: broken; resuming after event 1"]
