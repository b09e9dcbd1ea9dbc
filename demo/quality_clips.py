"""Twenty named moving scenes with an edit each: what the quality benchmark is measured on.

Ten name the colour that the object shall take; ten leave the layout of a texture, or a colour, to
the model, so that
frames edited one by one really disagree.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .motion import path
from .scenes import COLOURS, PATTERNS, SHAPES, TEXTURES, Scene, caption, random_scenes

FRAMES = 16


@dataclass(frozen=True)
class QualityClip:
    """One clip: the scene in words, and the object's words after the edit."""

    name: str
    seed: int
    colour: str
    texture: str
    shape: str
    back: str
    pattern: str
    new_colour: str
    new_texture: str

    @property
    def source_caption(self) -> str:
        return caption(self.colour, self.texture, self.shape, self.back, self.pattern)

    @property
    def target_caption(self) -> str:
        return caption(self.new_colour, self.new_texture, self.shape, self.back, self.pattern)

    @property
    def target_colour(self) -> str | None:
        """The colour that the whole object shall take; None where the edit leaves it open."""
        return self.new_colour if self.new_texture == "plain" and self.new_colour else None

    @property
    def edited(self) -> QualityClip:
        """The same motion with the target's object, in its old colour where that is left open."""
        return replace(self, colour=self.new_colour or self.colour, texture=self.new_texture)


def _clips() -> tuple[QualityClip, ...]:
    named = (
        ("red box to green", "red", "box", "blue", "plain", "green"),
        ("blue ball to red", "blue", "ball", "yellow", "striped", "red"),
        ("green ring to purple", "green", "ring", "white", "plain", "purple"),
        ("yellow cross to blue", "yellow", "cross", "purple", "cloudy", "blue"),
        ("purple triangle to yellow", "purple", "triangle", "green", "plain", "yellow"),
        ("orange star to blue", "orange", "star", "black", "plain", "blue"),
        ("white ball to red", "white", "ball", "green", "checkered", "red"),
        ("black box to orange", "black", "box", "white", "cloudy", "orange"),
        ("red ball to yellow", "red", "ball", "blue", "checkered", "yellow"),
        ("green box to white", "green", "box", "red", "plain", "white"),
    )
    free = (
        ("red ball to spotted", "red", "ball", "white", "plain", "red", "spotted"),
        ("blue box to patched", "blue", "box", "yellow", "plain", "blue", "patched"),
        ("green triangle to striped", "green", "triangle", "purple", "plain", "green", "striped"),
        ("yellow ring to spotted", "yellow", "ring", "blue", "cloudy", "yellow", "spotted"),
        ("purple box to striped", "purple", "box", "white", "plain", "purple", "striped"),
        ("orange ball to patched", "orange", "ball", "green", "striped", "orange", "patched"),
        ("white cross to spotted", "white", "cross", "red", "plain", "white", "spotted"),
        ("red box to any patched", "red", "box", "black", "plain", "", "patched"),
        ("blue ball to any colour", "blue", "ball", "white", "cloudy", "", "plain"),
        ("green box to any spotted", "green", "box", "yellow", "checkered", "", "spotted"),
    )
    clips = [
        QualityClip(name, 100 + i, colour, "plain", shape, back, pattern, new, "plain")
        for i, (name, colour, shape, back, pattern, new) in enumerate(named)
    ]
    clips += [
        QualityClip(name, 200 + i, colour, "plain", shape, back, pattern, new, texture)
        for i, (name, colour, shape, back, pattern, new, texture) in enumerate(free)
    ]
    return tuple(clips)


CLIPS = _clips()


def left_open(count: int) -> list[QualityClip]:
    """The first `count` clips whose edit leaves the colour to the model, then those that leave the
    layout of a texture; all of them for 0."""
    found = [clip for clip in CLIPS if clip.target_colour is None]
    found.sort(key=lambda clip: bool(clip.new_colour))
    return found[: count or None]


def moving_scene(clip: QualityClip, frames: int = FRAMES) -> Scene:
    """The clip's scene, one row per frame: the object drifts and turns, the camera pans."""
    generator = torch.Generator().manual_seed(clip.seed)
    scene = random_scenes(1, generator, styled=0.0)
    heading, turn, sway = (torch.rand(3, generator=generator) * 2 - 1).tolist()
    time = torch.arange(frames) - (frames - 1) / 2
    words = (
        ("colour", COLOURS, clip.colour),
        ("shape", SHAPES, clip.shape),
        ("texture", TEXTURES, clip.texture),
        ("back", COLOURS, clip.back),
        ("pattern", PATTERNS, clip.pattern),
    )
    fixed = {name: torch.tensor([table.index(word)]) for name, table, word in words}
    rows = scene.replace(**fixed)[torch.zeros(frames, dtype=torch.int64)]
    return rows.replace(
        centre=rows.centre * 0.6 + path(time, heading, 0.03),
        radius=rows.radius.clamp(min=0.5),
        angle=rows.angle + 0.05 * turn * time,
        pan=path(time, sway, 0.015),
    )
