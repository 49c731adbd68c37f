"""Client of Tessera, a service that makes pictures and streams their tiles.

    from tessera_client import Client

    with Client("http://127.0.0.1:50051") as client:
        job = client.generate(seed=7)
        for tile in job:
            print(tile.rect, tile.pixels.shape)
        picture = job.picture()

`AsyncClient` has the same methods for asyncio.
"""

from tessera_client import errors, events
from tessera_client._async import AsyncClient, AsyncJob, AsyncTiles, AsyncWatch
from tessera_client._connect import DEFAULT_SERVER
from tessera_client._retry import Retry
from tessera_client._sync import Client, Job, Tiles, Watch
from tessera_client._version import __version__
from tessera_client.errors import TesseraError
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

__all__ = [
    "DEFAULT_SERVER",
    "AsyncClient",
    "AsyncJob",
    "AsyncTiles",
    "AsyncWatch",
    "Client",
    "DamagedJob",
    "Job",
    "JobInfo",
    "JobState",
    "Level",
    "Model",
    "Picture",
    "Pixels",
    "Preview",
    "Quote",
    "Rect",
    "Retry",
    "Sampler",
    "Spec",
    "TesseraError",
    "Tile",
    "Tiles",
    "Watch",
    "__version__",
    "errors",
    "events",
]
