"""Many tiles in flight while the server is killed: none is lost, none comes twice, and their bytes are right."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from conftest import Server

from tessera_client import AsyncClient, Client, Tile, events

BLOCKING, ASYNC = 4, 4
"""Watchers of each kind; each has a job of its own."""
SPEC = {"width": 512, "height": 512, "tile_size": 64, "steps": 12}
TILES = 64 * (BLOCKING + ASYNC)
KILLS = (60, 200)
"""Numbers of received tiles at which the server is killed."""
IN_FLIGHT = 200


class Received:
    """What a watcher has received: sequence numbers, and the picture with a count for each pixel."""

    def __init__(self) -> None:
        self.sequences: list[int] = []
        self.picture = np.zeros((SPEC["height"], SPEC["width"], 3), np.uint8)
        self.times = np.zeros((SPEC["height"], SPEC["width"]), int)

    def add(self, event: events.Event) -> bool:
        """Takes an event; true if it has brought a tile."""
        self.sequences.append(event.sequence)
        if not isinstance(event, events.TileDecoded):
            return False
        assert isinstance(event.tile, Tile)
        self.picture[event.rect.slices] = event.tile.pixels
        self.times[event.rect.slices] += 1
        return True


class Killer:
    """Kills the server whenever the next number of tiles has been received, and starts it again."""

    def __init__(self, server: Server) -> None:
        self.count, self.in_flight, self._server = 0, [], server
        self._changed = threading.Condition()

    def received(self) -> None:
        """Counts a tile."""
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def run(self) -> None:
        """Returns after the last kill."""
        for number in KILLS:
            with self._changed:
                assert self._changed.wait_for(lambda number=number: self.count >= number, 300)
                self._server.kill()
                self.in_flight.append(TILES - self.count)
            self._server.start()


def watch(url: str, seed: int, killer: Killer) -> Received:
    """Orders a picture and watches it, blocking."""
    got = Received()
    with Client(url) as client:
        for event in client.generate(seed=seed, **SPEC).watch():
            if got.add(event):
                killer.received()
    return got


async def watch_async(url: str, seeds: range, killer: Killer) -> list[Received]:
    """As `watch`, all seeds at one time on one connection."""

    async def one(client: AsyncClient, seed: int) -> Received:
        got = Received()
        async for event in (await client.generate(seed=seed, **SPEC)).watch():
            if got.add(event):
                killer.received()
        return got

    async with AsyncClient(url) as client:
        return await asyncio.gather(*(one(client, seed) for seed in seeds))


def undisturbed(folder: Path) -> Iterator[np.ndarray]:
    """The pictures of a server that is left alone, by their seeds."""
    folder.mkdir()
    with Server(folder) as server, Client(server.url) as client:
        jobs = [client.generate(seed=seed, **SPEC) for seed in range(BLOCKING + ASYNC)]
        for job in jobs:
            yield job.picture().pixels


def test_no_tile_is_lost_or_repeated_when_the_server_is_killed(tmp_path: Path):
    with Server(tmp_path) as server, ThreadPoolExecutor() as pool:
        killer = Killer(server)
        killing = pool.submit(killer.run)
        blocking = [pool.submit(watch, server.url, seed, killer) for seed in range(BLOCKING)]
        results = asyncio.run(watch_async(server.url, range(BLOCKING, BLOCKING + ASYNC), killer))
        results = [future.result() for future in blocking] + results
        killing.result()
    assert killer.count == TILES
    assert len(killer.in_flight) == len(KILLS)
    assert min(killer.in_flight) >= IN_FLIGHT
    for got, expected in zip(results, undisturbed(tmp_path / "undisturbed"), strict=True):
        assert got.sequences == list(range(1, len(got.sequences) + 1))
        assert (got.times == 1).all()
        assert np.array_equal(got.picture, expected)
