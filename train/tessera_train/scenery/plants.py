"""Trees, bushes and grass: sprites grown once a process from a fixed seed, and where a scene puts them.

A sprite is a cloud of points, leaf by leaf, seen from the side. Its channels are all multiplied by the first one:
cover, which side it faces (-1 left .. 1 right), how much sky it sees, how far it faces up, and share of wood.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F

CONIFER, BROADLEAF, BARE, GRASS = range(4)
_SHAPES = {CONIFER: (512, 288, 10), BROADLEAF: (384, 416, 10), BARE: (384, 416, 6), GRASS: (128, 160, 8)}
"""Rows, columns and number of the sprites of each kind; a sprite is one unit high."""
RIM = 0.02
"""Empty space around what a sprite shows, as a share of its height."""


class _Growth:
    """Points of one plant: across and up in units of its height, what they face, and how large they are."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator
        self.parts: list[torch.Tensor] = []

    def uniform(self, count: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=self.generator)

    def normal(self, count: int) -> torch.Tensor:
        return torch.randn(count, generator=self.generator)

    def add(self, x, y, toward, side, bright, top, wood) -> None:
        ones = torch.ones_like(x)
        self.parts.append(torch.stack([ones * v for v in (x, y, toward, side, bright, top, wood)]))

    def picture(self, rows: int, columns: int, cover: float) -> torch.Tensor:
        """[5, rows, columns]; what is nearer to the viewer hides what is behind it, softly."""
        x, y, toward, *values = torch.cat(self.parts, 1)
        scale = rows / (1.0 + 2.0 * RIM)
        column, row = columns / 2 + x * scale - 0.5, rows - (y + RIM) * scale - 0.5
        weight = torch.exp(9.0 * toward)
        layers = torch.zeros(6, rows * columns)
        planes = torch.stack([torch.ones_like(x), weight, *(weight * v for v in values)])
        j, i = column.floor(), row.floor()
        for dy in (0, 1):
            for dx in (0, 1):
                part = (1.0 - (column - j - dx).abs()) * (1.0 - (row - i - dy).abs())
                inside = (j + dx >= 0) & (j + dx < columns) & (i + dy >= 0) & (i + dy < rows)
                at = ((i + dy).clamp(0, rows - 1) * columns + (j + dx).clamp(0, columns - 1)).long()
                layers.index_add_(1, at, planes[:6] * (part * inside))
        layers = F.avg_pool2d(layers.reshape(1, 6, rows, columns), 3, 1, 1)[0]
        alpha = 1.0 - torch.exp(-cover * layers[0])
        return torch.cat((alpha[None], alpha * layers[2:] / layers[1].clamp_min(1e-9)))


def _conifer(g: _Growth) -> None:
    slim, reach = float(g.uniform(1, 0.15, 0.23)), float(g.uniform(1, 0.72, 1.0))
    height = g.uniform(1500, 0.0, 1.0)
    g.add(0.006 * (1.0 - height) * g.normal(1500), 0.97 * height, 0.0, 0.0, 0.35, 0.0, 1.0)
    levels = 46
    for level in range(levels):
        t = level / levels
        up = 0.06 + 0.92 * t + 0.008 * float(g.normal(1))
        length = slim * (1.0 - t) ** reach * (1.0 if t > 0.06 else 0.6)
        count = 6 if t < 0.8 else 4
        turn = g.uniform(count, 0.0, 2.0 * math.pi)
        lengths = length * g.uniform(count, 0.62, 1.12)
        droop = g.uniform(count, 0.25, 0.6) * (1.0 - 0.6 * t)
        for b in range(count):
            n = int(900 * lengths[b] / 0.2) + 60
            s = torch.sqrt(g.uniform(n))
            fan = 0.21 * lengths[b] * (1.1 - s)
            out, beside = lengths[b] * s, fan * g.normal(n)
            hang = g.normal(n).abs() * 0.020 * (1.2 - t)
            x = torch.sin(turn[b]) * out + torch.cos(turn[b]) * beside
            toward = torch.cos(turn[b]) * out - torch.sin(turn[b]) * beside
            y = up + lengths[b] * (0.18 * s - droop[b] * s * s) - hang
            top = (1.0 - hang / 0.022).clamp(0.0, 1.0)
            bright = (0.25 + 0.75 * s) * (0.45 + 0.55 * top)
            g.add(x, y, toward / slim, torch.sin(turn[b]) * (0.4 + 0.6 * s), bright, top * (0.3 + 0.7 * s), 0.0)
    tip = g.uniform(200)
    g.add(0.006 * tip * g.normal(200), 1.0 - 0.06 * tip, 0.0, 0.0, 0.9, 0.5, 0.0)


def _limb(g: _Growth, start, end, thick: float, sag: float) -> None:
    """A branch from one point (across, up, toward) to another."""
    start, end = torch.tensor(start), torch.tensor(end)
    length = float((end - start).norm())
    n = int(8 + 420_000 * length * thick)
    s = g.uniform(n)
    lateral = g.uniform(n, -1.0, 1.0)
    width = thick * (1.0 - 0.5 * s)
    if start[1] == 0.0:
        width = width * (1.0 + 0.9 * torch.exp(-s * 9.0))
    across = (end - start)[:2] / max(float((end - start)[:2].norm()), 1e-6)
    x = start[0] + (end - start)[0] * s - across[1] * width * lateral + sag * torch.sin(3.0 * s) * length
    y = start[1] + (end - start)[1] * s + across[0] * width * lateral
    up = (lateral * across[0]).clamp(-1.0, 1.0)
    g.add(x, y, start[2] + (end - start)[2] * s, -0.9 * lateral * across[1], 0.5 + 0.25 * up, up.clamp_min(0.0), 1.0)


def _broadleaf(g: _Growth) -> None:
    wide, tall = float(g.uniform(1, 0.32, 0.46)), float(g.uniform(1, 0.33, 0.41))
    centre = torch.tensor([0.05 * float(g.normal(1)), 0.97 - tall, 0.0])
    fork = (0.02 * float(g.normal(1)), float(g.uniform(1, 0.16, 0.28)), 0.0)
    _limb(g, (0.0, 0.0, 0.0), fork, 0.026, 0.02)
    for limb in range(int(g.uniform(1, 46, 64))):
        out = g.normal(3)
        out = out / out.norm() * float(g.uniform(1, 0.35, 1.0)) ** 0.5
        radius = float(g.uniform(1, 0.07, 0.125))
        end = centre + out * torch.tensor([wide - 0.8 * radius, tall - 0.8 * radius, wide - 0.8 * radius])
        if out[1] < -0.55 and abs(float(out[0])) < 0.5:
            continue  # the crown is open below
        if limb % 5 == 0:
            _limb(g, fork, (0.7 * end + 0.3 * torch.tensor(fork)).tolist(), 0.007, 0.05 * float(g.normal(1)))
        n = int(3.2e5 * radius**2)
        # Leaves hang in small sprays.
        sprays = g.normal(3 * 90).reshape(3, 90)
        sprays = sprays / sprays.norm(dim=0) * (0.72 + 0.28 * g.uniform(90))
        leaf = torch.randint(0, 90, (n,), generator=g.generator)
        direction = sprays[:, leaf] + 0.13 * g.normal(3 * n).reshape(3, n)
        point = end[:, None] + radius * direction * torch.tensor([1.15, 0.85, 1.15])[:, None]
        crown = (point - centre[:, None]) / torch.tensor([wide, tall, wide])[:, None]
        normal = 0.6 * direction + 0.5 * crown
        tone = (0.16 * torch.rand(90, generator=g.generator))[leaf]
        bright = (0.30 + 0.26 * normal[1] + 0.30 * crown.norm(dim=0) + tone).clamp(0.10, 1.0)
        g.add(point[0], point[1], point[2], normal[0], bright, (normal[1] + 0.1).clamp(0.0, 1.0), 0.0)


def _bare(g: _Growth) -> None:
    stack = [((0.0, 0.0, 0.0), (0.05 * float(g.normal(1)), 1.0, 0.0), float(g.uniform(1, 0.24, 0.34)), 0.022, 0)]
    while stack:
        start, way, length, thick, order = stack.pop()
        norm = math.sqrt(sum(w * w for w in way))
        end = tuple(s + length * w / norm for s, w in zip(start, way))
        _limb(g, start, end, thick, 0.05 * float(g.normal(1)))
        if order == 7:
            continue
        for _ in range(3 if order in (0, 1, 4) else 2):
            turn = g.normal(3)
            bent = tuple(w / norm + (0.62 if order else 0.75) * float(t) for w, t in zip(way, turn))
            bent = (bent[0], abs(bent[1]) * 0.8 + 0.22, bent[2])
            stack.append((end, bent, length * float(g.uniform(1, 0.6, 0.86)), max(0.58 * thick, 0.0011), order + 1))
    points = torch.cat(g.parts, 1)
    tallest = max(float(points[1].max()), 1.9 * float(points[0].abs().max()))
    for part in g.parts:
        part[:2] /= tallest


def _grass(g: _Growth) -> None:
    for _ in range(46):
        n = 260
        s = g.uniform(n)
        root, lean, tall = 0.30 * float(g.normal(1)), 0.35 * float(g.normal(1)), float(g.uniform(1, 0.35, 0.98))
        bend = float(g.uniform(1, 0.2, 0.9)) * lean
        width = 0.011 * (1.0 - s) + 0.003
        lateral = g.uniform(n, -1.0, 1.0)
        g.add(root + tall * (lean * s + bend * s * s) + width * lateral, tall * (s - 0.25 * abs(bend) * s * s), float(g.normal(1)),
              math.copysign(0.6, lean), 0.15 + 0.85 * s, s, 0.0)  # fmt: skip


_GROW = {CONIFER: (_conifer, 1.3), BROADLEAF: (_broadleaf, 0.8), BARE: (_bare, 1.2), GRASS: (_grass, 1.0)}


@lru_cache(maxsize=None)
def sprites(kind: int, device: torch.device) -> list[torch.Tensor]:
    """The sprites of a kind [number, 5, rows, columns], and the same at a half, a quarter ... of the size."""
    rows, columns, number = _SHAPES[kind]
    grow, cover = _GROW[kind]
    pictures = []
    for at in range(number):
        g = _Growth(torch.Generator("cpu").manual_seed(1000 * kind + at))
        grow(g)
        pictures.append(g.picture(rows, columns, cover))
    levels = [torch.stack(pictures).to(device)]
    while levels[-1].shape[2] > 12:
        levels.append(F.avg_pool2d(levels[-1], 2))
    return levels
