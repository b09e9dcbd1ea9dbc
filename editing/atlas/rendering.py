"""Textures back to frames: StableVideo, Eq. 3, and what an artist wants of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.layers import sample_texture
from .explicit import stacked, visible
from .types import Atlas

UNTOUCHED = ("original pixels", "reconstruction")
"""What is shown where nothing was edited."""
SEEN = 0.02
"""Part of a pixel that must be edited texels for the pixel to count as edited."""
CHANGED = 2 / 255
"""Difference to the atlas's own texture from which a texel counts as edited."""


def render(
    atlas: Atlas,
    edited: Mapping[str, Tensor],
    original: Tensor | None = None,
    seam: int = 0,
    published_border: bool = False,
) -> Tensor:
    """The clip with edited textures.

    Every pixel is ``alpha * foreground + (1 - alpha) * background`` with the clip's own alpha
    (Eq. 3), more layers from back to front. With `original`, pixels that show no edited texel are
    the original ones, exactly.

    Args:
        edited: layer's name -> texture [3,V,U] in 0..1, of any size; other layers keep theirs.
        original: [F,3,H,W], the clip itself; None: what the atlas makes of it.
        seam: pixels over which the edit and the original fade into each other, outside the edit.
        published_border: black beyond a texture, as in the published code.

    Returns: [F,3,H,W] in 0..1, on the CPU.
    """
    names = atlas.names
    textures = [
        edited.get(name, layer.texture) for name, layer in zip(names, atlas.layers, strict=True)
    ]
    changes = [
        changed_texels(edited[name], layer.texture) if name in edited else None
        for name, layer in zip(names, atlas.layers, strict=True)
    ]
    frames = []
    for index in range(atlas.frames):
        uvs = [layer.uv[index : index + 1] for layer in atlas.layers]
        alphas = [layer.alpha[index : index + 1] for layer in atlas.layers[:-1]]
        pairs = zip(textures, uvs, strict=True)
        drawn = stacked([sample_texture(t, uv, published_border) for t, uv in pairs], alphas)
        if original is not None:
            share = shown_change(changes, uvs, alphas, seam)
            drawn = torch.lerp(original[index : index + 1].to(drawn), drawn, share)
        frames.append(drawn.clamp(0, 1))
    return torch.cat(frames)


def restored(edited: Tensor, texture: Tensor, mask: Tensor) -> Tensor:
    """The edited texture [3,V,U], the atlas's own where the mask [Vm,Um] is 1 (as published)."""
    size = (edited.shape[1], edited.shape[2])
    own = F.interpolate(texture[None], size, mode="bilinear", antialias=True)[0]
    weight = F.interpolate(mask[None, None].float(), size, mode="bilinear")[0].clamp(0, 1)
    return torch.lerp(edited, own, weight)


def changed_texels(edited: Tensor, texture: Tensor) -> Tensor:
    """[1,V,U] 1 where the edited texture differs from the atlas's own, and right beside that."""
    size = (edited.shape[1], edited.shape[2])
    own = F.interpolate(texture[None], size, mode="bilinear", antialias=True)
    differs = ((edited[None] - own).abs().amax(1, keepdim=True) > CHANGED).float()
    return F.max_pool2d(differs, 3, 1, 1)[0]


def shown_change(
    changes: list[Tensor | None], uvs: list[Tensor], alphas: list[Tensor], seam: int
) -> Tensor:
    """[1,1,H,W] how much of each pixel of a frame shows edited texels."""
    total = uvs[0].new_zeros(1, 1, *uvs[0].shape[1:3])
    shares = visible(alphas) or [torch.ones_like(total)]
    for change, uv, share in zip(changes, uvs, shares, strict=True):
        if change is not None:
            total = total + sample_texture(change, uv) * share
    # an edge pixel mixes the layers already: it is drawn as a whole
    total = torch.where(total > SEEN, 1.0, 0.0)
    if seam > 0:
        window = 2 * seam + 1
        wide = F.max_pool2d(total, window, 1, seam)
        total = F.avg_pool2d(F.pad(wide, (seam,) * 4, mode="replicate"), window, 1)
    return total
