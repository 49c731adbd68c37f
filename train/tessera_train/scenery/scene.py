"""What one seed stands for: hour, sun, horizon, palette, and the plan of the land. Numbers only, no pixels.

Units: picture heights. u runs across, 0 in the middle; e is the elevation above the horizon line.
"""

import math
from dataclasses import dataclass

import torch

from .noise import Draw, lerp, linear

HALF_WIDTH = 1.0
"""Pictures reach at most to u = +-HALF_WIDTH: no wider than twice their height."""
DEGREES_PER_HEIGHT = 50.0

# Sun elevation in degrees: zenith, middle sky, horizon, horizon towards the sun (sRGB), direct light, ambient (linear).
_HOURS = [
    (-16.0, (5, 9, 28), (13, 22, 54), (36, 50, 88), (40, 55, 92), (0.20, 0.25, 0.36), (0.05, 0.075, 0.15)),
    (-8.0, (16, 26, 68), (44, 56, 116), (138, 112, 142), (226, 134, 98), (0.12, 0.11, 0.15), (0.19, 0.21, 0.36)),
    (-2.0, (36, 58, 118), (98, 108, 164), (224, 158, 140), (255, 152, 82), (0.62, 0.34, 0.22), (0.36, 0.35, 0.46)),
    (4.0, (62, 102, 168), (138, 162, 196), (246, 206, 162), (255, 190, 104), (1.55, 0.92, 0.45), (0.34, 0.38, 0.50)),
    (15.0, (52, 110, 192), (112, 164, 220), (222, 218, 210), (255, 230, 184), (1.60, 1.30, 0.92), (0.38, 0.45, 0.58)),
    (50.0, (30, 90, 184), (88, 150, 222), (198, 222, 240), (226, 236, 242), (1.50, 1.40, 1.22), (0.38, 0.46, 0.58)),
]


@dataclass
class Light:
    """The sky's colours and the one light of the scene; colours are linear [3]."""

    elevation: float  # of the sun, degrees; below about -10 the light is the moon's
    night: float  # 0 by day .. 1 by night
    u: float  # where the disc stands
    e: float
    zenith: torch.Tensor
    middle: torch.Tensor
    horizon: torch.Tensor
    sunside: torch.Tensor
    direct: torch.Tensor
    ambient: torch.Tensor
    direction: tuple[float, float, float]  # to the light: across, up, into the picture


@dataclass
class Range:
    """One mountain range or line of hills, from its foot to its crest."""

    height: float  # of its highest crest, picture heights
    distance: float  # 0 near .. 1 far: haze
    plane: float  # elevation of its foot (slightly negative)
    wooded: float  # 1: hills under trees; 0: rock
    peak: float  # where the highest crest stands
    width: float
    rough: float


@dataclass
class Scene:
    light: Light
    horizon: float  # fraction of the height above the horizon line
    ranges: list[Range]  # near to far
    lake: bool
    shore: tuple[float, float]  # near and far end of the lake, fractions of the ground's depth
    haze: float
    mist: float
    snow: float  # height of the snow line
    grass: torch.Tensor
    trees: torch.Tensor
    rock: torch.Tensor
    groves: float  # how much of the open land is wooded, -0.6 none .. 0.6 much
    wind: float  # on the water: the slope of its waves
    depths: torch.Tensor  # colour of deep water, about 1
    foreground_trees: float  # 0: none; else their height
    tree_side: float


def _light(draw: Draw) -> Light:
    hour = draw.uniform(0.0, 1.0)
    if hour < 0.16:
        elevation = -16.0 + draw.uniform(-1.0, 3.0)
    elif hour < 0.42:
        elevation = draw.uniform(-7.0, 1.0)
    elif hour < 0.74:
        elevation = draw.uniform(1.0, 12.0)
    else:
        elevation = draw.uniform(18.0, 50.0)
    clipped = min(max(elevation, _HOURS[0][0]), _HOURS[-1][0])
    at = next(i for i in range(len(_HOURS) - 1) if clipped <= _HOURS[i + 1][0])
    t = (clipped - _HOURS[at][0]) / (_HOURS[at + 1][0] - _HOURS[at][0])
    colours = [lerp(linear(*_HOURS[at][c]), linear(*_HOURS[at + 1][c]), t) for c in range(1, 5)]
    colours += [lerp(torch.tensor(_HOURS[at][c]), torch.tensor(_HOURS[at + 1][c]), t) for c in (5, 6)]
    night = min(max((-elevation - 8.0) / 5.0, 0.0), 1.0)
    # Dawn leans to rose, dusk to amber; only what the low sun colours is tinted.
    rosy = draw.uniform(0.0, 1.0)
    low = math.exp(-((elevation - 0.0) ** 2) / 80.0)
    tint = lerp(torch.tensor([1.06, 0.97, 0.84]), torch.tensor([1.0, 0.86, 1.12]), rosy)
    tint = lerp(torch.ones(3), tint, low)
    for c in (2, 3):
        colours[c] = colours[c] * tint
    u = draw.sign() * draw.uniform(0.12, 0.85)
    if night > 0.5:
        e = draw.uniform(0.22, 0.40)
    else:
        e = elevation / DEGREES_PER_HEIGHT + (0.06 if elevation > 0 else 0.0)
    # The disc stands before the viewer, which would leave every slope in its own shadow: shading
    # turns the light to the disc's side.
    across, up, depth = math.copysign(0.55 + 0.45 * abs(u), u), max(0.18, min(1.1 * e, 1.0)), 0.12
    if elevation > 15.0:
        depth = -0.25
    n = math.sqrt(across**2 + up**2 + depth**2)
    dev = draw.device
    zenith, middle, horizon, sunside, direct, ambient = (c.to(dev) for c in colours)
    return Light(elevation, night, u, e, zenith, middle, horizon, sunside, direct, ambient, (across / n, up / n, depth / n))


def plan(draw: Draw) -> Scene:
    """Draws a scene; what follows on the same `draw` are its lattices."""
    light = _light(draw)
    # A whole number of rows at every usual height, so that all sizes have the horizon at the same place.
    horizon = round(128.0 * draw.uniform(0.52, 0.68)) / 128.0
    count = 3 + int(draw.uniform(0.0, 2.999))
    tallest = draw.uniform(0.26, 0.46)
    low_land = draw.chance(0.2)
    if low_land:
        tallest *= 0.5
    focus = draw.sign() * draw.uniform(0.1, 0.65)
    ranges = []
    for i in range(count):
        far = i / (count - 1)
        wooded = 1.0 if i == 0 else max(0.0, 0.75 - 1.1 * far)
        if i == count - 1:
            height = tallest
        else:
            height = tallest * draw.uniform(0.35, 0.85) * lerp(0.36, 0.9, far)
        peak = focus if i == count - 1 else draw.uniform(-1.0, 1.0)
        ranges.append(Range(height, lerp(0.18, 1.0, far), lerp(-0.016, -0.004, far), wooded, peak,
                            draw.uniform(0.35, 0.8), draw.uniform(0.8, 1.2)))
    lake = draw.chance(0.6)
    near = draw.uniform(0.12, 0.4)
    warm = draw.uniform(0.0, 1.0)
    grass = lerp(linear(74, 104, 48), linear(142, 124, 62), warm**2)
    trees = lerp(linear(34, 56, 36), linear(58, 62, 34), warm * draw.uniform(0.0, 1.0))
    rock = lerp(linear(98, 96, 100), linear(122, 104, 90), draw.uniform(0.0, 1.0))
    water = lerp(torch.tensor([0.55, 0.95, 1.10]), torch.tensor([0.75, 1.05, 0.85]), draw.uniform(0.0, 1.0))
    dev = draw.device
    return Scene(
        light, horizon, ranges, lake,
        shore=(near, draw.uniform(0.86, 0.96)),
        haze=draw.uniform(0.75, 1.25),
        mist=draw.uniform(0.0, 1.0) ** 2,
        snow=draw.uniform(0.12, 0.30),
        grass=grass.to(dev),
        trees=trees.to(dev),
        rock=rock.to(dev),
        groves=draw.uniform(-0.5, 0.5),
        wind=0.004 + 0.02 * draw.uniform(0.0, 1.0) ** 2,
        depths=water.to(dev),
        foreground_trees=draw.uniform(0.10, 0.24) if draw.chance(0.6) else 0.0,
        tree_side=draw.sign(),
    )  # fmt: skip
