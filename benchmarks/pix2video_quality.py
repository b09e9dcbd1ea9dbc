"""What each half of Pix2Video adds, with and without a structure source, against ground truth.

python dev.py bench pix2video_quality [--clips N]: only edits that leave a colour or a texture's
layout open, those of open colour first; where the prompt fixes it, attention has nothing to align.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inprocess import load_pack

load_pack()

from common import row, write_result
from reweave.editing.anchor_attention import AnchorAttention
from reweave.editing.latent_guidance import LatentGuidance
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.warping import flow_between
from scored_edits import Columns, measured
from scored_tables import SOURCE, Results, average
from torch import Tensor

from demo.quality_clips import CLIPS

STRENGTH, CFG = 0.05, 4.0
FREE = {clip.name for clip in CLIPS if clip.target_colour is None}
HALVES = ("plain", "AnchorAttention", "+ LatentGuidance", "+ flow-warped target")
MEASURES = {"colour variation": "/255", "background change": "/255", "silhouette IoU": ""}


def halves(inversion: Any, frames: Tensor) -> list[list[Any]]:
    """The edits of `HALVES`, in that order."""
    guidance = LatentGuidance(STRENGTH)
    pictures = frames.movedim(1, -1)
    flow = flow_between(pictures, guidance.sources(len(frames)), lambda: None)
    warped = LatentGuidance(STRENGTH, warp=flow)
    anchored = AnchorAttention()
    return [[], [anchored], [anchored, guidance], [anchored, warped]]


def column(number: int, structure: bool) -> Callable[[Any, Tensor], list[Any]]:
    """One half, with or without Plug-and-Play below it."""

    def edits(inversion: Any, frames: Tensor) -> list[Any]:
        below = [PlugAndPlay(inversion, 0.5, 0.8)] if structure else []
        return below + halves(inversion, frames)[number]

    return edits


COLUMNS: Columns = {
    f"{half}{', PlugAndPlay' if structure else ''}": column(number, structure)
    for structure in (False, True)
    for number, half in enumerate(HALVES)
}


def table(results: Results) -> list[dict[str, Any]]:
    """Every measure of every column; colour variation shall fall from one half to the next."""
    free = {name: found for name, found in results.items() if name in FREE}
    rows = [
        row(
            "source clip: colour variation",
            average(free, SOURCE, "colour variation"),
            "/255",
        )
    ]
    before: float | None = None
    for name in COLUMNS:
        if name.startswith(HALVES[0]):
            before = None
        for measure, unit in MEASURES.items():
            value = average(free, name, measure)
            assert value is not None
            falls = measure == "colour variation" and before is not None
            goal = f"<= {before:.2f}" if falls else ""
            rows.append(row(f"{name}: {measure}", round(value, 3), unit, goal))
        before = average(free, name, "colour variation")
    return rows


def main() -> None:
    """Measure, print and write benchmarks/results/pix2video_quality.json."""
    results, notes = measured("pix2video_quality", COLUMNS, __doc__, CFG, free_only=True)
    strength = (
        f"Guidance strength {STRENGTH} until 0.52. Structure source: Plug-and-Play. cfg and the "
        "order of the clips were chosen by looking at three of them."
    )
    write_result("pix2video_quality", table(results), [notes, strength])


if __name__ == "__main__":
    main()
