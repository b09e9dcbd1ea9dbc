"""The clips that atlases are measured on, each with its masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from demo import footage
from demo.motion import Clip, random_clip

SCENES = {"scene 8 (spotted ring on checkers)": 8, "scene 16 (spotted star on clouds)": 16}
RABBIT = (
    (68, 60), (85, 48), (108, 62), (110, 82), (170, 88), (200, 85), (148, 62), (150, 50),
    (205, 58), (225, 38), (245, 42), (262, 60), (265, 35), (298, 38), (290, 70), (295, 120),
    (318, 170), (325, 240), (315, 310), (285, 370), (255, 370), (248, 345), (215, 345),
    (180, 350), (160, 300), (155, 240), (165, 180), (110, 105), (75, 95), (62, 75),
)  # fmt: skip
"""Drawn by hand on the first frame of the cut, pixels of 432."""
SWAN = (
    (0, 245), (42, 228), (101, 253), (236, 278), (228, 203), (211, 118), (206, 76), (236, 68),
    (270, 110), (253, 118), (253, 203), (290, 287), (279, 321), (203, 329), (101, 346), (0, 346),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A clip [F,3,H,W] with masks [K,H,W], of all frames or of the first one."""

    name: str
    frames: Tensor
    masks: Tensor
    truth: Clip | None = None


def drawn(outline: tuple[tuple[int, int], ...], size: int) -> Tensor:
    """[1,H,W] mask of a polygon in pixels of 432."""
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [(np.array(outline) * size / 432).round().astype(np.int32)], (1,))
    return torch.from_numpy(mask)[None].float()


def rabbit(frames: int, size: int) -> Case:
    """Real footage: the rabbit stretches; one mask drawn by hand."""
    pictures = footage.frames()[60 : 60 + frames]
    cut = footage.resized(pictures, size, size, torch.full((len(pictures),), 0.12))
    return Case("footage (rabbit)", cut, drawn(RABBIT, size))


def scene(name: str, frames: int, size: int) -> Case:
    """A rendered scene with exact masks."""
    clip = random_clip(frames, size, SCENES[name])
    return Case(name, clip.frames, clip.mask[:, 0], clip)


def swan(folder: Path, frames: int, size: int) -> Case:
    """Frames of DAVIS "blackswan" from a folder of pictures; one mask drawn by hand.

    Raises: ValueError when there are no pictures.
    """
    paths = sorted(folder.glob("*.jpg"))[:frames]
    if not paths:
        raise ValueError(f"no pictures in {folder}")
    read = [cv2.imread(str(path)) for path in paths]
    small = [
        cv2.resize(x, (size, size), interpolation=cv2.INTER_AREA) for x in read if x is not None
    ]
    clip = torch.from_numpy(np.stack(small)[..., ::-1].copy()).movedim(-1, 1).float() / 255
    return Case("swan", clip, drawn(SWAN, size))
