"""Reads a picture of a scene back: background colour, object colour and shape, from pixels alone.

Colours are compared with the palette as the renderer shades it, shapes by fitting every outline of
the renderer to the object's silhouette.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .scenes import COLOURS, PALETTE, SHAPES, outline_distance, pixel_grid

BLACK = COLOURS.index("black")
FOREIGN = 0.17
"""Distance from every shade of the background's colour at which a pixel belongs to the object."""
SIDE = 64
LEAST_AREA = 0.02


@dataclass(frozen=True)
class Reading:
    """What N pictures show: indices int64 [N] into COLOURS, COLOURS and SHAPES (-1: no object), and
    the silhouettes bool [N, H, W]."""

    back: Tensor
    colour: Tensor
    shape: Tensor
    silhouette: Tensor


def shade_distance(pixels: Tensor) -> Tensor:
    """Distance [..., 8] of pixels [..., 3] to every palette colour, whatever its light: a colour is
    the line of its shades (for black, dark greys)."""
    base = torch.tensor(list(PALETTE.values()))
    low, high = base * 0.58, (base * 1.15).clamp(max=1)
    low[BLACK], high[BLACK] = 0.03, 0.29
    along = high - low
    part = ((pixels[..., None, :] - low) * along).sum(-1) / along.square().sum(-1)
    nearest = low + part.clamp(0, 1)[..., None] * along
    return (pixels[..., None, :] - nearest).norm(dim=-1)


def nearest_colours(pixels: Tensor) -> Tensor:
    """Index [...] into COLOURS of every pixel [..., 3]."""
    return shade_distance(pixels).argmin(-1)


def read(pictures: Tensor) -> Reading:
    """Read pictures [N, 3, H, W] in 0..1."""
    distance = shade_distance(pictures.clamp(0, 1).movedim(1, -1))
    classes = distance.argmin(-1)
    back = torch.stack([_most_frequent(_border(row)) for row in classes])
    own = distance.gather(-1, back.view(-1, 1, 1, 1).expand(*classes.shape, 1))[..., 0]
    silhouette = _opened(own > FOREIGN)
    found = silhouette.flatten(1).float().mean(1) > LEAST_AREA
    none = torch.tensor(-1)
    colour, shape = [], []
    for row, inside, there in zip(classes, silhouette, found.tolist(), strict=True):
        colour.append(_most_frequent(row[inside]) if there else none)
        shape.append(fit_shape(inside) if there else none)
    return Reading(back, torch.stack(colour), torch.stack(shape), silhouette)


def _border(classes: Tensor) -> Tensor:
    width = max(1, classes.shape[0] // 24)
    inner = torch.zeros_like(classes, dtype=torch.bool)
    inner[width:-width, width:-width] = True
    return classes[~inner]


def _most_frequent(classes: Tensor) -> Tensor:
    return torch.bincount(classes, minlength=len(COLOURS)).argmax()


def _opened(mask: Tensor) -> Tensor:
    """mask bool [N, H, W] without specks and thin lines."""
    solid = -F.max_pool2d(-mask[:, None].float(), 3, 1, 1)
    return F.max_pool2d(solid, 3, 1, 1)[:, 0] > 0.5


def fit_shape(silhouette: Tensor) -> Tensor:
    """Index into SHAPES of the outline that covers a silhouette bool [H, W] best."""
    return fit_scores(silhouette).argmax()


def fit_scores(silhouette: Tensor) -> Tensor:
    """Best intersection over union [6] of every shape with a silhouette bool [H, W].

    Sizes follow from the area and places from the centroid; angles and sizes around it are tried.
    """
    height, width = silhouette.shape
    side = (SIDE, max(1, round(SIDE * width / height)))
    there = F.interpolate(silhouette[None, None].float(), side, mode="area")[0, 0] > 0.5
    x, y = pixel_grid(*side)
    area = there.float().mean() * 4 * width / height
    middle = torch.stack([x[there].mean(), y[there].mean()])
    angles = torch.linspace(-0.45, 0.45, 13)
    sizes = torch.tensor([0.86, 0.94, 1.0, 1.07, 1.15])
    angle, size = (grid.flatten() for grid in torch.meshgrid(angles, sizes, indexing="ij"))
    scores = []
    for number, (unit_area, offset) in enumerate(_outline_moments()):
        radius = (area / unit_area).sqrt() * size
        cos, sin = angle.cos(), angle.sin()
        left = middle[0] - radius * (offset[0] * cos - offset[1] * sin)
        top = middle[1] - radius * (offset[0] * sin + offset[1] * cos)
        dx, dy = x - left.view(-1, 1, 1), y - top.view(-1, 1, 1)
        cos, sin, radius = (value.view(-1, 1, 1) for value in (cos, sin, radius))
        uv = torch.stack([dx * cos + dy * sin, dy * cos - dx * sin], 1) / radius[:, None]
        drawn = outline_distance(uv)[:, number] < 0
        union = (drawn | there).flatten(1).sum(1)
        scores.append(((drawn & there).flatten(1).sum(1) / union.clamp(min=1)).max())
    return torch.stack(scores)


def _outline_moments() -> list[tuple[Tensor, Tensor]]:
    """Area and centroid [2] of every shape at radius 1."""
    x, y = pixel_grid(128, 128)
    u, v = x * 1.2, y * 1.2
    inside = outline_distance(torch.stack([u, v])[None])[0] < 0
    return [
        (row.float().mean() * 2.4**2, torch.stack([u[row].mean(), v[row].mean()])) for row in inside
    ]


def shape_name(index: int) -> str:
    """The name behind Reading.shape."""
    return SHAPES[index] if index >= 0 else "nothing"
