"""One edited key frame carried to the next through the atlas (StableVideo, section 3.3).

``E^_i = alpha_i * UV_i(A_j)``: the partial texture A_j of key frame j, as frame i sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .key_frames import Box
from .mapping import map_to_atlas, unmap_from_atlas
from .types import Layer

CARRIED = ("all finished key frames", "previous key frame")
"""What a key frame starts from; published: the previous one alone."""
MAPPINGS = ("fast", "exact", "published")
"""How a key frame is written to the texture. "fast" and "exact" as in `mapping.MODES`, weighted by
alpha. "published": exact, but alpha times the picture with weight 1, half a texel beside."""
UNCOVERED = ("source pixels", "black")
"""What a key frame shows where no earlier one was seen; published: black."""
SEEN = 0.5
"""Part of a pixel's alpha with which its texels must be written for the pixel to be known."""


BACKDROPS = ("black", "source pixels")
"""What the model sees around the object; published: black."""


@dataclass(frozen=True)
class KeyFrame:
    """A finished key frame: what the model made of a part of a frame."""

    frame: int
    box: Box
    picture: Tensor
    """[3,box.height,box.width] 0..1, edited; its alpha is not multiplied in."""
    alpha: Tensor | None = None
    """[1,box.height,box.width] 0..1, what of it counts; None: the layer's alpha."""


@dataclass(frozen=True)
class PartialTexture:
    """What one key frame, or several, say about a layer's texture."""

    colours: Tensor
    """[3,V,U] 0..1, 0 where nothing was written."""
    coverage: Tensor
    """[1,V,U] >= 0, the weight with which it was written."""


def partial_texture(
    layer: Layer, key: KeyFrame, size: tuple[int, int], mapping: str
) -> PartialTexture:
    """A key frame on the texture (UV_i^-1).

    Args:
        size: (V, U), rows and columns of the texture.
        mapping: one of MAPPINGS.
    """
    uv, alpha = _cut(layer, key.frame, key.box)
    alpha = alpha if key.alpha is None else key.alpha[None].to(uv)
    picture = key.picture[None].to(uv)
    if mapping == "published":
        return PartialTexture(*map_to_atlas(picture * alpha, uv, size, None, "exact", True))
    return PartialTexture(*map_to_atlas(picture, uv, size, alpha, mapping))


def merged(partials: Sequence[PartialTexture]) -> PartialTexture:
    """Several partial textures as one: their mean, weighted by coverage."""
    coverage = sum((part.coverage for part in partials), torch.zeros_like(partials[0].coverage))
    total = sum((p.colours * p.coverage for p in partials), torch.zeros_like(partials[0].colours))
    return PartialTexture(total / torch.where(coverage > 0, coverage, 1.0), coverage)


def appearance(
    layer: Layer, known: PartialTexture, frame: int, box: Box, published: bool = False
) -> tuple[Tensor, Tensor]:
    """A partial texture as a part of one frame sees it (UV_i).

    Args:
        published: read the texture as it is, with the black of what was never written.

    Returns: colours [3,h,w] 0..1, not multiplied by the frame's alpha ("published": by that of the
        frames before, as they were written); which pixels are known, [1,h,w] bool.
    """
    uv, alpha = _cut(layer, frame, box)
    weight = known.coverage.clamp(max=1)
    # weighted, so that texels that were not written do not darken their neighbours
    texels = torch.cat([known.colours * (1 if published else weight), weight])
    read = unmap_from_atlas(texels.to(uv), uv, published_border=published)[0]
    colours, share = read[:3], read[3:]
    if published:
        return colours.clamp(0, 1), share > 0
    colours = colours / torch.where(share > 0, share, 1.0)
    return colours.clamp(0, 1), (share > 0) & (share >= SEEN * alpha[0])


def starting_picture(
    layer: Layer,
    known: PartialTexture,
    source: Tensor,
    frame: int,
    box: Box,
    mapping: str,
    uncovered: str,
) -> Tensor:
    """What the model starts a key frame from: the object on black, as far as it is known.

    Args:
        source: [3,h,w] the frame's own pixels in the box.
        mapping, uncovered: one of MAPPINGS, one of UNCOVERED.

    Returns: [3,h,w] 0..1.
    """
    published = mapping == "published"
    colours, seen = appearance(layer, known, frame, box, published)
    alpha = _cut(layer, frame, box)[1][0]
    # the published texture holds alpha times the picture already
    shown = colours if published else colours * alpha
    rest = torch.zeros_like(shown) if uncovered == "black" else source.to(alpha) * alpha
    return torch.where(seen, shown, rest)


@dataclass(frozen=True)
class Task:
    """One key frame that is to be made."""

    number: int
    """0 for the first."""
    frame: int
    box: Box
    crop: Tensor
    """[3,h,w] 0..1, the object on its backdrop."""
    start: Tensor | None
    """[3,h,w] 0..1, what earlier key frames look like from here, on the same backdrop; None for
    the first."""


@dataclass(frozen=True)
class Carrying:
    """How an edit goes from one key frame to the next."""

    size: tuple[int, int]
    """(V, U) of the texture that carries it."""
    carried: str = CARRIED[0]
    mapping: str = MAPPINGS[0]
    uncovered: str = UNCOVERED[0]
    backdrop: str = BACKDROPS[0]


def edit_in_turn(
    frames: Tensor,
    layer: Layer,
    places: Sequence[tuple[int, Box]],
    carrying: Carrying,
    make: Callable[[Task], Tensor],
) -> Iterator[KeyFrame]:
    """The loop of StableVideo: every key frame starts from those before it.

    Args:
        frames: [F,3,H,W] 0..1, the clip.
        places: (frame, box) of every key frame, in the order of editing.
        make: one edited picture [3,h,w] 0..1 from its task.

    Yields: each key frame as soon as it is finished.
    """
    partials: list[PartialTexture] = []
    for number, (frame, box) in enumerate(places):
        source = box.cut(frames[frame])
        alpha = box.cut(layer.alpha[frame]).to(source)
        around = (1 - alpha) * source if carrying.backdrop == BACKDROPS[1] else 0.0
        start = None
        if partials:
            known = partials[-1] if carrying.carried == CARRIED[1] else merged(partials)
            mapping, uncovered = carrying.mapping, carrying.uncovered
            start = starting_picture(layer, known, source, frame, box, mapping, uncovered) + around
        task = Task(number, frame, box, source * alpha + around, start)
        key = KeyFrame(frame, box, make(task))
        yield key
        if number + 1 < len(places):
            partials.append(partial_texture(layer, key, carrying.size, carrying.mapping))


def _cut(layer: Layer, frame: int, box: Box) -> tuple[Tensor, Tensor]:
    """uv [1,h,w,2] and alpha [1,1,h,w] of a part of one frame."""
    uv = box.cut(layer.uv[frame].movedim(-1, 0)).movedim(0, -1)[None]
    return uv, box.cut(layer.alpha[frame])[None]
