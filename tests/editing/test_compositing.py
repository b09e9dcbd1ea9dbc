"""Outside the mask the source, inside the edit, between them a seam that lies inside."""

from __future__ import annotations

import pytest
import torch
from reweave.editing.compositing import restore_background

EDITED, SOURCE = torch.ones(3, 16, 24, 3), torch.zeros(3, 16, 24, 3)


def half(frames: int = 1) -> torch.Tensor:
    mask = torch.zeros(frames, 16, 24)
    mask[:, :, 12:] = 1
    return mask


def test_a_hard_seam_gives_each_its_side():
    out = restore_background(EDITED, SOURCE, half(3), 0)
    assert torch.equal(out, half(3)[..., None].expand_as(out))


def test_a_soft_seam_never_leaves_the_mask():
    out = restore_background(EDITED, SOURCE, half(), 4)
    assert torch.equal(out[:, :, :12], SOURCE[:, :, :12])
    row = out[0, 8, 12:, 0]
    assert bool((row[1:] >= row[:-1]).all()) and float(row[0]) < 0.5 and float(row[-1]) == 1.0


def test_the_mask_is_scaled_to_the_frames():
    small = half()[:, ::4, ::4]
    out = restore_background(EDITED, SOURCE, small, 0)
    assert float(out[..., :8, :].max()) == 0.0 and float(out[..., 16:, :].min()) == 1.0


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="the edited frames are 3x16x24, the source's 2x16x24"):
        restore_background(EDITED, SOURCE[:2], half(), 0)
    with pytest.raises(ValueError, match="expected a mask of 1 or 3 frames, got 2"):
        restore_background(EDITED, SOURCE, half(2), 0)
