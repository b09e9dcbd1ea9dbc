"""Which key frames are edited, in which order, and what part of a frame the model gets to see."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .types import Layer

SATURATED = 0.99
"""The alpha of a pixel that is surely the object's (published); 0.5 where an atlas has none."""
LEAST_OVERLAP = 0.05
"""Part of a key frame that earlier ones must have seen, or there is nothing to carry over."""
MOST_CELLS = 64
"""Side of the grid on which frames' views of a texture are compared."""


class Box(NamedTuple):
    """A part of a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, pictures: Tensor) -> Tensor:
        """This part of [...,H,W]."""
        rows = slice(self.top, self.top + self.height)
        return pictures[..., rows, self.left : self.left + self.width]

    def paste(self, part: Tensor, size: tuple[int, int]) -> Tensor:
        """[C,height,width] -> [C,H,W], 0 elsewhere."""
        whole = part.new_zeros(len(part), *size)
        self.cut(whole).copy_(part)
        return whole


def crop_box(alpha: Tensor, margin: int = 30, minimum_side: int = 129) -> Box:
    """The box around the object in one frame, with a margin (as published).

    Args:
        alpha: [H,W] in 0..1.
        margin: pixels around the object.
        minimum_side: pixels that the box has at least, where the frame is large enough.

    Raises: ValueError when the object is not in this frame.
    """
    sure = alpha >= SATURATED
    rows, columns = (sure if bool(sure.any()) else alpha >= 0.5).nonzero(as_tuple=True)
    if not len(rows):
        raise ValueError("the object's alpha is below 0.5 everywhere: it is not in this frame")
    top, height = _span(rows, alpha.shape[0], margin, minimum_side)
    left, width = _span(columns, alpha.shape[1], margin, minimum_side)
    return Box(top, left, height, width)


def _span(places: Tensor, length: int, margin: int, least: int) -> tuple[int, int]:
    """(start, size) along one axis; the end is the last pixel plus margin, exclusive."""
    start = max(int(places.min()) - margin, 0)
    size = max(min(int(places.max()) + margin, length) - start, min(least, length), 1)
    return min(start, length - size), size


def jittered(box: Box, generator: torch.Generator) -> Box:
    """A random part of a box, 95 to 100 % of either side (published before every key frame)."""
    share = 0.95 + 0.05 * torch.rand((), generator=generator).item()
    height, width = max(int(box.height * share), 1), max(int(box.width * share), 1)
    down, right = torch.rand(2, generator=generator).tolist()
    top = box.top + int(down * (box.height - height + 1))
    return Box(top, box.left + int(right * (box.width - width + 1)), height, width)


def parse_key_frames(
    text: str, frames: int, knob: str = "key_frames", empty: str = "an automatic choice"
) -> list[int]:
    """Frame numbers that an artist typed, in that order; empty for an empty text.

    knob: the input they were typed into. empty: what an empty text stands for.

    Raises: ValueError for what is no number, out of range or given twice.
    """
    words = [word for word in re.split(r"[\s,;]+", text) if word]
    strange = [word for word in words if not word.isdecimal()]
    if strange:
        raise ValueError(
            f"expected '{knob}' to be frame numbers with commas between them, got "
            f"{strange[0]!r}. Write for example 0, 8, 16, or leave it empty for {empty}."
        )
    numbers = [int(word) for word in words]
    outside = [number for number in numbers if number >= frames]
    if outside:
        raise ValueError(
            f"expected '{knob}' between 0 and {frames - 1} (the clip has {frames} frames, "
            f"counted from 0), got {outside[0]}. Change that number."
        )
    twice = [number for number in numbers if numbers.count(number) > 1]
    if twice:
        raise ValueError(f"'{knob}' names frame {twice[0]} twice. Remove one of them.")
    return numbers


def views(layer: Layer) -> Tensor:
    """Which cells of a layer's texture each frame sees -> [F,cells] bool.

    Cells are two pixels wide, or larger, so that a frame leaves none out by chance.
    """
    visible = layer.alpha[:, 0] >= 0.5
    if not bool(visible.any()):
        return visible.new_zeros(len(visible), 1)
    texels = layer.uv * layer.uv.new_tensor([layer.texture.shape[2], layer.texture.shape[1]])
    places = texels[visible]
    low, high = places.amin(0), places.amax(0)
    across, down = ((high - low) / (2 * _pixel_step(texels, visible))).ceil().long().tolist()
    across, down = (min(max(count, 1), MOST_CELLS) for count in (across, down))
    grid = low.new_tensor([across, down])
    cells = ((texels - low) / (high - low).clamp(min=1e-6) * grid).long()
    column, row = cells[..., 0].clamp(0, across - 1), cells[..., 1].clamp(0, down - 1)
    # what is not the object's goes to a cell of its own, which is dropped
    index = torch.where(visible, row * across + column, across * down).flatten(1)
    seen = torch.zeros(len(visible), across * down + 1, dtype=torch.bool, device=visible.device)
    return seen.scatter_(1, index, True)[:, :-1]


def _pixel_step(texels: Tensor, visible: Tensor) -> float:
    """How far apart neighbouring pixels of the object lie on the texture; nine of ten are nearer.

    Args:
        texels: [F,H,W,2] places in texels. visible: [F,H,W] bool.
    """
    steps = []
    for axis in (1, 2):
        count = texels.shape[axis] - 1
        step = texels.diff(dim=axis).norm(dim=-1)
        both = visible.narrow(axis, 0, count) & visible.narrow(axis, 1, count)
        steps.append(step[both])
    found = torch.cat(steps)
    if not len(found):
        return 1.0
    return max(float(found.kthvalue(max(len(found) * 9 // 10, 1)).values), 1e-6)


def coverage_of(seen: Tensor, key_frames: Sequence[int]) -> float:
    """Part of all cells seen by any frame that these key frames see, 0..1."""
    everything = int(seen.any(0).sum())
    return int(seen[list(key_frames)].any(0).sum()) / max(everything, 1)


def known_share(seen: Tensor, earlier: Sequence[int], frame: int, previous_only: bool) -> float:
    """Part of what `frame` sees that the key frames before it have seen, 0..1."""
    sources = list(earlier[-1:] if previous_only else earlier)
    common = seen[sources].any(0) & seen[frame]
    return int(common.sum()) / max(int(seen[frame].sum()), 1)


def choose_key_frames(
    seen: Tensor,
    most: int,
    overlap: float = 0.4,
    coverage: float = 0.95,
    previous_only: bool = False,
) -> list[int]:
    """Key frames in the order of editing: first what shows most, then what adds most.

    Args:
        seen: [F,cells] from `views`.
        most: key frames at most.
        overlap: part of every further key frame that earlier ones (or, with `previous_only`, the
            one before it) must have seen, 0..1.
        coverage: part of the texture after which no more are taken, 0..1.

    Raises: ValueError when no frame shows the layer.
    """
    if not bool(seen.any()):
        raise ValueError(
            "the layer is empty: its alpha is below 0.5 in every frame. Choose another layer, or "
            "fit the atlas with a mask of the object."
        )
    chosen = [int(seen.sum(1).argmax())]
    while len(chosen) < most and coverage_of(seen, chosen) < coverage:
        gains = (seen & ~seen[chosen].any(0)).sum(1)
        near = [known_share(seen, chosen, f, previous_only) >= overlap for f in range(len(seen))]
        gains = torch.where(torch.tensor(near, device=seen.device), gains, 0)
        if not bool(gains.any()):
            break
        chosen.append(int(gains.argmax()))
    return chosen


def check_key_frames(seen: Tensor, key_frames: Sequence[int], previous_only: bool) -> None:
    """Raises: ValueError for a key frame without the object, or one that nothing reaches."""
    for number, frame in enumerate(key_frames):
        if not bool(seen[frame].any()):
            raise ValueError(
                f"key frame {frame} does not show the layer (its alpha is below 0.5 everywhere). "
                "Choose frames in which the object is visible."
            )
        if number == 0:
            continue
        share = known_share(seen, key_frames[:number], frame, previous_only)
        if share < LEAST_OVERLAP:
            before = f"frame {key_frames[number - 1]}" if previous_only else "those before it"
            raise ValueError(
                f"key frame {frame} shares {share:.0%} of what it shows with {before}; at least "
                f"{LEAST_OVERLAP:.0%} is needed to carry an edit over. Put a key frame between "
                "them, or leave 'key_frames' empty for an automatic choice."
            )
