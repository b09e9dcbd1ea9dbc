"""Does the edit move as its motion says? Warp error (Lai et al. 2018) and Pixel-MSE (Pix2Video)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..flow import DIS, EXACT, Footage, look_up, unoccluded
from .types import LOWER, Evidence, Metric

STEADY = 10.0
"""Of 255: with exact motion, a pixel counts as seen in both frames where the source itself changes
less than this along it."""


def seen_in_both(source: Footage, motion: Tensor | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per pair: the source's motion [H,W,2] to the next frame, and where it holds [H,W] bool.

    Estimated (DIS): where forth and back agree. Exact: where the source's own colours agree
    along it, as a motion that is only known forwards says nothing of what gets covered.
    """
    if motion is None:
        return [
            (forth, unoccluded(forth, back))
            for forth, back in zip(source.forth, source.back, strict=True)
        ]
    found = []
    for exact, (now, later) in zip(motion.float().cpu().numpy(), source.pairs, strict=True):
        there, inside = look_up(later.astype(np.float32), np.ascontiguousarray(exact))
        change = np.abs(there - now.astype(np.float32)).max(-1)
        found.append((np.ascontiguousarray(exact), inside & (change <= STEADY)))
    return found


def error_maps(clip: Tensor, followed: list[tuple[np.ndarray, np.ndarray]]) -> Tensor:
    """Squared change of every pixel along the motion, mean over the channels.

    Args:
        clip: [F,H,W,3] in 0..1.
        followed: what `seen_in_both` gives, F-1 entries.

    Returns: [F-1,H,W] float64, NaN where the motion does not hold.
    """
    frames = clip[..., :3].detach().float().cpu().clamp(0, 1).numpy()
    maps = []
    for number, (motion, holds) in enumerate(followed):
        there, _ = look_up(frames[number + 1], motion)
        change = np.square((there - frames[number]).astype(np.float64)).mean(-1)
        maps.append(np.where(holds, change, np.nan))
    return torch.from_numpy(np.stack(maps))


def warp_error(evidence: Evidence, source: Footage) -> tuple[Metric, Tensor]:
    """Warp error (TokenFlow, section 5.2; Lai et al. 2018, equation 8).

    Mean over the pixels x that both frames see, and over the channels, of
    (J_i(x) - J_{i+1}(x + f(x)))^2 with values in 0..1 and f the motion of the SOURCE; then the
    mean over i. Shown times 10^4. A clip of one colour has no error: read it beside the others.

    Returns: the metric, and its maps [F-1,H,W] (squared, 0..1, NaN where nothing is known).
    """
    followed = seen_in_both(source, evidence.flow)
    maps, own = error_maps(evidence.edited, followed), error_maps(evidence.source, followed)
    share = float(torch.isfinite(maps).double().mean())
    metric = Metric(
        name="warp error",
        unit="1e-4",
        paper="TokenFlow 5.2, Lai et al. 2018",
        better=LOWER,
        estimator=DIS if evidence.flow is None else EXACT,
        series=maps.flatten(1).nanmean(1) * 1e4,
        source_series=own.flatten(1).nanmean(1) * 1e4,
        note=f"{share:.0%} of the pixels are seen in both frames",
    )
    return metric, maps


def pixel_mse(clip: Footage) -> Tensor:
    """[F-1] Pixel-MSE (Pix2Video, section 4): frame i carried to i+1 by the clip's OWN motion.

    Mean over pixels and channels of (J_i(x + f(x)) - J_{i+1}(x))^2 in 8-bit values, f the motion
    from i+1 back to i; pixels whose place lies outside frame i are left out. The paper takes RAFT
    at 512x512, here it is DIS.
    """
    values = []
    for (now, later), back in zip(clip.pairs, clip.back, strict=True):
        carried, inside = look_up(now.astype(np.float32), back)
        squared = np.square(carried.astype(np.float64) - later).mean(-1)
        values.append(squared[inside].mean() if inside.any() else np.nan)
    return torch.tensor(values, dtype=torch.float64)


def pixel_mse_metric(source: Footage, edited: Footage) -> Metric:
    """`pixel_mse` of the edit beside that of the source."""
    return Metric(
        name="Pixel-MSE",
        unit="of 255^2",
        paper="Pix2Video 4",
        better=LOWER,
        estimator=DIS,
        series=pixel_mse(edited),
        source_series=pixel_mse(source),
    )
