"""Padding and windows: which frames are looked at, and how windows are joined."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from reweave.editing.temporal_unet.windows import (
    in_windows,
    padded_count,
    reflected,
    window_weights,
    windows,
)


def test_reflection_goes_back_and_forth() -> None:
    assert reflected(4, 10).tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3]
    assert reflected(3, 3).tolist() == [0, 1, 2]
    assert reflected(2, 5).tolist() == [0, 1, 0, 1, 0]
    assert reflected(1, 4).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("frames", "expected"), [(8, 8), (9, 16), (1, 8), (16, 16)])
def test_padding_reaches_the_next_multiple(frames: int, expected: int) -> None:
    assert padded_count(frames, 8) == expected


def test_one_window_is_the_clip() -> None:
    assert windows(8, 8, 4) == windows(8, 0, 4) == windows(8, 16, 4) == [range(8)]


@pytest.mark.parametrize("frames", range(9, 40))
@pytest.mark.parametrize("overlap", [0, 1, 4, 100])
def test_windows_cover_every_frame_with_the_trained_length(frames: int, overlap: int) -> None:
    spans = windows(frames, 8, overlap)
    assert {len(span) for span in spans} == {8}
    assert set().union(*spans) == set(range(frames)) and spans[-1].stop == frames
    shared = [before.stop - after.start for before, after in pairwise(spans)]
    assert min(shared) >= min(overlap, 4)
    assert all(before.start < after.start for before, after in pairwise(spans))
    total = torch.zeros(frames)
    for span, weight in zip(spans, window_weights(spans), strict=True):
        assert bool((weight > 0).all())
        total[span.start : span.stop] += weight
    torch.testing.assert_close(total, torch.ones(frames))


def test_windows_are_joined_in_place() -> None:
    values = torch.arange(20.0)[None, None, :, None, None].expand(1, 2, 20, 3, 1)
    spans = windows(20, 8, 3)
    joined = in_windows(spans, lambda _, span: values[:, :, span.start : span.stop])
    torch.testing.assert_close(joined, values.contiguous())
    shifted = in_windows(spans, lambda n, span: values[:, :, span.start : span.stop] + n)
    assert not torch.equal(shifted, joined)
    assert in_windows([range(20)], lambda *_: values) is values
