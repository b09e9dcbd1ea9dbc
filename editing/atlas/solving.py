"""Textures in closed form: what the frames leave over goes where it belongs, in a few passes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.layers import splat_to_texture
from .explicit import FittedLayer, dense

LEAST_SEEN = 0.1
"""A layer that is seen less in a pixel does not learn from it."""
DAMPING = 0.1
AT_ONCE = 1 << 20
"""Pixels that are drawn together: bounds the memory."""


def fill_textures(layers: list[FittedLayer], clip: Tensor, members: list[Tensor]) -> None:
    """The first textures: the mean of what surely belongs to each layer, holes filled smoothly.

    Args:
        clip: [F,3,H,W]. members: [F,1,H,W] float per layer, 1 where a pixel surely is the layer's.
    """
    totals = _totals(layers)
    for frames in _runs(clip):
        seen = dense(layers, frames, (clip.shape[2], clip.shape[3]))
        for number, layer in enumerate(layers):
            _add(totals[number], clip[frames], seen.uvs[number], members[number][frames], layer)
    for layer, (total, coverage) in zip(layers, totals, strict=True):
        layer.texture = filled(total, coverage)


def improve_textures(
    layers: list[FittedLayer], clip: Tensor, considered: Tensor | None = None
) -> tuple[float, list[float]]:
    """One pass of simultaneous iterative reconstruction (SIRT) over all frames.

    Args:
        clip: [F,3,H,W]. considered: [F,1,H,W] float, pixels of weight 0 are left out.

    Returns: mean squared error before the pass, of the whole clip and of where each layer is seen.
    """
    totals, errors = _totals(layers), clip.new_zeros(len(layers) + 1, 2)
    for frames in _runs(clip):
        seen = dense(layers, frames, (clip.shape[2], clip.shape[3]))
        rest = clip[frames] - seen.drawn(layers)
        use = 1.0 if considered is None else considered[frames]
        shares = [share * use for share in seen.shares()]
        regions = [torch.stack(shares).sum(0), *((share > 0.5).float() for share in shares)]
        _count(errors, rest, regions)
        for number, layer in enumerate(layers):
            weight = shares[number] * (shares[number] > LEAST_SEEN)
            _add(totals[number], rest, seen.uvs[number], weight, layer)
    for layer, (total, coverage) in zip(layers, totals, strict=True):
        layer.texture = layer.texture + total / (coverage + DAMPING)
        layer.coverage = coverage
    whole, *each = (errors[:, 0] / errors[:, 1].clamp_min(1)).tolist()
    return whole, each


def filled(total: Tensor, coverage: Tensor) -> Tensor:
    """Weighted sums [3,V,U] and weights [1,V,U] as a texture; empty texels take what coarser
    levels hold there (pull-push)."""
    pyramid = [torch.cat([total, coverage])[None]]
    while min(pyramid[-1].shape[2:]) > 2:
        pyramid.append(F.avg_pool2d(pyramid[-1], 2, ceil_mode=True, count_include_pad=False))
    mean = pyramid[-1].mean((2, 3), keepdim=True)
    colours = mean[:, :-1] / mean[:, -1:].clamp_min(1e-6)
    for level in reversed(pyramid):
        coarse = F.interpolate(colours, level.shape[2:], mode="bilinear")
        colours = (level[:, :-1] + 0.05 * coarse) / (level[:, -1:] + 0.05)
    return colours[0]


def _totals(layers: list[FittedLayer]) -> list[tuple[Tensor, Tensor]]:
    return [(torch.zeros_like(x.texture), torch.zeros_like(x.texture[:1])) for x in layers]


def _add(
    totals: tuple[Tensor, Tensor], values: Tensor, uv: Tensor, weight: Tensor, layer: FittedLayer
) -> None:
    size = (layer.texture.shape[1], layer.texture.shape[2])
    mean, coverage = splat_to_texture(values, uv, size, weight)
    totals[0].add_(mean * coverage)
    totals[1].add_(coverage)


def _count(errors: Tensor, rest: Tensor, regions: list[Tensor]) -> None:
    """Adds (sum of squares, number of values) of each region to errors [R,2]."""
    square = rest.square().sum(1, keepdim=True)
    for row, region in zip(errors, regions, strict=True):
        row += torch.stack([(square * region).sum(), 3 * region.sum()])


def _runs(clip: Tensor) -> tuple[Tensor, ...]:
    each = max(1, AT_ONCE // (clip.shape[2] * clip.shape[3]))
    return torch.arange(len(clip), device=clip.device).split(each)
