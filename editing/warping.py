"""Where the points of a frame are in another frame: along optical flow, or along an NN field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .flow import bytes_of, dis_flow, unoccluded
from .types import NNField


class Warp(Protocol):
    """Brings each frame's target to where the frame's own points are."""

    def check_clip(self, node: str, frames: int) -> None:
        """Raises: ValueError when it was made for another clip."""
        ...

    def follow(self, targets: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """targets [F,C,h,w] (row f = what frame f is pulled to) at step `position` of the
        source -> (the same, moved onto frame f's points, seen [F,1,h,w] in 0..1)."""
        ...


@dataclass(frozen=True)
class FlowWarp:
    """Along optical flow."""

    flow: Tensor
    """[F,2,H,W] pixels (x, y) from frame f to the frame that it is pulled to."""
    seen: Tensor
    """[F,1,H,W] in 0..1: 1 where that point is visible there."""

    def check_clip(self, node: str, frames: int) -> None:
        if len(self.flow) != frames:
            raise ValueError(
                f"{node}: expected 'source_frames' to hold the clip's {frames} frames, got "
                f"{len(self.flow)}. Connect the pictures that were encoded for this clip."
            )

    def follow(self, targets: Tensor, position: int) -> tuple[Tensor, Tensor]:
        height, width = targets.shape[-2:]
        scale = targets.new_tensor([width / self.flow.shape[-1], height / self.flow.shape[-2]])
        # where they are, on the CPU: Apple's GPUs take the mean of whole numbers of pixels only
        flow = F.interpolate(self.flow, (height, width), mode="area").to(targets)
        seen = F.interpolate(self.seen, (height, width), mode="area").to(targets)
        x, y = torch.arange(width).to(targets), torch.arange(height).to(targets)
        across, down = torch.meshgrid(x, y, indexing="xy")
        there = torch.stack([across, down], -1) + flow.movedim(1, -1) * scale
        size = targets.new_tensor([width, height])
        grid = (there + 0.5) / size * 2 - 1
        inside = (grid.abs() <= 1).all(-1)[:, None]
        # Apple's GPUs lack padding_mode="border" in older PyTorch; this is what it does.
        grid = grid.clamp((1 / size - 1), (1 - 1 / size))
        moved = F.grid_sample(targets, grid, align_corners=False)
        return moved, seen * inside


def flow_between(frames: Tensor, targets: Tensor, check: Callable[[], None]) -> FlowWarp:
    """Optical flow (OpenCV DIS) from each frame to the one that it is pulled to.

    Args:
        frames: [F,H,W,3] the source clip, 0..1. targets: [F] int64 frame numbers, -1 = none.
        check: called before every pair; it may raise to stop.
    """
    pictures = bytes_of(frames)
    flow = torch.zeros(len(frames), 2, *frames.shape[1:3])
    seen = torch.zeros(len(frames), 1, *frames.shape[1:3])
    for f, target in enumerate(targets.tolist()):
        if target < 0:
            continue
        check()
        forth = dis_flow(pictures[f], pictures[target])
        back = dis_flow(pictures[target], pictures[f])
        flow[f] = torch.from_numpy(forth).movedim(-1, 0)
        seen[f, 0] = torch.from_numpy(unoccluded(forth, back)).float()
    return FlowWarp(flow, seen)


@dataclass(frozen=True)
class FieldWarp:
    """Along a nearest-neighbour field: two frames' tokens meet in a token of their key frame."""

    field: NNField

    def check_clip(self, node: str, frames: int) -> None:
        if self.field.frames != frames:
            raise ValueError(
                f"{node}: the clip has {frames} frames, the nearest-neighbour field "
                f"{self.field.frames}. Make the field from the same clip, or disconnect it."
            )

    def follow(self, targets: Tensor, position: int) -> tuple[Tensor, Tensor]:
        size = tuple(targets.shape[-2:])
        step = min(self.field.steps, key=lambda known: abs(known - position))
        site = max(self.field.grids, key=lambda known: self.field.grids[known][0])
        index = self.field.index[site, step].long()
        pairs = [previous_tokens(index, self.field.neighbours[step], f) for f in range(len(index))]
        token = torch.stack(pairs).to(targets.device)
        grid = self.field.grids[site]
        small = targets if grid == size else F.interpolate(targets, grid, mode="area")
        rows = token.clamp(min=0)[:, None].expand(-1, small.shape[1], -1)
        moved = small.flatten(2).gather(2, rows).unflatten(2, grid)
        seen = (token >= 0).to(targets).view(len(token), 1, *grid)
        if grid == size:
            return moved, seen
        return F.interpolate(moved, size, mode="nearest"), F.interpolate(seen, size, mode="area")


def previous_tokens(index: Tensor, neighbours: Tensor, frame: int) -> Tensor:
    """Which token of frame f-1 shows what each token of frame f shows.

    Args:
        index: [F,R,L] int64 matched key-frame tokens. neighbours: [F,R] the key frames.

    Returns: [L] int64, -1 where the two frames share no key frame or no token there.
    """
    tokens = index.shape[-1]
    nothing = torch.full((tokens,), -1)
    if frame == 0:
        return nothing
    now, before = neighbours[frame].tolist(), neighbours[frame - 1].tolist()
    shared = [(r, before.index(key)) for r, key in enumerate(now) if key in before]
    if not shared:
        return nothing
    mine, theirs = shared[0]
    # the first of several tokens that match the same key token
    first = torch.full((int(index.max()) + 1,), tokens)
    own = torch.arange(tokens)
    first.scatter_reduce_(0, index[frame - 1, theirs], own, "amin")
    found = first[index[frame, mine]]
    return torch.where(found < tokens, found, -1)
