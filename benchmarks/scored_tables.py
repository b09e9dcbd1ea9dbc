"""Scores of the named clips' edits as rows of a result file: averages, counts and goals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common import mean, row

SOURCE = "source clip"
"""The column of the source through the VAE."""
PERFECT = "rendered target"
"""The column of the rendered target through the VAE: what the measures say of the perfect edit."""
Results = dict[str, dict[str, dict[str, float]]]
"""Clip -> column -> measure -> value."""
Goals = dict[str, tuple[str, Callable[[float], bool]]]
"""Measure -> (the goal, whether a value reaches it)."""
UNITS = {"background change": "/255", "colour variation": "/255", "CPU seconds": "s"}


def average(results: Results, column: str, measure: str) -> float | None:
    return mean([found.get(column, {}).get(measure) for found in results.values()])


def counted(results: Results, column: str) -> str:
    """For a row's name: of how many clips it is, where the column was not run on all."""
    run = sum(column in found for found in results.values())
    return "" if run == len(results) else f" ({run} of these clips)"


def table(results: Results, columns: list[str]) -> list[dict[str, Any]]:
    """Every measure of the columns; the last one has goals, the first one is what it is held
    against. Where other columns were not run on all clips, all columns are compared on the clips
    that have all of them.
    """
    plain, best = columns[0], columns[-1]
    goals = _goals(results, plain, best)
    whole = {clip: found for clip, found in results.items() if set(columns) <= set(found)}
    if not whole or len(whole) == len(results):
        return _rows(results, [PERFECT, *columns], goals, best)
    shown = [c for c in columns if c in (plain, best) or not counted(results, c)]
    same = [
        entry | {"metric": f"{len(whole)} clips with all columns, {entry['metric']}"}
        for entry in _rows(whole, columns, goals)
    ]
    return _rows(results, [PERFECT, *shown], goals, best) + same


def _goals(results: Results, plain: str, best: str) -> Goals:
    both = {clip: found for clip, found in results.items() if {best, plain} <= set(found)}
    change = average(both, plain, "background change") or 0.0
    limit = max(
        0.15 * (average(both, plain, "colour variation") or 0.0),
        1.2 * (average(both, SOURCE, "colour variation") or 0.0),
    )
    return {
        "target colour coverage": (">= 0.97", lambda v: v >= 0.97),
        "background change": (
            f"<= 5 and < plain ({change:.1f})",
            lambda v: v <= 5 and v < change,
        ),
        "silhouette IoU": (">= 0.85", lambda v: v >= 0.85),
        "colour variation": (f"<= {limit:.2f}", lambda v: v <= limit),
    }


def _rows(
    results: Results, columns: list[str], goals: Goals, best: str = ""
) -> list[dict[str, Any]]:
    source = average(results, SOURCE, "colour variation") or 0.0
    rows = [row(f"{SOURCE}: colour variation", round(source, 4), "/255")]
    for column in columns:
        for measure in (*goals, "CPU seconds"):
            value = average(results, column, measure)
            if value is None:
                continue
            name = f"{column}: {measure}{counted(results, column)}"
            entry = row(name, round(value, 4), UNITS.get(measure, ""))
            if column == best and measure in goals:
                said, reaches = goals[measure]
                entry |= {"goal": said, "reached": reaches(value)}
            rows.append(entry)
    return rows
