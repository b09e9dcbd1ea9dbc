"""Frames onto a texture and back: StableVideo's UV^-1 and UV (section 3.3).

A texture holds V x U texels; uv = (x, y) with -1 and 1 at its outer edges (kernels/layers.py).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import QhullError
from torch import Tensor

from ...kernels.layers import sample_texture, splat_to_texture

MODES = ("fast", "exact")
MOST_REFINED = 8
"""Points per pixel and axis that the fast mode writes at most."""
LEAST_SHARE = 1e-4
"""A smaller interpolated weight is rounding: nothing was written there."""


def map_to_atlas(
    frames: Tensor,
    uv: Tensor,
    size: tuple[int, int],
    weight: Tensor | None = None,
    mode: str = "fast",
    published_shift: bool = False,
) -> tuple[Tensor, Tensor]:
    """What a texture must be for the frames to look as they do; frames are averaged by weight.

    Both modes interpolate linearly between neighbouring pixels, so a texture much finer than the
    frames has no holes. "exact" triangulates the pixels' places (Delaunay, as published: slow, on
    the CPU); "fast" splats them, on any device, and differs from it by less than a texel.
    Not differentiable; kernels/layers.py has the splat that is.

    Args:
        frames: [F,3,H,W] (any number of channels).
        uv: [F,H,W,2].
        size: (V, U), rows and columns of the texture.
        weight: [F,1,H,W] >= 0, the importance of each pixel, for example alpha; None: 1. What has
            weight 0 is not written, and no surface is spanned across it.
        mode: one of MODES.
        published_shift: parity with the published code, which writes half a texel beside where it
            reads.

    Returns:
        texture [3,V,U] float32, 0 where nothing was written; coverage [1,V,U] float32: the sum
        over the frames of the weight that each has there, so F frames of weight 1 give at most F.

    Raises:
        ValueError: an unknown mode, or shapes that do not fit together.
    """
    if mode not in MODES:
        raise ValueError(f"expected a mode of {', '.join(MODES)}; got {mode!r}.")
    if frames.ndim != 4 or (len(frames), *frames.shape[2:], 2) != tuple(uv.shape):
        raise ValueError(
            "expected frames [F,3,H,W] and uv [F,H,W,2] of the same frames and size, got "
            f"{tuple(frames.shape)} and {tuple(uv.shape)}."
        )
    given = torch.ones_like(frames[:, :1]) if weight is None else weight
    if given.shape != (len(frames), 1, *frames.shape[2:]):
        raise ValueError(f"expected weight [F,1,H,W] of the frames, got {tuple(given.shape)}.")
    write = _splat if mode == "fast" else _triangulate
    total = frames.new_zeros(frames.shape[1], *size, dtype=torch.float32)
    coverage = frames.new_zeros(1, *size, dtype=torch.float32)
    for pixels, at, importance in zip(frames.float(), uv.float(), given.float(), strict=True):
        written, share = write(pixels, at, size, importance, published_shift)
        total += written * share
        coverage += share
    return total / torch.where(coverage > 0, coverage, 1.0), coverage


def unmap_from_atlas(texture: Tensor, uv: Tensor, published_border: bool = False) -> Tensor:
    """A texture as the frames see it.

    Args:
        texture: [3,V,U] (any number of channels).
        uv: [F,H,W,2].
        published_border: black beyond the texture, as in the published code.

    Returns: [F,3,H,W].
    """
    return sample_texture(texture, uv, published_border)


def texels_per_pixel(uv: Tensor, size: tuple[int, int], weight: Tensor | None = None) -> float:
    """The longest step on the texture between neighbouring pixels (99 of 100 are shorter).

    Args:
        uv: [H,W,2]. size: (V, U). weight: [1,H,W]; where it is 0 is not counted.
    """
    texels = uv * uv.new_tensor([size[1] / 2, size[0] / 2])
    seen = torch.ones_like(uv[..., 0], dtype=torch.bool) if weight is None else weight[0] > 0
    across = (texels[:, 1:] - texels[:, :-1]).abs().amax(-1)[seen[:, 1:] & seen[:, :-1]]
    down = (texels[1:] - texels[:-1]).abs().amax(-1)[seen[1:] & seen[:-1]]
    steps = torch.cat([across, down])
    if not len(steps):
        return 0.0
    return float(steps.kthvalue(max(1, len(steps) * 99 // 100)).values)


def _splat(
    pixels: Tensor, uv: Tensor, size: tuple[int, int], weight: Tensor, published_shift: bool
) -> tuple[Tensor, Tensor]:
    """One frame, with as many points between its pixels as leave no texel out."""
    step = texels_per_pixel(uv, size, weight)
    if step > MOST_REFINED:
        half = (-(-size[0] // 2), -(-size[1] // 2))
        small = _splat(pixels, uv, half, weight, published_shift)
        texture, share = (F.interpolate(x[None], size, mode="bilinear")[0] for x in small)
        return texture, share
    points = torch.cat([pixels * weight, weight, uv.movedim(-1, 0)])
    finer = max(1, math.ceil(step - 1e-3))
    height, width = ((n - 1) * finer + 1 for n in weight.shape[1:])
    if (height, width) != weight.shape[1:]:
        points = F.interpolate(points[None], (height, width), mode="bilinear", align_corners=True)
        points = points[0]
    at = points[None, -2:].movedim(1, -1)
    # the means of weight * colour and of weight: their ratio is the weighted mean of colour
    mean, _ = splat_to_texture(points[None, :-2], at, size, published_shift=published_shift)
    return _unweighted(mean)


def _triangulate(
    pixels: Tensor, uv: Tensor, size: tuple[int, int], weight: Tensor, published_shift: bool
) -> tuple[Tensor, Tensor]:
    """One frame by scattered linear interpolation: one triangulation for colour and weight."""
    # a rim of weightless pixels stays, so that nothing is spanned from one end to the other
    near = F.max_pool2d(weight[None], 3, stride=1, padding=1)[0, 0] > 0
    values = torch.cat([pixels * weight, weight])[:, near].T.double().cpu().numpy()
    shift = 0.0 if published_shift else 0.5
    scale = uv.new_tensor([size[1] / 2, size[0] / 2]).double()
    places = ((uv.double() + 1) * scale - shift)[near].cpu().numpy()
    if not published_shift:  # a texel on the rim must not fall outside by rounding
        places = places.round(5)
    out = np.zeros((*size, len(pixels) + 1), np.float32)
    try:
        found = LinearNDInterpolator(places, values, fill_value=0.0) if len(places) > 2 else None
    except QhullError:  # all on one line: no surface
        found = None
    if found is not None:
        _evaluate(found, places, out)
    return _unweighted(torch.from_numpy(out).movedim(-1, 0).to(pixels.device))


def _unweighted(mixed: Tensor) -> tuple[Tensor, Tensor]:
    """Interpolated weight * colour and weight [3+1,V,U] -> colour, weight."""
    written = mixed[-1:] > LEAST_SHARE
    share = torch.where(written, mixed[-1:], 0.0)
    return torch.where(written, mixed[:-1] / torch.where(written, share, 1.0), 0.0), share


def _evaluate(found: Any, places: np.ndarray, out: np.ndarray) -> None:
    """Fills the texels within the bounding box of the points."""
    limits = (out.shape[1], out.shape[0])
    low = [max(0, int(np.ceil(places[:, axis].min()))) for axis in (0, 1)]
    high = [min(limits[axis], int(np.floor(places[:, axis].max())) + 1) for axis in (0, 1)]
    if low[0] < high[0] and low[1] < high[1]:
        x, y = np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]))
        out[low[1] : high[1], low[0] : high[0]] = found(x, y)
