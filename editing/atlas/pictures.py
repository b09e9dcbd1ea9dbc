"""Pictures of an atlas: what a fit looks like while it runs, and whether paint sticks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.layers import sample_texture
from .explicit import FittedLayer, dense, stacked
from .types import Atlas

SIDE = 256
"""Height of one picture in a preview, pixels."""


def fit_picture(layers: list[FittedLayer], clip: Tensor) -> Tensor:
    """The middle frame, what the layers make of it, and every texture side by side -> [H,W,3]."""
    middle = torch.tensor([len(clip) // 2], device=clip.device)
    seen = dense(layers, middle, (clip.shape[2], clip.shape[3]))
    pictures = [clip[middle][0], seen.drawn(layers)[0], *(layer.texture for layer in layers)]
    return side_by_side(pictures).movedim(0, -1)


def side_by_side(pictures: list[Tensor]) -> Tensor:
    """[3,h,w] of any size -> one picture [3,SIDE,W]."""
    parts = []
    for picture in pictures:
        width = max(1, round(SIDE * picture.shape[2] / picture.shape[1]))
        scaled = F.interpolate(picture[None].detach(), (SIDE, width), mode="bilinear")
        parts.append(scaled[0].clamp(0, 1))
    return torch.cat(parts, 2)


def checkered(atlas: Atlas, squares: int = 10) -> Tensor:
    """The clip as it looks with checkerboards on its textures -> [F,3,H,W]: they must stick."""
    colours = ((0.95, 0.25, 0.15), (0.15, 0.35, 0.95), (0.2, 0.8, 0.3))
    drawn = []
    for number, layer in enumerate(atlas.layers):
        high, wide = layer.texture.shape[1:]
        cell = max(high, wide) / squares
        y, x = ((torch.arange(n) / cell).floor() for n in (high, wide))
        board = ((x + y[:, None]) % 2) * torch.tensor(colours[number % 3])[:, None, None]
        drawn.append(sample_texture(0.6 * board + 0.4 * layer.texture, layer.uv))
    return stacked(drawn, [layer.alpha for layer in atlas.layers[:-1]])
