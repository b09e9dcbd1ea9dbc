"""Faithfulness and consistency of edits with ground truth: python dev.py bench tokenflow_quality

Plug-and-Play injects in every step, where TokenFlow's published settings stop after half of them
(queries, keys) and four fifths (features): on the demo checkpoint outlines melt once it stops.
--clips N takes the first N of both halves (edits that name a colour; edits that leave a texture's
layout or a colour open), --column NAME fills only that column.
"""

from __future__ import annotations

from typing import Any

from inprocess import load_pack

load_pack()

from common import write_result
from reweave.editing.extended_attention import ExtendedAttention
from reweave.editing.plug_and_play import PlugAndPlay
from reweave.editing.tokenflow import TokenFlow
from scored_edits import Columns, measured
from scored_tables import PERFECT, table


def injection(inversion: Any) -> PlugAndPlay:
    """In every step: these edits change colours and textures, never a layout."""
    return PlugAndPlay(inversion, 1.0, 1.0)


CFG = 2.5
COLUMNS: Columns = {
    "plain": lambda inversion, frames: [],
    "PlugAndPlay": lambda inversion, frames: [injection(inversion)],
    "joint attention": lambda inversion, frames: [ExtendedAttention("all frames")],
    "TokenFlow fixed": lambda inversion, frames: [TokenFlow(inversion, fixed_key_frames=True)],
    "TokenFlow": lambda inversion, frames: [TokenFlow(inversion)],
    "TokenFlow + PlugAndPlay": lambda inversion, frames: [
        TokenFlow(inversion),
        injection(inversion),
    ],
}


def main() -> None:
    """Measure, print and write benchmarks/results/tokenflow_quality.json."""
    results, notes = measured("tokenflow_quality", COLUMNS, __doc__, CFG)
    injected = (
        "Plug-and-Play in every step (published: queries and keys in 0.5 of them, features in "
        "0.8); this, cfg and steps were chosen by trials on six of the clips."
    )
    perfect = (
        f"{PERFECT}: what was asked for, rendered, through the VAE (a colour left open: the "
        "source's). Its colour variation is the VAE's; the goals make no allowance for it."
    )
    write_result("tokenflow_quality", table(results, list(COLUMNS)), [notes, injected, perfect])


if __name__ == "__main__":
    main()
