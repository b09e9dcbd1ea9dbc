"""How true an atlas is on a rendered clip, whose layers' uv are known exactly."""

from __future__ import annotations

import numpy as np
import torch
from scipy.interpolate import LinearNDInterpolator
from torch import Tensor


def point_errors(uv: Tensor, truth: Tensor, member: Tensor, targets: list[int]) -> Tensor:
    """Frame -> texture -> other frame: how far a physical point lands from where it is -> [P]
    pixels.

    uv [F, H, W, 2]: the fitted layer. truth [F, 2, H, W]: where the pixel lies in the layer's own
    frame (demo/motion.py). member [F, H, W] bool: pixels that show the layer. targets: the other
    frames. Points that are outside of the other frame are left out.
    """
    frames, height, width = member.shape
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x, y], -1).reshape(-1, 2).astype(np.float64)
    errors = []
    for target in targets:
        back = LinearNDInterpolator(_rows(uv[target]), pixels)
        exact = LinearNDInterpolator(_rows(truth[target].movedim(0, -1)), pixels)
        for source in range(frames):
            if source != target and bool(member[source].any()):
                shown = member[source].flatten().numpy()
                found = back(_rows(uv[source])[shown])
                wanted = exact(_rows(truth[source].movedim(0, -1))[shown])
                errors.append(np.linalg.norm(found - wanted, axis=1))
    every = torch.from_numpy(np.concatenate(errors))
    return every[every.isfinite()].float()


def _rows(values: Tensor) -> np.ndarray:
    return values.reshape(-1, 2).double().numpy()
