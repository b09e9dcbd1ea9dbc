"""What one gradient step of a fit sees and minimizes: patches of some frames, and the weighted
terms of losses.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import losses
from .explicit import FittedLayer, opacity, stacked, visible
from .flow import Flow
from .layered_flow import LayerMotion

SOFT = 0.2
"""Pixels on the texture: a point this near to where the flow puts it is in its place."""
PATCH = 9
"""Pixels along a side of a sampled square."""


@dataclass
class Problem:
    """What the layers have to explain."""

    clip: Tensor
    """[F,3,H,W] 0..1."""
    masks: list[Tensor]
    """[F,1,H,W] rough alpha of every layer but the last, front to back."""
    flow: Flow
    considered: Tensor | None = None
    """[F,1,H,W] 0 where a pixel is nobody's; None: all count."""


@dataclass(frozen=True)
class Sample:
    """Points of one step: patches of some frames."""

    frames: Tensor
    """[B] int64."""
    rows: Tensor
    """[B,K,P,P] int64."""
    columns: Tensor

    @property
    def grid(self) -> Tensor:
        """[B,K*P*P,2] pixels (x, y)."""
        return torch.stack([self.columns, self.rows], -1).flatten(1, 3).float()

    def of(self, values: Tensor) -> Tensor:
        """[F,C,H,W] at the points -> [C,B,K,P,P]."""
        chosen = self.frames.view(-1, 1, 1, 1)
        return values[chosen, :, self.rows, self.columns].movedim(-1, 0)


def sample(clip: Tensor, count: int, patches: int, seed: int) -> Sample:
    """`patches` squares of `count` frames of the clip [F,3,H,W]: a function of the seed."""
    frames, _, height, width = clip.shape
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(frames, generator=generator)[:count]
    side = (min(PATCH, height), min(PATCH, width))
    corners = []
    for whole, part in zip((height, width), side, strict=True):
        # patches that would stick out are pushed in, so that the border is not neglected
        drawn = torch.rand(len(chosen), patches, generator=generator)
        start = (drawn * (whole + 1)).long() - part // 2
        corners.append(start.clamp(0, whole - part)[..., None, None])
    rows = (corners[0] + torch.arange(side[0])[:, None]).expand(-1, -1, *side)
    columns = (corners[1] + torch.arange(side[1])).expand(-1, -1, *side)
    return Sample(*(x.to(clip.device) for x in (chosen, rows, columns)))


class Objective:
    """The loss of one step.

    Args:
        motions: per layer, to the next frame and to the one before.
    """

    def __init__(
        self,
        problem: Problem,
        layers: list[FittedLayer],
        motions: list[tuple[LayerMotion, LayerMotion]],
    ) -> None:
        self.problem, self.layers, self.motions = problem, layers, motions
        _, _, self.height, self.width = problem.clip.shape
        self.longest = max(self.height, self.width)
        self._size = [self.width, self.height]
        self.clip = problem.clip
        self.trust = [far_from_edge(mask) for mask in problem.masks]

    def __call__(self, points: Sample, progress: float, forward: bool) -> Tensor:
        nodes = [layer.nodes(points.frames) for layer in self.layers]
        places = self._places(torch.cat(nodes, 1), points.grid)
        logits = [self._logits(points.frames, n, points.grid) for n in range(len(nodes) - 1)]
        alphas = [opacity(x) for x in logits]
        shape = points.rows.shape
        colours = [
            layer.colours(layer.uv(place)) for layer, place in zip(self.layers, places, strict=True)
        ]
        picture = stacked(colours, alphas)
        loss = self._appearance(points, picture.unflatten(2, shape[1:]))
        for number, logit in enumerate(logits):
            mask = points.of(self.problem.masks[number])[0].flatten(1)
            sure = points.of(self.trust[number])[0].flatten(1)
            late = entropy_weight(progress)
            weight = torch.maximum(late * torch.ones_like(sure), 0.3 * sure)
            loss = loss + losses.cross_entropy(logit.sigmoid() * 0.99 + 0.001, mask, weight)
        loss = loss + self._shape(nodes, progress)
        return loss + self._motion(points, places, alphas, forward)

    def _places(self, nodes: Tensor, grid: Tensor) -> list[Tensor]:
        """Where points [B,P,2] lie on every layer: [B,P,2] pixels of its reference frame."""
        found = F.grid_sample(nodes, self._normal(grid), padding_mode="border", align_corners=True)[
            ..., 0
        ]
        return list(found.movedim(1, -1).split(2, -1))

    def _logits(self, frames: Tensor, number: int, grid: Tensor) -> Tensor:
        """[B,P] of a layer's alpha."""
        logits = self.layers[number].logits
        assert logits is not None
        found = F.grid_sample(
            logits[frames], self._normal(grid), padding_mode="border", align_corners=True
        )
        return found[:, 0, :, 0]

    def _normal(self, grid: Tensor) -> Tensor:
        """Pixels [B,P,2] -> [B,P,1,2] in -1..1 from the first to the last pixel."""
        limits = grid.new_tensor([max(1, self.width - 1), max(1, self.height - 1)])
        return (grid * (2 / limits) - 1)[:, :, None]

    def _appearance(self, points: Sample, picture: Tensor) -> Tensor:
        wanted = points.of(self.clip)
        if self.problem.considered is not None:
            use = points.of(self.problem.considered)
            picture, wanted = picture * use, wanted * use
        drawn, asked = (
            [x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]] for x in (picture, wanted)
        )
        return 5 * losses.colour(picture, wanted) + losses.gradient(drawn, asked)

    def _shape(self, nodes: list[Tensor], progress: float) -> Tensor:
        """Rigidity from node to node and, in the beginning, over longer ways."""
        rows, columns = nodes[0].shape[2:]
        total = nodes[0].new_zeros(())
        for number, place in enumerate(nodes):
            total = total + 0.001 * self._rigidity(place, 1, 1)
            if progress < 0.15:
                wide = 100 * self.longest / 768
                down = min(rows - 1, max(1, round(wide * (rows - 1) / self.height)))
                across = min(columns - 1, max(1, round(wide * (columns - 1) / self.width)))
                weight = 0.05 if number == len(nodes) - 1 else 0.005
                total = total + weight * self._rigidity(place, down, across)
        return total

    def _rigidity(self, place: Tensor, down: int, across: int) -> Tensor:
        rows, columns = place.shape[2:]
        cell_y = down * max(1, self.height - 1) / (rows - 1)
        cell_x = across * max(1, self.width - 1) / (columns - 1)
        step_x = (place[:, :, down:, across:] - place[:, :, down:, :-across]) / cell_x
        step_y = (place[:, :, down:, across:] - place[:, :, :-down, across:]) / cell_y
        return losses.rigidity(step_x.movedim(1, -1), step_y.movedim(1, -1))

    def _motion(
        self, points: Sample, places: list[Tensor], alphas: list[Tensor], forward: bool
    ) -> Tensor:
        """A point keeps its place on its layer from frame to frame, and the layer's alpha."""
        total = places[0].new_zeros(())
        if len(self.clip) == 1:
            return total
        every = (slice(None), slice(None), slice(None, None, 2), slice(None, None, 2))
        other = points.frames + (1 if forward else -1)
        inside = ((other >= 0) & (other < len(self.clip)))[:, None]
        row = (points.frames if forward else other).clamp(0, len(self.clip) - 2)
        thin = Sample(row, points.rows[every], points.columns[every])
        other = other.clamp(0, len(self.clip) - 1)
        shown = [_thinned(x[..., None], points.rows.shape, every)[..., 0] for x in alphas]
        shares = visible([x.detach() for x in shown]) or [torch.ones_like(thin.grid[..., 0])]
        for number, layer in enumerate(self.layers):
            target = self._target(thin, self.motions[number][0 if forward else 1])
            trust = (inside & self._in_picture(target)).float()
            (there,) = self._places(layer.nodes(other), target)
            here = _thinned(places[number], points.rows.shape, every)
            weight = trust * shares[number]
            lost = losses.carried(there, here, weight, trust.numel(), soft=SOFT)
            total = total + 0.01 * (768 / self.longest) * lost
            if number < len(shown):
                moved = opacity(self._logits(other, number, target))
                total = total + 0.05 * ((moved - shown[number]).abs() * trust).mean()
        return total

    def _target(self, thin: Sample, motion: LayerMotion) -> Tensor:
        """[B,P,2] where the points go; thin.frames are rows of the motion."""
        flow = thin.of(motion.flow).flatten(2).movedim(0, -1)
        believed = thin.of(motion.believed)[0].flatten(1)
        return motion.targets(thin.frames, thin.grid, flow, believed)

    def _in_picture(self, target: Tensor) -> Tensor:
        """[B,P] bool."""
        return (target > -0.5).all(-1) & (target < target.new_tensor(self._size) - 0.5).all(-1)


def _thinned(values: Tensor, shape: torch.Size, every: tuple[slice, ...]) -> Tensor:
    """[B,K*P*P,C] at every second row and column of the patches."""
    return values.unflatten(1, shape[1:])[every].flatten(1, 3)


def entropy_weight(progress: float) -> float:
    """How much alpha has to be the mask: firmly at first, hardly from the middle on."""
    return 2.0 if progress < 0.2 else max(0.02, 2.0 * (1 - (progress - 0.2) / 0.3))


def far_from_edge(mask: Tensor) -> Tensor:
    """[F,1,H,W] float: 1 where the mask [F,1,H,W] has no edge nearby and can be believed."""
    reach = 2 * max(2, round(max(mask.shape[2:]) / 48)) + 1
    high = F.max_pool2d(mask, reach, 1, reach // 2)
    low = -F.max_pool2d(-mask, reach, 1, reach // 2)
    return ((high < 0.1) | (low > 0.9)).float()
