"""A report as pictures: plots over time, where the edit flickers, and a slice through time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..figures import drawn
from .types import Metric, Report

HOTTEST = 0.15
"""Warp error (root mean square, 0..1) that is drawn in the brightest colour, in every report: heat
maps of two edits can be compared."""
UNKNOWN = (0.25, 0.25, 0.3)
GAP = 4
"""Rows between the two halves of a slice."""


def plots(report: Report) -> Tensor:
    """One plot per computed measure, edit and source over time -> [M,H,W,3] float32 in 0..1."""
    pictures = [plot(metric) for metric in report.computed if metric.series is not None]
    if not pictures:
        return torch.ones(1, 320, 640, 3)
    return torch.stack(pictures)


def plot(metric: Metric) -> Tensor:
    """One measure over time -> [320,640,3] float32 in 0..1."""
    series, own = metric.series, metric.source_series
    assert series is not None
    unit = f" ({metric.unit})" if metric.unit else ""
    by = f", by {metric.estimator}" if metric.estimator else ""

    def draw(axes: Any) -> None:
        if own is not None:
            axes.plot(own.tolist(), color="0.55", linewidth=1, label="source itself")
        axes.plot(series.tolist(), color="tab:blue", marker=".", label="edit")
        axes.set(xlabel="frame", ylabel=f"{metric.name}{unit}")
        axes.set_title(f"{metric.name}: {metric.better} is better{by}", fontsize=10)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()

    return drawn(draw, 640, 320)[0]


def heat_map(report: Report, edited: Tensor) -> Tensor:
    """Where the edit does not follow the source's motion, drawn over its grey picture.

    Args:
        edited: [F,H,W,3] in 0..1.

    Returns: [F,H,W,3]: black-red-yellow-white up to HOTTEST; bluish grey where something gets
    covered or leaves the picture, and in the last frame, which has no next one.
    """
    import matplotlib

    heat = report.heat.float()
    colours = torch.tensor(matplotlib.colormaps["hot"](range(256))[:, :3]).float()
    known = torch.isfinite(heat)
    level = (torch.nan_to_num(heat) / HOTTEST).clamp(0, 1)
    hot = colours[(level * 255).round().long()]
    grey = edited[..., :3].float().cpu().mean(-1, keepdim=True)
    shown = (grey * 0.35 + hot * 0.65).clamp(0, 1)
    return torch.where(known[..., None], shown, torch.tensor(UNKNOWN))


def slice_through_time(source: Tensor, edited: Tensor, height: float) -> Tensor:
    """One row of pixels over time: time runs down, the source above the edit (an x-t slice).

    A consistent edit draws lines as smooth as the source's; flicker draws horizontal stripes.

    Args:
        source, edited: [F,H,W,3] in 0..1.
        height: the row, 0 = top, 1 = bottom.

    Returns: [1,2T+4,W,3], every frame as many rows as make a half at least 128 tall.
    """
    row = min(round(height * source.shape[1] - 0.5), source.shape[1] - 1)
    halves = []
    for clip in (source, edited):
        lines = clip[:, max(row, 0), :, :3].float().cpu().clamp(0, 1)
        tall = max(1, -(-128 // len(lines)))
        halves.append(lines.repeat_interleave(tall, 0))
    return torch.cat([halves[0], torch.ones(GAP, *halves[0].shape[1:]), halves[1]])[None]
