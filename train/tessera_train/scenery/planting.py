"""Where a scene's plants stand, and how their sprites get into the picture."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .air import haze
from .noise import Draw, lerp, linear
from .plants import BARE, BROADLEAF, CONIFER, GRASS, RIM, sprites
from .scene import SUN_RADIUS, Scene
from .terrain import Land


@dataclass
class Plant:
    kind: int
    sprite: int
    u: float
    z: float
    height: float  # in units of the eye's height
    wide: float  # its width against its height, 1: as grown
    hue: float  # -1..1, from tree to tree
    flip: bool
    sunk: float = 0.0  # share of it that stands below the ground


def _places(scene: Scene, draw: Draw) -> list[Plant]:
    """Candidates, in no order; those in water or before the disc are dropped later."""
    plants: list[Plant] = []
    random = draw.numbers
    stand = scene.stand
    winter = scene.season == "winter"

    def kind() -> int:
        if stand == "conifers" or (stand == "few" and conifers):
            return CONIFER
        return BARE if winter else BROADLEAF

    def tree(u: float, z: float, scale: float = 1.0) -> None:
        near = min(max((24.0 - z) / 17.0, 0.0), 1.0)
        n = random(5)
        height = scale * (0.36 + 0.55 * near * near) * (0.62 + 0.55 * n[0])
        plants.append(Plant(kind(), int(n[1] * 1e6), u, z, height, 0.85 + 0.4 * n[2], 2.0 * n[3] - 1.0, n[4] < 0.5))

    conifers = draw.chance(0.5)
    if stand == "few":
        for _ in range(3 + int(draw.uniform(0.0, 4.0))):
            u, z = draw.uniform(-1.0, 1.0), draw.uniform(4.0, 15.0)
            for _ in range(1 + int(draw.uniform(0.0, 4.0))):
                tree(u + draw.uniform(-0.5, 0.5) / z, z * draw.uniform(0.9, 1.1))
    elif stand != "none":
        if scene.kind == "forest":
            edge, gap = scene.edge
            far = edge * 1.8
            for _ in range(380):
                n = random(4)
                u, t = 2.2 * n[0] - 1.1, n[1] ** 1.5
                # The edge recedes at the gap, where the view opens.
                open_ = math.exp(-(((u - gap) / 0.30) ** 2))
                z = lerp(edge * (1.0 + 1.3 * open_), far * (1.0 + 0.6 * open_), t)
                if n[2] > 0.92 * open_:
                    tree(u, z, 1.25)
        groves = 3 + int(7.0 * scene.forest)
        for _ in range(groves):
            u, z = draw.uniform(-1.1, 1.1), 4.5 + 16.0 * draw.uniform(0.0, 1.0) ** 0.8
            for _ in range(4 + int(draw.uniform(0.0, 13.0))):
                n = random(3)
                tree(u + 2.2 * (n[0] + n[1] - 1.0) / z, z * (0.85 + 0.3 * n[2]))
        if scene.water == "lake":
            for _ in range(120):
                n = random(3)
                tree(2.2 * n[0] - 1.1, scene.shore[1] * (1.0 + 0.5 * n[1]), 0.9)
        if scene.framing:
            n = random(2)
            tree(scene.framing * (0.55 + 0.35 * n[0]), 2.3 + 0.6 * n[1], 1.5)
    if scene.kind in ("canyon", "valley", "coast"):
        for _ in range(90 if scene.kind == "canyon" else 24):
            n = random(5)
            plants.append(
                Plant(
                    BROADLEAF if not winter else BARE,
                    int(n[0] * 1e6),
                    2.2 * n[1] - 1.1,
                    2.2 * 10.0 ** n[2],
                    0.10 + 0.14 * n[3],
                    1.35,
                    2.0 * n[4] - 1.0,
                    n[4] < 0.5,
                    0.36,
                )
            )
    if scene.tufts > 0.0:
        for _ in range(int(250 * scene.tufts)):
            n = random(5)
            plants.append(
                Plant(
                    GRASS,
                    int(n[0] * 1e6),
                    2.2 * n[1] - 1.1,
                    1.5 * 3.2 ** n[2],
                    0.05 + 0.09 * n[3],
                    1.0 + 0.5 * n[4],
                    2.0 * n[4] - 1.0,
                    n[3] < 0.5,
                )
            )
    return plants


class Plants:
    """Draws the plants of a scene over its picture, far to near."""

    def __init__(self, scene: Scene, draw: Draw, land: Land, lattice, picture, depths, air, above: int):
        """picture [3, height, width]; depths [height, width], logarithms of z; air [3, 1, width];
        lattice [1, columns]: u of the land's columns."""
        self.scene, self.picture, self.depths, self.air, self.above = scene, picture, depths, air, above
        self.uncovered = torch.ones_like(depths)
        plants = sorted(_places(scene, draw), key=lambda p: -p.z)
        light = scene.light
        if plants:
            at = torch.tensor([[p.u, p.z] for p in plants]).to(draw.device)
            foot, water, lit = _on_land(land, lattice, at)
            # The one place where the host waits for the device.
            feet = torch.stack((foot, water, lit)).cpu().T.tolist()
        self.plants: list[tuple[Plant, float, float]] = []
        for p, (foot, wet, lit) in zip(plants, feet if plants else ()):
            if wet > 0.02:
                continue
            top = foot + p.height / p.z
            half = 0.4 * p.wide * p.height / p.z
            if light.disc != "none" and abs(p.u - light.u) < half + 0.05 and top > light.e - SUN_RADIUS - 0.02:
                continue
            self.plants.append((p, foot, lit))
        self._colours(draw.device)
        self.end = scene.shore[1] * 0.93 if scene.water == "lake" else 12.0

    def _colours(self, device) -> None:
        scene, light = self.scene, self.scene.light
        if not self.plants:
            return
        hue = torch.tensor([p.hue for p, _, _ in self.plants])[:, None]
        kind = torch.tensor([p.kind for p, _, _ in self.plants])[:, None]
        spread = scene.leaf_spread
        lean = torch.tensor([[0.28, -0.22, -0.12]])
        leaf = scene.leaf.cpu() * (1.0 + spread * hue * lean) * (1.0 + 0.12 * hue)
        needle = scene.needle.cpu() * (1.0 + 0.18 * hue)
        grass = lerp(scene.grass.cpu(), linear(150, 140, 84), 0.25 + 0.25 * hue)
        if scene.season == "winter":
            grass = lerp(grass, linear(168, 152, 120), 0.8)
        if scene.kind == "canyon":
            leaf = lerp(linear(92, 98, 62), linear(128, 122, 84), 0.5 + 0.5 * hue)
        colour = torch.where(kind == CONIFER, needle, torch.where(kind == GRASS, grass, leaf))
        far = torch.tensor([p.z for p, _, _ in self.plants])[:, None]
        foot = torch.tensor([f for _, f, _ in self.plants])[:, None]
        lit = torch.tensor([l for _, _, l in self.plants])[:, None]
        direct, ambient = light.direct.cpu(), light.ambient.cpu()
        strength = (0.35 + 0.65 * lit).clamp(0.0, 1.0) * (1.0 - 0.75 * light.veil)
        u = torch.tensor([p.u for p, _, _ in self.plants])[:, None]
        veil = haze(scene, u, far, foot)
        # Light from the disc's side and from all around, dimmed by the haze before it; [plants, 3, 1, 1].
        self.lit = (colour * direct * strength * (1.0 - veil)).to(device)[:, :, None, None]
        self.shade = (colour * ambient * (1.0 - veil)).to(device)[:, :, None, None]
        wood = linear(70, 62, 54)
        self.wood_lit = (wood * direct * strength * (1.0 - veil)).to(device)[:, :, None, None]
        self.wood_shade = (wood * ambient * (1.0 - veil)).to(device)[:, :, None, None]
        white = torch.tensor([0.80, 0.83, 0.88])
        self.white = (white * (0.75 * direct * strength + 0.9 * ambient) * (1.0 - veil)).to(device)[:, :, None, None]
        self.veils = veil.to(device)[:, :, None, None]

    def draw(self, beyond: bool | None = None) -> None:
        """All of them; or those beyond the water only, or those before its far end."""
        if self.scene.light.veil == 0.0 and self.scene.time in ("day", "golden"):
            for at, (p, foot, lit) in enumerate(self.plants):
                if p.kind != GRASS and p.z < 24.0 and (beyond is None or beyond == (p.z >= self.end)):
                    self._shadow(p, foot, lit)
        for at, (p, foot, lit) in enumerate(self.plants):
            if beyond is None or beyond == (p.z >= self.end):
                self._stamp(at, p, foot)

    def _sprite(self, p: Plant, rows: float) -> torch.Tensor:
        levels = sprites(p.kind, self.picture.device)
        level = 0
        while level + 1 < len(levels) and levels[level + 1].shape[2] >= 0.9 * rows:
            level += 1
        return levels[level][p.sprite % levels[level].shape[0]]

    def _stamp(self, at: int, p: Plant, foot: float) -> None:
        height, width = self.depths.shape
        full = p.height / p.z * height * (1.0 + 2.0 * RIM)
        sprite = self._sprite(p, full)
        across = full * sprite.shape[2] / sprite.shape[1] * p.wide
        x = p.u * height + 0.5 * width
        ground = self.above - foot * height + 0.5
        bottom = ground + full * (RIM + p.sunk)
        left, right = max(0, math.floor(x - 0.5 * across)), min(width, math.ceil(x + 0.5 * across))
        top, low = max(0, math.floor(bottom - full)), min(height, math.ceil(min(bottom, ground + full * RIM)))
        if left >= right or top >= low or full < 2.0:
            return
        sign = -1.0 if p.flip else 1.0
        device = self.picture.device
        gx = ((torch.arange(left, right, device=device) + 0.5 - x) * (2.0 * sign / across))[None, :]
        gy = ((torch.arange(top, low, device=device) + 0.5 - bottom) * (2.0 / full) + 1.0)[:, None]
        grid = torch.stack(torch.broadcast_tensors(gx, gy), -1)[None]
        s = F.grid_sample(sprite[None], grid, mode="bilinear", align_corners=False)[0]
        seen = torch.sigmoid((self.depths[top:low, left:right] - (math.log(p.z) - 0.10)) * 60.0)
        s = s * seen
        light = self.scene.light
        cover, side, bright, up, wood = s
        towards = sign * (1.0 if light.direction[0] > 0 else -1.0)
        # Lit from its side; where leaves are few, light comes through.
        lit = (0.50 * bright + 0.85 * (side * towards).clamp_min(0.0) * bright / cover.clamp_min(0.05)) + 0.15 * cover * (
            1.0 - cover
        )
        shade = 0.35 * cover + 0.75 * bright
        leaves = lit * self.lit[at] + shade * self.shade[at]
        if p.kind != GRASS:
            bark = (0.55 * wood + 0.5 * (side * towards).clamp_min(0.0)) * self.wood_lit[at] + 0.8 * wood * self.wood_shade[at]
            bare = (1.0 - wood / cover.clamp_min(0.02)).clamp(0.0, 1.0)
            leaves = lerp(bark, leaves, bare)
        if self.scene.season == "winter" and p.kind == CONIFER:
            snow = (1.5 * up / cover.clamp_min(0.05) - 0.25).clamp(0.0, 0.85)
            leaves = lerp(leaves, self.white[at] * (0.45 * cover + 0.55 * bright), snow)
        veil = self.veils[at]
        window = self.picture[:, top:low, left:right]
        window.mul_(1.0 - cover).add_(leaves).add_(veil[0] * cover * self.air[:, :, left:right])
        self.uncovered[top:low, left:right].mul_(1.0 - cover)

    def _shadow(self, p: Plant, foot: float, lit: float) -> None:
        """The shadow on level ground, projected from the sprite."""
        height, width = self.depths.shape
        across, up, depth = self.scene.light.direction
        flat = math.hypot(across, depth)
        length = p.height * min(flat / max(up, 0.12), 3.2)
        lx, lz = -across / flat, -depth / flat
        ground = foot * p.z  # height of the foot below the eye
        sprite = self._sprite(p, p.height / p.z * height)
        half = 0.5 * p.height * p.wide * sprite.shape[2] / sprite.shape[1]
        corners = [
            (p.u * p.z + lx * a + -lz * b, p.z + lz * a + lx * b) for a in (-0.05 * length, length) for b in (-half, half)
        ]
        if min(z for _, z in corners) < 1.0 or ground >= -0.05:
            return
        us, es = [x / z for x, z in corners], [ground / z for _, z in corners]
        left, right = max(0, math.floor(min(us) * height + 0.5 * width)), min(width, math.ceil(max(us) * height + 0.5 * width))
        top, low = max(0, math.floor(self.above - max(es) * height)), min(height, math.ceil(self.above - min(es) * height) + 1)
        if left >= right or top >= low:
            return
        device = self.picture.device
        u = ((torch.arange(left, right, device=device) + 0.5 - 0.5 * width) / height)[None, :]
        e = ((self.above - torch.arange(top, low, device=device) - 0.5) / height).clamp_max(-1e-3)[:, None]
        z = ground / e
        dx, dz = u * z - p.u * p.z, z - p.z + 0.0 * u
        along, beside = (dx * lx + dz * lz) / length, (dx * -lz + dz * lx) / half
        grid = torch.stack((beside, 1.0 - 2.0 * (along + RIM) / (1.0 + 2.0 * RIM)), -1)[None]
        alpha = F.grid_sample(sprite[None, :1], grid, mode="bilinear", align_corners=False)[0, 0]
        near = torch.exp(-(((self.depths[top:low, left:right] - torch.log(z)) / 0.35) ** 2))
        fall = 0.75 * lit * alpha * near * (1.0 - 0.35 * along.clamp(0.0, 1.0))
        self.picture[:, top:low, left:right].mul_(1.0 - fall.clamp(0.0, 0.9))


def _on_land(land: Land, lattice: torch.Tensor, at: torch.Tensor):
    """Elevation of the ground, water, and sunlight at the places `at` [n, 2] of (u, z)."""
    step = lattice[0, 1] - lattice[0, 0]
    column = ((at[:, 0] - lattice[0, 0]) / step).round().clamp(0, lattice.shape[1] - 1).long()
    row = torch.searchsorted(land.z[:, 0].contiguous(), at[:, 1].contiguous()).clamp(1, land.z.shape[0] - 2)
    ground = (land.height[row, column] - 1.0) / at[:, 1]
    return ground, land.water[row, column], land.sunlit[row, column]
