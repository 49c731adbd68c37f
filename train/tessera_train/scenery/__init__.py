"""Procedural landscapes: the pictures that the default model is trained on.

Guarantees: a seed is a scene, the same at every size; the same seed, size and device give the same bytes; detail is
band-limited and edges are antialiased, so that an autoencoder can keep what it sees.

The way of one picture: `scene` draws the plan (hour, sun, palette, ranges), `sky` and `terrain` work it out on
lattices of fixed size, `compose` finds what is visible at the picture's size, `picture` puts it together.
"""

from .dataset import add_arguments, run, write_dataset
from .picture import MAX_HEIGHT, MAX_WIDTH, MIN_SIDE, VERSION, render

__all__ = ["MAX_HEIGHT", "MAX_WIDTH", "MIN_SIDE", "VERSION", "add_arguments", "render", "run", "write_dataset"]
