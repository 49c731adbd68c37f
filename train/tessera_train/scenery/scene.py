"""What one seed stands for: kind, hour, weather, light, and the plan of the land. Numbers only, no pixels.

Units: the camera stands at height 1 over the origin and looks along z; a point (x, height, z) is seen at
u = x / z and e = (height - 1) / z, both in picture heights: u runs across, 0 in the middle, e upwards from the horizon.
"""

import math
from dataclasses import dataclass

import torch

from .noise import Draw, lerp, linear

HALF_WIDTH = 1.0
"""Pictures reach at most to u = +-HALF_WIDTH: no wider than twice their height."""
MIDDLE = 0.42
"""What a label names stands within u = +-MIDDLE, so that square pictures show it too."""
SUN_RADIUS, MOON_RADIUS = 0.026, 0.022

KINDS = ("alpine", "valley", "forest", "coast", "dunes", "canyon")

# Sun elevation in degrees: zenith, middle sky, horizon, horizon towards the sun (sRGB), direct light, ambient (linear).
_HOURS = [
    (-16.0, (5, 9, 28), (13, 22, 54), (36, 50, 88), (40, 55, 92), (0.22, 0.27, 0.38), (0.05, 0.075, 0.15)),
    (-7.0, (18, 30, 74), (50, 52, 116), (142, 106, 136), (232, 128, 84), (0.20, 0.13, 0.16), (0.17, 0.18, 0.32)),
    (-2.0, (38, 62, 122), (98, 104, 160), (222, 150, 132), (255, 148, 72), (0.80, 0.40, 0.25), (0.30, 0.29, 0.40)),
    (4.0, (58, 98, 166), (132, 156, 194), (240, 200, 158), (255, 190, 104), (1.80, 1.00, 0.46), (0.27, 0.32, 0.46)),
    (14.0, (48, 104, 186), (108, 160, 216), (218, 214, 206), (250, 224, 178), (1.75, 1.36, 0.90), (0.31, 0.39, 0.54)),
    (50.0, (30, 88, 178), (84, 146, 214), (186, 212, 232), (216, 228, 238), (1.62, 1.48, 1.26), (0.32, 0.41, 0.54)),
]


@dataclass
class Light:
    """The sky's colours and the one light of the scene; colours are linear [3]."""

    elevation: float  # of the sun, degrees; at night the light is the moon's
    night: float  # 0 by day .. 1 by night
    disc: str  # "sun", "moon" or "none": the disc that the plan leaves free of land and thick cloud
    azimuth: float  # of the disc, radians from the viewing direction, positive to the right
    u: float  # where the disc stands; for a disc behind the viewer, far outside
    e: float
    veil: float  # 0 under a clear sky .. 1 under a closed one: no shadows, grey light
    zenith: torch.Tensor
    middle: torch.Tensor
    horizon: torch.Tensor
    sunside: torch.Tensor
    direct: torch.Tensor
    ambient: torch.Tensor
    direction: tuple[float, float, float]  # to the light that shapes the land: across, up, into the picture
    true_direction: tuple[float, float, float]  # to the disc itself: clouds and water


@dataclass
class Clouds:
    cover: float  # share of the sky, 0..1; 0: no low clouds
    thickness: float  # of the layer, in units of the height of its base
    size: float  # of one cloud, in the same units
    softness: float
    cirrus: float  # strength of the high veil, 0..1
    cells: float  # 0: fibres .. 1: small cells (a mackerel sky)
    turn: float  # direction of the fibres, radians


@dataclass
class Range:
    """One chain of mountains, hills, mesas or dunes across the view."""

    style: str  # "rock", "wooded", "meadow", "mesa" or "dune"
    z: float  # of its crest
    depth: float  # half its extent, in units of ln z
    height: float  # of its highest crest over the horizon, picture heights
    peak: float  # u of that crest
    width: float  # of the mass about it
    floor: float  # height of the rest of the chain, as a share
    scale: float  # wavelength of its forms at the crest, picture heights
    rough: float


@dataclass
class Scene:
    kind: str
    time: str
    weather: str
    season: str
    light: Light
    clouds: Clouds
    horizon: float  # fraction of the height above the horizon line
    ranges: list[Range]  # near to far
    water: str  # "none", "lake" or "sea"
    shore: tuple[float, float]  # near and far end of the lake, z; of the sea, z of the beach and its slant across
    haze: float
    mist: float
    snow: float  # height of the snow line over the horizon; at or below 0: everywhere
    grass: torch.Tensor
    soil: torch.Tensor
    rock: torch.Tensor
    leaf: torch.Tensor  # of broad-leaved trees
    leaf_spread: float  # of their hue from tree to tree
    needle: torch.Tensor
    strata: float
    rolling: float  # height of the swells of the ground
    stand: str  # "none", "few", "conifers" or "broadleaf": the trees
    forest: float  # share of the ground under trees, 0..1
    edge: tuple[float, float]  # of a forest's edge: its z, and the u of its gap
    framing: float  # side of the tall tree before everything, -1 or 1; 0: none
    tufts: float  # density of the tall grass at the viewer's feet, 0..1
    wind: float  # on the water: the slope of its waves
    depths: torch.Tensor  # colour of deep water


def _pick(draw: Draw, **weights: float) -> str:
    """One of the names, with probability proportional to its weight."""
    at = draw.uniform(0.0, sum(weights.values()))
    for name, weight in weights.items():
        at -= weight
        if at < 0.0:
            return name
    return name


_SUNS = {"day": (18.0, 52.0), "golden": (3.0, 12.0), "dusk": (-6.5, -1.0), "night": (-17.0, -15.0)}


def _light(draw: Draw, time: str, weather: str, horizon: float) -> Light:
    elevation = draw.uniform(*_SUNS[time])
    shown = draw.chance({"day": 0.32, "golden": 0.58, "dusk": 0.0, "night": 0.75}[time]) and weather != "overcast"
    side = draw.sign()
    at, high = draw.uniform(0.06, 0.86), draw.uniform(0.0, 1.0)
    away, rosy = draw.uniform(0.9, 2.6), draw.uniform(0.0, 1.0)
    if time == "day" and shown:
        elevation = lerp(17.0, math.degrees(math.atan(horizon - 0.07)), high)
    # The disc of the night is the moon's.
    disc_height = math.tan(math.radians(elevation)) if time != "night" else lerp(0.20, horizon - 0.08, high)
    azimuth = side * (math.atan(at) if shown or time == "dusk" else away)
    if time == "dusk" and rosy < 0.25:
        azimuth = side * away
    at_hour = next(i for i in range(len(_HOURS) - 1) if elevation <= _HOURS[i + 1][0] or i == len(_HOURS) - 2)
    t = min(max((elevation - _HOURS[at_hour][0]) / (_HOURS[at_hour + 1][0] - _HOURS[at_hour][0]), 0.0), 1.0)
    colours = [lerp(linear(*_HOURS[at_hour][c]), linear(*_HOURS[at_hour + 1][c]), t) for c in range(1, 5)]
    colours += [lerp(torch.tensor(_HOURS[at_hour][c]), torch.tensor(_HOURS[at_hour + 1][c]), t) for c in (5, 6)]
    night = 1.0 if time == "night" else 0.0
    # Dawn leans to rose, dusk to amber; only what the low sun colours is tinted.
    low = math.exp(-(elevation**2) / 80.0)
    tint = lerp(torch.tensor([1.05, 0.97, 0.82]), torch.tensor([1.0, 0.86, 1.10]), rosy)
    tint = lerp(torch.ones(3), tint, low)
    for c in (2, 3):
        colours[c] = colours[c] * tint
    veil = 1.0 if weather == "overcast" else 0.0
    if veil:
        # A closed layer: what light there is has lost its colour and comes from everywhere.
        grey = lerp(0.74, 1.0, rosy) * (0.6 * colours[4] + colours[5]).mul(torch.tensor([0.30, 0.45, 0.25])).sum()
        tone = torch.tensor([0.94, 1.0, 1.08])
        colours = [lerp(colour, grey * k * tone, 0.8) for colour, k in zip(colours[:4], (0.36, 0.46, 0.62, 0.66))] + colours[4:]
        colours[5] = 0.78 * grey * tone
        colours[4] = 0.26 * grey * torch.ones(3)
    direct_up = max(math.tan(math.radians(elevation)), 0.07) if not night else disc_height
    # A disc before the viewer would leave every slope in its own shadow: the light that shapes the land comes from its side.
    turned = math.copysign(max(abs(azimuth), 0.95), azimuth)
    turned = math.copysign(min(abs(turned), 2.2), turned)
    up = min(max(direct_up, 0.16), 1.1)
    across, depth = math.sin(turned), math.cos(turned)
    n = math.sqrt(1.0 + up**2)
    true_up = disc_height if time != "dusk" else math.tan(math.radians(elevation))
    m = math.sqrt(1.0 + true_up**2)
    u = math.tan(azimuth) if abs(azimuth) < 1.3 else math.copysign(4.0, azimuth)
    dev = draw.device
    return Light(
        elevation, night, ("moon" if night else "sun") if shown else "none", azimuth, u, disc_height, veil,
        *(c.to(dev) for c in colours),
        direction=(across / n, up / n, depth / n),
        true_direction=(math.sin(azimuth) / m, true_up / m, math.cos(azimuth) / m),
    )  # fmt: skip


def _clouds(draw: Draw, weather: str) -> Clouds:
    amount, size, thick, soft = (draw.uniform(0.0, 1.0) for _ in range(4))
    cirrus, cells = draw.uniform(0.0, 1.0), draw.uniform(0.0, 1.0)
    turn = draw.uniform(-0.9, 0.9)
    cover = {"clear": 0.0, "scattered": lerp(0.10, 0.24, amount), "broken": lerp(0.34, 0.52, amount),
             "overcast": lerp(0.93, 1.0, amount)}[weather]  # fmt: skip
    thickness = {"clear": 0.0, "scattered": lerp(0.35, 0.65, thick), "broken": lerp(0.22, 0.6, thick),
                 "overcast": 0.22}[weather]  # fmt: skip
    # A clear sky has at most a trace of the high veil.
    veil = {"clear": 0.0, "scattered": 0.75, "broken": 0.5, "overcast": 0.0}[weather]
    strength = veil * max(0.0, 1.6 * cirrus - 0.6)
    return Clouds(
        cover,
        thickness,
        lerp(0.8, 1.5, size) * (2.2 if weather == "overcast" else 1.0),
        lerp(0.7, 1.4, soft),
        strength,
        float(cells > 0.6),
        turn,
    )


def _ranges(draw: Draw, kind: str, season: str, tall: bool, hilly: bool) -> list[Range]:
    """Near to far. Every number is drawn whatever the kind, so that neighbouring plans stay alike."""
    ranges = []
    n = [draw.uniform(0.0, 1.0) for _ in range(24)]
    peak = (2.0 * n[0] - 1.0) * MIDDLE
    if kind == "dunes":
        for i, z in enumerate((7.0, 16.0, 38.0)):
            ranges.append(Range("dune", z, 0.55, (0.045, 0.08, 0.12)[i] * lerp(0.6, 1.4, n[1 + i]), 2.0 * n[4 + i] - 1.0, 0.7, 0.6,
                                lerp(0.8, 1.3, n[7 + i]), 1.0))  # fmt: skip
    if kind == "canyon":
        for i, z in enumerate((24.0, 44.0, 78.0)):
            ranges.append(Range("mesa", z, (0.22, 0.3, 0.3)[i], (0.17, 0.22, 0.20)[i] * lerp(0.7, 1.15, n[1 + i]),
                                (-1.0 if i == 0 else 1.0) * (2.0 * n[4 + i] - 1.0) * 0.7, (0.35, 0.5, 0.7)[i], (0.05, 0.15, 0.5)[i],
                                lerp(0.45, 0.8, n[7 + i]), 1.0))  # fmt: skip
    if hilly:
        style = "wooded" if n[10] < 0.65 and kind not in ("coast", "dunes", "canyon") else "meadow"
        ranges.append(
            Range(style, 20.0, 0.40, lerp(0.035, 0.075, n[11]), 2.0 * n[12] - 1.0, 0.6, 0.45, lerp(0.5, 0.9, n[13]), 0.6)
        )
        ranges.append(Range("wooded" if n[10] < 0.8 else "meadow", 38.0, 0.35, lerp(0.07, 0.13, n[14]), (2.0 * n[15] - 1.0) * MIDDLE, 0.6,
                            0.55, lerp(0.4, 0.8, n[16]), 0.8))  # fmt: skip
    if tall:
        height = lerp(0.24, 0.42, n[17]) if kind == "alpine" else lerp(0.16, 0.28, n[17])
        if n[18] < 0.6:
            ranges.append(Range("rock", 62.0, 0.26, height * lerp(0.45, 0.7, n[19]), math.copysign(0.35 + 0.6 * n[20], -peak), 0.45, 0.3,
                                lerp(0.35, 0.55, n[21]), 1.0))  # fmt: skip
        ranges.append(
            Range(
                "rock", 100.0, 0.33, height, peak, lerp(0.28, 0.6, n[22]), lerp(0.42, 0.7, n[23]), lerp(0.34, 0.6, n[21]), 1.0
            )
        )
    return ranges


def plan(draw: Draw) -> Scene:
    """Draws a scene; what follows on the same `draw` are its lattices."""
    kind = _pick(draw, alpine=0.30, valley=0.18, forest=0.17, coast=0.15, dunes=0.10, canyon=0.10)
    time = _pick(draw, day=0.39, golden=0.33, dusk=0.18, night=0.10)
    overcast = {"day": 0.26, "golden": 0.0, "dusk": 0.10, "night": 0.0}[time] * (0.4 if kind in ("dunes", "canyon") else 1.0)
    weather = _pick(draw, clear=0.24 * (1.0 - overcast), scattered=0.43 * (1.0 - overcast), broken=0.33 * (1.0 - overcast),
                    overcast=overcast)  # fmt: skip
    cold = {"alpine": 0.20, "valley": 0.24, "forest": 0.26, "coast": 0.08}.get(kind, 0.0)
    gold = {"alpine": 0.20, "valley": 0.26, "forest": 0.32}.get(kind, 0.0)
    season = _pick(draw, summer=1.0 - cold - gold, autumn=gold, winter=cold)
    # A whole number of rows at every usual height, so that all sizes have the horizon at the same place.
    horizon = round(128.0 * draw.uniform(0.50, 0.66)) / 128.0
    tall = draw.chance({"alpine": 1.0, "valley": 0.52, "forest": 0.55, "coast": 0.46, "dunes": 0.34, "canyon": 0.0}[kind])
    hilly = draw.chance({"alpine": 0.7, "valley": 1.0, "forest": 0.8, "coast": 0.35, "dunes": 0.0, "canyon": 0.0}[kind])
    light = _light(draw, time, weather, horizon)
    clouds = _clouds(draw, weather)
    ranges = _ranges(draw, kind, season, tall, hilly)
    lake = draw.chance({"alpine": 0.55, "valley": 0.42, "forest": 0.38}.get(kind, 0.0))
    water = "sea" if kind == "coast" else "lake" if lake else "none"
    n = [draw.uniform(0.0, 1.0) for _ in range(24)]
    shore = (lerp(2.6, 4.6, n[0]), lerp(10.0, 17.0, n[1]))
    if water == "sea":
        for r in ranges:  # headlands, on the side of the land
            r.peak = math.copysign(lerp(0.26, MIDDLE, abs(r.peak) / 2.0), n[1] - 0.5)
        shore = (lerp(2.6, 7.0, n[0]), math.copysign(1.0, n[1] - 0.5) * lerp(0.15, 0.9, n[2]))
    warm = n[3]
    grass = lerp(linear(66, 94, 40), linear(128, 122, 58), warm**2)
    if season == "autumn":
        grass = lerp(linear(124, 112, 54), linear(142, 112, 58), warm)
    soil = lerp(linear(112, 94, 70), linear(134, 118, 92), n[4])
    rock = lerp(linear(104, 102, 104), linear(126, 108, 92), n[5])
    if kind == "dunes":
        soil = lerp(linear(206, 168, 116), linear(214, 146, 92), n[4])
        rock = lerp(linear(140, 112, 92), linear(128, 98, 84), n[5])
    if kind == "canyon":
        soil = lerp(linear(176, 122, 84), linear(178, 104, 70), n[4])
        rock = lerp(linear(178, 106, 70), linear(188, 128, 88), n[5])
    if kind == "coast":
        soil = lerp(linear(196, 176, 140), linear(216, 200, 168), n[4])
    leaf = lerp(linear(58, 86, 34), linear(84, 96, 40), n[6])
    spread = 0.25
    if season == "autumn":
        leaf, spread = lerp(linear(190, 92, 30), linear(206, 150, 48), n[6]), 1.0
    needle = lerp(linear(30, 52, 34), linear(50, 64, 40), n[7])
    conifers = draw.chance(0.25 if season == "autumn" else 0.8 if season == "winter" else 0.6)
    few = draw.chance({"alpine": 0.35, "valley": 0.45, "forest": 0.0, "coast": 0.55, "dunes": 0.0, "canyon": 0.0}[kind])
    bare = draw.chance({"alpine": 0.35, "valley": 0.0, "forest": 0.0, "coast": 0.8, "dunes": 1.0, "canyon": 1.0}[kind])
    stand = "few" if few else "none" if bare else "conifers" if conifers else "broadleaf"
    wooded = stand in ("conifers", "broadleaf")
    # Woods on the hills are trees as well: where the plan has none, hills are open.
    for r in ranges:
        if r.style in ("wooded", "meadow"):
            r.style = "wooded" if wooded else "meadow"
    forest = (lerp(0.6, 0.9, n[8]) if kind == "forest" else lerp(0.15, 0.5, n[8])) if wooded else 0.0
    framing = (1.0 if n[10] < 0.5 else -1.0) if wooded and n[11] < 0.4 else 0.0
    snow = -1.0 if season == "winter" else lerp(0.10, 0.24, n[12]) if n[13] < 0.68 and kind not in ("dunes", "canyon") else 9.0
    peaks = max((r.height for r in ranges if r.style == "rock"), default=0.0)
    if 0.0 < snow < 9.0:
        snow = min(snow, 0.62 * peaks)  # snow-capped means visibly so
    if light.disc != "none":
        _make_way(ranges, light)
    gap = (2.0 * n[20] - 1.0) * MIDDLE
    if tall:
        gap = ranges[-1].peak  # the view that a forest opens is the mountain's
    depths = lerp(torch.tensor([0.030, 0.10, 0.13]), torch.tensor([0.035, 0.085, 0.07]), n[14])
    dev = draw.device
    return Scene(
        kind, time, weather, season, light, clouds, horizon, ranges, water, shore,
        haze=lerp(0.6, 1.25, n[15]) * (1.5 if weather == "overcast" else 1.0),
        mist=(n[16] ** 2 if time != "day" else n[16] ** 4) * (0.2 if kind in ("dunes", "canyon") else 1.0),
        snow=snow,
        grass=grass.to(dev), soil=soil.to(dev), rock=rock.to(dev), leaf=leaf.to(dev), leaf_spread=spread, needle=needle.to(dev),
        strata=lerp(0.3, 1.0, n[17]) if kind != "canyon" else 1.6,
        rolling=lerp(0.6, 1.4, n[18]),
        stand=stand, forest=forest, edge=(lerp(6.0, 11.0, n[19]), gap), framing=framing,
        tufts=(0.3 + 0.7 * n[21]) * (1.0 if kind in ("alpine", "valley", "forest") else 0.25 if kind == "coast" else 0.0),
        wind=0.15 + 0.85 * n[23] ** 2,
        depths=depths.to(dev),
    )  # fmt: skip


def _make_way(ranges: list[Range], light: Light) -> None:
    """Lowers a peak that would stand before a low disc: `Scene.cap` keeps the rest of the land below it."""
    for r in ranges:
        if r.height > light.e - 0.06 and abs(r.peak - light.u) < 0.35:
            moved = r.peak - math.copysign(0.45, light.u - r.peak)
            r.peak = moved if abs(moved) <= MIDDLE else math.copysign(MIDDLE, -light.u)
