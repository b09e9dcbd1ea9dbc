"""Where pixels go from frame to frame: optical flow, and which of it can be believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.layers import splat_to_texture
from ..flow import LEAST_SIDE, dis_flow

METHODS = ("DIS (OpenCV)", "Lucas-Kanade")
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Flow:
    """Motion between neighbouring frames, in pixels (x, y)."""

    forward: Tensor
    """[F-1,2,H,W] float32, from each frame to the next."""
    backward: Tensor
    """[F-1,2,H,W] float32, from each frame but the first to the one before."""
    forward_ok: Tensor
    """[F-1,H,W] bool: there and back leads home."""
    backward_ok: Tensor
    """[F-1,H,W] bool."""


def estimate(
    frames: Tensor, method: str, tell: Callable[[int, int], None] = lambda done, all: None
) -> Flow:
    """The flow of a clip in both directions.

    Args:
        frames: [F,3,H,W] in 0..1.
        method: one of METHODS; the first runs on the CPU, the second where the frames are.
        tell: called with (pairs done, all pairs).
    """
    luma = (frames.float() * frames.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    pairwise = dis if method == METHODS[0] else lucas_kanade
    there, back = [], []
    for number in range(len(luma) - 1):
        first, second = luma[number : number + 1], luma[number + 1 : number + 2]
        there.append(pairwise(first, second))
        back.append(pairwise(second, first))
        tell(number + 1, len(luma) - 1)
    if not there:
        empty = frames.new_zeros(0, 2, *frames.shape[2:])
        return _judged(empty, empty)
    return _judged(torch.cat(there), torch.cat(back))


def given(forward: Tensor, frames: Tensor) -> Flow:
    """A flow from elsewhere; its way back is its own way turned round.

    Args:
        forward: [F-1,2,H,W] pixels, from each frame to the next. frames: [F,3,H,W].

    Raises: ValueError when it is not the flow of these frames.
    """
    wanted = (len(frames) - 1, 2, *frames.shape[2:])
    if tuple(forward.shape) != wanted:
        raise ValueError(f"expected a flow {wanted} of these frames, got {tuple(forward.shape)}.")
    forward = forward.to(frames.device, torch.float32)
    height, width = frames.shape[2:]
    back = []
    for flow in forward:
        arrived = _normalised(flow[None])
        turned, seen = splat_to_texture(-flow[None], arrived, (height, width))
        back.append(torch.where(seen > 0, turned, -flow))
    return _judged(forward, torch.stack(back) if back else forward)


def warp(pictures: Tensor, flow: Tensor) -> Tensor:
    """Pictures [B,C,H,W] read at p + flow(p); flow [B,2,H,W] in pixels, the border goes on."""
    grid = _normalised(flow)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def consistent(there: Tensor, back: Tensor) -> Tensor:
    """[B,H,W] bool: going there and back misses by less than 2 pixels per 512 (at least half a
    pixel), and stays inside the picture."""
    limit = max(0.5, 2 * max(there.shape[2:]) / 512)
    home = (there + warp(back, there)).norm(dim=1) < limit
    return home & (_normalised(there).abs().amax(-1) <= 1)


def dis(first: Tensor, second: Tensor) -> Tensor:
    """OpenCV's dense inverse search (Kroeger et al. 2016): luma [1,1,H,W] -> flow [1,2,H,W]."""
    pair = [(x[0, 0] * 255).round().clamp(0, 255).byte().cpu().numpy() for x in (first, second)]
    side = min(pair[0].shape)
    if side < LEAST_SIDE:
        return lucas_kanade(first, second)
    flow = dis_flow(*pair, full_size=side < 96)
    return torch.from_numpy(flow).movedim(-1, 0)[None].to(first.device)


def lucas_kanade(
    first: Tensor, second: Tensor, levels: int = 4, iterations: int = 5, radius: int = 3
) -> Tensor:
    """Dense pyramidal Lucas-Kanade with robust weights and a 3x3 median: luma -> flow [1,2,H,W]."""
    pyramid = [(first, second)]
    while len(pyramid) < levels and min(pyramid[-1][0].shape[2:]) >= 16:
        above = pyramid[-1]
        pyramid.append((F.avg_pool2d(above[0], 2), F.avg_pool2d(above[1], 2)))
    flow = first.new_zeros(1, 2, *pyramid[-1][0].shape[2:])
    for a, b in reversed(pyramid):
        if flow.shape[2:] != a.shape[2:]:
            flow = 2 * F.interpolate(flow, a.shape[2:], mode="bilinear")
        for _ in range(iterations):
            flow = _median(flow + _step(a, warp(b, flow), radius))
    return flow


def _step(a: Tensor, warped: Tensor, radius: int) -> Tensor:
    """The least-squares shift of each window, at most one pixel."""
    padded = F.pad((a + warped) / 2, (1, 1, 1, 1), mode="replicate")
    x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    change = warped - a
    trust = 1 / (change.abs() + 0.02)
    products = [x * x, y * y, x * y, x * change, y * change]
    xx, yy, xy, xt, yt = (_box(trust * product, radius) for product in products)
    xx, yy = xx + 1e-4, yy + 1e-4
    shift = torch.cat([xy * yt - yy * xt, xy * xt - xx * yt], 1) / (xx * yy - xy * xy)
    return shift.clamp(-1, 1)


def _box(values: Tensor, radius: int) -> Tensor:
    padded = F.pad(values, (radius,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * radius + 1, 1)


def _median(flow: Tensor) -> Tensor:
    """3x3 median of each component."""
    windows = F.unfold(F.pad(flow, (1,) * 4, mode="replicate").transpose(0, 1), 3)
    return windows.median(1).values.view_as(flow)


def _normalised(flow: Tensor) -> Tensor:
    """p + flow(p) as [B,H,W,2] in -1..1 at the picture's outer edges."""
    height, width = flow.shape[2:]
    y = torch.arange(height, device=flow.device) + 0.5
    x = torch.arange(width, device=flow.device) + 0.5
    across, down = x + flow[:, 0], y[:, None] + flow[:, 1]
    return torch.stack([across * (2 / width) - 1, down * (2 / height) - 1], -1)


def _judged(forward: Tensor, backward: Tensor) -> Flow:
    return Flow(forward, backward, consistent(forward, backward), consistent(backward, forward))
