"""Random numbers and band-limited noise of a scene.

Guarantee: every lattice has a size of its own, independent of the picture's, so one seed gives one composition at
every resolution; and every noise is cut off below the Nyquist frequency of its lattice, so nothing in a picture is
white noise and no lattice shows through.
"""

import math

import torch
import torch.nn.functional as F

SEED_LIMIT = 2**32
"""Seeds are in [0, SEED_LIMIT): the generator's state is started from 32 bits."""


def mix_seed(seed: int) -> int:
    """A bijection of 32-bit integers (the finaliser of MurmurHash3), so that neighbouring seeds share no structure
    and different seeds never meet."""
    seed ^= seed >> 16
    seed = seed * 0x85EBCA6B % SEED_LIMIT
    seed ^= seed >> 13
    seed = seed * 0xC2B2AE35 % SEED_LIMIT
    return seed ^ seed >> 16


class Draw:
    """The random numbers of one scene, always drawn on the CPU (the same numbers for every device)."""

    def __init__(self, seed: int, device: torch.device):
        self.generator = torch.Generator("cpu").manual_seed(mix_seed(seed))
        self.device = device
        self.stock: list[float] = []

    def uniform(self, low: float, high: float) -> float:
        if not self.stock:  # many at once: a plan takes about a hundred
            self.stock = torch.rand(256, generator=self.generator).tolist()
        return low + (high - low) * self.stock.pop()

    def chance(self, probability: float) -> bool:
        return self.uniform(0.0, 1.0) < probability

    def sign(self) -> float:
        return 1.0 if self.chance(0.5) else -1.0

    def numbers(self, count: int) -> list[float]:
        """`count` numbers in [0, 1), for the plan."""
        return [self.uniform(0.0, 1.0) for _ in range(count)]

    def uniforms(self, count: int) -> torch.Tensor:
        """`count` numbers in [0, 1)."""
        return torch.rand(count, generator=self.generator).to(self.device)

    def normals(self, rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=self.generator).to(self.device)


class Spectrum:
    """White noise on a periodic lattice [rows, columns], held by its Fourier transform; bands are cut from it.

    `height` and `width` are the lattice's extents in units of picture heights: frequencies are cycles per picture
    height, the same in both directions whatever the cell's shape.
    """

    def __init__(self, draw: Draw, rows: int, columns: int, height: float, width: float):
        self.shape = (rows, columns)
        self.waves = torch.fft.rfft2(draw.normals(rows, columns))
        self.fy = torch.fft.fftfreq(rows, height / rows, device=draw.device)[:, None]
        self.fx = torch.fft.rfftfreq(columns, width / columns, device=draw.device)[None, :]
        # Half the Nyquist frequency of each axis: the cut leaves interpolation nothing to alias.
        limit_y, limit_x = 0.32 * rows / height, 0.32 * columns / width
        self.cut = torch.exp(-((self.fy / limit_y) ** 4) - (self.fx / limit_x) ** 4)

    def _field(self, gain: torch.Tensor) -> torch.Tensor:
        gain = gain * self.cut
        gain[0, 0] = 0.0
        field = torch.fft.irfft2(self.waves * gain, s=self.shape)
        return field / field.std().clamp_min(1e-12)

    def band(self, frequency: float, stretch: float = 1.0, octaves: float = 0.5) -> torch.Tensor:
        """One band about `frequency`, of unit deviation; `stretch` > 1 makes its features that much wider than tall."""
        k = torch.sqrt(self.fy**2 + (self.fx * stretch) ** 2).clamp_min(1e-6)
        return self._field(torch.exp(-0.5 * (torch.log2(k / frequency) / octaves) ** 2))


def smooth(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Smoothstep from 0 at `low` to 1 at `high`."""
    t = ((x - low) / (high - low)).clamp(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


class Tile:
    """A periodic square band of noise of unit deviation, to be laid over the ground at any wavelength."""

    PERIOD = 32
    """Wavelengths after which it repeats."""
    CELLS = 320

    def __init__(self, draw: Draw):
        field = Spectrum(draw, self.CELLS, self.CELLS, self.PERIOD, self.PERIOD).band(1.0, octaves=0.35)
        self.padded = F.pad(field[None, None], (2, 2, 2, 2), mode="circular")

    def at(self, x: torch.Tensor, y: torch.Tensor, wavelength: float, turn: float, cubic: bool = False) -> torch.Tensor:
        """The noise at the points (x, y), of one shape [rows, columns], scaled to `wavelength`, turned and shifted by
        `turn`; `cubic` where the lattice's cells are magnified."""
        c, s = math.cos(turn) / (self.PERIOD * wavelength), math.sin(turn) / (self.PERIOD * wavelength)
        place = torch.stack((c * x - s * y, s * x + c * y), -1).add_(0.37 * turn)
        place = place.sub_(place.floor()).mul_(2.0).sub_(1.0).mul_(self.CELLS / (self.CELLS + 4))
        return F.grid_sample(self.padded, place[None], mode="bicubic" if cubic else "bilinear", align_corners=False)[0, 0]


def profile(draw: Draw, points: int, extent: float, low: float, slope: float) -> torch.Tensor:
    """One-dimensional fractal line [points] over `extent` picture heights, of unit deviation."""
    pad = 2 * points
    waves = torch.fft.rfft(draw.normals(1, pad)[0])
    k = torch.fft.rfftfreq(pad, 2 * extent / pad, device=draw.device)
    gain = (1.0 + (k / low) ** 2) ** (-0.5 * (slope + 0.5)) * torch.exp(-((k * extent / (0.32 * points)) ** 4))
    gain[0] = 0.0
    line = torch.fft.irfft(waves * gain, n=pad)[:points]
    return (line - line.mean()) / line.std().clamp_min(1e-12)


def resize(planes: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """[C, h, w] to [C, rows, columns], bicubic, filtered where it shrinks."""
    shrinks = rows < planes.shape[1] or columns < planes.shape[2]
    return F.interpolate(planes[None], size=(rows, columns), mode="bicubic", align_corners=False, antialias=shrinks)[0]


def blur(field: torch.Tensor, across: int, along: int) -> torch.Tensor:
    """A box filter of half width `across` columns and `along` rows, twice, over [rows, columns]."""
    x = field[None, None]
    for _ in range(2):
        x = F.avg_pool2d(x, (1, 2 * across + 1), 1, (0, across), count_include_pad=False)
        x = F.avg_pool2d(x, (2 * along + 1, 1), 1, (along, 0), count_include_pad=False)
    return x[0, 0]


def linear(*rgb: float) -> torch.Tensor:
    """A displayed colour given in 0..255 as light [3].

    Light is held as the square of the displayed value: close to the sRGB curve (exponent 2.2), and its inverse,
    needed for every pixel, is one square root.
    """
    return (torch.tensor(rgb, dtype=torch.float32) / 255.0) ** 2


def lerp(a, b, t):
    return a + (b - a) * t


TAU = 2.0 * math.pi
