"""`render`: one seed, one picture."""

import math

import torch
import torch.nn.functional as F

from . import compose, planting, water
from .air import haze, light
from .noise import SEED_LIMIT, Draw, Tile, blur, lerp, profile, resize
from .scene import Scene, plan
from .sky import TOP
from .sky import sky as draw_sky
from .terrain import Land
from .terrain import land as draw_land

VERSION = 3
"""Raised whenever the picture of some seed changes."""
MIN_SIDE, MAX_WIDTH, MAX_HEIGHT = 32, 4096, 2048
_COLUMNS, _SKY_ROWS = (384, 1024), (192, 384)
"""Of the lattices of land and sky: the least, and the most, which large pictures have."""
_MARGIN = 0.06


def check_size(width: int, height: int) -> None:
    """Raises ValueError naming the side, its value and its limit."""
    for name, value, limit in (("width", width, MAX_WIDTH), ("height", height, MAX_HEIGHT)):
        if not MIN_SIDE <= value <= limit:
            raise ValueError(f"{name} is {value}, must be from {MIN_SIDE} to {limit}")
    if width > 2 * height:
        raise ValueError(f"width is {width}, must be at most twice the height ({2 * height})")


def check_seed(seed: int, count: int = 1) -> None:
    """Raises ValueError unless seed .. seed + count - 1 are all seeds."""
    if seed < 0 or seed + count > SEED_LIMIT:
        raise ValueError(f"seed is {seed} (with count {count}), must be from 0 and end below {SEED_LIMIT}")


def _octave(tile: Tile, u: torch.Tensor, e: torch.Tensor, depth: torch.Tensor, angle: float, turn: float) -> torch.Tensor:
    """Noise on the land whose wavelength on the picture is about `angle` everywhere: each doubling of the depth takes the
    next coarser octave, the two about a place are blended. depth: the logarithm of z."""
    z = torch.exp(depth)
    x, y = u * z, 1.0 + e * z + depth
    level = depth / math.log(2.0) + math.log2(angle)
    low = level.floor()
    share = level - low
    scale = torch.exp2(-low)
    x, y = x.mul_(scale), y.mul_(scale)
    a, b = tile.at(x, y, 1.0, turn), tile.at(x, y, 2.0, turn)
    return lerp(a, b, share) * torch.rsqrt(share**2 + (1.0 - share) ** 2)


def _grain(draw: Draw, u: torch.Tensor, e: torch.Tensor, depth: torch.Tensor, height: int) -> torch.Tensor:
    """The fine detail of the land's surface, of about unit deviation: [rows, columns]; none where pixels are too large."""
    tile = Tile(draw)
    total = torch.zeros_like(depth)
    for angle, gain, turn in ((0.0065, 0.75, 0.3), (0.021, 0.65, 1.9)):
        shown = min(max((angle * height - 2.0) / 3.0, 0.0), 1.0)
        if shown == 0.0:
            continue
        if angle * height < 16.0:
            total += shown * gain * _octave(tile, u, e, depth, angle, turn)
        else:  # wide enough to be drawn at half the size
            rows, columns = (depth.shape[0] + 1) // 2, (depth.shape[1] + 1) // 2
            half = _octave(
                tile,
                resize(u[None], 1, columns)[0],
                resize(e[None], rows, 1)[0],
                resize(depth[None], rows, columns)[0],
                angle,
                turn,
            )
            total += (
                shown * gain * F.interpolate(half[None, None], size=depth.shape, mode="bilinear", align_corners=False)[0, 0]
            )
    return total


def _layers(scene: Scene, draw: Draw, u: torch.Tensor, e: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """The layers of bare rock, lighter and darker by height: [rows, columns]."""
    lines = profile(draw, 512, 1.0, 9.0, 0.7)
    up = (1.0 + e * z) / (0.26 * z.clamp(20.0, 110.0)) + 0.035 * torch.sin(5.0 * u + 2.0)
    place = torch.stack((up.mul_(2.0).sub_(1.0), torch.zeros_like(up)), -1)[None]
    return (
        0.13
        * scene.strata
        * F.grid_sample(lines[None, None, None], place, padding_mode="reflection", align_corners=False)[0, 0]
    )


def _pixels(scene: Scene, land: Land, width: int, height: int, margin: int, above: int, top: int):
    """The land at the picture's pixels: [8, rows, width], rows from `top` above the horizon down to the picture's edge."""
    depth = torch.log(land.z).expand_as(land.elevation)
    dry = 1.0 - land.water
    planes = torch.cat((land.colour * dry, torch.stack((land.water, land.grain * dry, land.layers * dry, depth))))
    edges = torch.arange(-(height - above), top + 1, device=depth.device) / height
    return compose.seen(land.elevation, planes, width, margin, edges).flip(1)


@torch.no_grad()
def render(seed: int, width: int, height: int, device="cpu", out: torch.Tensor | None = None) -> torch.Tensor:
    """The picture of `seed`: uint8 [height, width, 3], sRGB, on `device`; written into `out` where that is given.

    The same seed, size and device give the same bytes; another size gives the same scene. Raises ValueError for a
    size outside the limits (`check_size`) or a seed outside [0, 2^32).
    """
    check_size(width, height)
    check_seed(seed)
    draw = Draw(seed, torch.device(device))
    scene = plan(draw)
    margin = round(_MARGIN * height)
    wide = width + 2 * margin
    columns = min(max(wide, _COLUMNS[0]), _COLUMNS[1])
    lattice = ((torch.arange(columns, device=draw.device) + 0.5) * (wide / columns) - 0.5 * wide)[None, :] / height
    u = ((torch.arange(width, device=draw.device) + 0.5) - 0.5 * width)[None, :] / height
    # The order of the draws is part of a seed's picture.
    land = draw_land(scene, draw, lattice, wide / columns / height, 1.0 if height > 200 else 0.5)
    heaven = draw_sky(scene, draw, lattice, 2 * (min(max(height, _SKY_ROWS[0]), _SKY_ROWS[1]) // 2))
    above = round(scene.horizon * height)

    picture = torch.empty(3, height, width, device=draw.device)
    rows = round(TOP * height)
    full = resize(heaven, rows, wide)[:, rows - above :, margin : margin + width]
    picture[:, :above] = full
    picture[:, above:] = full[:, -1:]

    air = light(scene, u)
    top = min(above, round(0.55 * height))
    seen = _pixels(scene, land, width, height, margin, above, top)
    first = above - top
    cover = seen[7].clamp(1e-4, 1.0)
    e = ((above - torch.arange(first, height, device=draw.device)) - 0.5)[:, None] / height
    depth = (seen[6] / cover).clamp(-1.0, 9.0)
    z = torch.exp(depth)
    grain = seen[4] * _grain(draw, u, e, depth, height)
    colour = seen[:3] * (1.0 + 0.17 * grain + seen[5] * _layers(scene, draw, u, e, z)).clamp(0.3, 1.8)
    veil = haze(scene, u, z, e)
    wet = seen[3].clamp(0.0, 1.0)
    colour = colour * (1.0 - veil) + air * (veil * (cover - wet).clamp_min(0.0))
    window = picture[:, first:]
    window.mul_((1.0 - cover).clamp_(0.0, 1.0)).add_(colour)

    depths = torch.full((height, width), 9.0, device=draw.device)
    depths[first:] = torch.where(cover > 0.5, depth, torch.full_like(depth, 9.0))
    end = water.shore(land.water, land.elevation, land.z)
    plants = planting.Plants(scene, draw, land, lattice, picture, depths, air, above)
    if scene.water == "none":
        plants.draw()
    else:
        plants.draw(beyond=True)
        end = torch.exp(blur(torch.log(end), 24, 0))
        end = resize(end[None], 1, wide)[0, :, margin : margin + width].clamp_min(1.0)
        mirror = water.reflect(scene, draw, picture, wet[top:], air, above, end, u)
        picture[:, above:] += wet[top:] * (mirror * plants.uncovered[above:])
        plants.draw(beyond=False)
    result = compose.tone(picture).permute(1, 2, 0)
    if out is None:
        return result.contiguous()
    return out.copy_(result)
