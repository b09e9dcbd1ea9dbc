"""Dense optical flow by OpenCV, and looking a picture up along it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from kornia.geometry.transform import remap
from torch import Tensor

DIS, FARNEBACK, EXACT = "DIS (medium)", "Farneback", "exact"
Estimator = Callable[[np.ndarray, np.ndarray], np.ndarray]
LEAST_SIDE = 16
"""Pixels below which OpenCV's estimators give up or return nonsense."""


def bytes_of(frames: Tensor) -> np.ndarray:
    """Frames [F,H,W,3] in 0..1 as uint8, rounded: what a video file would hold."""
    return (frames[..., :3].detach().float().cpu().clamp(0, 1) * 255).round().byte().numpy()


def grey(picture: np.ndarray) -> np.ndarray:
    """uint8 RGB [H,W,3] -> uint8 [H,W]."""
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


def dis_flow(first: np.ndarray, second: np.ndarray, full_size: bool = False) -> np.ndarray:
    """Where each pixel of `first` moves in `second`: [H,W,2] float32 (x, y) in pixels.

    Kroeger et al. 2016 (dense inverse search), OpenCV's medium preset.

    Args:
        first, second: uint8, RGB [H,W,3] or grey [H,W].
        full_size: search at full instead of half resolution: for very small pictures.
    """
    # One object per pair: it starts from its last result when it is used again.
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    if full_size:
        search.setFinestScale(0)
    one, other = (picture if picture.ndim == 2 else grey(picture) for picture in (first, second))
    return search.calc(one, other, np.zeros((*first.shape[:2], 2), np.float32))


def farneback_flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """As `dis_flow`, by Farneback 2003 with the numbers of EditBoard and StableVideo: pyramid 0.5
    of 3 levels, window 15, 3 iterations, neighbourhood 5, sigma 1.2."""
    blank = np.zeros((*first.shape[:2], 2), np.float32)
    return cv2.calcOpticalFlowFarneback(grey(first), grey(second), blank, 0.5, 3, 15, 3, 5, 1.2, 0)


def look_up(picture: np.ndarray, motion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A picture read bilinearly at x + motion(x), by kornia (OpenCV before 5 rounds to 1/32 pixel).

    Args:
        picture: [H,W,C] float32.
        motion: [H,W,2] float32 (x, y) in pixels.

    Returns: the picture as it is seen from the pixels of `motion`, and inside [H,W] bool: where
    that place lies in the picture (border values are repeated outside).
    """
    height, width = motion.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    x, y = x + motion[..., 0], y + motion[..., 1]
    rows = torch.from_numpy(picture).movedim(-1, 0)[None]
    across, down = torch.from_numpy(x)[None], torch.from_numpy(y)[None]
    seen = remap(rows, across, down, padding_mode="border", align_corners=True)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return seen[0].movedim(0, -1).numpy(), inside


def unoccluded(forth: np.ndarray, back: np.ndarray) -> np.ndarray:
    """[H,W] bool: where the motion to the other frame and back again ends near its start.

    |f + f'|^2 <= 0.01 (|f|^2 + |f'|^2) + 0.5 with f' read at x + f (Sundaram et al. 2010, as in
    Lai et al. 2018, section 3.4), and x + f inside the picture.
    """
    returned, inside = look_up(back, forth)
    apart = np.square(forth + returned).sum(-1)
    length = np.square(forth).sum(-1) + np.square(returned).sum(-1)
    return inside & (apart <= 0.01 * length + 0.5)


@dataclass(frozen=True)
class Footage:
    """A clip as uint8 RGB [F,H,W,3] and its motions, each estimated once, when it is asked for."""

    frames: np.ndarray
    check: Callable[[], None] = lambda: None
    """Called before every estimate; it may raise to stop."""

    @cached_property
    def forth(self) -> list[np.ndarray]:
        """DIS from each frame to the next."""
        return [self._estimated(dis_flow, a, b) for a, b in self.pairs]

    @cached_property
    def back(self) -> list[np.ndarray]:
        """DIS from each frame to the one before: [i] leads from i+1 to i."""
        return [self._estimated(dis_flow, b, a) for a, b in self.pairs]

    @cached_property
    def farneback(self) -> list[np.ndarray]:
        """Farneback from each frame to the next."""
        return [self._estimated(farneback_flow, a, b) for a, b in self.pairs]

    @property
    def pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return list(zip(self.frames[:-1], self.frames[1:], strict=True))

    def _estimated(self, estimate: Estimator, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        self.check()
        return estimate(first, second)
