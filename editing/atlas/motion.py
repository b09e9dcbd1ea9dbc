"""Where a layer lies in every frame, in closed form: affine motions, chained to one frame."""

from __future__ import annotations

import torch
from torch import Tensor

from .flow import Flow

MOST_POINTS = 4000
FEWEST_POINTS = 24
ROUNDS = 6
"""Re-weighted least-squares rounds of one fit."""


def robust_affine(source: Tensor, target: Tensor) -> Tensor:
    """The affine motion that most points share: iteratively re-weighted least squares.

    Args:
        source, target: [P,2] float64 pixels.

    Returns: [3,3] float64 with target = M @ (x, y, 1).
    """
    centre = source.mean(0)
    spread = (source - centre).abs().max().clamp_min(1.0)
    design = torch.cat([(source - centre) / spread, torch.ones_like(source[:, :1])], 1)
    weight = torch.ones_like(design[:, :1])
    found = design.new_zeros(3, 2)
    for _ in range(ROUNDS):
        normal = design.T @ (design * weight) + 1e-6 * torch.eye(3, dtype=design.dtype)
        found = torch.linalg.solve(normal, design.T @ (target * weight))
        miss = (design @ found - target).norm(dim=1, keepdim=True)
        weight = 1 / miss.clamp_min(0.3)
    linear = found[:2].T / spread
    matrix = torch.eye(3, dtype=design.dtype)
    matrix[:2, :2] = linear
    matrix[:2, 2] = found[2] - linear @ centre
    return matrix


def step_motion(flow: Tensor, usable: Tensor) -> Tensor | None:
    """The affine motion of the usable pixels, None where there is none to be trusted.

    Args:
        flow: [2,H,W] pixels. usable: [H,W] bool.
    """
    y, x = usable.nonzero(as_tuple=True)
    if len(y) < FEWEST_POINTS:
        return None
    every = -(-len(y) // MOST_POINTS)
    y, x = y[::every], x[::every]
    source = torch.stack([x, y], 1).double()
    found = robust_affine(source, source + flow[:, y, x].T.double())
    scales = torch.linalg.svdvals(found[:2, :2])
    # neighbouring frames are alike: anything else is a cut or a flow that lost the layer
    believable = bool(scales.min() > 0.7) and bool(scales.max() < 1.4)
    return found if believable and bool(torch.isfinite(found).all()) else None


def chained(flow: Flow, member: Tensor) -> Tensor:
    """Every frame's motion to the layer's reference frame.

    A frame where the layer cannot be seen takes its neighbour's.

    Args:
        member: [F,H,W] bool, the pixels that surely belong to the layer.

    Returns: [F,3,3] float64: pixel (x, y, 1) -> pixel of the reference frame.
    """
    frames = len(member)
    forward, backward = flow.forward.cpu(), flow.backward.cpu()
    ok, ok_back = flow.forward_ok.cpu(), flow.backward_ok.cpu()
    seen = [index for index in range(frames) if int(member[index].sum()) >= FEWEST_POINTS]
    middle = frames // 2
    reference = min(seen, key=lambda index: abs(index - middle)) if seen else middle
    to_reference = torch.eye(3, dtype=torch.float64).repeat(frames, 1, 1)
    for index in range(reference + 1, frames):
        step = step_motion(backward[index - 1], member[index] & ok_back[index - 1])
        before = to_reference[index - 1]
        to_reference[index] = before if step is None else before @ step
    for index in range(reference - 1, -1, -1):
        step = step_motion(forward[index], member[index] & ok[index])
        after = to_reference[index + 1]
        to_reference[index] = after if step is None else after @ step
    return to_reference


def used_area(to_reference: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """The box of the reference frame that a layer's pixels fall into.

    Args:
        to_reference: [F,3,3]. used: [F,H,W] bool.

    Returns: centre [2] and half size [2] in pixels, with 8 % to spare and at least 4 pixels.
    """
    low, high = [], []
    for matrix, pixels in zip(to_reference, used, strict=True):
        y, x = pixels.nonzero(as_tuple=True)
        if len(y):
            places = torch.stack([x, y, torch.ones_like(x)]).double()
            moved = (matrix @ places)[:2]
            low.append(moved.amin(1))
            high.append(moved.amax(1))
    if not low:
        height, width = used.shape[1:]
        low, high = [torch.zeros(2).double()], [torch.tensor([width, height]).double()]
    lowest, highest = torch.stack(low).amin(0), torch.stack(high).amax(0)
    half = ((highest - lowest) / 2 / 0.92).clamp_min(4.0)
    return ((lowest + highest) / 2).float(), half.float()
