"""Lakes and the sea: what they mirror, rippled, and the path of light under the disc."""

import torch
import torch.nn.functional as F

from .noise import Draw, Tile, lerp, resize, smooth
from .scene import Scene


def shore(water: torch.Tensor, elevation: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Depth at which the water ends in each column, [1, columns]: of the farthest water that is seen."""
    seen = (water > 0.5) & (elevation >= torch.cummax(elevation, 0).values - 1e-6)
    return (seen * z).amax(0, keepdim=True).clamp_min(1.0)


def _slopes(scene: Scene, draw: Draw, x: torch.Tensor, z: torch.Tensor, rows_per_height: float):
    """Slopes of the surface towards the viewer and across, of about unit deviation close by; waves are wider than deep,
    and left out where they are too fine to be seen."""
    tile = Tile(draw)
    toward, across = torch.zeros_like(x), torch.zeros_like(x)
    waves = ((3.0, 0.5, 0.08), (1.3, 0.5, -0.14), (0.55, 0.5, 0.10), (0.24, 0.4, -0.06), (0.10, 0.35, 0.12))
    for wavelength, gain, turn in waves:
        # Rows are 1 / rows_per_height apart: at distance z that is z^2 / rows_per_height of water.
        seen = smooth(wavelength * rows_per_height / z**2, 1.5, 5.0)
        toward = toward + gain * seen * tile.at(0.32 * x, z, wavelength, turn)
        across = across + gain * seen * tile.at(0.5 * x, z, wavelength, turn + 2.0)
    return toward, across


def reflect(
    scene: Scene,
    draw: Draw,
    picture: torch.Tensor,
    wet: torch.Tensor,
    air: torch.Tensor,
    above: int,
    end: torch.Tensor,
    u: torch.Tensor,
):
    """What the water shows in the rows below the horizon: [3, rows, columns].

    picture [3, height, columns], finished above and at the far shore; wet [rows, columns], share of water, where it is still black; air [3, 1, columns], the haze at the horizon; above: rows
    over the horizon; end [1, columns], the depth of the far shore; u [1, columns].
    """
    height, columns = picture.shape[1:]
    rows = height - above
    light = scene.light
    device = picture.device
    e = -((torch.arange(rows, device=device) + 0.5) / height)[:, None]
    z = -1.0 / e
    sea = scene.water == "sea"
    # The lattice of waves is coarser than the picture.
    lattice = (min(rows, 384), min(columns, 1024))
    el = resize(e.expand(rows, columns)[None], *lattice)[0]
    ul = resize(u.expand(rows, columns)[None], *lattice)[0]
    zl = -1.0 / el
    toward, across = _slopes(scene, draw, ul * zl, zl, lattice[0] * height / rows)
    strength = (0.012 + 0.075 * scene.wind) if sea else (0.003 + 0.014 * scene.wind)
    slopes = resize(torch.stack((toward, across)), rows, columns)
    toward, across = strength * slopes[0], strength * slopes[1]
    # What stands at the far shore is mirrored about the foot of it.
    source = -e - 2.0 / end + 2.0 * toward
    source = torch.maximum(source, -1.0 / end + 0.0 * source)
    picture = picture.clone()
    picture[:, above:] += 0.6 * wet * air
    blurred = F.avg_pool2d(picture[None], (4, 2) if not sea else (8, 4), ceil_mode=True)[0] if height >= 256 else picture
    v = (above - source * height) / height
    x = (torch.arange(columns, device=device) + 0.5) / columns + 0.6 * across
    place = torch.stack((2.0 * x - 1.0, 2.0 * v - 1.0), -1)[None]
    mirrored = F.grid_sample(blurred[None], place, mode="bilinear", padding_mode="reflection", align_corners=False)[0]
    c = lambda q: q[:, None, None]
    deep = c(scene.depths) * (
        1.3 * c(light.ambient) + 0.5 * c(light.direct) * max(light.direction[1], 0.1) * (1.0 - light.veil)
    )
    # Fresnel (Schlick's form): a mirror far off, looked into from above near by. Faces that lean to the viewer show more
    # of the depth; of rough water it is those that are seen.
    glance = (-e * (1.0 if not sea else 1.25) + (2.2 if sea else 3.0) * toward).clamp(0.0, 0.95)
    share = 0.04 + 0.90 * (1.0 - glance) ** (4.0 if not sea else 5.0)
    result = lerp(deep, mirrored, share)
    if light.disc != "none" or (light.night == 0.0 and light.veil == 0.0 and abs(light.azimuth) < 1.3):
        width = 0.035 + 2.2 * strength
        du = u + 3.0 * across - light.u
        glitter = torch.exp(-((du / width) ** 2)) * torch.exp(-(((source - light.e) / (0.10 + 4.0 * strength)) ** 2))
        colour = lerp(light.sunside, light.direct, 0.5) if light.night == 0.0 else 0.6 * light.horizon
        sparkle = smooth(slopes[0] + 0.5 * slopes[1], -0.3, 1.2)
        strong = {"sun": 1.6, "moon": 0.9}.get(light.disc, 0.5)
        result = result + strong * glitter * (0.25 + 0.9 * sparkle) * c(colour)
    # Far water is seen through air.
    result = lerp(result, air, 0.75 * (1.0 - torch.exp(-(z - 1.0) / 160.0)))
    return result
