"""The bundled footage: all of it can be read, and what is held out is never trained on."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
import torch

from demo import footage


def test_the_clip_is_whole():
    clip = footage.frames()
    assert clip.shape == (132, 3, 270, 480)
    assert clip.dtype == torch.uint8
    assert (footage.CLIP.parent / "CREDITS.md").is_file()
    assert footage.CLIP.stat().st_size < 1.5e6


def test_every_eighth_frame_is_held_out():
    train, held = footage.split(132)
    assert held == list(range(7, 132, 8))
    assert sorted(train + held) == list(range(132))


def test_cuts_keep_the_aspect():
    clip = footage.frames()[:1]
    whole = footage.resized(clip, 90, 160)
    square = footage.resized(clip, 90, 90, torch.tensor([0.0]))
    assert whole.shape == (1, 3, 90, 160)
    assert float((square - whole[..., :90]).abs().mean()) < 0.01
    other = footage.resized(clip, 90, 90, torch.tensor([1.0]))
    assert float((other - whole[..., 70:]).abs().mean()) < 0.01


def test_training_crops_repeat_with_their_seed():
    one, two = (
        footage.training_crops(4, 32, 48, torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(one[0], two[0])
    assert one[1] == two[1]
    assert one[0].shape == (4, 3, 32, 48)


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match=r"no_clip\.mp4"):
        footage.frames(Path("no_clip.mp4"))


def test_the_clip_plays_at_its_own_speed():
    with av.open(str(footage.CLIP)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 25 and stream.frames == 132
