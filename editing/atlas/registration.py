"""Affine motions made exact: every frame is laid onto the mosaic of those before it.

Motions chained from flow drift, most of all where the flow guesses. Registration against what was
already put together (Szeliski, Image Alignment and Stitching, 2006, section 4) does not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.layers import sample_texture, splat_to_texture
from .motion import FEWEST_POINTS, used_area

LONGEST = 144
"""Pixels: larger frames are registered at this size."""
ROUNDS = 8
"""Gauss-Newton rounds per blur."""
MOST_POINTS = 6000
"""Pixels of a frame that are compared."""
SOFT = 0.03
"""Colour differences beyond this count less (robust weights)."""


class Mosaic:
    """The running mean of registered frames, on the canvas of a layer's reference frame."""

    def __init__(self, area: tuple[Tensor, Tensor], channels: int) -> None:
        self.centre, self.half = (part.double() for part in area)
        size = (self.half * 2).ceil().clamp(8, 2048).int().tolist()
        self.size = (size[1], size[0])
        self.total = torch.zeros(channels, *self.size)
        self.coverage = torch.zeros(1, *self.size)

    def uv(self, places: Tensor) -> Tensor:
        """[P,2] pixels of the reference frame -> [1,P,1,2]."""
        return ((places - self.centre) / self.half).float()[None, :, None]

    def add(self, colours: Tensor, places: Tensor) -> None:
        """Colours [C,P] at places [P,2]."""
        mean, seen = splat_to_texture(colours[None, :, :, None], self.uv(places), self.size)
        self.total += mean * seen
        self.coverage += seen

    def blurred(self, width: int) -> Tensor:
        """[C+1,V,U]: colours, blurred over what is covered, and 1 where there are any."""
        total, coverage = _box(self.total, width), _box(self.coverage, width)
        known = self.coverage > 0.05
        return torch.cat([total / coverage.clamp_min(1e-3), known.float()])


def registered(clip: Tensor, to_reference: Tensor, member: Tensor) -> Tensor:
    """Motions to the reference frame, refined from those that flow gave.

    Args:
        clip: [F,3,H,W]. to_reference: [F,3,3] float64. member: [F,H,W] bool, the pixels that
            surely belong to the layer.

    Returns: [F,3,3] float64. A frame in which the layer is hardly seen keeps its motion relative
    to its neighbour.
    """
    scale = min(1.0, LONGEST / max(clip.shape[2:]))
    frames, seen, grow = _reduced(clip.cpu(), member.cpu(), scale)
    motions = torch.linalg.inv(grow) @ to_reference @ grow
    start = motions.clone()
    reference = _reference(seen, motions)
    mosaic = Mosaic(used_area(motions, seen), frames.shape[1])
    mosaic.half *= 1.2  # room for what registration moves outwards
    places = [_pixels(pixels) for pixels in seen]
    colours = [frame[:, pixels] for frame, pixels in zip(frames, seen, strict=True)]
    mosaic.add(colours[reference], moved(motions[reference], places[reference]))
    ahead = range(reference + 1, len(clip))
    for order, before in ((ahead, -1), (range(reference - 1, -1, -1), 1)):
        for index in order:
            neighbour = index + before
            change = torch.linalg.inv(start[neighbour]) @ start[index]
            motions[index] = motions[neighbour] @ change
            if len(places[index]) >= FEWEST_POINTS:
                motions[index] = align(mosaic, frames[index], seen[index], motions[index])
                mosaic.add(colours[index], moved(motions[index], places[index]))
    return grow @ motions @ torch.linalg.inv(grow)


def align(mosaic: Mosaic, frame: Tensor, pixels: Tensor, motion: Tensor) -> Tensor:
    """One frame's motion, by Gauss-Newton on colour differences, coarse to fine.

    Args:
        frame: [C,H,W]. pixels: [H,W] bool. motion: [3,3] where to begin.

    Returns: [3,3]; `motion` itself where nothing fits better.
    """
    every = -(-int(pixels.sum()) // MOST_POINTS)
    places, found = _pixels(pixels)[::every], motion
    for width in (7, 3, 1):
        canvas = mosaic.blurred(width)
        mean = _box(frame * pixels, width) / _box(pixels[None].float(), width).clamp_min(1e-3)
        wanted = mean[:, pixels][:, ::every]
        better = _gauss_newton(mosaic, canvas, wanted, places, found)
        begun, ended = (_misfit(mosaic, canvas, wanted, places, x) for x in (found, better))
        found = better if ended < begun else found
    return found


def moved(motion: Tensor, places: Tensor) -> Tensor:
    """[3,3] applied to [P,2]."""
    return places @ motion[:2, :2].T + motion[:2, 2]


def _gauss_newton(
    mosaic: Mosaic, canvas: Tensor, wanted: Tensor, places: Tensor, motion: Tensor
) -> Tensor:
    middle, spread = places.mean(0), (places - places.mean(0)).abs().amax().clamp_min(1.0)
    design = torch.cat([(places - middle) / spread, torch.ones_like(places[:, :1])], 1)
    slopes = torch.cat([_slope(canvas[:-1], 2), _slope(canvas[:-1], 1), canvas])
    for _ in range(ROUNDS):
        read = sample_texture(slopes, mosaic.uv(moved(motion, places)))[0, :, :, 0].double()
        across, down, colours = read[:-1].split(len(wanted))
        miss = wanted - colours
        trust = read[-1] / miss.abs().amax(0).clamp_min(SOFT)
        # a colour's derivative by the motion is its slope in x times (x, y, 1), then that in y
        products = (across * across, across * down, down * down)
        xx, xy, yy = (design.T @ (design * (part.sum(0) * trust)[:, None]) for part in products)
        normal = torch.cat([torch.cat([xx, xy], 1), torch.cat([xy, yy], 1)])
        normal += 1e-3 * normal.diagonal().mean().clamp_min(1e-9) * torch.eye(6).double()
        sides = [design.T @ ((slope * miss).sum(0) * trust) for slope in (across, down)]
        step = torch.linalg.solve(normal, torch.cat(sides)).view(2, 3)
        change = torch.zeros(3, 3).double()
        change[:2, :2] = step[:, :2] / spread
        change[:2, 2] = step[:, 2] - change[:2, :2] @ middle
        motion = motion + change
        if float(step.abs().max()) < 0.02:
            break
    return motion


def _misfit(
    mosaic: Mosaic, canvas: Tensor, wanted: Tensor, places: Tensor, motion: Tensor
) -> float:
    """Mean robust colour difference; missing overlap counts as a bad fit."""
    read = sample_texture(canvas, mosaic.uv(moved(motion, places)))[0, :, :, 0]
    miss = (wanted - read[:-1]).abs().amax(0).clamp(max=5 * SOFT)
    return float(torch.where(read[-1] > 0.5, miss, 3 * SOFT).mean())


def _reduced(clip: Tensor, member: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Frames and members at registration size, and the matrix from there to clip pixels."""
    grow = torch.eye(3).double()
    if scale == 1.0:
        return clip, member, grow
    size = [max(8, round(n * scale)) for n in clip.shape[2:]]
    small = F.interpolate(clip, size, mode="area")
    seen = F.interpolate(member[:, None].float(), size, mode="area")[:, 0] > 0.99
    for axis, n in ((0, 3), (1, 2)):
        ratio = clip.shape[n] / size[n - 2]
        grow[axis, axis], grow[axis, 2] = ratio, (ratio - 1) / 2
    return small, seen, grow


def _reference(seen: Tensor, motions: Tensor) -> int:
    """The frame that lies where it is."""
    still = (motions - torch.eye(3).double()).abs().amax((1, 2)) < 1e-9
    able = [n for n in range(len(seen)) if still[n] and int(seen[n].sum()) >= FEWEST_POINTS]
    return able[len(able) // 2] if able else len(seen) // 2


def _pixels(chosen: Tensor) -> Tensor:
    """[P,2] float64 (x, y) of the chosen pixels."""
    y, x = chosen.nonzero(as_tuple=True)
    return torch.stack([x, y], 1).double()


def _slope(values: Tensor, axis: int) -> Tensor:
    """Central differences [C,V,U] along an axis, per pixel."""
    return torch.gradient(values, dim=axis)[0]


def _box(values: Tensor, width: int) -> Tensor:
    """Mean over width x width; what lies outside is 0."""
    if width == 1:
        return values
    return F.avg_pool2d(values[None], width, 1, width // 2)[0]
