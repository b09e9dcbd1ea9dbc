"""Cells of the quality benchmark as rows of its result file and as tables of docs/quality.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from common import mean
from ground_truth import BETTER
from ground_truth import UNITS as TRUTH_UNITS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "quality.md"
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


def facts(cells: Cells, measure: str) -> tuple[str, str]:
    """Unit and which direction is better."""
    if measure == TIME:
        clocks = {
            cell["clock"] for row in cells.values() for cell in row.values() if "clock" in cell
        }
        return " or ".join(sorted(clocks)), "lower"
    if measure in TRUTH_UNITS:
        return TRUTH_UNITS[measure], BETTER.get(measure, "lower")
    for row in cells.values():
        for cell in row.values():
            if measure in cell.get("scores", {}):
                return cell["scores"][measure]["unit"], cell["scores"][measure]["better"]
    return "", ""


def rows_of(cells: Cells, methods: list[str]) -> list[dict[str, Any]]:
    """One row per method and measure; value null where no clip defines it."""
    rows = []
    for method in methods:
        for measure in (*MEASURES, TIME):
            known = values(cells, method, measure)
            unit = facts(cells, measure)[0]
            average = mean(known)
            text = f"{method}: {measure}" + (f" (n={len(known)})" if known else "")
            rows.append(
                {
                    "metric": text,
                    "value": None if average is None else round(average, 4),
                    "unit": unit,
                    "goal": "",
                    "reached": None,
                }
            )
    return rows


def table(cells: Cells, methods: list[str]) -> str:
    """Methods across, measures down; the number of clips stands behind the measure."""
    lines = [f"| measure | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    for measure in (*MEASURES, TIME):
        found = [values(cells, method, measure) for method in methods]
        if not any(found):
            continue
        unit, better = facts(cells, measure)
        count = max(len(known) for known in found)
        arrow = {"lower": " \u2193", "higher": " \u2191"}.get(better, "")
        shown = [f"{mean(known):.3g}" if known else "\u2013" for known in found]
        behind = f" ({unit})" if unit else ""
        lines.append(f"| {measure}{behind}{arrow}, {count} clips | {' | '.join(shown)} |")
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
        reasons = {row[method]["not run"] for row in cells.values() if "not run" in row[method]}
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


def fill_page(result: Path, cells: Cells, methods: list[str], kinds: dict[str, str]) -> None:
    """Put the tables between <!-- NAME --> and <!-- /NAME --> of docs/quality.md."""
    record = json.loads(result.read_text(encoding="utf-8"))
    measured = (
        f"Measured by `{record['command']}` at commit {record['commit']} on {record['device']}, "
        f"torch {record['torch']}, {record['date']}. {' '.join(record['notes'])}"
    )
    parts = [measured, table(cells, methods)]
    if set(kinds.values()) != {"real"}:
        parts.append(by_kind(cells, methods, kinds))
    parts.append(missing(cells, methods))
    text, name = "\n\n".join(part for part in parts if part), result.stem
    page = PAGE.read_text(encoding="utf-8")
    filled = re.sub(
        rf"<!-- {name} -->\n.*?<!-- /{name} -->",
        lambda _: f"<!-- {name} -->\n{text}\n<!-- /{name} -->",
        page,
        flags=re.S,
    )
    PAGE.write_text(filled, encoding="utf-8", newline="\n")
    print(f"filled the tables of {PAGE.name}")
