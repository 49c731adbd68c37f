"""The land: surfaces on a fixed lattice, lit, coloured and hazed, as slices from near to far.

Each surface is a height field over (depth, u); slice i holds, for each column, the elevation it reaches on the
picture and the linear colour seen there. `compose.py` finds what is visible.
"""

import torch
import torch.nn.functional as F

from .noise import Draw, Spectrum, blur, ground_tile, lerp, profile, smooth, world
from .scene import HALF_WIDTH, Range, Scene
from .sky import gradient

COLUMNS = 1024
_RANGE_SLICES = 84
_GROUND_SLICES = 144
_CELL = 2.0 * HALF_WIDTH / COLUMNS


def _u(device):
    return (HALF_WIDTH * (2.0 * (torch.arange(COLUMNS, device=device) + 0.5) / COLUMNS - 1.0))[None, :]


def _difference(field: torch.Tensor, axis: int) -> torch.Tensor:
    return torch.gradient(field, dim=axis)[0]


def _lit(scene: Scene, height: torch.Tensor, cell_depth, relief: float) -> torch.Tensor:
    """Share of the direct light on each point of `height` [slices, columns]: cosine, and shadows cast across."""
    across, up, depth = scene.light.direction
    gu = relief * _difference(height, 1) / _CELL
    gt = relief * _difference(height, 0) / cell_depth
    cosine = (up - across * gu - depth * gt) * torch.rsqrt(1.0 + gu * gu + gt * gt)
    lit = (cosine + 0.05).clamp_min(0.0)
    # Along u only, in steps that double: what rises above the line to the light shades.
    rise = max(up / abs(across), 0.25) * _CELL / relief
    blocked = torch.zeros_like(height)
    side = -1 if across > 0 else 1
    for step in (4, 7, 12, 20, 34, 56):
        blocked = torch.maximum(blocked, torch.roll(height, side * step, 1) - height - step * rise)
    return lit * (1.0 - 0.85 * smooth(blocked, 0.0, 0.02))


def _leaning(field: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """`field` [slices, columns], every point looked up `shift` further along u: crests become spurs that run down to
    one side."""
    n = field.shape[0]
    across = (_u(field.device) + shift).expand(n, -1)
    depth = ((2.0 * torch.arange(n, device=field.device) + 1.0) / n - 1.0)[:, None].expand_as(across)
    place = torch.stack((across, depth), -1)[None]
    return F.grid_sample(field[None, None], place, mode="bilinear", padding_mode="reflection", align_corners=False)[0, 0]


def _hazed(scene: Scene, colour, height, u, distance, floor: float = 0.0):
    """Air light between here and the viewer: distance, and mist that lies low."""
    air = lerp(gradient(scene, u, torch.full_like(u, 0.05)), scene.light.middle[:, None, None], 0.35)
    amount = 1.0 - torch.exp(-scene.haze * (0.04 + 0.80 * distance**1.5) * torch.exp(-2.2 * height.clamp_min(0.0)))
    low = 0.75 * scene.mist * torch.exp(-height.clamp_min(0.0) / 0.035) * (0.15 + 0.85 * distance)
    amount = 1.0 - (1.0 - amount) * (1.0 - low)
    return lerp(colour, air, amount)


def mountains(scene: Scene, r: Range, draw: Draw):
    """One range: elevation [slices, columns] and colour [3, slices, columns]."""
    light, device = scene.light, draw.device
    n = _RANGE_SLICES
    u = _u(device)
    t = torch.linspace(0.0, 1.0, n, device=device)[:, None]
    extent = 1.5 * r.height + 0.10
    # The noise has the scale of the face as it is seen, not of its depth: it rises by small steps from slice to slice, and
    # what is seen of it is not drawn out from top to bottom.
    noise = Spectrum(draw, n, COLUMNS, 1.1 * r.height + 0.03, 2.0 * HALF_WIDTH)
    low = 0.45 / (r.height + 0.10) ** 0.8
    lean = profile(draw, COLUMNS, 2.0 * HALF_WIDTH, 2.5, 1.3)[None, :]
    ridges = _leaning(noise.ridged(low, 7, 0.54), 0.5 * r.height * lean * (1.0 - t))
    line = profile(draw, COLUMNS, 2.0 * HALF_WIDTH, 1.2, 1.4)[None, :]
    # Spurs run down from the crest to both sides; where they meet are gullies. Their faces are what the light models.
    # (Blurred: from one slice to the next they move by a column or two.)
    lines = [blur(profile(draw, COLUMNS, 2.0 * HALF_WIDTH, 3.5, 1.6)[None], 5, 0).expand(n, -1) for _ in range(2)]
    spurs = [_leaning(x, side * 0.5 * r.height * (1.0 - t)) for x, side in zip(lines, (1, -1))]
    spurs = torch.maximum(*(1.0 - torch.sqrt(x * x + 0.10) for x in spurs))
    crest = 0.5 + 0.14 * line + 0.42 * torch.exp(-(((u - r.peak) / r.width) ** 2))
    rise = smooth(t, 0.0, 0.82) * (1.0 - 0.9 * smooth(t, 0.82, 1.0))
    rock = 1.0 - r.wooded
    relief = lerp(0.25, 0.44, rock) * (ridges - 0.25) + lerp(0.05, 0.34, rock) * (spurs - 0.2)
    body = crest * lerp(0.75, 0.5, rock) + r.rough * relief
    height = r.height * rise * body.clamp_min(0.02)
    if r.wooded > 0.5:
        # Crowns of trees on the near hills: small, rounded, never sharper than the lattice.
        crowns = noise.band(34.0, octaves=0.4).abs()
        height = height + 0.0055 * crowns * smooth(height, 0.004, 0.02)
    # The form of the whole mountain first, then its gullies: fine relief alone would be streaks.
    form = blur(height, 14, 4)
    lit = 0.65 * _lit(scene, form, extent / n, 2.4) + 0.35 * _lit(scene, height, extent / n, lerp(1.6, 1.1, rock))
    hollow = (40.0 * (height - blur(height, 6, 6))).clamp(-0.5, 0.5)
    ambient = 0.85 + 0.7 * hollow
    patches = 0.5 * noise.fractal(3.0, 0.8)
    slopes = [torch.sqrt((_difference(x, 1) / _CELL) ** 2 + (_difference(x, 0) / (extent / n)) ** 2) for x in (height, form)]
    steep = 0.4 * slopes[0] + 1.3 * slopes[1]
    c = lambda x: x[:, None, None]
    bare = c(scene.rock) * (1.0 + 0.16 * patches)
    woods = c(scene.trees) * (1.0 + 0.22 * patches)
    meadow = c(lerp(scene.grass, scene.trees, 0.4)) * (1.0 + 0.15 * patches)
    tree_line = 0.30 * scene.snow + 0.16 * r.wooded
    green = 1.0 - smooth(height + 0.02 * patches, tree_line, tree_line + 0.07)
    colour = lerp(bare, lerp(meadow, woods, smooth(patches + 1.2 * r.wooded, -0.3, 0.5)), green)
    white = smooth(height + 0.022 * patches - 0.030 * steep, scene.snow - 0.02, scene.snow + 0.025)
    colour = lerp(colour, torch.tensor([0.86, 0.88, 0.93], device=device)[:, None, None], white * (1.0 - r.wooded))
    shaded = colour * (c(light.direct) * lit + c(light.ambient) * ambient)
    return r.plane + height, _hazed(scene, shaded, height, u, r.distance)


def ground(scene: Scene, draw: Draw):
    """From the viewer's feet to the first hills: elevation, colour, water [slices, columns] in 0..1.

    The land is laid out in the world's own plane, seen from height 1: a point at distance z and elevation -1/z.
    """
    light, device = scene.light, draw.device
    n = _GROUND_SLICES
    u = _u(device)
    near, far = 1.7 * (1.0 - scene.horizon), 0.014
    t = torch.linspace(0.0, 1.0, n, device=device)[:, None]
    plane = -near * (far / near) ** t
    z = -1.0 / plane
    x = u * z
    tile = ground_tile(draw)

    def octave(wavelength: float, turn: float):
        # A wavelength that the slices or the columns cannot show is left out.
        return smooth(wavelength / z, 0.06, 0.20) * world(tile, x, z, wavelength, turn)

    rolling = 0.8 * octave(14.0, 0.3) + 0.42 * octave(6.0, 1.4) + 0.16 * octave(2.6, 2.5)
    tufts = 0.5 * octave(0.24, 5.2) + 0.35 * octave(0.12, 6.0)
    fine = octave(1.1, 3.3) + 0.7 * octave(0.5, 4.1) + tufts
    hills = 0.13 + 0.10 * rolling + 0.011 * fine
    if scene.lake:
        a, b = scene.shore
        bend = 0.05 * octave(9.0, 2.0)
        basin = smooth(t + bend, a - 0.14, a + 0.12) * (1.0 - smooth(t, b - 0.03, b + 0.05))
        hills = hills + 0.05 - basin * (0.40 + 0.05 * rolling)
    else:
        # Long swells far off, that stay visible at their distance.
        hills = hills + 0.55 * t**2 * (0.5 + 0.5 * world(tile, x, 2.0 * z, 30.0, 0.8))
    water = smooth(hills, 0.004, -0.004) if scene.lake else torch.zeros_like(hills)
    # Groves: crowns on the open land, where slices are dense enough to show them.
    wood = world(tile, x, z, 11.0, 5.7) + 0.5 * world(tile, x, z, 4.0, 2.9) + scene.groves
    wood = smooth(wood, 0.75, 1.45) * smooth(z, 3.5, 5.5) * smooth(hills, 0.03, 0.08)
    crown = 0.55 + 0.40 * world(tile, x, z, 1.1, 0.4).abs().clamp(max=1.2) + 0.10 * octave(0.3, 3.7)
    stand = wood * crown.clamp_min(0.2)
    height = -plane * (hills.clamp_min(0.0) + 0.24 * stand)
    relief = hills + 0.22 * stand
    gx = torch.gradient(relief, dim=1)[0] / (_CELL * z)
    gz = torch.gradient(relief, dim=0)[0] / torch.gradient(z, dim=0)[0]
    across, up, depth = light.direction
    lit = (max(up, 0.3) - 1.6 * (across * gx + depth * gz)) * torch.rsqrt(1.0 + gx * gx + gz * gz)
    lit = lit.clamp_min(0.0)
    c = lambda v: v[:, None, None]
    tone = 0.35 * octave(3.1, 1.0) + 0.4 * fine + 0.3 * octave(8.0, 4.6)
    grass = c(scene.grass) * (1.0 + 0.30 * tone + 0.25 * tufts)
    colour = lerp(grass, c(scene.trees), 0.45 * smooth(tone, 0.0, 1.0))
    beach = smooth(hills, 0.05, 0.0) * (1.0 if scene.lake else 0.0)
    colour = lerp(colour, c(lerp(scene.rock, scene.grass, 0.4)), 0.7 * beach)
    leaves = c(lerp(scene.trees, scene.grass, 0.25)) * (0.55 + 0.75 * smooth(crown, 0.5, 1.05))
    colour = lerp(colour, leaves, smooth(stand, 0.0, 0.07))
    # A grove's shadow lies on the side away from the light.
    reach = 10
    wide = F.pad(stand[None], (reach, reach), mode="replicate")[0]
    nearer_light = wide[:, 2 * reach :] if across > 0 else wide[:, : -2 * reach]
    shadow = 0.6 * smooth(nearer_light - stand, 0.1, 0.5) * (1.0 - light.night)
    shaded = colour * (c(light.direct) * lit * (1.0 - shadow) + c(light.ambient) * 0.9)
    elevation = plane + height
    elevation[0] = -1.0  # nothing shows below the land
    return elevation, _hazed(scene, shaded, height + 0.02, u, 0.30 * t**2), water


def range_planes(scene: Scene, elevation: torch.Tensor) -> torch.Tensor:
    """The foot of the range that each slice of all ranges belongs to: [slices, 1], to mirror them in the water."""
    planes = torch.tensor([r.plane for r in scene.ranges], device=elevation.device)
    return planes.repeat_interleave(_RANGE_SLICES)[:, None]
