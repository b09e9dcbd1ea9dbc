"""Writes the rendered clip of the layered-atlas templates, its mask and its depth.

python demo/render_layers.py     demo/clips/layers.mp4, layers_mask.mp4 and layers_depth.mp4
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = "demo"

from .quality_clips import QualityClip, moving_scene
from .render_clips import SIZE, depth, write_all
from .scenes import draw

LAYERS = QualityClip("layers", 205, "blue", "patched", "box", "yellow", "checkered", "", "")
"""Both the object and its background have a texture that an atlas can follow."""


def main() -> None:
    """Render and write the three clips."""
    drawn = draw(moving_scene(LAYERS), SIZE)
    grey = {"layers_mask": drawn.mask, "layers_depth": depth(drawn)}
    write_all({"layers": drawn.image} | {n: x.expand(-1, 3, -1, -1) for n, x in grey.items()})


if __name__ == "__main__":
    main()
