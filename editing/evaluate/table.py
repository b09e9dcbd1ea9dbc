"""A report as a table to read (Markdown) and as JSON to compute with."""

from __future__ import annotations

import json
import math
from typing import Any

from torch import Tensor

from .types import Metric, Report


def markdown(report: Report) -> str:
    """One row per measure; below it, what could not be computed and why."""
    height, width = report.size
    lines = [
        f"{report.frames} frames of {width}x{height} pixels.",
        "",
        "| measure | edit | source itself | better | measured by | defined in |",
        "|---|---|---|---|---|---|",
    ]
    for metric in report.computed:
        own = "" if metric.source_value is None else number(metric.source_value, metric.unit)
        value = number(metric.value, metric.unit)
        cells = (metric.name, value, own, metric.better, metric.estimator, metric.paper)
        lines.append(f"| {' | '.join(cells)} |")
    notes = [f"- {metric.name}: {metric.note}." for metric in report.computed if metric.note]
    lines += ["", *notes]
    if report.missing:
        lines += ["", "Not computed:", *(f"- {m.name}: {m.missing}." for m in report.missing)]
    return "\n".join(lines).replace("\n\n\n", "\n\n")


def summary(report: Report) -> str:
    """The main numbers in one line, for the node."""
    names = ("warp error", "background PSNR", "frame consistency", "text alignment")
    parts = [
        f"{metric.name} {number(metric.value, metric.unit)}"
        for metric in report.computed
        if metric.name in names
    ]
    left = f"{len(report.missing)} of {len(report.metrics)} measures not computed"
    return "; ".join([*parts, left] if report.missing else parts)


def number(value: float | None, unit: str) -> str:
    """Four significant digits and the unit."""
    if value is None:
        return "not defined"
    if unit.startswith("1e"):
        return f"{value:.4g} x{unit}"
    return f"{value:.4g} {unit}".strip()


def as_json(report: Report) -> str:
    """Every measure with its value, its values over time, its estimator and its source; null for
    what could not be computed, with the reason."""
    height, width = report.size
    content = {
        "frames": report.frames,
        "height": height,
        "width": width,
        "metrics": {metric.name: entry(metric) for metric in report.metrics},
    }
    return json.dumps(content, indent=1, allow_nan=False)


def entry(metric: Metric) -> dict[str, Any]:
    """One measure as plain values."""
    return {
        "value": metric.value,
        "source": metric.source_value,
        "unit": metric.unit,
        "better": metric.better,
        "estimator": metric.estimator,
        "paper": metric.paper,
        "series": _plain(metric.series),
        "source_series": _plain(metric.source_series),
        "missing": metric.missing,
        "note": metric.note,
    }


def _plain(series: Tensor | None) -> list[float | None] | None:
    if series is None:
        return None
    return [value if math.isfinite(value) else None for value in series.tolist()]
