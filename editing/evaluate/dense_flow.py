"""Does the edit move like the source? Farneback distance (StableVideo), FF-alpha and FF-beta
(EditBoard)."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from ..flow import FARNEBACK, Footage, grey
from .types import LOWER, Metric

THRESHOLD = 5
"""Of 255: the source's grey change along its motion up to which EditBoard calls a pixel valid."""
LEAST_VALID = 0.7
"""Share of valid pixels below which EditBoard's code drops a clip."""


def farneback_distance(source: Footage, edited: Footage) -> Tensor:
    """[F-1] mean over pixels of |f_source - f_edited| in pixels (StableVideo, section 4.3)."""
    apart = [
        np.linalg.norm(a.astype(np.float64) - b, axis=-1).mean()
        for a, b in zip(source.farneback, edited.farneback, strict=True)
    ]
    return torch.tensor(apart, dtype=torch.float64)


def carried(picture: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """A uint8 picture read at x - motion(x), bilinear, black outside: EditBoard's forward warp."""
    height, width = motion.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(picture, x - motion[..., 0], y - motion[..., 1], cv2.INTER_LINEAR)


def ff_alpha(source: Footage, clip: Footage) -> tuple[Tensor, float]:
    """FF-alpha (EditBoard): frame i carried to i+1 by the source's Farneback motion.

    Valid are the pixels where the grey value of |carried I_i - I_{i+1}| is at most 5. A pair's
    score is the mean over valid pixels of the largest channel of |carried J_i - J_{i+1}|, in
    8-bit values; NaN where no pixel is valid.

    Returns: [F-1] float64, and the share of valid pixels. The published code divides by 512x512
    whatever the size, and gives 0 to a clip below 70 %; ours divides by the clip's own pixels
    and says so instead.
    """
    scores, shares = [], []
    for number, motion in enumerate(source.farneback):
        own = cv2.absdiff(source.frames[number + 1], carried(source.frames[number], motion))
        valid = grey(own) <= THRESHOLD
        change = cv2.absdiff(clip.frames[number + 1], carried(clip.frames[number], motion))
        largest = change.max(-1)[valid]
        scores.append(float(largest.mean()) if largest.size else np.nan)
        shares.append(float(valid.mean()))
    return torch.tensor(scores, dtype=torch.float64), float(np.mean(shares))


def ff_beta(source: Footage, edited: Footage) -> Tensor:
    """[F-1] FF-beta (EditBoard): mean over pixels of 1 - cos(f_source, f_edited), Farneback.

    1e-7 is added to each length, so a pixel that rests in either clip counts as 1.
    """
    values = []
    for a, b in zip(source.farneback, edited.farneback, strict=True):
        a, b = a.astype(np.float64), b.astype(np.float64)
        lengths = (np.linalg.norm(a, axis=-1) + 1e-7) * (np.linalg.norm(b, axis=-1) + 1e-7)
        values.append(float((1 - (a * b).sum(-1) / lengths).mean()))
    return torch.tensor(values, dtype=torch.float64)


def dense_flow_metrics(source: Footage, edited: Footage) -> list[Metric]:
    """All three."""
    alpha, share = ff_alpha(source, edited)
    note = f"{share:.0%} of the pixels are valid"
    if share < LEAST_VALID:
        note += f", below {LEAST_VALID:.0%}: the published code gives such a clip 0"
    none_valid = (
        ""
        if bool(torch.isfinite(alpha).any())
        else (f"along its motion, no pixel of the source changes by {THRESHOLD} of 255 or less")
    )
    return [
        Metric(
            name="Farneback distance",
            unit="pixels",
            paper="StableVideo 4.3",
            better=LOWER,
            estimator=FARNEBACK,
            series=farneback_distance(source, edited),
        ),
        Metric(
            name="FF-alpha",
            unit="of 255",
            paper="EditBoard",
            better=LOWER,
            estimator=FARNEBACK,
            series=None if none_valid else alpha,
            source_series=None if none_valid else ff_alpha(source, source)[0],
            missing=none_valid,
            note=note,
        ),
        Metric(
            name="FF-beta",
            unit="",
            paper="EditBoard",
            better=LOWER,
            estimator=FARNEBACK,
            series=ff_beta(source, edited),
        ),
    ]
