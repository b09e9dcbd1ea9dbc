"""Forty named rendered clips with an edit each and ground truth: the edit-quality benchmark.

One object moves and turns before a background that pans; in some clips a second object passes in
front of it. The edit is of the object's colour, its texture, the background, the whole picture's
style, or several at once. The second object is never named: it shall stay as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .motion import film, path
from .scenes import (
    COLOURS,
    PATTERNS,
    SCENE_STYLES,
    SHAPES,
    TEXTURES,
    Scene,
    caption,
    draw,
    random_scenes,
)

KINDS = ("object colour", "object texture", "background", "style", "several")
DEFAULT = 8
"""Clips from the start of CLIPS that are measured unless all are asked for."""


@dataclass(frozen=True)
class Look:
    """What a caption can say about a scene, in the renderer's words."""

    colour: str
    texture: str
    shape: str
    back: str
    pattern: str
    style: str = "none"

    @property
    def caption(self) -> str:
        return caption(self.colour, self.texture, self.shape, self.back, self.pattern, self.style)


@dataclass(frozen=True)
class EditClip:
    """One clip before and after its edit, in words and in motion."""

    name: str
    kind: str
    """One of KINDS."""
    source: Look
    target: Look
    seed: int
    frames: int = 16
    passer: tuple[str, str] | None = None
    """Colour and shape of a second object that passes in front."""
    speed: float = 1.0
    """Of object and camera; 1 = about two pixels a frame at 128."""


@dataclass(frozen=True)
class Rendered:
    """A drawn clip with its ground truth."""

    frames: Tensor
    """[F,3,H,W] in 0..1."""
    mask: Tensor
    """[F,1,H,W] in 0..1: what is seen of the edited object."""
    passer: Tensor
    """[F,1,H,W] in 0..1: the second object; 0 where there is none."""
    background: Tensor
    """[F,3,H,W] the same clip without the edited object."""
    uv: Tensor
    """[F,H,W,2] where each pixel lies on the edited object; its outline is near 1."""
    flow: Tensor
    """[F-1,H,W,2] pixels (x, y) from each frame to the next."""


def render(clip: EditClip, size: int, look: Look | None = None) -> Rendered:
    """Draw a clip, size x size, in its source's look or another one: layout and motion stay.

    The seed draws what no caption says: place, size, spots, stripes and the second tone.
    """
    scene = _moving(clip, look or clip.source)
    drawn = film(scene, size)
    away = scene.replace(radius=scene.radius * 0 + 1e-3, centre=scene.centre + 9)
    image, background, flow = drawn.frames, draw(away, size).image, drawn.flow
    over = torch.zeros_like(drawn.mask)
    if clip.passer is not None:
        second = film(_passing(clip, scene), size)
        over = second.mask
        image, background = (torch.lerp(x, second.frames, over) for x in (image, background))
        flow = torch.where(over[:-1] > 0.5, second.flow, flow)
    return Rendered(
        image, drawn.mask * (1 - over), over, background,
        drawn.object_uv.movedim(1, -1), flow.movedim(1, -1),
    )  # fmt: skip


def _moving(clip: EditClip, look: Look) -> Scene:
    """One row per frame: the object drifts and turns, the camera pans."""
    generator = torch.Generator().manual_seed(clip.seed)
    scene = random_scenes(1, generator, styled=0.0)
    heading, turn, sway = (torch.rand(3, generator=generator) * 2 - 1).tolist()
    time = torch.arange(clip.frames) - (clip.frames - 1) / 2
    reach = clip.speed * min(1.0, 16 / clip.frames)  # a long clip does not leave the picture
    rows = scene.replace(**_words(look))[torch.zeros(clip.frames, dtype=torch.int64)]
    return rows.replace(
        centre=rows.centre * 0.6 + path(time, heading, 0.03 * reach),
        radius=rows.radius.clamp(min=0.5),
        angle=rows.angle + 0.05 * turn * reach * time,
        pan=path(time, sway, 0.015 * clip.speed),
    )


def _passing(clip: EditClip, scene: Scene) -> Scene:
    """The second object: from the left to the right edge, in front of the first."""
    assert clip.passer is not None
    colour, shape = clip.passer
    along = torch.linspace(-1.3, 1.3, clip.frames)
    still = torch.zeros_like(scene.texture)
    return scene.replace(
        colour=torch.full_like(scene.colour, COLOURS.index(colour)),
        shape=torch.full_like(scene.shape, SHAPES.index(shape)),
        texture=still,
        centre=torch.stack([along, torch.full_like(along, 0.15)], 1),
        radius=torch.full_like(scene.radius, 0.22),
        angle=torch.zeros_like(scene.angle),
    )


def _words(look: Look) -> dict[str, Tensor]:
    tables = (
        ("colour", COLOURS, look.colour),
        ("shape", SHAPES, look.shape),
        ("texture", TEXTURES, look.texture),
        ("back", COLOURS, look.back),
        ("pattern", PATTERNS, look.pattern),
        ("style", SCENE_STYLES, look.style),
    )
    return {name: torch.tensor([table.index(word)]) for name, table, word in tables}


def _look(text: str) -> Look:
    """'red plain box, blue striped' -> a Look; a third part is the style."""
    parts = [part.strip() for part in text.split(",")]
    return Look(*parts[0].split(), *parts[1].split(), *parts[2:])


# kind, source, what changes, frames, second object, speed
_ROWS: tuple[tuple[str, str, dict[str, str], int, tuple[str, str] | None, float], ...] = (
    # the default eight: every kind, both occlusion and fast motion, short and long
    ("object colour", "red plain box, blue plain", {"colour": "green"}, 16, None, 1.0),
    ("object texture", "blue plain ball, yellow plain", {"texture": "spotted"}, 16, None, 1.0),
    ("background", "yellow plain star, purple plain", {"back": "green"}, 16, None, 1.0),
    ("style", "green plain triangle, white striped", {"style": "sepia photo"}, 16, None, 1.0),
    ("several", "orange plain ball, black plain", {"colour": "blue", "back": "white"}, 16, None,
     1.0),
    ("object colour", "white plain box, red plain", {"colour": "blue"}, 24, ("green", "ball"), 1.0),
    ("object texture", "red plain box, green cloudy", {"texture": "striped"}, 32, None, 1.5),
    ("object colour", "purple plain ball, white checkered", {"colour": "orange"}, 48,
     ("black", "box"), 0.7),
    # object colour
    ("object colour", "blue plain ball, yellow striped", {"colour": "red"}, 16, None, 1.0),
    ("object colour", "green plain ring, white plain", {"colour": "purple"}, 16, None, 1.0),
    ("object colour", "yellow plain cross, purple cloudy", {"colour": "blue"}, 16, None, 1.0),
    ("object colour", "purple plain triangle, green plain", {"colour": "yellow"}, 24, None, 1.5),
    ("object colour", "orange plain star, black plain", {"colour": "blue"}, 16,
     ("white", "ball"), 1.0),
    ("object colour", "black plain box, white cloudy", {"colour": "orange"}, 32, None, 1.0),
    ("object colour", "red plain ball, blue checkered", {"colour": "yellow"}, 16, ("green", "box"),
     1.0),
    ("object colour", "green spotted box, red plain", {"colour": "white"}, 48, None, 1.0),
    # object texture
    ("object texture", "green plain triangle, purple plain", {"texture": "striped"}, 16, None,
     1.0),
    ("object texture", "yellow plain ring, blue cloudy", {"texture": "spotted"}, 16, None, 1.0),
    ("object texture", "purple plain box, white plain", {"texture": "striped"}, 24, None, 1.0),
    ("object texture", "orange plain ball, green striped", {"texture": "patched"}, 16,
     ("blue", "box"), 1.0),
    ("object texture", "white plain cross, red plain", {"texture": "spotted"}, 16, None, 1.5),
    ("object texture", "red spotted ball, white plain", {"texture": "plain"}, 32, None, 1.0),
    ("object texture", "blue striped box, yellow plain", {"texture": "patched"}, 48, None, 1.0),
    # background
    ("background", "red plain ball, white plain", {"back": "blue"}, 16, None, 1.0),
    ("background", "green plain box, yellow plain", {"pattern": "striped"}, 16, None, 1.0),
    ("background", "blue plain ring, red cloudy", {"back": "white"}, 24, None, 1.0),
    ("background", "white plain triangle, green striped", {"back": "purple"}, 16,
     ("orange", "ball"), 1.0),
    ("background", "orange plain cross, blue plain", {"pattern": "cloudy"}, 32, None, 1.0),
    ("background", "purple plain ball, black plain", {"back": "yellow", "pattern": "checkered"},
     16, None, 1.5),
    ("background", "black plain star, orange plain", {"back": "green"}, 48, None, 1.0),
    # style
    ("style", "red plain ball, blue plain", {"style": "pencil sketch"}, 16, None, 1.0),
    ("style", "yellow plain box, green cloudy", {"style": "neon night"}, 24, None, 1.0),
    ("style", "purple spotted triangle, white plain", {"style": "sepia photo"}, 16,
     ("red", "ball"), 1.0),
    ("style", "blue plain cross, orange striped", {"style": "neon night"}, 32, None, 1.5),
    # several
    ("several", "red plain box, white plain", {"colour": "blue", "texture": "spotted"}, 16, None,
     1.0),
    ("several", "green plain ball, purple plain", {"colour": "orange", "pattern": "striped"}, 16,
     None, 1.0),
    ("several", "white plain ring, blue plain", {"colour": "yellow", "style": "sepia photo"}, 24,
     None, 1.0),
    ("several", "yellow plain triangle, red cloudy", {"back": "blue", "texture": "striped"}, 16,
     ("white", "ball"), 1.0),
    # the outline changes too: what methods that keep the layout cannot do
    ("several", "blue plain ball, white plain", {"shape": "box", "colour": "red"}, 16, None, 1.0),
    ("several", "orange plain box, green plain", {"shape": "star"}, 32, None, 1.0),
)  # fmt: skip


def _clips() -> tuple[EditClip, ...]:
    clips = []
    for number, (kind, text, changes, frames, passer, speed) in enumerate(_ROWS):
        source = _look(text)
        what = " and ".join(changes.values())
        name = f"{source.colour} {source.shape} on {source.back} {source.pattern}: {what}"
        target = replace(source, **changes)
        clips.append(EditClip(name, kind, source, target, 300 + number, frames, passer, speed))
    return tuple(clips)


CLIPS = _clips()
