"""Rendered clips with ground truth: frames, mask, exact optical flow and exact layer uv."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .scenes import Scene, draw, object_points, object_uv, pixel_grid, random_scenes, scene_captions


@dataclass(frozen=True)
class Clip:
    """A clip of F frames: frames [F, 3, H, W] in 0..1; mask [F, 1, H, W], the object's soft cover;
    flow [F-1, 2, H, W] in pixels (x, y) from each frame to the next; object_uv and back_uv
    [F, 2, H, W]: where a pixel lies in the object's and in the background's own frame."""

    frames: Tensor
    mask: Tensor
    flow: Tensor
    object_uv: Tensor
    back_uv: Tensor
    caption: str


def clip(
    scene: Scene, frames: int, size: int | tuple[int, int] = 128, seed: int = 0, speed: float = 0.03
) -> Clip:
    """Set one scene (a batch of 1) in motion and draw it; size is pixels or (height, width).

    Raises: ValueError when there is not exactly one scene, or no frame.
    """
    if len(scene) != 1 or frames < 1:
        raise ValueError(f"expected one scene and at least 1 frame, got {len(scene)} and {frames}")
    return film(moving(scene, frames, torch.Generator().manual_seed(seed), speed), size)


def random_clip(frames: int, size: int | tuple[int, int] = 128, seed: int = 0) -> Clip:
    """A clip of a random scene in its own look."""
    scene = random_scenes(1, torch.Generator().manual_seed(seed), styled=0.0)
    return clip(scene, frames, size, seed)


def moving(scene: Scene, frames: int, generator: torch.Generator, speed: float) -> Scene:
    """One row per frame: the object drifts and turns, the camera pans over the background."""
    heading, sway, turn = (torch.rand(3, generator=generator) * 2 - 1).tolist()
    time = torch.arange(frames) - (frames - 1) / 2
    rows = scene[torch.zeros(frames, dtype=torch.int64)]
    return rows.replace(
        centre=rows.centre * 0.6 + path(time, heading, speed),
        angle=rows.angle + 0.05 * turn * time,
        pan=rows.pan + path(time, sway, speed / 2),
    )


def path(time: Tensor, direction: float, speed: float) -> Tensor:
    """Straight motion [F, 2] in a direction of -1..1 half turns, 0 in the middle of the clip."""
    angle = direction * math.pi
    return time[:, None] * speed * torch.tensor([math.cos(angle), math.sin(angle)])


def film(rows: Scene, size: int | tuple[int, int] = 128) -> Clip:
    """Draw the frames, one scene row each, with their ground truth."""
    height, width = (size, size) if isinstance(size, int) else size
    drawn = draw(rows, height, width)
    x, y = pixel_grid(height, width)
    here = torch.stack([x, y])[None]
    back_uv = here - rows.pan[:, :, None, None]
    now, later = rows[slice(0, -1)], rows[slice(1, None)]
    carried = object_points(later, object_uv(now, x[None], y[None])) - here
    panned = (later.pan - now.pan)[:, :, None, None].expand_as(carried)
    flow = torch.where(drawn.mask[:-1] > 0.5, carried, panned) * (height / 2)
    return Clip(drawn.image, drawn.mask, flow, drawn.uv, back_uv, scene_captions(rows)[0])
