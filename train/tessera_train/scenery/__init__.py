"""Procedural landscapes: the pictures that the default model is trained on.

Guarantees: a seed is a scene, the same at every size; the same seed, size and device give the same bytes; labels say
what a picture shows; detail is band-limited and edges are antialiased, so that an autoencoder can keep what it sees.

The way of one picture: `scene` draws the plan (kind, hour, weather, ranges), `terrain` and `sky` work it out on lattices,
`compose` finds what is visible at the picture's size, `air` lies before it, `planting` sets the plants of `plants` into
it, `water` mirrors it,
`picture` puts it together. `labels` reads the plan.
"""

from .dataset import add_arguments, run, write_dataset
from .labels import SCHEMA, labels
from .picture import MAX_HEIGHT, MAX_WIDTH, MIN_SIDE, VERSION, render

__all__ = [
    "MAX_HEIGHT", "MAX_WIDTH", "MIN_SIDE", "SCHEMA", "VERSION", "add_arguments", "labels", "render", "run", "write_dataset",
]  # fmt: skip
