"""Cells of the quality benchmark as rows of its result file, and those as tables of the pages."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import mean
from ground_truth import BETTER
from ground_truth import UNITS as TRUTH_UNITS

ROOT = Path(__file__).resolve().parent.parent
PAGE, README = ROOT / "docs" / "quality.md", ROOT / "README.md"
MEASURES = (
    *TRUTH_UNITS,
    "point colour variation",
    "warp error",
    "Pixel-MSE",
    "Farneback distance",
    "FF-alpha",
    "FF-beta",
    "background PSNR",
    "background SSIM",
    "LPIPS-P",
    "LPIPS-T",
    "frame consistency",
    "CLIP-Image",
    "text alignment",
)
TIME = "time per frame"
SHORT = (*list(TRUTH_UNITS)[:3], "point colour variation", "warp error")
"""Measures of the README's table."""
HIGHER = {
    *BETTER, "background PSNR", "background SSIM", "frame consistency", "CLIP-Image",
    "text alignment",
}  # fmt: skip
UNDIRECTED = {"LPIPS-P"}
Cells = dict[str, dict[str, dict[str, Any]]]
"""clip -> method -> cell."""


def cells_of(folders: dict[str, Path], methods: list[str]) -> Cells:
    """Every kept cell."""
    return {
        clip: {
            name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            for name in methods
            if (folder / f"{name}.json").is_file()
        }
        for clip, folder in folders.items()
    }


def values(cells: Cells, method: str, measure: str) -> list[float]:
    """A measure's values of one method, of the clips where it is defined."""
    found = []
    for row in cells.values():
        cell = row.get(method, {})
        if measure == TIME and cell.get("spent"):
            found.append(cell["spent"] / cell["frames"])
        value = cell.get("scores", {}).get(measure, {}).get("value")
        if value is not None:
            found.append(value)
    return found


def unit_of(cells: Cells, measure: str) -> str:
    """As the cells have it."""
    every = [cell for row in cells.values() for cell in row.values()]
    if measure == TIME:
        return " or ".join(sorted({cell["clock"] for cell in every if "clock" in cell}))
    if measure in TRUTH_UNITS:
        return TRUTH_UNITS[measure]
    known = (cell["scores"][measure] for cell in every if measure in cell.get("scores", {}))
    return next(known, {"unit": ""})["unit"]


def rows_of(cells: Cells, methods: list[str]) -> list[dict[str, Any]]:
    """One row per method and measure; value null where no clip defines it."""
    rows = []
    for method in methods:
        for measure in (*MEASURES, TIME):
            known = values(cells, method, measure)
            unit = unit_of(cells, measure)
            average = mean(known)
            text = f"{method}: {measure}" + (f" (n={len(known)})" if known else "")
            rows.append(
                {
                    "metric": text,
                    "value": None if average is None else round(average, 6),
                    "unit": unit,
                    "goal": "",
                    "reached": None,
                }
            )
    return rows


@dataclass(frozen=True)
class Mean:
    """One entry of the result file."""

    value: float | None
    unit: str
    clips: int

    @property
    def shown(self) -> str:
        return "\u2013" if self.value is None else f"{self.value:.3g}"


Means = dict[str, dict[str, Mean]]
"""method -> measure -> its mean."""


def means_of(rows: list[dict[str, Any]]) -> Means:
    """What `rows_of` has written."""
    found: Means = {}
    for row in rows:
        method, rest = row["metric"].split(": ", 1)
        measure, _, clips = rest.removesuffix(")").partition(" (n=")
        found.setdefault(method, {})[measure] = Mean(row["value"], row["unit"], int(clips or 0))
    return found


def headed(means: Means) -> dict[str, str]:
    """method -> its name for a table, with its clips where others were run on more."""
    clips = {method: max(x.clips for x in row.values()) for method, row in means.items()}
    most = max(clips.values(), default=0)
    behind = {m: f" ({n} of {most} clips)" if n < most else "" for m, n in clips.items()}
    return {method: method + text for method, text in behind.items()}


def measure_headed(measure: str, unit: str) -> str:
    """A measure with its unit and the direction that is better."""
    arrow = "" if measure in UNDIRECTED else " \u2191" if measure in HIGHER else " \u2193"
    return f"{measure}{f' ({unit})' if unit else ''}{arrow}"


def table(rows: list[dict[str, Any]]) -> str:
    """Methods across, measures down; the number of clips stands behind the measure."""
    means = means_of(rows)
    lines = [f"| measure | {' | '.join(headed(means).values())} |"]
    lines.append("|---" * (len(means) + 1) + "|")
    for measure in (*MEASURES, TIME):
        found = [row[measure] for row in means.values()]
        count = max(mean.clips for mean in found)
        if count:
            name = measure_headed(measure, found[0].unit)
            lines.append(f"| {name}, {count} clips | {' | '.join(x.shown for x in found)} |")
    return "\n".join(lines)


def short_table(rows: list[dict[str, Any]]) -> str:
    """Methods down, the README's measures across."""
    means = means_of(rows)
    units = {measure: next(iter(means.values()))[measure].unit for measure in SHORT}
    heads = [measure_headed(measure, unit) for measure, unit in units.items()]
    lines = [f"| method | {' | '.join(heads)} |", "|---" * (len(SHORT) + 1) + "|"]
    for method, name in headed(means).items():
        lines.append(f"| {name} | {' | '.join(means[method][m].shown for m in SHORT)} |")
    return "\n".join(lines)


def by_kind(cells: Cells, methods: list[str], kinds: dict[str, str]) -> str:
    """Coverage, structure and leak of every kind of edit: where the methods win and lose."""
    lines = [f"| edit | measure | {' | '.join(methods)} |", "|---" * (len(methods) + 2) + "|"]
    for kind in dict.fromkeys(kinds.values()):
        some = {clip: row for clip, row in cells.items() if kinds[clip] == kind}
        for measure in TRUTH_UNITS:
            found = [values(some, method, measure) for method in methods]
            if any(found):
                shown = [f"{mean(known):.3g}" if known else "\u2013" for known in found]
                lines.append(f"| {kind} ({len(some)}) | {measure} | {' | '.join(shown)} |")
    return "\n".join(lines)


def missing(cells: Cells, methods: list[str]) -> str:
    """What could not be measured, or not be run, with the reason."""
    lines = []
    for method in methods:
        reasons = {
            row[method]["not run"] for row in cells.values() if "not run" in row.get(method, {})
        }
        lines += [f"- {method} was not run: {reason}." for reason in sorted(reasons)]
    for measure in MEASURES:
        if any(values(cells, method, measure) for method in methods):
            continue
        found = [
            cell["scores"].get(measure, {}).get("missing")
            for row in cells.values()
            for cell in row.values()
            if "scores" in cell
        ]
        reasons = sorted({reason for reason in found if reason})
        if reasons:
            lines.append(f"- {measure}: {'; '.join(reasons)}.")
    return "\n".join(["Not measured:", "", *lines]) if lines else ""


def measured(record: dict[str, Any]) -> str:
    """How, where and on what a result was measured."""
    return (
        f"Measured by `{record['command']}` at commit {record['commit']} on {record['device']}, "
        f"torch {record['torch']}, {record['date']}. {' '.join(record['notes'])}"
    )


def short_text(record: dict[str, Any]) -> str:
    """What the README shows of a result."""
    return f"{short_table(record['rows'])}\n\n{measured(record)}"


def fill_page(result: Path, cells: Cells, methods: list[str], kinds: dict[str, str]) -> None:
    """Put the tables between <!-- NAME --> and <!-- /NAME --> of docs/quality.md, and those of the
    rendered clips in short into the README."""
    record = json.loads(result.read_text(encoding="utf-8"))
    parts = [measured(record), table(record["rows"])]
    if set(kinds.values()) != {"real"}:
        parts.append(by_kind(cells, methods, kinds))
    parts.append(missing(cells, methods))
    fill(PAGE, result.stem, "\n\n".join(part for part in parts if part))
    if result.stem == "quality":
        fill(README, "quality_short", short_text(record))


def fill(page: Path, name: str, text: str) -> None:
    """Replace what stands between a page's marks."""
    filled = re.sub(
        rf"<!-- {name} -->\n.*?<!-- /{name} -->",
        lambda _: f"<!-- {name} -->\n{text}\n<!-- /{name} -->",
        page.read_text(encoding="utf-8"),
        flags=re.S,
    )
    page.write_text(filled, encoding="utf-8", newline="\n")
    print(f"filled the tables of {page.name}")
