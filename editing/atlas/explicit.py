"""A layered atlas as dense grids: an affine motion and control lattices per frame, a texture and
logits of alpha. What Neural Layered Atlases keeps in networks, small enough to be solved quickly.

A layer's places are pixels of its reference frame; `centre` and `half` turn them into uv.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.layers import sample_texture

LATTICES = (5, 9, 17, 33)
"""Nodes along the clip's longer side; each halves the cells of the one before."""


@dataclass
class FittedLayer:
    """One layer while it is being fitted."""

    base: Tensor
    """[F,2,h,w] where the affine motion puts the nodes of the finest lattice."""
    centre: Tensor
    """[2] (x, y) middle of the used area, in pixels of the reference frame."""
    half: Tensor
    """[2] half its size in pixels: uv = (place - centre) / half."""
    affine: Tensor
    """[F,2,3] what is added to the affine motion; of (x, y, 1) with x and y in -1..1."""
    lattices: list[Tensor]
    """[F,2,h,w] each, pixels; nodes lie on the first and the last pixel."""
    texture: Tensor
    """[3,V,U]."""
    logits: Tensor | None = None
    """[F,1,h,w] of alpha; None for the backmost layer."""
    coverage: Tensor = field(default_factory=lambda: torch.zeros(0))
    """[1,V,U] weight that reached each texel."""

    def nodes(self, frames: Tensor) -> Tensor:
        """[B,2,h,w] where the finest lattice's nodes lie, in pixels of the reference frame."""
        size = self.base.shape[2:]
        y, x = (torch.linspace(-1, 1, n, device=self.base.device) for n in size)
        ones = self.base.new_ones(*size)
        plane = torch.stack([ones * x, ones * y[:, None], ones])
        place = self.base[frames] + torch.einsum("bij,jhw->bihw", self.affine[frames], plane)
        for lattice in self.lattices:
            place = place + stretched(lattice[frames], (size[0], size[1]))
        return place

    def uv(self, place: Tensor) -> Tensor:
        """[...,2] pixels of the reference frame -> uv."""
        return (place - self.centre) / self.half

    def colours(self, uv: Tensor) -> Tensor:
        """[B,P,2] -> [3,B,P]."""
        return sample_texture(self.texture, uv[:, :, None])[..., 0].movedim(1, 0)

    def parameters(self) -> list[Tensor]:
        """What gradient descent moves; the texture is solved otherwise."""
        moved = [self.affine, *self.lattices]
        return moved if self.logits is None else [*moved, self.logits]

    def to(self, device: torch.device) -> FittedLayer:
        """The same on another device."""
        parts: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        parts["lattices"] = [lattice.to(device) for lattice in self.lattices]
        return FittedLayer(**parts)


def stretched(values: Tensor, size: tuple[int, int]) -> Tensor:
    """[B,C,h,w] at more nodes, first and last stay."""
    if tuple(values.shape[2:]) == size:
        return values
    return F.interpolate(values, size, mode="bilinear", align_corners=True)


def opacity(logits: Tensor) -> Tensor:
    """Alpha that does reach 0 and 1."""
    return (logits.sigmoid() * 1.06 - 0.03).clamp(0, 1)


def lattice_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """(rows, columns) of every lattice for a clip of this size; none finer than 3 pixels a cell."""
    longest = max(height, width)
    sizes = []
    for nodes in LATTICES:
        if longest >= 3 * (nodes - 1) or not sizes:
            short = max(2, round((nodes - 1) * min(height, width) / longest) + 1)
            sizes.append((short, nodes) if width >= height else (nodes, short))
    return sizes


def new_layer(
    to_reference: Tensor,
    area: tuple[Tensor, Tensor],
    size: tuple[int, int],
    texture_size: tuple[int, int],
    mask: Tensor | None,
) -> FittedLayer:
    """A layer where the affine motions put it, without a texture yet.

    Args:
        to_reference: [F,3,3] float64 (motion.py). area: centre and half size, pixels.
        size: (H, W) of the frames. texture_size: (V, U).
        mask: [F,1,H,W] rough alpha; None for the backmost layer.
    """
    frames, (height, width) = len(to_reference), size
    sizes = lattice_sizes(height, width)
    rows, columns = sizes[-1]
    y, x = torch.linspace(0, height - 1, rows), torch.linspace(0, width - 1, columns)
    down, across = torch.meshgrid(y, x, indexing="ij")
    points = torch.stack([across, down, torch.ones_like(across)]).double()
    base = torch.einsum("fij,jhw->fihw", to_reference[:, :2], points).float()
    return FittedLayer(
        base=base,
        centre=area[0],
        half=area[1],
        affine=torch.zeros(frames, 2, 3),
        lattices=[torch.zeros(frames, 2, *grid) for grid in sizes],
        texture=torch.zeros(3, *texture_size),
        logits=None if mask is None else torch.logit(mask.clamp(0.02, 0.98)),
        coverage=torch.zeros(1, *texture_size),
    )


def texture_size(half: Tensor, detail: float, most: int = 4096) -> tuple[int, int]:
    """(V, U) with `detail` texels per pixel of the reference frame, at most `most` a side."""
    wanted = (half.double() * 2 * detail).round().clamp(8, most).int().tolist()
    return wanted[1], wanted[0]


def stacked(colours: list[Tensor], alphas: list[Tensor]) -> Tensor:
    """Layers from front to back as one picture; alphas of all but the last."""
    picture = colours[-1]
    for colour, alpha in zip(reversed(colours[:-1]), reversed(alphas), strict=True):
        picture = torch.lerp(picture, colour, alpha)
    return picture


def visible(alphas: list[Tensor]) -> list[Tensor]:
    """How much of every layer is seen, front to back, from the alphas of all but the last; empty
    for a single layer, which is seen everywhere."""
    if not alphas:
        return []
    shares, left = [], torch.ones_like(alphas[0])
    for alpha in alphas:
        shares.append(left * alpha)
        left = left * (1 - alpha)
    return [*shares, left]


def dense(layers: list[FittedLayer], frames: Tensor, size: tuple[int, int]) -> DenseFrames:
    """Uv and alphas of whole frames, without gradients.

    Args:
        frames: [B] int64. size: (H, W).
    """
    uvs, alphas = [], []
    with torch.no_grad():
        for layer in layers:
            place = stretched(layer.nodes(frames), size)
            uvs.append(layer.uv(place.movedim(1, -1)))
            if layer.logits is not None:
                alphas.append(opacity(stretched(layer.logits[frames], size)))
    return DenseFrames(uvs, alphas)


@dataclass(frozen=True)
class DenseFrames:
    """Some frames as the layers draw them."""

    uvs: list[Tensor]
    """[B,H,W,2] per layer."""
    alphas: list[Tensor]
    """[B,1,H,W] per layer but the last."""

    def drawn(self, layers: list[FittedLayer]) -> Tensor:
        """[B,3,H,W]."""
        pairs = zip(layers, self.uvs, strict=True)
        return stacked([sample_texture(layer.texture, uv) for layer, uv in pairs], self.alphas)

    def shares(self) -> list[Tensor]:
        """[B,1,H,W] per layer: how much of it is seen."""
        return visible(self.alphas) or [torch.ones_like(self.uvs[0][:, None, :, :, 0])]
