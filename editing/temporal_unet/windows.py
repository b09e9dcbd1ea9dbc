"""Any frame count: padding by reflection, and overlapping windows for clips longer than trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def reflected(frames: int, length: int) -> Tensor:
    """[length] int64 frame numbers: 0 ... frames-1, then back and forth by reflection."""
    if frames == 1:
        return torch.zeros(length, dtype=torch.int64)
    place = torch.arange(length) % (2 * (frames - 1))
    return torch.minimum(place, 2 * (frames - 1) - place)


def padded_count(frames: int, multiple: int) -> int:
    """The next multiple."""
    return -(-frames // multiple) * multiple


def windows(frames: int, window: int, overlap: int) -> list[range]:
    """Runs of at most `window` frames (0 = no limit) that cover all; the last ends at the end.

    Neighbours share at least `overlap` frames, at most half of a window.
    """
    if window <= 0 or frames <= window:
        return [range(frames)]
    stride = max(window - min(max(overlap, 0), window // 2), 1)
    starts = [*range(0, frames - window, stride), frames - window]
    return [range(start, start + window) for start in starts]


def window_weights(spans: Sequence[range]) -> list[Tensor]:
    """[window] float32 per window: ramps that sum to 1 at every frame."""
    total = torch.zeros(spans[-1].stop)
    ramps = []
    for span in spans:
        place = torch.arange(1.0, len(span) + 1)
        ramps.append(torch.minimum(place, place.flip(0)))
        total[span.start : span.stop] += ramps[-1]
    return [r / total[s.start : s.stop] for s, r in zip(spans, ramps, strict=True)]


def in_windows(spans: Sequence[range], compute: Callable[[int, range], Tensor]) -> Tensor:
    """Joins `compute(number, span)` -> [B,C,f,h,w] of every window along the frames.

    One window is returned as it is, several are blended where they overlap.
    """
    if len(spans) == 1:
        return compute(0, spans[0])
    joined: Tensor | None = None
    for number, (span, weight) in enumerate(zip(spans, window_weights(spans), strict=True)):
        part = compute(number, span)
        part = part * weight.to(part)[:, None, None]
        if joined is None:
            shape = list(part.shape)
            shape[2] = spans[-1].stop
            joined = part.new_zeros(shape)
        joined[:, :, span.start : span.stop] += part
    assert joined is not None
    return joined
