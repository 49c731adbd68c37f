"""The sky: gradient, sun or moon with its glow, clouds, stars; linear light on a fixed lattice [3, ROWS, COLUMNS]."""

import math

import torch
import torch.nn.functional as F

from .noise import Draw, Spectrum, lerp, smooth
from .scene import HALF_WIDTH, Scene

ROWS, COLUMNS = 384, 1024
"""The lattice covers e in [0, TOP] from top to bottom and u in [-1, 1]."""
TOP = 0.75
_TILE = 640
_TILE_EXTENT = 3.0


def _grid(device):
    e = TOP * (1.0 - (torch.arange(ROWS, device=device) + 0.5) / ROWS)[:, None]
    u = HALF_WIDTH * (2.0 * (torch.arange(COLUMNS, device=device) + 0.5) / COLUMNS - 1.0)[None, :]
    return u, e


def gradient(scene: Scene, u: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    """Clear sky without disc at (u, e), broadcast: [3, ...]."""
    light = scene.light
    c = lambda x: x[:, None, None]
    towards = torch.exp(-(((u - light.u) / 0.75) ** 2)) + 0.0 * e
    horizon = lerp(c(light.horizon), c(light.sunside), towards)
    sky = lerp(c(light.zenith), c(light.middle), torch.exp(-((e / 0.42) ** 1.5)))
    # A low sun colours the sky higher up.
    reach = (0.13 + 0.08 * towards) * (1.0 + 0.6 * math.exp(-(((light.elevation - 2.0) / 7.0) ** 2)))
    return lerp(sky, horizon, torch.exp(-((e / reach) ** 1.2)))


def _clouds(scene: Scene, draw: Draw, u, e):
    """Cover [rows, columns] in 0..1, the share of direct light that reaches it, and how thick it is, 0..1."""
    amount = draw.uniform(-1.4, 0.6)
    stretch = draw.uniform(0.7, 1.5)
    soft = draw.uniform(0.7, 1.3)
    tile = Spectrum(draw, _TILE, _TILE, _TILE_EXTENT, _TILE_EXTENT)
    broad = tile.fractal(0.9, 0.9, stretch)
    # Billows: bulges that meet in creases, finer ones upon them.
    sizes = ((2.2, 0.5), (4.6, 0.36), (9.5, 0.24), (19.0, 0.14))
    bulges = sum(gain * (tile.band(frequency, stretch).abs() - 0.8) for frequency, gain in sizes)
    density = 0.8 * broad + bulges + amount - 0.45
    # The layer hangs above the land: towards the horizon it closes up.
    depth = 0.42 / (e + 0.22)
    centre = 0.3 * scene.light.u
    # (Less across than in depth: clouds are high as well as wide, a flat layer's perspective would lay them over.)
    x, y = (u - centre) * (0.4 * depth + 0.4) + centre, 0.8 * depth + 0.0 * u

    def sample(field, dx, dy):
        gx = ((x + dx) / _TILE_EXTENT) * 2.0
        gy = ((y + dy) / _TILE_EXTENT) * 2.0 - 1.0
        padded = F.pad(field[None, None], (_TILE // 2, _TILE // 2, 0, 0), mode="circular")
        return F.grid_sample(padded, torch.stack((gx / 2.0, gy), -1)[None], mode="bilinear",
                             padding_mode="reflection", align_corners=False)[0, 0]

    here = sample(density, 0.0, 0.0)
    # Light comes along the layer from the disc: thickness a little nearer to it shades what is here.
    length = torch.sqrt((u - scene.light.u) ** 2 + (e - scene.light.e) ** 2).clamp_min(0.05)
    dx, dy = -(u - scene.light.u) / length, (e - scene.light.e) / length
    beside, toward = sample(density, 0.025 * dx, 0.025 * dy), sample(density, 0.11 * dx, 0.11 * dy)
    cover = 1.0 - torch.exp(-2.0 / soft * F.softplus(3.0 * here) * smooth(here, -0.35, 0.7))
    cover = cover * smooth(e, -0.02, 0.16)
    lit = torch.exp(-0.75 * F.softplus(1.8 * toward)) * (0.35 + 1.3 * torch.sigmoid(6.0 * (here - beside)))
    return cover, lit, torch.sigmoid(1.5 * here)


def _stars(draw: Draw, device) -> torch.Tensor:
    """[rows, columns]; each star a small Gaussian, no finer than three pixels at 1024 rows."""
    count = 520
    at_u, at_e = draw.uniforms(count), draw.uniforms(count)
    brightness = 0.10 + 1.1 * draw.uniforms(count) ** 7
    layer = torch.zeros(ROWS + 8, COLUMNS + 8, device=device)
    column, row = at_u * COLUMNS, at_e * ROWS
    for dy in range(-3, 4):
        for dx in range(-3, 4):
            j, i = column.floor() + dx, row.floor() + dy
            fall = torch.exp(-((j + 0.5 - column) ** 2 + (i + 0.5 - row) ** 2) / (2 * 0.78**2))
            layer.index_put_(((i + 4).long(), (j + 4).long()), brightness * fall, accumulate=True)
    return layer[4:-4, 4:-4]


def sky(scene: Scene, draw: Draw) -> torch.Tensor:
    light, device = scene.light, draw.device
    u, e = _grid(device)
    c = lambda x: x[:, None, None]
    picture = gradient(scene, u, e)
    cover, lit, thick = _clouds(scene, draw, u, e)
    stars = _stars(draw, device)
    r2 = (u - light.u) ** 2 + (e - light.e) ** 2
    r = torch.sqrt(r2)
    day = 1.0 - light.night
    glow_colour = lerp(light.sunside, light.direct / light.direct.max(), 0.4)
    if light.night > 0.0:
        milky = torch.exp(-(((e - 0.35) - 0.5 * light.direction[0] * u) / 0.16) ** 2)
        picture = picture + light.night * smooth(e, 0.02, 0.3) * (
            stars * 0.8 * torch.ones(3, 1, 1, device=device) + milky * c(torch.tensor([0.010, 0.011, 0.020], device=device)))
        halo = 0.10 * torch.exp(-r / 0.10) + 0.35 * torch.exp(-((r / 0.045) ** 2))
        picture = picture + light.night * halo * c(torch.tensor([0.55, 0.66, 0.85], device=device))
        disc = smooth(r, 0.0275, 0.0235)
        seas = 0.5 + 0.5 * torch.sin(u * 150.0 + 2.0) * torch.sin(e * 170.0 + u * 60.0)
        moon = c(torch.tensor([0.93, 0.92, 0.84], device=device)) * (0.95 - 0.16 * seas)
        picture = lerp(picture, moon, disc * light.night)
    if day > 0.0:
        low = math.exp(-max(light.elevation, 0.0) / 18.0)
        halo = (0.32 + 0.4 * low) * torch.exp(-r / 0.16) + 0.5 * torch.exp(-((r / 0.06) ** 2))
        picture = picture + day * halo * c(glow_colour)
        disc = smooth(r, 0.030, 0.0255)
        if light.elevation > 0.0:
            picture = lerp(picture, c(torch.tensor([3.2, 2.6, 1.7], device=device)), disc * day)
    # Thin cloud passes light forward near the disc: the silver lining.
    forward = 0.9 * torch.exp(-r / 0.22)
    if light.elevation < -8.0 and light.night < 0.5:
        forward = 0.4 * forward
    shade = lerp(light.ambient * 1.15, light.horizon, 0.35)
    bright = light.direct * (0.72 if day > 0.5 else 0.35) + 0.25 * light.sunside
    cloud = c(shade) * (1.15 - 0.7 * thick) + lit * (0.85 + forward) * c(bright)
    far = torch.exp(-((e / 0.16) ** 1.3))
    cloud = lerp(cloud, gradient(scene, u, e), 0.6 * far)
    return lerp(picture, cloud, 0.94 * cover)
