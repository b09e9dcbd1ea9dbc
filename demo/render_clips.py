"""Writes the rendered clip of the Pix2Video templates, and its depth.

python demo/render_clips.py     demo/clips/scene.mp4 and scene_depth.mp4
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = "demo"

import torch
from torch import Tensor

from .quality_clips import CLIPS, moving_scene
from .run_demo import write_clip
from .scenes import Drawn, draw

NAME, SIZE, RATE = "red ball to spotted", 128, 12
FOLDER = Path(__file__).resolve().parent / "clips"


def depth(drawn: Drawn) -> Tensor:
    """[N,1,H,W] in 0..1, white = near, as depth ControlNets are fed: a floor that comes closer
    towards the bottom, and a bulging object in front of it."""
    height = drawn.image.shape[-2]
    floor = torch.linspace(0.1, 0.4, height).view(1, 1, -1, 1)
    bulge = 0.95 - 0.25 * drawn.uv.square().sum(1, keepdim=True).clamp(max=1)
    return torch.lerp(floor.expand_as(bulge), bulge, drawn.mask)


def write_all(pictures: dict[str, Tensor]) -> None:
    """Name -> frames [F,3,H,W] in 0..1, each to its mp4."""
    for name, frames in pictures.items():
        rows = (frames.movedim(1, -1) * 255).round().byte().numpy()
        write_clip(FOLDER / f"{name}.mp4", rows, RATE)
        print(f"wrote {name}.mp4: {len(rows)} frames of {SIZE}x{SIZE}")


def main() -> None:
    """Render and write both clips."""
    chosen = next(clip for clip in CLIPS if clip.name == NAME)
    drawn = draw(moving_scene(chosen), SIZE)
    pictures = {"scene": drawn.image, "scene_depth": depth(drawn).expand(-1, 3, -1, -1)}
    write_all(pictures)


if __name__ == "__main__":
    main()
