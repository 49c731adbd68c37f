"""The parts that encoder, decoder and U-Net share. Tensors are NCHW (channels_last in memory)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arch import norm_groups, spatial_share
from .dropout import drop

SQRT_HALF = math.sqrt(0.5)
GROUP_NORM_EPS = 1e-6
PIXEL_NORM_EPS = 1e-6


def conv(cin: int, cout: int, kernel: int = 3, zero: bool = False) -> nn.Conv2d:
    """A convolution with "same" zero padding; `zero`: starts as zero."""
    layer = nn.Conv2d(cin, cout, kernel, padding=kernel // 2)
    nn.init.zeros_(layer.bias)
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    return layer


def apply(function: type[torch.autograd.Function], *inputs: Tensor) -> Tensor:
    """`function` of `inputs`; while a network is exported to ONNX without its gradient, which the exporter does not know."""
    if torch.onnx.is_in_onnx_export():
        return function.forward(Unsaved(), *inputs)
    return function.apply(*inputs)


class Unsaved:
    """The context of a `forward` of which no gradient is asked."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Saves nothing."""


def at_least_f32(x: Tensor) -> Tensor:
    """`x` in f32, or in f64 if it is that already (the fixtures are computed in f64)."""
    return x if x.dtype == torch.float64 else x.float()


class PixelNormFunction(torch.autograd.Function):
    """PixelNorm with a gradient of its own: autograd's needs about twice the passes over memory."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        last = x.permute(0, 2, 3, 1)
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        power = torch.linalg.vector_norm(last, dim=-1, keepdim=True, dtype=exact).square_().div_(x.shape[1])
        scale = power.add_(PIXEL_NORM_EPS).rsqrt_().to(x.dtype)
        ctx.save_for_backward(x, weight, scale)
        return (last * scale).mul_(weight.to(x.dtype)).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, scale = ctx.saved_tensors
        c, gain = x.shape[1], weight.to(x.dtype)
        normed, grad = x.permute(0, 2, 3, 1) * scale, grad.permute(0, 2, 3, 1)
        product = (grad * normed).reshape(-1, c)
        along = (product @ gain[:, None]).view(scale.shape) / c
        grad_x = torch.addcmul(grad * gain, normed, along, value=-1).mul_(scale).permute(0, 3, 1, 2)
        return grad_x, product.sum(0, dtype=weight.dtype)


class PixelNorm(nn.Module):
    """Per-pixel RMS norm over channels with a gain: x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return apply(PixelNormFunction, x, self.weight)


def pixel_sum(x: Tensor) -> Tensor:
    """[n, pixels, c] of bf16 to f32 [n, c]. Where there are many pixels, parts of 32 are rounded to bf16 first (each
    summed in f32): summing straight into f32 would copy `x`, and the roundings average out."""
    n, pixels, c = x.shape
    if pixels >= 2048 and pixels % 32 == 0:
        x = x.view(n, pixels // 32, 32, c).sum(2)
    return x.sum(1, dtype=torch.float32)


class GroupNormBf16(torch.autograd.Function):
    """GroupNorm of bf16 with f32 statistics, in few passes over memory: torch's own gradient is several times slower
    on CPUs. Both directions are affine per picture and channel, once the sums over pixels are known."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        n, c, height, width = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(n, height * width, c)
        count = height * width * c // groups

        def per_group(sums: Tensor) -> Tensor:  # [n, c] to the group's mean, for every channel of it
            return sums.view(n, groups, -1).sum(2, keepdim=True).expand(n, groups, c // groups).reshape(n, c) / count

        mean = per_group(pixel_sum(pixels))
        variance = per_group(pixel_sum(pixels.square())) - mean.square()
        rstd = variance.clamp_min(0).add(eps).rsqrt()
        scale = rstd * weight
        shift = bias - mean * scale
        ctx.save_for_backward(pixels, weight, mean, rstd)
        ctx.shape, ctx.per_group = x.shape, per_group
        out = torch.addcmul(shift.to(x.dtype)[:, None], pixels, scale.to(x.dtype)[:, None])
        return out.view(n, height, width, c).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        pixels, weight, mean, rstd = ctx.saved_tensors
        n, c, height, width = ctx.shape
        grad = grad.permute(0, 2, 3, 1).reshape(n, height * width, c)
        total = pixel_sum(grad)
        along = (pixel_sum(grad * pixels) - mean * total) * rstd  # sum of grad * normalised x
        scale = rstd * weight
        slope = -rstd.square() * ctx.per_group(along * weight)
        offset = -rstd * ctx.per_group(total * weight) - mean * slope
        out = torch.addcmul(offset.to(grad.dtype)[:, None], grad, scale.to(grad.dtype)[:, None])
        out.addcmul_(pixels, slope.to(grad.dtype)[:, None])
        return out.view(n, height, width, c).permute(0, 3, 1, 2), along.sum(0), total.sum(0), None, None


class GroupNorm(nn.GroupNorm):
    """GroupNorm with the project's group count and epsilon, statistics in f32."""

    def __init__(self, channels: int) -> None:
        super().__init__(norm_groups(channels), channels, eps=GROUP_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16 and x.device.type == "cpu":
            return GroupNormBf16.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return super().forward(at_least_f32(x)).to(x.dtype)


def make_norm(kind: str, channels: int) -> nn.Module:
    """`kind` "group" or "pixel"."""
    return GroupNorm(channels) if kind == "group" else PixelNorm(channels)


def fir_down_plain(x: Tensor) -> Tensor:
    """`fir_down` without its gradient."""
    # Made on the device: numbers of the host would make it wait for a GPU.
    k, c = torch.full((4,), 3 / 8, device=x.device, dtype=x.dtype), int(x.shape[1])
    k[::3] = 1 / 8
    return F.conv2d(x, (k[:, None] * k[None, :]).expand(c, 1, 4, 4), stride=2, padding=1, groups=c)


def fir_up_zero(x: Tensor) -> Tensor:
    """`fir_up` with zeros beyond the edges, without its gradient."""

    def axis(x: Tensor, dim: int) -> Tensor:
        n = x.shape[dim]
        near, edge = x * 0.75, torch.zeros_like(x.narrow(dim, 0, 1))
        far = x * 0.25
        before = torch.cat([edge, far.narrow(dim, 0, n - 1)], dim)
        after = torch.cat([far.narrow(dim, 1, n - 1), edge], dim)
        return torch.stack([before.add_(near), after.add_(near)], dim + 1).flatten(dim, dim + 1)

    last = x.permute(0, 2, 3, 1)  # rows and columns of channels_last memory move in whole pixels
    return axis(axis(last, 1), 2).permute(0, 3, 1, 2)


class FirDown(torch.autograd.Function):
    """The gradient of `fir_down` is `fir_up_zero` / 4: each is the other's transpose except for the gain. A depthwise
    convolution's own gradient is many times slower."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return fir_down_plain(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return fir_up_zero(grad).mul_(0.25)


class FirUpZero(torch.autograd.Function):
    """The gradient of `fir_up_zero` is 4 `fir_down`."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return fir_up_zero(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return fir_down_plain(grad).mul_(4)


def fir_down(x: Tensor) -> Tensor:
    """FIR [1,3,3,1]/8 per axis and every second pixel: y[i] = (x[2i-1] + 3x[2i] + 3x[2i+1] + x[2i+2]) / 8, zero-padded."""
    return apply(FirDown, x)


def fir_up(x: Tensor) -> Tensor:
    """FIR [1,3,3,1]/4 per axis: y[2i] = (x[i-1] + 3x[i]) / 4, y[2i+1] = (3x[i] + x[i+1]) / 4. Edges are repeated: with
    zeros the stream of latents would lose a quarter of its value there, a rim that one sees in the picture."""
    return apply(FirUpZero, F.pad(x, (1, 1, 1, 1), mode="replicate"))[:, :, 2:-2, 2:-2]


def nearest_up(x: Tensor) -> Tensor:
    """Every pixel becomes 2x2."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


RESAMPLE = {"nearest_up": nearest_up, "fir_up": fir_up, "fir_down": fir_down}


def add_noise(x: Tensor, noise: Tensor, gain: Tensor) -> Tensor:
    """x + gain noise with a gain per channel, x [N, C, H, W], noise [N, 1, H, W] (StyleGAN, Karras et al. 2019)."""
    return x + gain.to(x.dtype).view(1, -1, 1, 1) * noise.to(x.dtype)


def scale_shift(x: Tensor, pair: Tensor) -> Tensor:
    """x * (1 + scale) + shift, `pair` = (scale, shift) stacked along channels of an [N, 2C, 1, 1] tensor."""
    scale, shift = pair.chunk(2, 1)
    return x * (1 + scale) + shift


class Block(nn.Module):
    """Residual block: (shortcut(x) + conv2(act(norm2(conv1(resample(act(norm1 x))))))) / sqrt(2), act = SiLU.

    The shortcut resamples x and, where the channel count changes, applies a 1x1 convolution, at the lower of the two
    resolutions. With `embedding`, a scale and shift from the time embedding follow norm2 (NCSN++). `resample`: None or
    a name of RESAMPLE. `kernel` 1 serves the 1x1 level. Without `residual` there is no shortcut: conv2's output is all.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        norm: str,
        resample: str | None = None,
        embedding: int = 0,
        kernel: int = 3,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = make_norm(norm, cin)
        self.conv1 = conv(cin, cout, kernel)
        self.time = conv(embedding, 2 * cout, 1, zero=True) if embedding else None
        self.norm2 = make_norm(norm, cout)
        self.conv2 = conv(cout, cout, kernel, zero=residual)
        self.shortcut = conv(cin, cout, 1) if residual and cin != cout else None
        self.resample, self.residual = resample, residual
        self.dropout = 0.0

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resample:
            h = RESAMPLE[self.resample](h)
        h = self.norm2(self.conv1(h))
        if self.time is not None:
            h = scale_shift(h, self.time(embedding))
        h = drop(F.silu(h), self.dropout, self.training)
        h = self.conv2(h)
        if not self.residual:
            return h
        if self.resample == "fir_down":
            x = fir_down(x)
        if self.shortcut is not None:
            x = self.shortcut(x)
        if self.resample in ("fir_up", "nearest_up"):
            x = RESAMPLE[self.resample](x)
        return (x + h) * SQRT_HALF


def spatial_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax over pixels of (q^T k / sqrt C), applied to v; all [n, c, pixels]."""
    out = F.scaled_dot_product_attention(*(t.transpose(1, 2).unsqueeze(1) for t in (q, k, v)))
    return out.squeeze(1).transpose(1, 2)


def pixel_count(x: Tensor) -> int | Tensor:
    """Pixels of `x` [n, c, pixels]. While a network is exported to ONNX, an f32 scalar that the graph counts for itself: a number
    would be a constant of the graph, wrong at every other size."""
    return torch.ones_like(x[0, 0]).sum() if torch.onnx.is_in_onnx_export() else x.shape[2]


def channel_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax over channels of (q k^T / sqrt N), applied to v; all [n, c, pixels], N pixels."""
    pixels = pixel_count(q)
    root = pixels.sqrt() if isinstance(pixels, Tensor) else math.sqrt(pixels)
    weight = torch.softmax((at_least_f32(q) @ at_least_f32(k).transpose(1, 2)) / root, -1)
    return weight.to(v.dtype) @ v


class ScAttention(nn.Module):
    """Spatial-channel attention (the paper's figures 2 and 3; the arithmetic is the project's reconstruction).

    S attends over pixels, T over channels; out = (x + W_o[share * S + (1 - share) * T]) / sqrt(2). With the ratio
    "spatial" there is no T.
    """

    def __init__(self, channels: int, ratio: str) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.q, self.k, self.v = (conv(channels, channels, 1) for _ in range(3))
        self.out = conv(channels, channels, 1, zero=True)
        self.kind = ratio
        if ratio == "learned":
            self.ratio = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        h = self.norm(x)
        q, k, v = (f(h).flatten(2) for f in (self.q, self.k, self.v))
        mixed = spatial_attention(q, k, v)
        if self.kind != "spatial":
            share = torch.sigmoid(self.ratio) if self.kind == "learned" else spatial_share(self.kind, pixel_count(q), c)
            mixed = share * mixed + (1 - share) * channel_attention(q, k, v)
        return (x + self.out(mixed.reshape(n, c, height, width))) * SQRT_HALF
