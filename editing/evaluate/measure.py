"""All measures of one edit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..flow import DIS, FARNEBACK, LEAST_SIDE, Footage, bytes_of
from .background import background_metrics
from .dense_flow import dense_flow_metrics
from .embeddings import embedding_metrics
from .perceptual import lpips_metrics
from .points import point_metric
from .types import LOWER, Evidence, Metric, Report
from .warping import pixel_mse_metric, warp_error

MOTION = (
    ("warp error", "1e-4", "TokenFlow 5.2, Lai et al. 2018", DIS),
    ("Pixel-MSE", "of 255^2", "Pix2Video 4", DIS),
    ("Farneback distance", "pixels", "StableVideo 4.3", FARNEBACK),
    ("FF-alpha", "of 255", "EditBoard", FARNEBACK),
    ("FF-beta", "", "EditBoard", FARNEBACK),
)
STAGES = 5


Tick = Callable[[int], None]


def measure(evidence: Evidence, progress: Callable[[int], Tick] = lambda total: _ignore) -> Report:
    """Every measure that the evidence allows; the others say what they lack.

    Args:
        progress: takes the number of stages, gives a function that is called with the stages done,
            after every family, and with 0 inside of them; it may raise to stop.

    Raises: what that function raises.
    """
    tick = progress(STAGES)

    def check() -> None:
        tick(0)

    metrics, heat = _motion_metrics(evidence, tick)
    metrics += background_metrics(evidence, check)
    tick(3)
    metrics += lpips_metrics(evidence, check)
    tick(4)
    metrics += [point_metric(evidence, check), *embedding_metrics(evidence)]
    tick(STAGES)
    height, width = evidence.source.shape[1:3]
    named = tuple(_named(metric) for metric in metrics)
    return Report(named, evidence.frames, (height, width), heat)


def _named(metric: Metric) -> Metric:
    """The metric itself; with a reason where all of its values are undefined."""
    if metric.missing or metric.value is not None:
        return metric
    return replace(metric, series=None, missing="no pixel of the clip is seen in two frames")


def _motion_metrics(evidence: Evidence, tick: Tick) -> tuple[list[Metric], Tensor]:
    """The families that follow motion, and the heat map."""
    height, width = evidence.source.shape[1:3]
    why = ""
    if evidence.frames < 2:
        why = "the clip has one frame only"
    elif min(height, width) < LEAST_SIDE:
        why = f"the frames are smaller than {LEAST_SIDE} pixels"
    if why:
        blank = torch.full((evidence.frames, height, width), torch.nan, dtype=torch.float64)
        return [Metric(n, u, p, LOWER, e, missing=why) for n, u, p, e in MOTION], blank
    source, edited = (
        Footage(bytes_of(clip), lambda: tick(0)) for clip in (evidence.source, evidence.edited)
    )
    warp, maps = warp_error(evidence, source)
    tick(1)
    found = [warp, pixel_mse_metric(source, edited), *dense_flow_metrics(source, edited)]
    tick(2)
    # the last frame has no next one
    return found, torch.cat([maps.sqrt(), torch.full_like(maps[:1], torch.nan)])


def _ignore(done: int) -> None:
    """Nobody watches."""
