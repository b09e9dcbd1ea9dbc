"""Rendered scenes with ground truth: picture, caption, mask, exact optical flow and exact layer uv.

A scene is one object in front of one background, drawn from a few numbers by plain tensor
arithmetic at any size.
Coordinates: y runs from -1 (top) to 1 (bottom), x from -W/H to W/H; the object's own uv has its
outline near 1.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .styles import apply_style

PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.12, 0.12),
    "orange": (0.97, 0.53, 0.08),
    "yellow": (0.96, 0.88, 0.18),
    "green": (0.16, 0.66, 0.22),
    "blue": (0.14, 0.28, 0.86),
    "purple": (0.56, 0.18, 0.72),
    "white": (0.94, 0.94, 0.94),
    "black": (0.08, 0.08, 0.08),
}
COLOURS = tuple(PALETTE)
SHAPES = ("ball", "box", "triangle", "ring", "cross", "star")
TEXTURES = ("plain", "spotted", "patched", "striped")
PATTERNS = ("plain", "striped", "checkered", "cloudy")
SCENE_STYLES = ("none", "pencil sketch", "sepia photo", "neon night")
SPOTS = 9


@dataclass(frozen=True)
class Scene:
    """A batch of N scenes. Index fields are int64 [N] into the module's name tuples; the rest is
    float32.

    Pose (per frame of a clip): centre [N, 2] (x, y), radius [N], angle [N] in radians, pan [N, 2]
    (background shift).
    Layout (fixed for a clip, never told by the caption): tone [N, 3] second colour of the texture,
    spots [N, 9, 3] (u, v, radius), patches [N, 1, 6, 6] and clouds [N, 1, 10, 10] value noise,
    stripes and bars [N, 3] (angle, frequency, phase) of the object's and the background's pattern.
    """

    colour: Tensor
    shape: Tensor
    texture: Tensor
    back: Tensor
    pattern: Tensor
    style: Tensor
    centre: Tensor
    radius: Tensor
    angle: Tensor
    pan: Tensor
    tone: Tensor
    spots: Tensor
    patches: Tensor
    stripes: Tensor
    clouds: Tensor
    bars: Tensor

    def __len__(self) -> int:
        return len(self.colour)

    def __getitem__(self, rows: Tensor | slice) -> Scene:
        """The same scenes, rows selected or repeated by a slice or an int64 index."""
        return Scene(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    def replace(self, **fields: Tensor) -> Scene:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **fields)


@dataclass(frozen=True)
class Drawn:
    """What draw() gives: image [N, 3, H, W] in 0..1, mask [N, 1, H, W] (soft), uv [N, 2, H, W] of
    the object's layer."""

    image: Tensor
    mask: Tensor
    uv: Tensor


def random_scenes(n: int, generator: torch.Generator, styled: float = 0.2) -> Scene:
    """n random scenes; a share `styled` of them wears one of the whole-picture styles."""

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *size, generator=generator)

    def choice(names: tuple[str, ...]) -> Tensor:
        return torch.randint(len(names), (n,), generator=generator)

    colour = choice(COLOURS)
    back = (colour + torch.randint(1, len(COLOURS), (n,), generator=generator)) % len(COLOURS)
    style = torch.randint(1, len(SCENE_STYLES), (n,), generator=generator)
    grid = torch.linspace(-0.62, 0.62, 3)
    cells = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1).reshape(1, SPOTS, 2)
    base = torch.tensor(list(PALETTE.values()))[colour]
    return Scene(
        colour=colour,
        shape=choice(SHAPES),
        texture=choice(TEXTURES),
        back=back,
        pattern=choice(PATTERNS),
        style=torch.where(uniform(0, 1) < styled, style, 0),
        centre=uniform(-0.3, 0.3, 2),
        radius=uniform(0.42, 0.64),
        angle=uniform(-0.35, 0.35),
        pan=torch.zeros(n, 2),
        tone=_second_tone(base, uniform(0, 1, 3)),
        spots=torch.cat(
            [cells + uniform(-0.16, 0.16, SPOTS, 2), uniform(0.13, 0.24, SPOTS, 1)], -1
        ),
        patches=uniform(0, 1, 1, 6, 6),
        stripes=torch.stack([uniform(0, math.pi), uniform(5.5, 9), uniform(0, 2 * math.pi)], -1),
        clouds=uniform(0, 1, 1, 10, 10),
        bars=torch.stack([uniform(0, math.pi), uniform(5, 9), uniform(0, 2 * math.pi)], -1),
    )


def _second_tone(base: Tensor, draw: Tensor) -> Tensor:
    """A tone that contrasts with base [N, 3]: any colour, pushed away until it is well visible."""
    away = draw - base
    return (base + away / away.norm(dim=-1, keepdim=True).clamp(min=1e-3) * 0.6).clamp(0.02, 0.98)


def pixel_grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """x and y [H, W] of the pixel centres."""
    y = (torch.arange(height) + 0.5) / height * 2 - 1
    x = ((torch.arange(width) + 0.5) / width * 2 - 1) * (width / height)
    across, down = torch.meshgrid(x, y, indexing="xy")
    return across, down


def object_uv(scene: Scene, x: Tensor, y: Tensor) -> Tensor:
    """uv [N, 2, ...] of the picture points x, y [N or 1, ...] in the object's own frame."""
    shape = (-1,) + (1,) * (x.dim() - 1)
    cos, sin = scene.angle.cos().view(shape), scene.angle.sin().view(shape)
    dx, dy = x - scene.centre[:, 0].view(shape), y - scene.centre[:, 1].view(shape)
    return torch.stack([dx * cos + dy * sin, dy * cos - dx * sin], 1) / scene.radius.view(
        -1, 1, *shape[1:]
    )


def object_points(scene: Scene, uv: Tensor) -> Tensor:
    """The inverse of object_uv: picture points [N, 2, ...] (x, y) of uv [N or 1, 2, ...]."""
    shape = (-1,) + (1,) * (uv.dim() - 2)
    cos, sin = scene.angle.cos().view(shape), scene.angle.sin().view(shape)
    u, v = uv[:, 0] * scene.radius.view(shape), uv[:, 1] * scene.radius.view(shape)
    x = u * cos - v * sin + scene.centre[:, 0].view(shape)
    return torch.stack([x, u * sin + v * cos + scene.centre[:, 1].view(shape)], 1)


def outline_distance(uv: Tensor) -> Tensor:
    """Signed distance-like value [N, 6, ...] of every shape at uv [N, 2, ...]: negative inside;
    order of SHAPES."""
    u, v = uv[:, 0], uv[:, 1]
    au, av = u.abs(), v.abs()
    r, theta = torch.sqrt(u * u + v * v + 1e-8), torch.atan2(u, -v)
    arms = torch.minimum(torch.maximum(au - 0.3, av - 1), torch.maximum(av - 0.3, au - 1))
    return torch.stack(
        [
            r - 0.92,
            torch.maximum(au, av) - 0.8,
            torch.maximum(v - 0.75, au * 0.88 - v * 0.47 - 0.5),
            (r - 0.7).abs() - 0.26,
            arms,
            (r - (0.68 + 0.34 * torch.cos(5 * theta))) * 0.75,
        ],
        1,
    )


def draw(scene: Scene, height: int, width: int | None = None) -> Drawn:
    """Render the scenes at height x width (square when width is missing), each in its style."""
    width = width or height
    n = len(scene)
    x, y = (axis[None] for axis in pixel_grid(height, width))
    uv = object_uv(scene, x, y)
    distance = outline_distance(uv)[torch.arange(n), scene.shape] * scene.radius.view(n, 1, 1)
    mask = torch.sigmoid(distance * (-2.0 * height))[:, None]
    back = _background(scene, x - _column(scene.pan[:, 0]), y - _column(scene.pan[:, 1]))
    image = torch.lerp(back, _object(scene, uv), mask).clamp(0, 1)
    for index in scene.style.unique().tolist():
        if index:
            rows = scene.style == index
            image[rows] = apply_style(image[rows], SCENE_STYLES[index])
    return Drawn(image, mask, uv)


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


def _waves(bars: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two crossed sine waves [N, H, W] from (angle, frequency, phase) [N, 3]."""
    angle, frequency, phase = (_column(bars[:, i]) for i in range(3))
    along = (x * angle.cos() + y * angle.sin()) * frequency + phase
    across = (y * angle.cos() - x * angle.sin()) * frequency + phase
    return along.sin(), across.sin()


def _noise(values: Tensor, x: Tensor, y: Tensor, reach: float) -> Tensor:
    """Smooth value noise [N, H, W]; the grid covers -reach..reach and is mirrored outside."""
    n = len(values)
    at = torch.stack(torch.broadcast_tensors(x / reach, y / reach), -1).expand(n, -1, -1, -1)
    return F.grid_sample(values, at, mode="bicubic", padding_mode="reflection", align_corners=True)[
        :, 0
    ]


def _object(scene: Scene, uv: Tensor) -> Tensor:
    """The object's layer [N, 3, H, W]: colour, texture in its second tone, and a soft light from
    the top left."""
    u, v = uv[:, 0], uv[:, 1]
    spots = scene.spots.view(len(scene), SPOTS, 3, 1, 1)
    gap = ((u[:, None] - spots[:, :, 0]).square() + (v[:, None] - spots[:, :, 1]).square()).sqrt()
    spotted = ((spots[:, :, 2] - gap).amax(1) * 30).sigmoid()
    patched = ((_noise(scene.patches, u, v, 1.1) - 0.56) * 25).sigmoid()
    striped = ((_waves(scene.stripes, u, v)[0] - 0.25) * 9).sigmoid()
    amount = torch.stack([torch.zeros_like(u), spotted, patched, striped], 1)
    amount = amount[torch.arange(len(scene)), scene.texture][:, None]
    base = _palette(scene.colour)
    light = 1 - 0.18 * (u * 0.7 + v * 0.7).clamp(-1, 1)[:, None]
    return torch.lerp(base, scene.tone[:, :, None, None], amount) * light


def _background(scene: Scene, x: Tensor, y: Tensor) -> Tensor:
    """The background's layer [N, 3, H, W]: its colour and a second shade of it in the pattern."""
    along, across = _waves(scene.bars, x, y)
    striped, checkered = (along * 6).sigmoid(), (along * across * 14).sigmoid()
    cloudy = _noise(scene.clouds, x, y, 1.8).clamp(0, 1)
    plain = (y * 0.25 + 0.25).expand_as(along)
    amount = torch.stack([plain, striped, checkered, cloudy], 1)
    amount = amount[torch.arange(len(scene)), scene.pattern][:, None]
    base = _palette(scene.back)
    dark = base.mean(1, keepdim=True) < 0.3
    return torch.lerp(
        base,
        torch.where(dark & (scene.back == 7).view(-1, 1, 1, 1), base + 0.2, base * 0.6),
        amount,
    )


def _palette(index: Tensor) -> Tensor:
    return torch.tensor(list(PALETTE.values()))[index][:, :, None, None]


def caption(
    colour: str, texture: str, shape: str, back: str, pattern: str, style: str = "none"
) -> str:
    """The one grammar; an empty word leaves that attribute out, no back and no pattern leave the
    background out."""
    words = ["a", colour, texture, shape]
    if back or pattern:
        words += ["on a", back, pattern, "background"]
    text = " ".join(word for word in words if word)
    return text if style == "none" else f"{text}, {style}"


def scene_captions(scene: Scene, generator: torch.Generator | None = None) -> list[str]:
    """Captions of the scenes: complete without a generator, else some attributes are left out and
    10 % are empty."""
    names = zip(
        *(
            [table[i] for i in index.tolist()]
            for table, index in (
                (COLOURS, scene.colour),
                (TEXTURES, scene.texture),
                (SHAPES, scene.shape),
                (COLOURS, scene.back),
                (PATTERNS, scene.pattern),
                (SCENE_STYLES, scene.style),
            )
        ),
        strict=True,
    )
    if generator is None:
        return [caption(*row) for row in names]
    drawn = torch.rand(len(scene), 6, generator=generator).tolist()
    return [_thinned(row, chance) for row, chance in zip(names, drawn, strict=True)]


def _thinned(row: tuple[str, ...], chance: list[float]) -> str:
    """One caption with attributes left out by six random numbers in 0..1."""
    if chance[0] < 0.1:
        return ""
    colour, texture, shape, back, pattern, style = row
    if chance[5] < 0.08:
        back = pattern = ""
    return caption(
        colour if chance[1] > 0.12 else "",
        texture if chance[2] > 0.25 else "",
        shape,
        back if chance[3] > 0.1 else "",
        pattern if chance[4] > 0.15 else "",
        style,
    )
