"""The motion of each layer between neighbouring frames: its affine motion, except where optical
flow explains the pictures clearly better.

Flow guesses where there is nothing to see, and knows nothing of what is hidden; an affine motion
that was registered over the whole clip does. Flow sees what bends.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .flow import Flow, warp

CLEARLY = (1.3, 0.004)
"""Flow is believed where affine error > flow error * first + second (mean colour difference)."""
WINDOW = 5


@dataclass(frozen=True)
class LayerMotion:
    """One layer's motion in one direction; row n belongs to frames n and n + 1."""

    flow: Tensor
    """[F-1,2,H,W] pixels."""
    believed: Tensor
    """[F-1,1,H,W] bool: take the flow here, the affine motion elsewhere."""
    affine: Tensor
    """[F-1,2,3] pixel (x, y, 1) -> pixel of the other frame."""

    def targets(self, row: Tensor, grid: Tensor, flow: Tensor, believed: Tensor) -> Tensor:
        """Where points [B,P,2] go; flow [B,P,2] and believed [B,P] were read at them."""
        linear = self.affine[row]
        straight = grid @ linear[:, :, :2].transpose(1, 2) + linear[:, None, :, 2]
        return torch.where(believed[..., None], grid + flow, straight)


def layer_motions(
    clip: Tensor, flow: Flow, to_reference: Tensor
) -> tuple[LayerMotion, LayerMotion]:
    """A layer's motion to the next frame, and to the one before.

    Args:
        clip: [F,3,H,W]. to_reference: [F,3,3] float64 of the layer.
    """
    home = torch.linalg.inv(to_reference)
    ahead = (home[1:] @ to_reference[:-1])[:, :2].float().to(clip.device)
    back = (home[:-1] @ to_reference[1:])[:, :2].float().to(clip.device)
    there = _believed(clip[:-1], clip[1:], flow.forward, flow.forward_ok, ahead)
    here = _believed(clip[1:], clip[:-1], flow.backward, flow.backward_ok, back)
    return LayerMotion(flow.forward, there, ahead), LayerMotion(flow.backward, here, back)


def _believed(
    first: Tensor, second: Tensor, flow: Tensor, usable: Tensor, affine: Tensor
) -> Tensor:
    """[F-1,1,H,W] bool."""
    found = []
    for a, b, motion, ok, linear in zip(first, second, flow, usable, affine, strict=True):
        by_flow = _difference(a, b, motion)
        by_affine = _difference(a, b, affine_flow(linear, motion.shape[1:]))
        better = by_affine > by_flow * CLEARLY[0] + CLEARLY[1]
        found.append(better & ok)
    if not found:
        return torch.zeros_like(usable[:, None])
    return torch.stack(found)


def affine_flow(linear: Tensor, size: torch.Size) -> Tensor:
    """[2,3] of (x, y, 1) -> flow [2,H,W] in pixels."""
    y, x = (torch.arange(n, device=linear.device).float() for n in size)
    down, across = torch.meshgrid(y, x, indexing="ij")
    places = torch.stack([across, down, torch.ones_like(across)])
    return torch.einsum("ij,jhw->ihw", linear, places) - places[:2]


def _difference(first: Tensor, second: Tensor, flow: Tensor) -> Tensor:
    """[1,H,W] how unlike the pictures [3,H,W] are along a flow, over a small window."""
    change = (warp(second[None], flow[None]) - first).abs().mean(1, keepdim=True)
    padded = F.pad(change, (WINDOW // 2,) * 4, mode="replicate")
    return F.avg_pool2d(padded, WINDOW, 1)[0]
