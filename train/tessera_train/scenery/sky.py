"""The sky: gradient, sun or moon with its glow, clouds, stars; linear light on a lattice [3, rows, columns].

Low clouds are a volume: a periodic slab of density, lit by marching to the light, seen by marching along the view.
"""

import math

import torch
import torch.nn.functional as F

from .noise import Draw, Tile, lerp, smooth
from .scene import MOON_RADIUS, SUN_RADIUS, Scene

TOP = 0.68
"""The lattice covers e in [0, TOP] from top to bottom: no picture shows more."""
_PLANES, _CELLS, _EXTENT = 18, 256, 10.0
_STARS = 900


def gradient(scene: Scene, u: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    """Clear sky without disc at (u, e), broadcast: [3, ...]."""
    light = scene.light
    c = lambda x: x[:, None, None]
    turn = torch.atan(u) - light.azimuth
    towards = torch.exp(-((turn / 0.62) ** 2)) + 0.0 * e
    horizon = lerp(c(light.horizon), c(light.sunside), towards)
    middle = lerp(c(light.middle), c(light.horizon), 0.35 * towards)
    sky = lerp(c(light.zenith), middle, torch.exp(-((e / 0.42) ** 1.5)))
    reach = 0.13 + 0.09 * towards
    sky = lerp(sky, horizon, torch.exp(-((e.clamp_min(0.0) / reach) ** 1.2)))
    if scene.time == "dusk":
        # Opposite the sun that has set: the earth's shadow, blue, under a rosy belt.
        opposite = 0.5 - 0.5 * torch.cos(turn)
        belt = torch.exp(-(((e - 0.17) / 0.08) ** 2)) * opposite
        sky = sky * (1.0 + belt * c(torch.tensor([0.30, 0.05, 0.10], device=u.device)))
        shadow = torch.exp(-((e / 0.10) ** 2)) * opposite
        sky = lerp(sky, c(light.middle) * c(torch.tensor([0.75, 0.85, 1.0], device=u.device)), 0.6 * shadow)
    return sky


def _volume(scene: Scene, draw: Draw):
    """Density of the slab and the share of direct light in it: [planes, 2, cells, cells], periodic across; and the
    billows alone, for the details."""
    clouds = scene.clouds
    n = _PLANES
    dy = clouds.thickness / n
    waves = torch.fft.rfftn(torch.stack([draw.normals(_CELLS, _CELLS) for _ in range(n)]))
    fy = torch.fft.fftfreq(n, dy, device=draw.device)[:, None, None]
    fz = torch.fft.fftfreq(_CELLS, _EXTENT / _CELLS, device=draw.device)[:, None]
    fx = torch.fft.rfftfreq(_CELLS, _EXTENT / _CELLS, device=draw.device)[None, :]
    flat = fz**2 + fx**2
    k = torch.sqrt(flat + fy**2).clamp_min(1e-3)
    unit = lambda gain: (lambda x: x / x.std())(torch.fft.irfftn(waves * gain, s=(n, _CELLS, _CELLS)))
    # Where clouds stand: the same in every plane.
    broad = (fy == 0.0) * torch.exp(-0.5 * (torch.log2(torch.sqrt(flat).clamp_min(1e-3) * clouds.size / 0.55) / 0.7) ** 2)
    # Bulges on them, rounded outwards, meeting in creases.
    bulge = unit(torch.exp(-0.5 * (torch.log2(k * clouds.size / 1.7) / 0.55) ** 2)).abs() - 0.8
    y = ((torch.arange(n, device=draw.device) + 0.5) / n)[:, None, None]
    level = _quantile(clouds.cover)
    field = unit(broad) - level
    if scene.weather == "overcast":
        shape = 0.62 + 0.34 * field + 0.25 * bulge
        density = shape.clamp(0.0, 1.0) * smooth(y, 0.0, 0.3) * smooth(1.0 - y, 0.0, 0.3)
    else:
        shape = 0.95 * field + 0.55 * bulge - 0.85 * y**1.3
        density = smooth(shape, 0.0, 0.45 * clouds.softness) * smooth(y, 0.0, 0.10)
    across, up, depth = scene.light.true_direction
    n2 = math.sqrt(across**2 + max(up, 0.10) ** 2 + depth**2)
    step = (across / n2, max(up, 0.10) / n2 if up > -0.02 else -0.16, depth / n2)
    tau = torch.zeros_like(density)
    last = 0.0
    cell = _EXTENT / _CELLS
    padded = F.pad(density, (0, 0, 0, 0, n, n))
    for reach in (0.05, 0.11, 0.20, 0.34, 0.55):
        shift = round(step[1] * reach / dy)
        if abs(shift) >= n:
            break
        seen = padded[n + shift : 2 * n + shift]
        tau = tau + (reach - last) * torch.roll(seen, (-round(step[2] * reach / cell), -round(step[0] * reach / cell)), (1, 2))
        last = reach
    lit = 0.62 * torch.exp(-9.0 * tau) + 0.38 * torch.exp(-2.6 * tau)
    return torch.stack((density, lit), 1), bulge


def _quantile(share: float) -> float:
    """The level that a normal number exceeds with probability `share`."""
    return -math.sqrt(2.0) * torch.erfinv(torch.tensor(2.0 * min(max(share, 0.01), 0.99) - 1.0)).item()


def _sample(tile: torch.Tensor, x: torch.Tensor, z: torch.Tensor, extent: float) -> torch.Tensor:
    """A periodic tile [channels, cells, cells] at (x, z): [channels, rows, columns]."""
    place = torch.stack((x, z), -1).div_(extent)
    place = place.sub_(place.floor()).mul_(2.0).sub_(1.0).mul_(tile.shape[1] / (tile.shape[1] + 2))
    padded = F.pad(tile[None], (1, 1, 1, 1), mode="circular")
    return F.grid_sample(padded, place[None], mode="bilinear", align_corners=False)[0]


def _low_clouds(scene: Scene, draw: Draw, u: torch.Tensor, e: torch.Tensor, clear: torch.Tensor):
    """What the low clouds add [3, rows, columns] and what of the sky behind they let through."""
    light, clouds = scene.light, scene.clouds
    volume, bulge = _volume(scene, draw)
    coarse = F.avg_pool2d(F.pad(volume, (4, 4, 4, 4), mode="circular"), 9, 1)
    through = torch.ones_like(u + e)
    total, glow = torch.zeros_like(through), torch.zeros_like(through)
    at = e.clamp_min(0.012)
    # Far off, a row is deeper than a cloud: the smoothed slab.
    far = smooth(at, 0.16, 0.06)
    dy = clouds.thickness / _PLANES
    path = dy * torch.sqrt(1.0 + at * at + u * u) / at
    split = [int((1.0 - limit / TOP) * e.shape[0]) for limit in (0.16, 0.06)]
    crumbs = torch.zeros_like(through)
    strength = 0.35 if scene.weather == "overcast" else 1.0
    # Of each four neighbours one looks at the first quarter of a plane's height, one at the second ...: together they see
    # four times as many planes.
    pattern = torch.tensor([[0.125, 0.625], [0.875, 0.375]], device=u.device)
    part_of = pattern.repeat(e.shape[0] // 2, (u.shape[1] + 1) // 2)[:, : u.shape[1]]
    for plane in range(_PLANES):
        height = dy * (plane + part_of)
        s = (1.0 + height) / at
        x, z = u * s, s + 0.0 * u
        here = _sample(coarse[plane], x[split[0] :], z[split[0] :], _EXTENT)
        near = _sample(volume[plane], x[: split[1]], z[: split[1]], _EXTENT)
        both = lerp(near[:, split[0] :], here[:, : split[1] - split[0]], far[split[0] : split[1]])
        here = torch.cat((near[:, : split[0]], both, here[:, split[1] - split[0] :]), 1)
        x, z = x[: split[1]] + 0.8 * height[: split[1]], z[: split[1]] - 0.7 * height[: split[1]]
        fine = _sample(bulge[plane : plane + 1], x, z, _EXTENT / 3.3)[0]
        finer = _sample(bulge[:1], x, z, _EXTENT / 9.1)[0]
        crumbs[: split[1]] = strength * (1.0 - far[: split[1]]) * (0.62 * fine + 0.30 * finer)
        edge = here[0] * (1.0 - here[0]) * 4.0
        density = (here[0] + 0.30 * edge * crumbs).clamp(0.0, 1.0)
        if scene.weather != "overcast":
            density = smooth(density, 0.06, 0.62)
        alpha = 1.0 - torch.exp(-(13.0 if scene.weather != "overcast" else 9.0) * density * path.clamp_max(0.35))
        lit = here[1] * (1.0 + 0.22 * crumbs)
        part = through * alpha
        total = total + part * lit
        glow = glow + part * (0.55 + 0.45 * (plane + 0.5) / _PLANES + 0.10 * crumbs)
        through = through * (1.0 - alpha)
    total, glow, through = _together(torch.stack((total, glow, through)))
    c = lambda v: v[:, None, None]
    cover = 1.0 - through
    angle = torch.sqrt((u - light.u) ** 2 + (e - light.e) ** 2)
    forward = 0.75 + 1.5 * torch.exp(-angle / 0.25)
    if scene.time == "night":
        sun, shade = 0.30 * light.direct, 0.5 * light.ambient + 0.4 * light.middle
    elif scene.time == "dusk":
        sun, shade = 0.45 * light.sunside + 0.45 * light.direct, 0.4 * light.ambient + 0.38 * light.middle
        turn = torch.atan(u) - light.azimuth
        forward = 0.35 + 1.25 * torch.exp(-((turn / 0.7) ** 2) - e / 0.6)
    else:
        sun, shade = 0.62 * light.direct + 0.12 * light.sunside, 0.75 * light.ambient + 0.28 * light.middle
    if scene.weather == "overcast":
        sun, shade = 1.1 * light.zenith, 0.72 * light.middle
    colour = c(sun) * total * forward + c(shade) * glow
    # Air between here and the far clouds.
    air = torch.exp(-0.085 * scene.haze * (1.0 / at - 1.0).clamp_min(0.0))
    colour = lerp(clear * cover, colour, air)
    if light.disc != "none":
        # The disc stands in a gap, or behind a thin edge.
        gap = smooth(angle, 0.05, 0.17)
        colour, through = colour * gap, lerp(torch.ones_like(through), through, gap)
    return colour, through


def _together(planes: torch.Tensor) -> torch.Tensor:
    """Each point with its neighbours, weighed 1, 2, 1 both ways: any four of them count alike."""
    return F.avg_pool2d(F.avg_pool2d(F.pad(planes[None], (1, 1, 1, 1), mode="replicate"), 2, 1), 2, 1)[0]


def _cirrus(scene: Scene, draw: Draw, u, e) -> torch.Tensor:
    """Cover [rows, columns] of the high clouds: fibres combed by the wind, or small cells."""
    clouds = scene.clouds
    tile = Tile(draw)
    s = 3.0 / e.clamp_min(0.05)
    x, z = u * s, s + 0.0 * u
    where = smooth(tile.at(x, z, 9.0, 1.7, True) + 0.5 * tile.at(x, z, 4.0, 0.4, True), 0.0, 1.6)
    c, t = math.cos(clouds.turn), math.sin(clouds.turn)
    along, beside = c * x - t * z, t * x + c * z
    if clouds.cells:
        warp = 0.5 * tile.at(x, z, 3.0, 2.2)
        cells = tile.at(along + warp, 1.25 * beside, 0.62, 0.9) + 0.45 * tile.at(along, beside, 0.27, 2.4)
        body = smooth(0.8 * cells + 0.8 * where, -0.2, 2.2)
    else:
        warp = 0.55 * tile.at(x, z, 7.0, 2.2, True) + 0.12 * tile.at(x, z, 1.8, 0.8)
        beside = beside + warp
        fibres = 0.0
        for wavelength, gain, turn in ((1.9, 0.55, 0.0), (0.8, 0.5, 0.12), (0.36, 0.38, -0.1), (0.17, 0.24, 0.06)):
            fibres = fibres + gain * tile.at(0.13 * along, beside, wavelength, turn)
        body = smooth(0.7 * fibres + 0.9 * where, -0.2, 2.2)
    return clouds.cirrus * 0.85 * body * where * smooth(e, 0.03, 0.14)


def _stars(draw: Draw, rows: int, u: torch.Tensor) -> torch.Tensor:
    """[rows, columns]; each star a small Gaussian, no finer than the lattice."""
    at_u, at_e, magnitude = 2.2 * draw.uniforms(_STARS) - 1.1, draw.uniforms(_STARS) * TOP, draw.uniforms(_STARS)
    columns = u.shape[1]
    cell = u[0, 1] - u[0, 0]
    layer = torch.zeros((rows + 8) * (columns + 8), device=draw.device)
    column, row = (at_u - u[0, 0]) / cell + 4.0, rows * (1.0 - at_e / TOP) + 3.5
    brightness = 0.10 + 1.3 * magnitude**8
    width = 0.62 + 0.3 * magnitude**8
    for dy in range(-2, 4):
        for dx in range(-2, 4):
            j, i = column.floor() + dx, row.floor() + dy
            inside = (j >= 0) & (j < columns + 8) & (i >= 0) & (i < rows + 8)
            fall = torch.exp(-((j - column) ** 2 + (i - row) ** 2) / (2 * width**2)) * inside
            at = i.clamp(0, rows + 7).long() * (columns + 8) + j.clamp(0, columns + 7).long()
            layer.index_add_(0, at, brightness * fall)
    return layer.reshape(rows + 8, columns + 8)[4:-4, 4:-4]


def sky(scene: Scene, draw: Draw, u: torch.Tensor, rows: int) -> torch.Tensor:
    """The sky over the columns `u` [1, columns]; [3, rows, columns], from TOP down to the horizon; rows is even."""
    light, device = scene.light, draw.device
    e = (TOP * (1.0 - (torch.arange(rows, device=device) + 0.5) / rows))[:, None]
    c = lambda x: x[:, None, None]
    of = lambda *rgb: torch.tensor(rgb, device=device)[:, None, None]
    clear = gradient(scene, u, e)
    picture = clear
    r = torch.sqrt((u - light.u) ** 2 + (e - light.e) ** 2)
    if light.night > 0.0:
        tile = Tile(draw)
        band = (e - 0.34) - 0.6 * light.direction[0] * u
        milk = torch.exp(-((band / 0.15) ** 2)) * (
            1.0 + 0.35 * tile.at(u + 0.0 * e, band, 0.21, 0.3, True) + 0.25 * tile.at(u + 0.0 * e, e + 0.0 * u, 0.09, 1.3)
        )
        dust = smooth(tile.at(u + 0.0 * e, 2.0 * band, 0.16, 2.0, True) - (band / 0.07) ** 2, -0.6, 0.8)
        glow = (milk * (1.0 - 0.65 * dust)).clamp_min(0.0)
        stars = _stars(draw, rows, u)
        picture = picture + smooth(e, 0.01, 0.30) * (
            0.9 * stars * (1.0 + glow) * of(0.95, 0.97, 1.05) + glow * of(0.016, 0.017, 0.027)
        )
    if light.disc == "moon":
        picture = picture + (0.10 * torch.exp(-r / 0.10) + 0.30 * torch.exp(-((r / 0.05) ** 2))) * of(0.55, 0.66, 0.85)
        x, y = (u - light.u) / MOON_RADIUS, (e - light.e) / MOON_RADIUS
        seas = (
            torch.exp(-((x + 0.3) ** 2 + (y - 0.3) ** 2) / 0.12)
            + torch.exp(-((x - 0.25) ** 2 + (y - 0.1) ** 2) / 0.06)
            + 0.7 * torch.exp(-((x + 0.15) ** 2 + (y + 0.35) ** 2) / 0.08)
        )
        moon = of(1.25, 1.22, 1.10) * (1.0 - 0.38 * seas.clamp_max(1.0))
        picture = lerp(picture, moon, smooth(r, MOON_RADIUS + 0.002, MOON_RADIUS - 0.002))
    elif light.night == 0.0 and light.veil == 0.0 and abs(light.azimuth) < 1.3:
        low = math.exp(-max(light.elevation, 0.0) / 16.0) if light.elevation > 0.0 else 0.35
        colour = lerp(light.sunside, light.direct / light.direct.max(), 0.4)
        halo = (0.18 + 0.42 * low) * torch.exp(-r / 0.20)
        if light.disc == "sun":
            halo = halo + 0.55 * torch.exp(-((r / 0.065) ** 2)) + 0.20 * torch.exp(-r / 0.05)
        picture = picture + halo * c(colour)
    if light.disc == "sun":
        disc = smooth(r, SUN_RADIUS + 0.002, SUN_RADIUS - 0.003)
        picture = lerp(picture, of(3.4, 2.9, 2.1), disc)
    if scene.clouds.cirrus > 0.0:
        cover = _cirrus(scene, draw, u, e)
        if scene.time == "night":
            veil = 0.5 * light.middle + 0.25 * light.horizon
        elif scene.time == "dusk":
            veil = 0.75 * light.sunside + 0.25 * light.horizon
        else:
            veil = 0.50 * light.direct + 0.30 * light.horizon
        forward = 1.0 + 0.5 * torch.exp(-r / 0.3)
        if light.disc != "none":
            cover = cover * lerp(0.35, 1.0, smooth(r, 0.03, 0.10))
        picture = lerp(picture, c(veil) * forward, cover)
    if scene.clouds.cover > 0.0:
        added, through = _low_clouds(scene, draw, u, e, clear)
        picture = picture * through + added
    return picture
