"""`render`: one seed, one picture."""

import torch
import torch.nn.functional as F

from . import compose, terrain
from . import sky as sky_module
from .noise import SEED_LIMIT, TAU, Draw, ground_tile, lerp, profile, resize, smooth, world
from .scene import Scene, plan

VERSION = 2
"""Raised whenever the picture of some seed changes."""
MIN_SIDE, MAX_WIDTH, MAX_HEIGHT = 32, 4096, 2048


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


def _waves(scene: Scene, draw: Draw) -> torch.Tensor:
    """Slopes of the water towards the viewer on a lattice [rows below the horizon, columns], of about unit deviation near
    the viewer; laid out in the world's plane, wider than deep, and calm where they are too fine to be seen."""
    rows, columns = 176, 768
    tile = ground_tile(draw)
    below = (1.0 - scene.horizon) * ((torch.arange(rows, device=draw.device) + 0.5) / rows)[:, None]
    u = (2.0 * (torch.arange(columns, device=draw.device) + 0.5) / columns - 1.0)[None, :]
    z = 1.0 / below
    total = torch.zeros(rows, columns, device=draw.device)
    for wavelength, gain, turn in ((2.4, 0.5, 0.08), (0.9, 0.6, -0.12), (0.34, 0.5, 0.05)):
        # Rows are 1 / rows apart: at distance z that is z^2 / rows of water.
        seen = smooth(wavelength * rows * (1.0 - scene.horizon) ** -1 / z**2, 2.5, 7.0)
        total = total + gain * seen * world(tile, 0.35 * u * z, z, wavelength, turn)
    return total


def _reflection(scene: Scene, draw: Draw, elevation, colour, sky, rows: int, height: int, columns: int, offset, width):
    """What the water shows in `rows` rows below the horizon: land and sky upside down, rippled; [3, rows, width]."""
    half = max(rows // 2, 8)
    edges = torch.linspace(0.0, rows / height, half + 1, device=elevation.device)
    plane = terrain.range_planes(scene, elevation)
    mirrored = elevation - 2.0 * plane
    seen = compose.land(mirrored, colour, max(columns // 2, 8), 0, max(columns // 2, 8), edges)
    air = sky[:, -max(1, min(sky.shape[1], round(rows / height / sky_module.TOP * sky.shape[1]))) :]
    air = resize(air, half, seen.shape[2]).flip(1)
    still = seen[:3] + (1.0 - seen[3:4]) * air
    wave = resize(_waves(scene, draw)[None], rows, columns)[0, :, offset : offset + width]
    y = (torch.arange(rows, device=elevation.device) + 0.5)[:, None] / rows
    x = ((torch.arange(width, device=elevation.device) + 0.5 + offset) / columns)[None, :]
    # A slope turns the mirrored ray by twice as much: the picture is looked up higher or lower, never beyond its edges.
    gy = y + scene.wind * wave * height / rows
    gx = x + 0.15 * scene.wind * wave
    where = torch.stack((2.0 * gx - 1.0, 2.0 * gy - 1.0), -1)[None]
    mirrored_picture = F.grid_sample(still[None], where, mode="bilinear", padding_mode="reflection",
                                     align_corners=False)[0]
    deep = (0.30 * scene.light.ambient + 0.06 * scene.light.zenith)[:, None, None] * scene.depths[:, None, None]
    # Fresnel (Schlick's form, softened): a mirror at the far shore, looked into from above at the near one. Faces that
    # lean to the viewer show more of the depth.
    glance = (0.9 * y * rows / height + 2.0 * scene.wind * wave * y).clamp(0.0, 0.9)
    share = 0.06 + 0.88 * (1.0 - glance) ** 4
    return lerp(deep, mirrored_picture, share)


def _foreground(scene: Scene, draw: Draw, picture, height: int, columns: int, offset: int, width: int):
    """A line of conifers before everything, at one side of the picture; the light is mostly behind them."""
    device = picture.device
    count = 46
    place, size, slim = draw.uniforms(count), draw.uniforms(count), draw.uniforms(count)
    base = profile(draw, 512, 2.0, 1.0, 1.6)
    if scene.foreground_trees == 0.0:
        return picture
    x = ((torch.arange(width, device=device) + 0.5 + offset) / columns) * 2.0 - 1.0
    # Trees crowd at one side and thin out to the middle.
    centre = scene.tree_side * (1.08 - 1.0 * place**1.4)
    edge = (scene.tree_side * centre).clamp(0.0, 1.0)
    tall = scene.foreground_trees * (0.35 + 0.65 * size) * (0.25 + 0.75 * edge)
    ground = resize(base[None, None], 1, columns)[0, 0, offset : offset + width]
    soil = -(1.0 - scene.horizon) + 0.025 + 0.07 * smooth(scene.tree_side * x, -0.3, 1.0) + 0.012 * ground
    first = max(0, int((scene.horizon - (-(1.0 - scene.horizon) + 0.12 + scene.foreground_trees)) * height))
    e = scene.horizon - (torch.arange(first, height, device=device) + 0.5)[:, None] / height
    light, ambient = scene.light, 0.75 * scene.light.ambient
    dark = scene.trees * (ambient + 0.10 * light.direct)
    shade = dark[:, None, None] * (1.0 + 0.5 * (e + 1.0 - scene.horizon))
    soil_cover = torch.sigmoid((soil[None, :] - e) * height * 3.0)
    foot = torch.full_like(centre, -(1.0 - scene.horizon) + 0.015) + 0.05 * smooth(edge, 0.0, 1.0)
    trees = torch.stack((centre, tall, tall * (0.13 + 0.09 * slim), foot, 3.0 * slim)).T[tall.argsort()].tolist()
    towards = 1.0 if light.direction[0] > 0 else -1.0
    for c, h, w, root, phase in trees:
        left = max(0, int((c - 1.3 * w + 1.0) * 0.5 * columns) - offset)
        right = min(width, int((c + 1.3 * w + 1.0) * 0.5 * columns) + 2 - offset)
        if left >= right:
            continue
        top = max(first, int((scene.horizon - (root + 1.02 * h)) * height)) - first
        signed = (x[left:right] - c)[None, :]
        dx, up = signed.abs(), (e[top:] - root) / h
        # Branches in tiers: the outline swells and narrows on its way up.
        tier = 0.80 + 0.20 * torch.cos(TAU * (7.0 * up + phase))
        outline = w * ((1.0 - up).clamp_min(-0.2) * tier)
        inside = torch.minimum(outline - dx, (1.0 - up) * h) * height
        # Each tier is lit on its upper side and on the side of the light, and dark beneath.
        lit = smooth(towards * signed / outline.clamp_min(1e-4), -0.4, 1.0) * (0.5 - 0.5 * torch.sin(TAU * (7.0 * up + phase)))
        bright = scene.trees[:, None, None] * light.direct[:, None, None] * (0.45 * lit)
        window = picture[:, first + top :, left:right]
        window.copy_(lerp(window, shade[:, top:] + bright, torch.sigmoid(inside * 2.2)))
    picture[:, first:] = lerp(picture[:, first:], shade, soil_cover)
    return picture


@torch.no_grad()
def render(seed: int, width: int, height: int, device="cpu") -> torch.Tensor:
    """The picture of `seed`: uint8 [height, width, 3], sRGB, on `device`.

    The same seed, size and device give the same bytes; another size gives the same scene. Raises ValueError for a
    size outside the limits (`check_size`) or a seed outside [0, 2^32).
    """
    check_size(width, height)
    check_seed(seed)
    draw = Draw(seed, torch.device(device))
    scene = plan(draw)
    columns, offset = 2 * height, (2 * height - width) // 2
    sky = sky_module.sky(scene, draw)
    near_e, near_c, water = terrain.ground(scene, draw)
    hills = [terrain.mountains(scene, r, draw) for r in scene.ranges]
    far_e = torch.cat([h[0] for h in hills])
    far_c = torch.cat([h[1] for h in hills], 1)

    sky_rows = min(height, round(sky_module.TOP * height))
    above = round(scene.horizon * height)
    picture = torch.empty(3, height, width, device=draw.device)
    full = resize(sky, sky_rows, columns)[:, :, offset : offset + width]
    shown = min(above, sky_rows)
    picture[:, above - shown : above] = full[:, sky_rows - shown :]
    picture[:, : above - shown] = picture[:, above - shown : above - shown + 1]
    picture[:, above:] = picture[:, above - 1 : above]

    elevation = torch.cat((near_e, far_e))
    planes = torch.cat((torch.cat((near_c * (1.0 - water), far_c), 1), torch.cat((water, torch.zeros_like(far_e)))[None]))
    highest = min(above, int((float(far_e.max()) + 0.01) * height) + 2)
    rows = height - above + highest
    edges = (torch.arange(rows + 1, device=draw.device) - (height - above)) / height
    seen = compose.land(elevation, planes, columns, offset, width, edges).flip(1)
    window = picture[:, height - rows :]
    behind = (1.0 - seen[4:5]).clamp_(0.0, 1.0)
    window.mul_(behind).add_(seen[:3])
    if scene.lake:
        mirror = _reflection(scene, draw, far_e, far_c, sky, height - above, height, columns, offset, width)
        picture[:, above:] += seen[3:4, highest:] * mirror
    picture = _foreground(scene, draw, picture, height, columns, offset, width)
    return compose.tone(picture).permute(1, 2, 0).contiguous()
