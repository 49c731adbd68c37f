"""The land as a height field in the world's plane, on a lattice of slices [slices, columns] from near to far.

Slice i lies at depth z[i]; column j at x = u[j] * z[i]. Every wavelength that the lattice can't show is left out.
`compose.py` finds what of it is visible.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .noise import Draw, Tile, blur, lerp, smooth
from .scene import Range, Scene

_NEAR_SLICES, _FAR_SLICES = 200, 270
_MEETING, _FAR = 26.0, 150.0
HORIZON_DISTANCE = 3000.0


@dataclass
class Land:
    """What is seen of the land, before the air: all [slices, columns] but the colour [3, slices, columns]."""

    z: torch.Tensor  # [slices, 1]
    elevation: torch.Tensor  # e of the surface
    height: torch.Tensor  # over the water or the plain, in units of the eye's height
    colour: torch.Tensor  # light that leaves it
    water: torch.Tensor  # share of water, 0..1
    grain: torch.Tensor  # strength of the fine detail
    layers: torch.Tensor  # how plainly the layers of the rock show, 0..1
    sunlit: torch.Tensor  # share of the direct light in `colour`, for what stands there


def slices(scene: Scene, share: float, device) -> torch.Tensor:
    """Depths [slices, 1], near to far; the last one is the horizon's. share: of all slices, 1 for large pictures."""
    close, distant = round(_NEAR_SLICES * share), round(_FAR_SLICES * share)
    near = 0.42 / (1.0 - scene.horizon)
    a = near * (_MEETING / near) ** torch.linspace(0.0, 1.0, close, device=device)[:-1]
    b = _MEETING * (_FAR / _MEETING) ** torch.linspace(0.0, 1.0, distant - 1, device=device)
    return torch.cat((a, b, torch.tensor([HORIZON_DISTANCE], device=device)))[:, None]


def cap(scene: Scene, u: torch.Tensor) -> torch.Tensor:
    """The elevation that no land exceeds: the disc that a label names stays free."""
    light = scene.light
    if light.disc == "none":
        return torch.full_like(u, 9.0)
    beside = ((u - light.u).abs() - 0.05).clamp_min(0.0)
    return max(light.e - 0.05, 0.004) + 1.5 * beside**2 / (beside + 0.12)


class _World:
    """Noise over the lattice's points."""

    def __init__(self, draw: Draw, u: torch.Tensor, z: torch.Tensor, cell: float):
        self.tile, self.u, self.z = Tile(draw), u, z
        self.x = u * z
        self.deep = z + 0.0 * u
        self.cell = cell
        # Far slices may be wider apart than what they show is deep.
        self.fade_slices = torch.gradient(z[:, 0])[0][:, None]

    def octave(self, wavelength: float, turn: float, warp=None) -> torch.Tensor:
        seen = smooth(wavelength / self.z, 2.5 * self.cell, 7.0 * self.cell) * smooth(wavelength / self.fade_slices, 1.2, 3.0)
        x, z = (self.x, self.deep) if warp is None else (self.x + warp[0], self.deep + warp[1])
        return seen * self.tile.at(x, z, wavelength, turn, cubic=wavelength > 24.0)


def _eroded(world: _World, wavelength: float, octaves: int, warp: float) -> torch.Tensor:
    """Ridges with spurs and gullies, about 0..1: finer ridges are weaker where the coarser ones are low, as rubble fills
    valleys and ice sharpens crests."""
    w = (warp * wavelength * world.tile.at(world.x, world.deep, 1.6 * wavelength, 1.1, True),
         warp * wavelength * world.tile.at(world.x, world.deep, 1.6 * wavelength, 2.7, True))  # fmt: skip
    total, weight, norm = 0.0, 1.0, 0.0
    gain = 1.0
    for octave in range(octaves):
        n = world.octave(wavelength, 0.9 + 1.7 * octave, w)
        ridge = 1.0 - torch.sqrt((0.62 * n) ** 2 + (0.004 if octave < 2 else 0.03))
        total = total + gain * weight * ridge
        norm += gain
        weight = smooth(ridge * weight, 0.05, 0.95)
        wavelength, gain = wavelength / 2.03, gain * (0.50 if octave < 3 else 0.40)
        w = (0.8 * w[0], 0.8 * w[1])
    return (total / norm).clamp_min(0.0)


def _profile(r: Range, z: torch.Tensor) -> torch.Tensor:
    """How the chain rises from its foot in front to its crest and sinks behind it."""
    t = torch.log(z / r.z) / r.depth
    return smooth(t, -1.0, 0.15) * (1.0 - smooth(t, 0.25, 1.0))


def _chain(scene: Scene, world: _World, r: Range, index: int) -> torch.Tensor:
    """The height of one chain."""
    u, z = world.u, world.z
    lift = _profile(r, z)
    mass = torch.exp(-(((u - r.peak) / r.width) ** 2))
    scale = r.scale * r.z
    lean = 0.10 * world.octave(2.0 * scale, 3.1 + index)
    crest = r.floor + (1.0 - r.floor) * mass
    if scene.water == "sea":
        # Headlands: land at one side, open sea at the other.
        crest = crest * smooth(math.copysign(1.0, scene.shore[1]) * (u + lean), -0.35, 0.25)
    if r.style == "rock":
        forms = _eroded(world, 2.1 * scale, 8, 0.16)
        forms = forms * (1.0 - 0.26 * forms)
        body = 0.28 + 1.62 * forms**1.25
        return r.height * r.z * lift**1.15 * crest * body * (1.0 + lean)
    if r.style == "mesa":
        n = (
            0.8 * world.octave(2.0 * scale, 0.7 + index)
            + 0.25 * world.octave(0.8 * scale, 2.1)
            + 0.08 * world.octave(0.3 * scale, 4.0)
            + 0.03 * world.octave(0.12 * scale, 5.0)
        )
        n = n + 1.5 * mass - 0.75 + 0.8 * (r.floor - 0.3)
        inside = smooth(z, r.z * math.exp(-r.depth), r.z * math.exp(-0.5 * r.depth)) * (
            1.0 - smooth(z, r.z * math.exp(0.6 * r.depth), r.z * math.exp(r.depth))
        )
        n = n - 1.5 * (1.0 - inside)
        talus = 0.32 * smooth(n, -0.55, 0.08) ** 1.5
        cliff = 0.40 * smooth(n, 0.06, 0.13) + 0.28 * smooth(n, 0.26, 0.33)
        return r.height * r.z * smooth(inside, 0.0, 0.4) * (talus + cliff)
    if r.style == "dune":
        warp = (0.5 * scale * world.octave(3.0 * scale, 1.0 + index), 0.2 * scale * world.octave(2.0 * scale, 2.0))
        n = world.octave(1.5 * scale, 0.35 + 0.2 * index, warp)
        m = world.octave(0.7 * scale, 0.55 + 0.2 * index, warp)
        ridge = (1.0 - torch.sqrt((0.75 * n) ** 2 + 0.012)).clamp_min(-0.3)
        fine = (1.0 - torch.sqrt((0.75 * m) ** 2 + 0.012)).clamp_min(-0.3)
        return r.height * r.z * lift * (0.35 + crest) * (0.75 * ridge + 0.28 * fine * smooth(ridge, -0.3, 0.8) + 0.3)
    n = 0.6 * world.octave(1.6 * scale, 0.5 + index) + 0.35 * world.octave(0.75 * scale, 1.5 + index)
    n = n + 0.16 * world.octave(0.36 * scale, 2.4) + 0.07 * world.octave(0.17 * scale, 3.3)
    return r.height * r.z * lift * crest * (0.78 + 0.38 * n).clamp_min(0.02)


def _canopy(world: _World, r: Range, conifers: bool) -> torch.Tensor:
    """Heights of the crowns on a wooded chain, in units of a tree's height: rows of trees, one row a slice."""
    # A row's trees stand at places of their own; their outline is seen against the rows behind.
    rows = torch.arange(world.z.shape[0], device=world.z.device)[:, None]
    pitch = 0.0115 if conifers else 0.017
    at = world.u / pitch + 0.618 * rows
    cell = at.floor()
    chance = torch.frac(torch.sin(cell * 12.9898 + rows * 78.233) * 437.585).abs()
    tall = 0.55 + 0.45 * torch.frac(chance * 7.31)
    beside = (at - cell - 0.35 - 0.3 * torch.frac(chance * 3.7)).abs()
    if conifers:
        outline = tall * (1.0 - 2.3 * beside).clamp_min(0.0)
    else:
        outline = tall * torch.sqrt((1.0 - (2.1 * beside) ** 2).clamp_min(0.0))
    return 0.35 + 0.65 * outline


def _lit(scene: Scene, world: _World, height: torch.Tensor) -> torch.Tensor:
    """Share of the direct light on each point: cosine, and shadows cast across."""
    across, up, depth = scene.light.direction
    x_step = world.u[0, 1] - world.u[0, 0]
    gu = torch.gradient(height, dim=1)[0] / x_step  # at constant z: dx = z du
    gx = gu / world.z
    gz = torch.gradient(height, dim=0)[0] / world.fade_slices - world.u * gx
    cosine = (up - across * gx - depth * gz) * torch.rsqrt(1.0 + gx * gx + gz * gz)
    lit = (cosine + 0.04).clamp_min(0.0)
    # Along u only, in steps that double: what rises above the line to the light shades.
    rise = max(up / abs(across), 0.2)
    angular = height / world.z
    blocked = torch.full_like(height, -1.0)
    side = 1 if across > 0 else -1
    columns = height.shape[1]
    wide = F.pad(angular[None], (columns // 4, columns // 4), mode="replicate")[0]
    for reach in (0.008, 0.014, 0.024, 0.042, 0.072, 0.12, 0.20):
        step = min(max(1, round(reach / world.cell)), columns // 4)
        at = columns // 4 + side * step
        blocked = torch.maximum(blocked, wide[:, at : at + columns] - angular - step * world.cell * rise)
    return lit * (1.0 - 0.9 * smooth(blocked, -0.001, 0.008)), torch.sqrt(gx * gx + gz * gz)


def land(scene: Scene, draw: Draw, u: torch.Tensor, cell: float, share: float = 1.0) -> Land:
    """The land over the columns `u` [1, columns], which are `cell` apart, with a `share` of the slices."""
    light, device = scene.light, draw.device
    z = slices(scene, share, device)
    world = _World(draw, u, z, cell)
    octave = world.octave
    c = lambda v: v[:, None, None]
    last = torch.zeros_like(z)
    last[-1] = 1.0

    # The plain.
    rolling = 0.6 * octave(16.0, 0.3) + 0.36 * octave(7.0, 1.4) + 0.15 * octave(3.0, 2.5)
    fine = octave(1.2, 3.3) + 0.7 * octave(0.55, 4.1) + 0.5 * octave(0.26, 5.2)
    plain = 0.15 + scene.rolling * 0.09 * rolling + 0.012 * fine
    if scene.kind == "dunes":
        ripples = smooth(0.55 / z, 0.02, 0.06) * world.tile.at(0.25 * world.x, world.deep + 0.12 * octave(5.0, 2.8), 0.55, 0.25)
        plain = 0.12 + 0.045 * rolling + 0.010 * ripples
    if scene.kind == "canyon":
        plain = 0.10 + 0.05 * rolling + 0.012 * fine
    # Long swells far off, that stay visible at their distance.
    swell = 0.5 + 0.5 * world.tile.at(world.x, 2.0 * world.deep, 34.0, 0.8, True)
    plain = plain + 0.5 * scene.rolling * smooth(torch.log(z), 2.0, 3.6) * swell * (scene.water != "sea")
    if scene.water == "lake":
        a, b = scene.shore
        bend = 0.22 * octave(9.0, 2.0) + 0.10 * octave(3.6, 0.5) + 0.03 * octave(1.3, 4.4)
        basin = smooth(torch.log(z) + bend, math.log(a) - 0.12, math.log(a) + 0.35) * (
            1.0 - smooth(torch.log(z) + 0.3 * bend, math.log(b) - 0.16, math.log(b) + 0.10)
        )
        plain = plain + 0.03 - basin * (0.42 + 0.05 * rolling)
    if scene.water == "sea":
        at, slant = scene.shore
        bend = 0.30 * octave(14.0, 2.0) + 0.12 * octave(5.0, 0.5) + 0.03 * octave(1.6, 4.4)
        off = (
            torch.log(z / at)
            + bend
            - 1.6 * slant * (u + 0.25 * math.copysign(1.0, slant)).clamp_min(-0.4)
        )
        plain = 0.16 * (-off).clamp(-1.2, 1.4) + (0.05 * rolling + 0.006 * fine) * smooth(-off, 0.1, 0.6)
        plain = plain.clamp_min(-0.5)

    heights = [_chain(scene, world, r, i) for i, r in enumerate(scene.ranges)]
    height = plain
    rock = torch.zeros_like(plain)
    woods = torch.zeros_like(plain)
    mesa = torch.zeros_like(plain)
    dune = torch.zeros_like(plain)
    trees = torch.zeros_like(plain)
    for r, h in zip(scene.ranges, heights):
        base = height
        over = smooth(h - base.clamp_min(0.0), 0.0, 0.012 * r.z)
        height = torch.maximum(base, h + 0.0 * base) if r.style != "dune" else base + h
        if r.style == "rock":
            rock = torch.maximum(rock * (1.0 - over), over)
            woods = woods * (1.0 - over)
        elif r.style == "mesa":
            mesa = torch.maximum(mesa, smooth(h / (r.height * r.z), 0.02, 0.10))
        elif r.style == "wooded":
            woods = torch.maximum(woods, over)
        elif r.style == "dune":
            dune = torch.ones_like(dune)
    if light.disc != "none":
        # Where the disc stands the chains sink to a saddle, crests and all.
        limit = cap(scene, u)
        over_eye = (height - 1.0) / z
        crest = F.max_pool1d(over_eye.amax(0)[None, None], 41, 1, 20)[0]
        for _ in range(2):
            crest = F.avg_pool1d(F.pad(crest[None], (20, 20), mode="replicate"), 41, 1)[0]
        share = (limit / crest.clamp_min(1e-3)).clamp_max(1.0)
        share = share.clamp_min(0.0)
        height = torch.where(over_eye > 0.0, 1.0 + share * over_eye * z, height)

    angular = height / z
    lit, slope = _lit(scene, world, height)
    steep = blur(slope, 3, 2)
    hollow = (16.0 * (angular - blur(angular, 7, 5))).clamp(-0.5, 0.5)
    ambient = 0.88 + 0.8 * hollow

    # What grows and lies on it.
    patches = 0.6 * octave(0.5 * 40.0, 1.0) + 0.5 * octave(8.0, 4.6) + 0.4 * octave(3.0, 2.2) + 0.35 * fine
    winter = scene.season == "winter"
    grass = c(scene.grass) * (1.0 + 0.16 * patches)
    grass = lerp(grass, c(lerp(scene.grass, scene.soil, 0.55)), 0.55 * smooth(patches, 0.3, 1.6))
    if scene.kind in ("dunes", "canyon"):
        grass = c(scene.soil) * (1.0 + 0.07 * patches)
    colour = grass
    if scene.water == "sea":
        beach = smooth(height, 0.20, 0.10)
        colour = lerp(colour, c(scene.soil) * (1.0 + 0.05 * patches), beach)
        wet = smooth(height, 0.035, 0.004)
        colour = colour * (1.0 - 0.45 * wet)
    if scene.water == "lake":
        bank = smooth(plain, 0.05, 0.005) * smooth(torch.log(z), 4.0, 3.0)
        colour = lerp(colour, c(0.75 * scene.soil), 0.75 * bank)
    bare = c(scene.rock) * (1.0 + 0.12 * patches + 0.09 * octave(5.0, 0.6) + 0.09 * octave(2.3, 3.8))
    if scene.kind == "canyon":
        colour = lerp(colour, bare, mesa * smooth(slope, 0.12, 0.5))
    over_horizon = (height - 1.0) / z
    if any(r.style == "rock" for r in scene.ranges):
        scree = lerp(c(scene.rock), c(scene.soil), 0.4) * (1.0 + 0.1 * patches)
        stone = lerp(scree, bare, smooth(slope, 0.35, 0.8))
        line = 0.045 + 0.02 * patches + (0.03 if scene.stand in ("conifers", "broadleaf") else 0.0)
        green = smooth(over_horizon + 0.04 * (slope - 0.6), line + 0.035, line) * (scene.kind not in ("dunes", "canyon"))
        alp = lerp(
            c(0.8 * scene.grass),
            c(0.55 * scene.needle + 0.2 * scene.grass),
            0.75 if scene.stand in ("conifers", "broadleaf") else 0.2,
        )
        colour = lerp(colour, lerp(stone, alp * (1.0 + 0.14 * patches), green), rock)
    crown = c(scene.needle if scene.stand == "conifers" else scene.leaf)
    if scene.stand == "broadleaf" and scene.season == "winter":
        crown = c(lerp(scene.soil, scene.needle, 0.5) * 0.6)
    sway = octave(1.4, 0.2) + 0.6 * patches
    tint = (
        torch.stack((1.0 + 0.10 * sway, 1.0 - 0.18 * scene.leaf_spread * sway, 1.0 - 0.10 * scene.leaf_spread * sway))
        if scene.stand == "broadleaf"
        else 1.0 + 0.10 * sway[None]
    )

    # Snow lies where it is high and not steep; in winter everywhere.
    if scene.snow < 9.0:
        if winter:
            lies = smooth(0.7 * slope + 0.5 * steep - 0.15 * patches, 1.55, 0.85)
            lies = torch.where(plain < 0.0, torch.ones_like(lies), lies)
        else:
            lies = smooth(
                over_horizon + 0.015 * patches - 0.012 * (steep - 0.7).clamp_min(0.0) - 0.010 * lit,
                scene.snow - 0.012,
                scene.snow + 0.016,
            ) * smooth(0.6 * slope + 0.6 * steep - 0.2 * patches, 2.1, 1.15)
        white = torch.tensor([0.80, 0.83, 0.88], device=device)
        colour = lerp(colour, c(white), lies * (1.0 if winter else rock))
    # Woods over it all.
    wood = woods * (0.65 + 0.35 * smooth(patches, -1.2, 0.0))
    if scene.stand in ("conifers", "broadleaf") and any(r.style in ("wooded", "rock") for r in scene.ranges):
        skirt = rock * smooth(over_horizon + 0.03 * (slope - 0.5), 0.055, 0.03) * smooth(patches, -0.5, 0.2)
        wood = torch.maximum(wood, 0.9 * skirt * smooth(height, 0.2, 0.8))
        canopy = _canopy(world, scene.ranges[0], scene.stand == "conifers")
        stands = smooth(wood, 0.35, 0.6) * (1.0 - last)
        size = 0.34 if scene.stand == "conifers" else 0.27
        inside = canopy - 0.35
        leaves = crown * tint * (0.55 + 0.75 * inside)
        if winter:
            leaves = lerp(leaves, c(torch.tensor([0.62, 0.66, 0.72], device=device)), 0.40 * inside[None] + 0.10)
        colour = lerp(colour, leaves, stands)
        height = height + size * stands * canopy
        # Crowns catch the light one by one.
        lit = lerp(lit, 0.75 * lit.clamp_min(0.12) + 0.30 * inside, stands)
        trees = stands

    veil = 1.0 - 0.9 * light.veil
    direct = c(light.direct) * (lit * veil + 0.35 * light.veil)
    shade = c(light.ambient) * ambient
    # Light that the ground throws back warms the shade a little.
    shade = shade + 0.08 * c(light.direct * scene.soil) * (1.0 - light.veil)
    shaded = colour * (direct + shade)
    sunlit = (direct / (direct + shade)).mean(0)
    water = (
        smooth(plain, 0.004, -0.004) * (height <= plain.clamp_min(0.02) + 0.02)
        if scene.water != "none"
        else torch.zeros_like(plain)
    )
    if scene.water == "sea":
        water = torch.maximum(water, last * torch.ones_like(water))
    surface = height.clamp_min(0.0) * (1.0 - last)
    elevation = (surface - 1.0) / z
    elevation[0] = -4.0  # nothing shows below the land
    grain = lerp(0.75, 0.6, rock) * (1.0 - 0.55 * trees)
    if scene.kind == "dunes":
        grain = 0.25 + 0.4 * rock
    if scene.kind == "canyon":
        grain = 0.5 + 0.3 * mesa
    if winter:
        grain = grain * lerp(0.30, 0.8, rock)
    bared = torch.maximum(mesa, 0.6 * rock * (1.0 - trees)) * smooth(slope, 0.5, 1.2)
    if scene.snow < 9.0:
        bared = bared * (1.0 - lies)
    return Land(z, elevation, surface, shaded, water, grain + 0.0 * water, bared, sunlit)
