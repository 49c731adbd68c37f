"""From slices to a picture: visibility, antialiasing, tone."""

import torch

from .noise import resize

_STRIP = 128


def visible(elevation: torch.Tensor, planes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """What each pixel row sees of the slices, averaged exactly over the row's height.

    elevation [columns, slices], near to far; planes [columns, slices, C], one of them constantly 1 (coverage);
    edges [rows + 1], elevations of the rows' edges, rising. Returns [columns, rows, C]; rows above the land are 0.

    In a column, slice i shows where its elevation exceeds all nearer ones; the integral of what shows, from below
    up to an elevation, is piecewise quadratic (values are linear between neighbours that both show). A row is the
    difference of that integral at its edges, which antialiases every silhouette.
    """
    parts = []
    for start in range(0, elevation.shape[0], _STRIP):
        e, p = elevation[start : start + _STRIP], planes[start : start + _STRIP]
        top = torch.cummax(e, 1).values
        step = top[:, 1:] - top[:, :-1]
        shown = (e[:, :-1] >= top[:, :-1]).to(e.dtype)[:, :, None]
        upper = p[:, 1:]
        lower = upper + (p[:, :-1] - upper) * shown
        total = torch.zeros_like(p)
        torch.cumsum(0.5 * (lower + upper) * step[:, :, None], 1, out=total[:, 1:])
        w, n, c = p.shape
        query = edges.expand(w, -1).contiguous()
        at = torch.searchsorted(top.contiguous(), query).clamp_(1, n - 1)
        below = torch.gather(top, 1, at - 1)
        width = torch.gather(step, 1, at - 1).clamp_min(1e-9)
        part = ((query - below) / width).clamp_(0.0, 1.0)
        width.mul_(part)
        flat = at - 1 + torch.arange(w, device=e.device)[:, None] * (n - 1)
        table = torch.cat((total[:, :-1], lower, 0.5 * (upper - lower)), 2).reshape(w * (n - 1), 3 * c)
        found = table.index_select(0, flat.reshape(-1)).reshape(w, -1, 3 * c)
        rise = found[:, :, c : 2 * c].addcmul(found[:, :, 2 * c :], part[:, :, None])
        integral = found[:, :, :c].addcmul(rise, width[:, :, None])
        parts.append(torch.diff(integral, dim=1))
    return torch.cat(parts) / (edges[1] - edges[0])


def seen(elevation: torch.Tensor, planes: torch.Tensor, columns: int, margin: int, edges: torch.Tensor) -> torch.Tensor:
    """Slices on their lattice (elevation [n, U], planes [C, n, U]) to [C + 1, rows, columns], coverage last; rows from
    below to above. The lattice reaches `margin` columns beyond the picture at both sides."""
    stack = torch.cat((elevation[None], planes))
    stack = resize(stack, elevation.shape[0], columns + 2 * margin)[:, :, margin : margin + columns]
    values = torch.cat((stack[1:], torch.ones_like(stack[:1]))).permute(2, 1, 0)
    return visible(stack[0].T.contiguous(), values, edges).permute(2, 1, 0)


def tone(light: torch.Tensor) -> torch.Tensor:
    """Light (squares of displayed values) to bytes, with a shoulder in place of clipping. Overwrites `light`."""
    light.clamp_min_(0.0)
    shoulder = (light * light).square_().add_(1.0).rsqrt_().sqrt_()
    return light.mul_(shoulder).sqrt_().mul_(255.0).add_(0.5).clamp_(0.0, 255.0).to(torch.uint8)
