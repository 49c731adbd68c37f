"""A picture in a notebook that sharpens while it is made."""

from __future__ import annotations

import base64
import html
import time
from types import TracebackType
from typing import Any, Self

import numpy as np

from tessera_client import _png, events
from tessera_client.types import JobInfo, Picture, Preview, Tile

_INTERVAL = 0.25
"""Least seconds between updates."""


def _image(png: bytes, alternative: str) -> str:
    data = base64.b64encode(png).decode()
    style = "position:absolute;inset:0;width:100%;height:100%;margin:0"
    return f'<img alt="{html.escape(alternative)}" style="{style}" src="data:image/png;base64,{data}">'


class View:
    """What is shown of a job: the newest preview, the decoded tiles above it, and a line of text.

    Both layers are of bounded size, so that an update of a large picture is small too.
    """

    def __init__(self, info: JobInfo) -> None:
        spec = info.spec
        self._info = info
        self._began = time.monotonic()
        self._by = _png.factor(spec.width, spec.height, _png.SHOWN)
        shape = (-(-spec.height // self._by), -(-spec.width // self._by), 4)
        # Red, green, blue, and alpha, which is 0 where no tile is decoded.
        self._tiles = np.zeros(shape, np.uint8)
        self._done = 0
        self._preview: Preview | None = None
        self._finished = False
        self._state = f"queued, about {max(1, round(info.quote.compute_time.total_seconds()))} s of computing"

    def add(self, event: events.Event) -> None:
        """Takes account of an event."""
        match event:
            case events.Started():
                self._state = f"on {event.device}"
            case events.Step():
                self._state = f"step {event.step} of {event.of}"
                self._preview = event.estimate or self._preview
            case events.LevelSettled():
                self._preview = event.preview or self._preview
            case events.TileDecoded(tile=Tile() as tile):
                pixels = _png.means(_png.eight_bits(tile.pixels), self._by)
                y, x = tile.rect.y // self._by, tile.rect.x // self._by
                place = self._tiles[y : y + pixels.shape[0], x : x + pixels.shape[1]]
                place[..., :3] = pixels[: place.shape[0], : place.shape[1]]
                place[..., 3] = 255
                self._done += 1
                self._state = f"tile {self._done} of {self._info.tile_columns * self._info.tile_rows}"
            case events.Failed():
                self._state = f"failed: {event.message}"
            case events.Cancelled():
                self._state = "cancelled"
            case _:
                pass

    def finish(self, picture: Picture) -> None:
        """Shows the picture alone."""
        self._preview = None
        pixels = _png.reduced(_png.eight_bits(picture.pixels), _png.SHOWN)
        self._tiles = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
        self._finished = True

    def text(self) -> str:
        """The line of text."""
        spec = self._info.spec
        labels = (f"{name} {value}" for name, value in sorted(spec.labels.items()))
        size = f"{spec.width} × {spec.height}"
        seconds = f"{time.monotonic() - self._began:.0f} s"
        state = [f"finished in {seconds}"] if self._finished else [self._state, seconds]
        return " · ".join([f"seed {spec.seed}", size, *labels, *state])

    def html(self) -> str:
        """Both layers and the line."""
        spec, layers = self._info.spec, []
        if self._preview is not None:
            layers.append(_image(self._preview.data, f"Preview of {self._info.name}"))
        if self._tiles[..., 3].any():
            opaque = self._tiles[..., 3].all()
            pixels = self._tiles[..., :3] if opaque else self._tiles
            layers.append(_image(_png.encode(pixels), f"Picture of {self._info.name}"))
        # A small picture is not enlarged.
        width = min(spec.width, _png.SHOWN)
        box = f"position:relative;aspect-ratio:{spec.width}/{spec.height};background:#8882;overflow:hidden"
        name = html.escape(self._info.name)
        return (
            f'<figure title="{name}" style="margin:0;max-width:{width}px"><div style="{box}">{"".join(layers)}</div>'
            f'<figcaption style="font-size:smaller;opacity:.8">{html.escape(self.text())}</figcaption></figure>'
        )


class Screen:
    """A view in the output of a notebook's cell. It is updated at most every quarter of a second."""

    def __init__(self, info: JobInfo) -> None:
        try:
            from IPython.display import display
        except ImportError as error:
            raise ImportError("show needs IPython: pip install 'tessera-client[jupyter]'") from error
        self._view = View(info)
        self._shown = time.monotonic()
        self._handle: Any = display(self._content(), raw=True, display_id=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._update()

    def add(self, event: events.Event) -> None:
        """Takes account of an event."""
        self._view.add(event)
        if time.monotonic() - self._shown >= _INTERVAL:
            self._update()

    def finish(self, picture: Picture) -> None:
        """Shows the picture."""
        self._view.finish(picture)

    def _update(self) -> None:
        if self._handle is not None:  # None where there is no front end
            self._handle.update(self._content(), raw=True)
        self._shown = time.monotonic()

    def _content(self) -> dict[str, str]:
        return {"text/html": self._view.html(), "text/plain": self._view.text()}
