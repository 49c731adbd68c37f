"""The client and the real server."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import pickle
import secrets
import subprocess
from datetime import timedelta
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from conftest import LABELLED, Server, tessera

from tessera_client import AsyncClient, Client, JobState, Rect, Retry, Tile, errors, events

SMALL = {"width": 160, "height": 128, "steps": 4, "tile_size": 64}


def generated(path: Path, *flags: str) -> np.ndarray:
    """Pixels of a picture that the program makes by itself."""
    tessera("generate", "--device", "cpu", "--threads", "1", "--model", LABELLED, "--out", path, *flags)
    return np.asarray(PIL.Image.open(path))


def test_generate_yields_tiles_and_ends_with_the_picture_of_the_program(client: Client, tmp_path: Path):
    job = client.generate(seed=7, labels={"time": "dusk"}, **SMALL)
    assert job.spec.labels["time"] == "dusk"
    assert set(job.spec.labels) == {"time", "water"}
    tiles = list(job)
    assert {(tile.column, tile.row) for tile in tiles} == {(c, r) for c in range(3) for r in range(2)}
    for tile in tiles:
        assert tile.pixels.shape == (tile.rect.height, tile.rect.width, 3)
        assert not tile.pixels.flags.writeable
    picture = job.picture()
    for tile in tiles:
        assert np.array_equal(picture.pixels[tile.rect.slices], tile)
    flags = ["--seed", "7", "--label", "time=dusk", "--size", "160x128", "--steps", "4", "--tile", "64"]
    expected = generated(tmp_path / "picture.png", *flags)
    assert np.array_equal(picture, expected)
    assert np.array_equal(np.asarray(picture.to_pil()), expected)
    assert picture.receipt["seed"] in (7, "7")
    assert picture.description


def test_asyncio_client_gets_the_same_picture(server: Server, client: Client):
    async def run() -> tuple[np.ndarray, int]:
        async with AsyncClient(server.url) as client:
            job = await client.generate(seed=8, **SMALL)
            count = 0
            async for tile in job:
                assert isinstance(tile, Tile)
                count += 1
            names = [listed.name async for listed in client.jobs()]
            assert job.name in names
            assert (await job.refresh()).state is JobState.FINISHED
            return np.asarray(await job.picture()), count

    pixels, count = asyncio.run(run())
    assert count == 6
    assert np.array_equal(client.generate(seed=8, **SMALL).picture(), pixels)


def test_a_picture_continues_where_an_iteration_was_left(client: Client):
    job = client.generate(seed=3, **SMALL)
    first = next(iter(job))
    picture = job.picture()
    assert np.array_equal(picture.pixels[first.rect.slices], first)
    assert np.array_equal(client.job(job.name).picture(), picture)


def test_watch_yields_every_event_with_previews_and_estimates(client: Client):
    job = client.generate(seed=5, steps=24, width=96, height=64)
    seen = list(job.watch(estimates=True))
    assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))
    assert isinstance(seen[0], events.Queued)
    assert seen[0].info.name == job.name
    assert isinstance(seen[-1], events.Finished)
    settled = [event for event in seen if isinstance(event, events.LevelSettled)]
    assert [event.level for event in settled] == [3, 2, 1, 0]
    preview = settled[-1].preview
    assert preview is not None
    assert preview.pixels.shape == (preview.height, preview.width, 3)
    assert preview.data == job.preview().data
    later = list(job.watch(after=seen[-3].sequence, tiles=False))
    assert [event.sequence for event in later] == [event.sequence for event in seen[-2:]]
    assert all(event.tile is None for event in later if isinstance(event, events.TileDecoded))
    assert list(job.watch(after=seen[-1].sequence)) == []


def test_estimates_come_before_the_first_level_has_settled(client: Client):
    job = client.generate(seed=6, steps=200, width=384, height=256)
    kinds = [event for event in job.watch(estimates=True, tiles=False) if isinstance(event, events.Step)]
    assert any(event.estimate is not None for event in kinds)
    assert all(event.estimate is None for event in job.watch(tiles=False) if isinstance(event, events.Step))


def test_sixteen_bits_are_uint16_and_round_to_eight(client: Client, tmp_path: Path):
    picture = client.generate(seed=7, bits=16, **SMALL).picture()
    assert picture.pixels.dtype == np.uint16
    rounded = (picture.pixels.astype(float) / 257).round().astype(np.uint8)
    assert np.array_equal(np.asarray(picture.to_pil()), rounded)
    shown = PIL.Image.open(io.BytesIO(picture._repr_png_()))
    assert np.array_equal(np.asarray(shown), rounded)


def test_edit_takes_a_path_bytes_or_an_array(client: Client, tmp_path: Path):
    pixels = np.random.default_rng(4).integers(0, 256, (70, 90, 3), np.uint8)
    path = tmp_path / "noise.png"
    PIL.Image.fromarray(pixels).save(path)
    jobs = [client.edit(source, strength=0.3, seed=2, steps=3) for source in (path, path.read_bytes(), pixels)]
    assert (jobs[0].spec.width, jobs[0].spec.height, jobs[0].spec.strength) == (90, 70, 0.3)
    pictures = [np.asarray(job.picture()) for job in jobs]
    assert all(np.array_equal(pictures[0], picture) for picture in pictures[1:])
    deep = client.edit(pixels.astype(np.uint16) * 257, strength=0.3, seed=2, steps=3).picture()
    assert np.array_equal(deep, pictures[0])
    with pytest.raises(errors.InvalidArgumentError, match="picture is an array"):
        client.edit(pixels[..., 0])
    with pytest.raises(errors.InvalidArgumentError) as caught:
        client.edit(b"not a picture")
    assert (caught.value.kind, caught.value.path) == ("invalid_image", "data")


def test_errors_have_the_fields_of_the_service(client: Client):
    with pytest.raises(errors.InvalidArgumentError) as invalid:
        client.generate(width=100)
    assert (invalid.value.field, invalid.value.value, invalid.value.path) == ("width", "100", "spec.width")
    assert invalid.value.nearest in (96, 128)
    assert isinstance(invalid.value, ValueError)
    copy = pickle.loads(pickle.dumps(invalid.value))
    assert (copy.fields, copy.path, str(copy)) == (invalid.value.fields, "spec.width", str(invalid.value))
    with pytest.raises(errors.InvalidArgumentError) as label:
        client.generate(labels={"time": "noon"})
    assert label.value.expected
    with pytest.raises(errors.NotFoundError) as missing:
        client.job("nothing")
    assert (missing.value.resource, missing.value.name) == ("job", "jobs/nothing")
    with pytest.raises(errors.NotFoundError):
        client.generate(model="nothing")
    with pytest.raises(errors.InvalidArgumentError, match="seed is -1"):
        client.generate(seed=-1)
    with pytest.raises(TypeError, match="steps is 'many'"):
        client.generate(steps="many")  # type: ignore[arg-type]


def test_a_limit_that_never_fits_is_not_retried(tmp_path: Path):
    server = Server(tmp_path, "--memory", "1")
    try:
        with Client(server.url) as client, pytest.raises(errors.ExhaustedError) as caught:
            client.generate(width=4096, height=4096)
        assert caught.value.resource == "memory_bytes"
        assert caught.value.limit == 1 << 20
        assert caught.value.needed > caught.value.limit
        assert caught.value.retry_after is None
    finally:
        server.stop()


def test_quotes_models_and_groups_of_steps(client: Client):
    (model,) = client.models()
    assert client.model(model.name) == model
    assert model.labels["time"] == ("day", "dusk", "night")
    assert list(model.groups) == ["layout", "detail"]
    small, large = client.quote(), client.quote(width=960, height=640)
    assert large.flops > 50 * small.flops
    assert large.compute_time > timedelta(0)
    job = client.generate(group_steps={"layout": 3, "detail": 2}, guidance=1.5, sampler="heun")
    assert (job.spec.steps, job.spec.guidance, job.spec.sampler) == (5, 1.5, "heun")
    assert job.spec.group_steps == {"layout": 3, "detail": 2}
    assert job.quote.tiles == 1


def test_jobs_are_cancelled_deleted_and_found_again(client: Client):
    again = [client.generate(seed=1, request_id="once", viewport=(0, 0, 10, 10)) for _ in range(2)]
    assert again[0].name == again[1].name
    long = client.generate(seed=1, steps=1000, width=960, height=640, deadline=timedelta(hours=1))
    assert long.set_viewport(Rect(64, 64, 32, 32)).viewport == Rect(64, 64, 32, 32)
    assert long.set_viewport(None).viewport is None
    with pytest.raises(errors.NotReadyError) as early:
        long.tile(0, 0)
    assert early.value.required == "decoded"
    assert long.cancel().state is JobState.CANCELLED
    assert long.wait().state is JobState.CANCELLED
    tiles = long.tiles()
    for _ in range(2):
        with pytest.raises(errors.JobCancelledError) as cancelled:
            tiles.picture()
        assert cancelled.value.job == long.name
    assert long.name in [job.name for job in client.jobs()]
    long.delete()
    assert long.name not in [job.name for job in client.jobs()]
    with pytest.raises(errors.NotFoundError):
        long.refresh()
    job = client.generate(seed=1, steps=1000, width=960, height=640, deadline=timedelta(milliseconds=50))
    with pytest.raises(errors.JobFailedError) as failed:
        job.picture()
    assert failed.value.kind == "expired"
    assert client.damaged_jobs() == []


def test_a_single_tile_is_that_of_the_picture(client: Client):
    job = client.generate(seed=9, **SMALL)
    picture = job.picture()
    tile = job.tile(2, 1)
    assert tile.rect == (128, 64, 32, 64)
    assert np.array_equal(picture.pixels[tile.rect.slices], tile)


def certificate(folder: Path, name: str, authority: tuple[Path, Path] | None = None) -> tuple[Path, Path]:
    """A certificate of this machine by an authority, or an authority, and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    if authority:
        command += ["-CA", authority[0], "-CAkey", authority[1], "-addext", "basicConstraints=CA:FALSE"]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, stderr=subprocess.DEVNULL)
    return cert, key


def test_tokens_and_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    token = secrets.token_hex()
    tokens = tmp_path / "tokens"
    tokens.write_text(f"anna {hashlib.sha256(token.encode()).hexdigest()}\n")
    authority, other = certificate(tmp_path, "authority"), certificate(tmp_path, "other")
    ca = authority[0]
    (cert, key), (own, own_key) = (certificate(tmp_path, name, authority) for name in ("server", "client"))
    flags = ["--tls-cert", str(cert), "--tls-key", str(key), "--client-ca", str(ca), "--tokens", str(tokens)]
    server = Server(tmp_path, *flags)
    brief = Retry(attempts=2, first=0.01)
    try:
        assert server.url.startswith("https://")
        tls = {"ca": ca, "cert": own, "key": own_key.read_bytes()}
        with Client(server.url, token=token, **tls) as client:
            job = client.generate(seed=1, **SMALL)
            assert job.info.owner == "anna"
            assert job.picture().pixels.shape == (128, 160, 3)
        monkeypatch.setenv("TESSERA_SERVER", server.url)
        monkeypatch.setenv("TESSERA_TOKEN", token)
        with Client(**tls) as client:
            assert [job.name for job in client.jobs()] == [job.name]
        with Client(token="wrong", **tls) as client, pytest.raises(errors.UnauthenticatedError):
            client.models()
        with Client(ca=ca, retry=brief) as client, pytest.raises(errors.UnavailableError):
            client.models()
        with Client(ca=other[0], cert=own, key=own_key, retry=brief) as client, pytest.raises(errors.UnavailableError):
            client.models()
    finally:
        server.stop()


def test_optional_formats(client: Client, tmp_path: Path):
    import zarr

    picture = client.generate(seed=2, bits=16, **SMALL).picture()
    array = picture.to_xarray()
    assert array.dims == ("y", "x", "channel")
    assert np.array_equal(array.sel(channel="G"), picture.pixels[..., 1])
    assert array.attrs["description"] == picture.description
    picture.to_zarr(tmp_path / "picture.zarr")
    stored = zarr.open_array(tmp_path / "picture.zarr", mode="r")
    assert stored.chunks == (64, 64, 3)
    assert np.array_equal(stored[:], picture.pixels)


def test_a_notebook_shows_previews_then_tiles_then_the_picture(client: Client, monkeypatch: pytest.MonkeyPatch):
    shown: list[str] = []

    class Handle:
        def update(self, content: dict[str, str], raw: bool) -> None:
            shown.append(content["text/html"])

    def display(content: dict[str, str], raw: bool, display_id: bool) -> Handle:
        shown.append(content["text/html"])
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr("tessera_client._display._INTERVAL", 0.0)
    job = client.generate(seed=7, labels={"time": "dusk"}, width=1152, height=256, tile_size=256, steps=20)
    job.show()
    assert "queued" in shown[0]
    assert "<img" not in shown[0]
    preview = next(html for html in shown if "Preview of" in html)
    assert "Picture of" not in preview
    both = next(html for html in shown if "tile 2 of 5" in html)
    assert both.count("<img") == 2
    assert "Preview of" not in shown[-1]
    assert "finished" in shown[-1]
    assert "time dusk" in shown[-1]
    data = base64.b64decode(shown[-1].split("base64,")[1].split('"')[0])
    last = np.asarray(PIL.Image.open(io.BytesIO(data)))
    assert last.shape == (128, 576, 3)
    means = job.picture().pixels.reshape(128, 2, 576, 2, 3).mean((1, 3))
    assert np.array_equal(last, np.floor(means + 0.5))
