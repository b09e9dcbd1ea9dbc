"""Textures as pictures, for an artist to paint on, and pictures as textures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_choice, check_range
from .key_frames import parse_key_frames
from .mapping import MODES, map_to_atlas, unmap_from_atlas
from .rendering import UNTOUCHED, render, restored
from .requests import check_pictures, find_layer, named, texture_size, visible_layer
from .types import Atlas

LARGEST = 8192
"""Texels along a side of a texture."""


@dataclass(frozen=True)
class LayerPictures:
    """One layer of an atlas as ComfyUI's pictures."""

    texture: Tensor
    """[1,V,U,3]."""
    opacity: Tensor
    """[1,V,U] how opaque the layer is at each texel, over all frames that see it."""
    coverage: Tensor
    """[1,V,U] 1 where any frame sees the texel."""
    alpha: Tensor
    """[F,H,W]."""


def layer_pictures(node: str, atlas: Atlas, name: str, size: int) -> LayerPictures:
    """What Atlas Textures shows.

    Args:
        size: texels of the longest side; 0: the atlas's own.

    Raises: ValueError for an unknown layer or size.
    """
    with named(node):
        check_size(size)
        layer = find_layer(atlas, name)
    at = texture_size(layer, size)
    texture = F.interpolate(layer.texture[None], at, mode="bicubic", antialias=True)
    if at == tuple(layer.texture.shape[1:]):
        texture = layer.texture[None]
    seen, _ = map_to_atlas(layer.alpha, layer.uv, at)
    # a texel counts as seen where at least the weight of half a pixel reached it
    covered = F.interpolate(layer.coverage[None], at, mode="bilinear")[0] > 0.5
    return LayerPictures(
        texture=texture.clamp(0, 1).movedim(1, -1),
        opacity=seen.clamp(0, 1),
        coverage=covered.float(),
        alpha=layer.alpha[:, 0],
    )


@dataclass(frozen=True)
class MapRequest:
    """What Map To Atlas was asked for."""

    layer: str = "foreground"
    frames: str = ""
    """Numbers of the frames that the pictures are; empty: all."""
    size: int = 0
    mode: str = MODES[0]


def map_pictures(
    node: str, atlas: Atlas, image: Tensor, mask: Tensor | None, request: MapRequest
) -> tuple[Tensor, Tensor]:
    """What Map To Atlas does.

    Args:
        image: [K,H,W,3]. mask: [K or 1,H,W] more weight where it is white, or None.

    Returns: texture IMAGE [1,V,U,3] and coverage MASK [1,V,U] in 0..1.
    Raises: ValueError when pictures, masks, numbers or the layer do not fit.
    """
    check_choice(node, "mode", request.mode, MODES)
    with named(node):
        check_size(request.size)
        layer = visible_layer(atlas, request.layer)
        numbers = parse_key_frames(request.frames, atlas.frames, "frames", "all frames")
        numbers = numbers or list(range(atlas.frames))
        pictures = check_pictures(atlas, image, len(numbers), "one for each frame in 'frames'")
        chosen = torch.tensor(numbers)
        weight = layer.alpha[chosen]
        if mask is not None:
            weight = weight * _weights(mask, pictures)
    at = texture_size(layer, request.size)
    texture, coverage = map_to_atlas(pictures, layer.uv[chosen], at, weight, request.mode)
    return texture.clamp(0, 1)[None].movedim(1, -1), coverage.clamp(max=1)


def unmap_picture(node: str, atlas: Atlas, name: str, texture: Tensor) -> tuple[Tensor, Tensor]:
    """What Unmap From Atlas does: the texture as every frame sees it, and where.

    Args:
        texture: [1,V,U,3] of any size.

    Returns: IMAGE [F,H,W,3], MASK [F,H,W].
    Raises: ValueError for an unknown layer or more than one texture.
    """
    with named(node):
        layer = visible_layer(atlas, name)
        picture = one_texture(texture, "texture")
    frames = [unmap_from_atlas(picture, layer.uv[n : n + 1]) for n in range(atlas.frames)]
    return torch.cat(frames).clamp(0, 1).movedim(1, -1), layer.alpha[:, 0]


@dataclass(frozen=True)
class RenderRequest:
    """What Render Atlas was given, beside the atlas."""

    textures: dict[str, Tensor | None]
    """Layer's name -> edited texture IMAGE, or None."""
    restore: dict[str, Tensor | None]
    """Layer's name -> MASK on the texture, white = the atlas's own."""
    untouched: str = UNTOUCHED[0]
    seam: int = 2


def render_pictures(
    node: str, atlas: Atlas, image: Tensor | None, request: RenderRequest
) -> Tensor:
    """What Render Atlas does -> IMAGE [F,H,W,3].

    Raises: ValueError when textures, masks and the clip do not fit the atlas.
    """
    check_choice(node, "untouched", request.untouched, UNTOUCHED)
    check_range(node, "seam", request.seam, 0, 256)
    with named(node):
        edited = _edited(atlas, request)
        original = None
        if request.untouched == UNTOUCHED[0]:
            if image is None:
                raise ValueError(
                    "'untouched' is 'original pixels', but no clip is connected. Connect the "
                    "clip's frames to 'image', or choose 'reconstruction'."
                )
            original = check_pictures(atlas, image, atlas.frames, "the clip's frames")
    return render(atlas, edited, original, request.seam).movedim(1, -1)


def _edited(atlas: Atlas, request: RenderRequest) -> dict[str, Tensor]:
    edited: dict[str, Tensor] = {}
    for name, picture in request.textures.items():
        mask = request.restore.get(name)
        if picture is None:
            if mask is not None:
                raise ValueError(
                    f"'restore_{name}' has nothing to act on: no {name} texture is connected. "
                    f"Connect '{name}', or disconnect the mask."
                )
            continue
        layer = find_layer(atlas, name)
        edited[name] = one_texture(picture, name)
        if mask is not None:
            edited[name] = restored(edited[name], layer.texture, _one_mask(mask, name))
    return edited


def one_texture(image: Tensor, knob: str) -> Tensor:
    """[3,V,U] of an IMAGE [1,V,U,3]. Raises: ValueError for several, or for NaN."""
    if image.ndim != 4 or len(image) != 1:
        raise ValueError(
            f"expected one picture in '{knob}', the edited texture, got {len(image)}. Connect one "
            "texture, not the frames of a clip."
        )
    if not bool(torch.isfinite(image).all()):
        raise ValueError(f"the texture in '{knob}' holds NaN. Check the node that made it.")
    return image[0, ..., :3].movedim(-1, 0).float().cpu().clamp(0, 1)


def check_size(size: int) -> None:
    """Raises: ValueError for a texture that cannot be made."""
    if size != 0 and not 8 <= size <= LARGEST:
        raise ValueError(
            f"expected 'size' to be 0 (the atlas's own) or 8 to {LARGEST} texels, got {size}. "
            "Set it so."
        )


def _one_mask(mask: Tensor, name: str) -> Tensor:
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or len(mask) != 1:
        raise ValueError(
            f"expected one mask in 'restore_{name}', painted on the texture, got {len(mask)}. "
            "Connect the mask of the texture, not of the frames."
        )
    return mask[0].cpu()


def _weights(mask: Tensor, pictures: Tensor) -> Tensor:
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or len(mask) not in (1, len(pictures)):
        raise ValueError(
            f"expected 1 or {len(pictures)} masks, as many as pictures, got {len(mask)}. Connect "
            "one mask per picture, one for all, or none."
        )
    mask = mask.float().cpu().clamp(0, 1)
    return F.interpolate(mask[:, None], pictures.shape[2:], mode="bilinear")
