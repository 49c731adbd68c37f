"""What a picture shows, in words, read off its plan: no pixel is drawn.

What the plan says is kept by the drawing: a named disc stands in a gap of the clouds above the land, the named water,
mountains and trees stand within the middle square, so that they are true of every shape of picture; only the disc is
named by the frame that it must lie in.
"""

import torch

from .noise import Draw
from .scene import KINDS, SUN_RADIUS, Scene, plan

SCHEMA: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("scene", KINDS),
    ("time", ("day", "golden", "dusk", "night")),
    ("sky", ("clear", "scattered", "broken", "overcast")),
    ("disc", ("none", "sun", "moon")),
    ("water", ("none", "lake", "sea")),
    ("mountains", ("none", "hills", "rocky", "snowy")),
    ("trees", ("none", "few", "conifers", "broadleaf")),
    ("season", ("summer", "autumn", "winter")),
)
"""Names and values of the labels, in an order that stays.

- scene: alpine (high mountains), valley (hills and meadows), forest (its edge), coast, dunes, canyon (mesas).
- time: golden is a low sun, dusk a sun below the horizon, before dawn or after dusk.
- sky: the share of low clouds; a clear one has none.
- disc: visible in the frame.
- mountains: hills are green or wooded; rocky and snowy are high ranges without and with snow on them.
- trees: few stand singly or in small groups; conifers and broadleaf are woods.
- season: in winter snow lies on the ground.
"""


def describe(scene: Scene, width: int, height: int) -> dict[str, str]:
    """The labels of a scene in a frame of this shape."""
    light = scene.light
    in_frame = abs(light.u) + SUN_RADIUS <= 0.5 * width / height and light.e + SUN_RADIUS <= scene.horizon
    styles = {r.style for r in scene.ranges}
    mountains = "none"
    if "rock" in styles:
        mountains = "snowy" if scene.snow < 9.0 else "rocky"
    elif styles & {"wooded", "meadow"}:
        mountains = "hills"
    return {
        "scene": scene.kind,
        "time": scene.time,
        "sky": scene.weather,
        "disc": light.disc if in_frame else "none",
        "water": scene.water,
        "mountains": mountains,
        "trees": scene.stand,
        "season": scene.season,
    }


def labels(seed: int, width: int = 2048, height: int = 1024) -> dict[str, str]:
    """The labels of the picture `render(seed, width, height)`: a value of `SCHEMA` for each of its names, in its order."""
    return describe(plan(Draw(seed, torch.device("cpu"))), width, height)
